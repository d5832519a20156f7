//! A stopped guest into a file: tern's format, QEMU's mapped-ram, and `dd` of as many bytes to the same folder.
//!
//! Timed is `migrate` until the event `MIGRATION completed`, and then an fsync by the bench: tern has done that by then,
//! QEMU need not have. `dd` has `conv=fsync`. So on a disk all three end when the bytes are on it, and in memory (tmpfs,
//! where an fsync is nothing) all three are as fast as the page cache. Each writes a new file; removing the older one is
//! not timed. The same guest is saved again and again, and runs in between.
//!
//! Threads: tern's `file-threads`; QEMU without multifd for one, and with as many `multifd-channels` for more, which it
//! needs for direct-io. tern hashes each page and makes a table of it in that time, QEMU doesn't.

use std::fs::{self, File};
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;

use serde_json::{Value, json};
use tempfile::TempDir;
use tern_tests::limit::wait_for;

use crate::accounting;
use crate::contender::{BOTH, Machine, Process, Vmm};
use crate::migration::wait_until_completed;
use crate::plan::{Pair, Plan};
use crate::pulse_lines::is_ready;
use crate::table::{Aim, Figure, Group};

/// Of the guest and of the file that `dd` copies: neither is compressed or sparse.
const CONTENT_MIB: u64 = 900;
/// A file system in memory, on every Linux.
pub const MEMORY: &str = "/dev/shm";

/// How a file is written.
#[derive(Debug, Clone, Copy)]
struct Way {
    threads: u64,
    direct_io: bool,
}

const IN_MEMORY: [Way; 3] = [
    Way { threads: 1, direct_io: false },
    Way { threads: 2, direct_io: false },
    Way { threads: 4, direct_io: false },
];
const ON_DISK: [Way; 2] = [Way { threads: 4, direct_io: false }, Way { threads: 4, direct_io: true }];

/// Into memory: none where there is no such file system.
pub fn in_memory(plan: &Plan) -> io::Result<Option<Group>> {
    if !Path::new(MEMORY).is_dir() {
        return Ok(None);
    }
    let folder = tempfile::Builder::new().prefix("tern-bench").tempdir_in(MEMORY)?;
    let what = format!("in memory ({MEMORY})");
    measure(plan, "save", &what, folder.path(), &IN_MEMORY).map(Some)
}

/// Onto a disk.
pub fn on_disk(plan: &Plan) -> io::Result<Group> {
    measure(plan, "save-disk", "on a disk, synced", plan.on_disk.path(), &ON_DISK)
}

fn measure(plan: &Plan, name: &'static str, place: &str, folder: &Path, ways: &[Way]) -> io::Result<Group> {
    let machine = Machine::pulse(&plan.pulse, &format!("ws={CONTENT_MIB}M rate=1 content=random nap=10"));
    let saver = Saver::boot(plan, &machine, folder)?;
    let mut figures = Vec::new();
    for way in ways {
        let Way { threads, direct_io } = *way;
        let mut dd_ms = f64::NAN;
        let [time, copy, ratio] =
            plan.in_turns(&format!("save, {threads} threads"), plan.slow_runs, |vmm| {
                if vmm == Vmm::Tern {
                    dd_ms = saver.dd_ms(direct_io)?;
                }
                let save_ms = saver.save_ms(vmm, *way)?;
                Ok([save_ms, dd_ms, save_ms / dd_ms])
            })?;
        let how = format!(
            "{threads} thread{}{}",
            ["s", ""][usize::from(threads == 1)],
            ["", ", O_DIRECT"][usize::from(direct_io)]
        );
        figures.push(Figure::new(format!("{how}: save"), "ms", time, None));
        figures.push(Figure::new(
            format!("{how}: dd"),
            "ms",
            Pair { qemu: Default::default(), ..copy },
            None,
        ));
        figures.push(Figure::new(format!("{how}: save / dd"), "", ratio, Some(Aim::Below(1.1))));
    }
    let setting = format!("a stopped pulse of 1 GiB, {CONTENT_MIB} MiB of it not zero, into a file {place}");
    Ok(Group { name, setting, figures, notes: Vec::new() })
}

/// Both guests, and where they are saved.
struct Saver {
    processes: [Process; 2],
    /// For `dd`, in memory if there is any such place.
    source: PathBuf,
    folder: PathBuf,
    _source_folder: TempDir,
}

