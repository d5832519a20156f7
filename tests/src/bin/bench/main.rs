//! The bench: tern beside QEMU's microvm, on the same guests, on this host, in the same run and in turns.
//!
//! ```text
//! plan                what is measured, with what, and how turns are taken
//! contender           both VMMs as processes: command lines, control sockets
//! start_up            exec to first instruction, to pulse, to Linux   (first_instruction)
//! footprint           memory of the process                           (accounting)
//! migration           pulse moves: idle, rewriting, capped, at rest   (pulse_lines, accounting)
//!                     and what the proof of equality and TLS cost
//! postcopy            pulse moves before all of its memory is there
//! channels            as fast as it goes, over one connection and two       (chain, way, bound)
//! link                each encoding over 1 Gbit/s and 100 Mbit/s
//! deltas              XBZRLE under a limit
//! answers             how soon a destination answers while a guest arrives
//! cancels             how soon a cancel is carried out with a peer that stands still
//! cap                 how exact the bandwidth limit is
//! state               the stop's part that is neither memory nor link, for machines of several sizes
//! saving, restoring   pulse into a file, beside dd; from a file to its first instruction
//! engine              parts of tern's engine alone
//! interrupt           Ctrl-C
//! statistics, table   medians, ratios, aims; a table and JSON
//! ```
//!
//! Nothing is asserted: aims stand beside the figures. A guest that complains or a VMM that fails ends the bench.

mod accounting;
mod answers;
mod bound;
mod cancels;
mod cap;
mod chain;
mod channels;
mod contender;
mod deltas;
mod engine;
mod first_instruction;
mod footprint;
mod interrupt;
mod link;
mod migration;
mod plan;
mod postcopy;
mod pulse_lines;
mod restoring;
mod saving;
mod start_up;
mod state;
mod statistics;
mod table;
mod way;

use std::io;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::sync::Arc;

use clap::Parser;
use serde_json::{Value, json};

use contender::Programs;
use plan::{Plan, Transport};
use table::Group;

/// Measures tern beside QEMU, and prints a table
#[derive(Debug, Parser)]
struct Arguments {
    /// Runs of each figure and VMM
    #[arg(long, default_value_t = 20, value_parser = at_least_one)]
    runs: usize,
    /// Runs of what takes long (boot of Linux, throughput) [default: a fifth of --runs, at least 3]
    #[arg(long, value_parser = at_least_one)]
    slow_runs: Option<usize>,
    /// Only these groups
    #[arg(long, value_delimiter = ',', value_parser = GROUPS)]
    only: Vec<String>,
    /// How memory moves between the two processes
    #[arg(long, value_enum, default_value = "unix")]
    transport: Transport,
    /// Image that is booted for the boot time; skipped if it isn't built
    #[arg(long, default_value = "linux")]
    image: String,
    /// tern [default: the one built beside this program]
    #[arg(long)]
    tern: Option<PathBuf>,
    /// QEMU
    #[arg(long, default_value = "qemu-system-x86_64")]
    qemu: PathBuf,
    /// Where all figures are written
    #[arg(long, default_value = "target/bench.json")]
    json: PathBuf,
    /// Folder on a disk with 10 GiB to spare, in which guests are saved
    #[arg(long, default_value = "target")]
    disk: PathBuf,
}

const GROUPS: [&str; 23] = [
    "start-up",
    "overhead",
    "engine",
    "boot",
    "idle",
    "rewriting",
    "capped",
    "throughput",
    "postcopy",
    "channel",
    "channels",
    "link-1g",
    "link-100m",
    "xbzrle",
    "proof",
    "tls",
    "answers",
    "limit",
    "cancel",
    "state",
    "save",
    "save-disk",
    "restore",
];

fn at_least_one(text: &str) -> Result<usize, String> {
    let runs = text.parse().map_err(|_| format!("{text:?} is not a number"))?;
    if runs == 0 { Err("0 runs have no median".to_owned()) } else { Ok(runs) }
}

fn main() -> ExitCode {
    match bench(&Arguments::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("bench: {error}");
            ExitCode::FAILURE
        }
    }
}

fn bench(arguments: &Arguments) -> io::Result<()> {
    interrupt::listen()?;
    let plan = make_plan(arguments)?;
    let host = describe_host(&plan)?;
    println!("{}\n", heading(&host, &plan));
    let mut groups = Vec::new();
    for name in GROUPS {
        if arguments.only.is_empty() || arguments.only.iter().any(|only| only == name) {
            match measure(&plan, name, &arguments.image)? {
                Some(group) => {
                    println!("{}", group.to_table());
                    groups.push(group.to_json());
                    // After each group: a bench that is interrupted has measured something.
                    write_json(
                        &arguments.json,
                        &json!({ "host": host, "runs": plan.runs, "groups": groups }),
                    )?;
                }
                None => println!("{name}: not measured, {}\n", missing(name, &arguments.image)),
            }
        }
    }
    println!("All runs: {}", arguments.json.display());
    Ok(())
}