impl Saver {
    fn boot(plan: &Plan, machine: &Machine, folder: &Path) -> io::Result<Self> {
        let at = if Path::new(MEMORY).is_dir() { Path::new(MEMORY) } else { folder };
        let source_folder = tempfile::Builder::new().prefix("tern-bench").tempdir_in(at)?;
        let source = source_folder.path().join("random");
        let [tern, qemu] = BOTH.map(|vmm| machine.boot(vmm, &plan.programs));
        let processes = [tern?, qemu?];
        io::copy(&mut File::open("/dev/urandom")?.take(CONTENT_MIB << 20), &mut File::create(&source)?)?;
        for process in &processes {
            wait_for("pulse to have filled its memory", || is_ready(&process.serial()).then_some(()));
        }
        Ok(Self { processes, source, folder: folder.to_owned(), _source_folder: source_folder })
    }

    fn save_ms(&self, vmm: Vmm, way: Way) -> io::Result<f64> {
        let path = self.folder.join("saved");
        let [tern, qemu] = &self.processes;
        let process = if vmm == Vmm::Tern { tern } else { qemu };
        accounting::warm((CONTENT_MIB << 20) as usize)?;
        let mut qmp = process.qmp();
        qmp.execute("stop", json!({}));
        let command = request(&mut qmp, vmm, &path, way);
        let begin = Instant::now();
        qmp.execute("migrate", command);
        wait_until_completed(&mut qmp, vmm);
        File::open(&path)?.sync_all()?;
        let time_ms = begin.elapsed().as_secs_f64() * 1e3;
        // QEMU clears up behind the event, and refuses until then.
        wait_for("the guest to go on", || qmp.try_execute("cont", json!({})).ok());
        fs::remove_file(path)?;
        Ok(time_ms)
    }

    fn dd_ms(&self, direct_io: bool) -> io::Result<f64> {
        let path = self.folder.join("copied");
        let word = |name: &str, path: &Path| format!("{name}={}", path.display());
        accounting::warm((CONTENT_MIB << 20) as usize)?;
        let mut command = Command::new("dd");
        command.args([word("if", &self.source), word("of", &path)]);
        command.args(["bs=1M", "conv=fsync", "status=none"]).args(direct_io.then_some("oflag=direct"));
        let begin = Instant::now();
        let status = command.status()?;
        let time_ms = begin.elapsed().as_secs_f64() * 1e3;
        if !status.success() {
            return Err(io::Error::other(format!("dd to {}: {status}", path.display())));
        }
        fs::remove_file(path)?;
        Ok(time_ms)
    }
}

/// Sets what QEMU has as settings of the process, and returns the arguments of `migrate`.
fn request(qmp: &mut tern_tests::Qmp, vmm: Vmm, path: &Path, way: Way) -> Value {
    let Way { threads, direct_io } = way;
    let uri = format!("file:{}", path.display());
    if vmm == Vmm::Tern {
        return json!({ "uri": uri, "parameters": { "file-threads": threads, "direct-io": direct_io } });
    }
    set_up_qemu(qmp, threads, direct_io);
    json!({ "uri": uri })
}

fn set_up_qemu(qmp: &mut tern_tests::Qmp, threads: u64, direct_io: bool) {
    let switch = |name: &str, state: bool| json!({ "capability": name, "state": state });
    let switches = [switch("events", true), switch("mapped-ram", true), switch("multifd", threads > 1)];
    qmp.execute("migrate-set-capabilities", json!({ "capabilities": switches }));
    let parameters = json!({ "max-bandwidth": 0, "multifd-channels": threads, "direct-io": direct_io });
    qmp.execute("migrate-set-parameters", parameters);
}

/// Boots `machine` in `vmm`, saves it while it runs, and ends it.
pub fn save_running(plan: &Plan, machine: &Machine, vmm: Vmm, path: &Path) -> io::Result<()> {
    let process = machine.boot(vmm, &plan.programs)?;
    wait_for("pulse to have filled its memory", || is_ready(&process.serial()).then_some(()));
    let mut qmp = process.qmp();
    let command = request(&mut qmp, vmm, path, Way { threads: 1, direct_io: false });
    qmp.execute("migrate", command);
    wait_until_completed(&mut qmp, vmm);
    File::open(path)?.sync_all()
}