fn measure(plan: &Plan, name: &str, image: &str) -> io::Result<Option<Group>> {
    let scenario = migration::SCENARIOS.iter().find(|scenario| scenario.name == name);
    match (name, scenario) {
        (_, Some(scenario)) => migration::measure(plan, scenario).map(Some),
        ("start-up", _) => start_up::bare(plan).map(Some),
        ("overhead", _) => footprint::measure(plan).map(Some),
        ("engine", _) => Ok(Some(engine::measure(plan))),
        ("boot", _) => start_up::linux(plan, image),
        ("postcopy", _) => postcopy::measure(plan).map(Some),
        ("channel", _) => channels::one(plan).map(Some),
        ("channels", _) => channels::two(plan).map(Some),
        ("link-1g", _) => link::measure(plan, &link::SCENARIOS[0]),
        ("link-100m", _) => link::measure(plan, &link::SCENARIOS[1]),
        ("xbzrle", _) => deltas::measure(plan).map(Some),
        ("proof", _) => migration::proof(plan).map(Some),
        ("tls", _) => migration::tls(plan).map(Some),
        ("answers", _) => answers::measure(plan).map(Some),
        ("cancel", _) => cancels::measure(plan).map(Some),
        ("limit", _) => cap::measure(plan).map(Some),
        ("state", _) => state::measure(plan),
        ("save", _) => saving::in_memory(plan),
        ("save-disk", _) => saving::on_disk(plan).map(Some),
        ("restore", _) => restoring::measure(plan).map(Some),
        _ => Err(io::Error::other(format!("there is no group {name}"))),
    }
}

/// What a group needs and there isn't.
fn missing(name: &str, image: &str) -> String {
    match name {
        "boot" => format!("the image {image} is not built"),
        "save" => format!("there is no {}", saving::MEMORY),
        _ => "it needs root, for a network of its own".to_owned(),
    }
}

fn make_plan(arguments: &Arguments) -> io::Result<Plan> {
    let folder = tempfile::Builder::new().prefix("tern-bench").tempdir()?;
    std::fs::create_dir_all(&arguments.disk)?;
    let pulse = folder.path().join("pulse");
    std::fs::write(&pulse, tern_guest_images::PULSE)?;
    let tern = arguments.tern.clone().unwrap_or_else(tern_tests::binary::tern_binary);
    Ok(Plan {
        runs: arguments.runs,
        slow_runs: arguments.slow_runs.unwrap_or((arguments.runs / 5).max(3)),
        transport: arguments.transport,
        programs: Programs { tern, qemu: arguments.qemu.clone() },
        pulse,
        folder: Arc::new(folder),
        on_disk: Arc::new(tempfile::Builder::new().prefix("tern-bench").tempdir_in(&arguments.disk)?),
    })
}

/// What every published figure must be read with.
fn describe_host(plan: &Plan) -> io::Result<Value> {
    let host = output_of(Command::new(&plan.programs.tern).args(["host", "--json"]))?;
    let host: Value = serde_json::from_str(&host)?;
    let first_line = |program: &Path| -> io::Result<String> {
        let text = output_of(Command::new(program).arg("--version"))?;
        Ok(text.lines().next().unwrap_or_default().to_owned())
    };
    Ok(json!({
        "kvm": host["kind"],
        "kernel": std::fs::read_to_string("/proc/sys/kernel/osrelease")?.trim(),
        "cpu": cpu_model()?,
        "cpus": std::thread::available_parallelism()?.get(),
        "tern": first_line(&plan.programs.tern)?,
        "qemu": first_line(&plan.programs.qemu)?,
    }))
}

fn cpu_model() -> io::Result<String> {
    let text = std::fs::read_to_string("/proc/cpuinfo")?;
    let line = text.lines().find_map(|line| line.strip_prefix("model name")?.split_once(": "));
    Ok(line.map_or("unknown", |(_, name)| name).to_owned())
}

fn output_of(command: &mut Command) -> io::Result<String> {
    let name = command.get_program().to_string_lossy().into_owned();
    let failed =
        |what: String| io::Error::other(format!("{name}: {what}; `scripts/bench-setup` installs QEMU"));
    let output = command.output().map_err(|error| failed(error.to_string()))?;
    if !output.status.success() {
        return Err(failed(format!("{}: {}", output.status, String::from_utf8_lossy(&output.stderr))));
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

fn heading(host: &Value, plan: &Plan) -> String {
    let word = |name: &str| host[name].as_str().unwrap_or_default().to_owned();
    format!(
        "{} | {}\nKVM kind {}, Linux {}, {} x {}\nmedian [least - most] of {} runs of each, in turns ({} of what is slow); ratio: tern / QEMU",
        word("tern"),
        word("qemu"),
        word("kvm"),
        word("kernel"),
        host["cpus"],
        word("cpu"),
        plan.runs,
        plan.slow_runs,
    )
}

fn write_json(path: &Path, document: &Value) -> io::Result<()> {
    if let Some(folder) = path.parent() {
        std::fs::create_dir_all(folder)?;
    }
    std::fs::write(path, format!("{document:#}\n"))
}
