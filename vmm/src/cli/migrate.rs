//! `tern migrate`: starts a migration, watches it, and says how it ended.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use clap::{Arg, ArgAction, ArgMatches, Args, FromArgMatches};
use serde_json::{Map, Value, json};
use tern_migration::Parameters;
use tern_migration::config::{CAPABILITIES, Capability, FILES, Kind, PARAMETERS, Parameter, Setting};

use super::progress::Progress;
use super::virsh::VirshArgs;
use super::vm::{self, ControlArgs};
use super::{Exit, Failure, check, print, print_json, report};
use crate::config::{ByteSize, check_uri};
use crate::control::client::Client;

pub(super) const EXAMPLES: &str = "\
Examples:
  tern migrate --control /tmp/a.sock unix:/tmp/m.sock
  tern migrate --control /tmp/a.sock tcp:host-b:4444 --tls-creds /etc/tern/tls
  tern migrate --control /tmp/a.sock tcp:host-b:4444 --insecure --max-bandwidth 100M --downtime-limit 50
  tern migrate --control /tmp/a.sock tcp:localhost:4444 --json | jq .downtime.total_us
  tern migrate --control /tmp/a.sock tcp:localhost:4444 --check
  tern migrate --control /tmp/a.sock 'exec:ssh host-b socat - UNIX-CONNECT:/run/b.sock'
  tern migrate --control /tmp/a.sock vsock:2:4444
  tern migrate --control /tmp/a.sock tcp:host-b:4444 --postcopy --tls-creds /etc/tern/tls
  tern migrate --control /tmp/a.sock tcp:host-b:4444 --postcopy=manual --detach && tern postcopy --control /tmp/a.sock start
  tern migrate --control /tmp/a.sock --continue
  tern migrate --control /tmp/a.sock --resolve run
  tern migrate --control /tmp/a.sock tcp:host-b:4444 --live --timeout 60 --verbose --undefinesource

An address of another host needs TLS: `tern tls init` makes the files for both sides, and --insecure, on both, does \
without on a network that you trust with all of the guest's memory.

With --postcopy, which alone means --postcopy=auto, the guest goes on at the destination before all of its memory is \
there. From then on it can't come back: `tern postcopy --help` says what there is to do if the connection breaks.

The first Ctrl-C cancels the migration and waits until the guest is back; a second one, at least a second \
later, leaves at once.";

/// How often the state is asked for.
const POLL: Duration = Duration::from_millis(100);

#[derive(Debug, Args)]
pub struct MigrateArgs {
    #[command(flatten)]
    control: ControlArgs,
    /// Where to: tcp:HOST:PORT, unix:PATH or vsock:CID:PORT, where a tern waits with --incoming; exec:COMMAND, whose
    /// input and output lead to one; fd:NUMBER, a socket that the guest's process has inherited; or file:PATH (`tern
    /// save` does that and more)
    #[arg(value_name = "URI", required_unless_present_any = ["resolve", "go_on"], conflicts_with_all = ["resolve", "go_on"], value_parser = uri)]
    uri: Option<String>,
    #[command(flatten)]
    parameters: ParameterArgs,
    /// Only ask whether the guest fits there, and measure the link: CPU, devices, memory, sections, round trip and
    /// bandwidth. Touches neither side; exits with 0 if it fits, and with 8 if it doesn't
    #[arg(long, conflicts_with_all = ["detach", "resolve"])]
    check: bool,
    /// Start it, and don't wait: `tern status` shows how it goes
    #[arg(long)]
    detach: bool,
    /// Print the report as JSON, and no progress
    #[arg(long)]
    json: bool,
    /// End a migration in doubt: run the guest here (you have made sure that it is not at the destination), or
    /// discard this copy (it is there)
    #[arg(long, value_name = "HOW", value_parser = ["run", "discard"])]
    resolve: Option<String>,
    /// Let a migration with --capability pause-before-switchover, which waits in status pre-switchover, stop the guest
    #[arg(long = "continue", conflicts_with_all = ["check", "detach", "resolve"])]
    go_on: bool,
    #[command(flatten)]
    virsh: VirshArgs,
}

fn uri(text: &str) -> Result<String, crate::config::FormError> {
    check_uri(text)?;
    // The process that writes the file may have another current folder.
    let path = text.strip_prefix("file:").and_then(|path| std::path::absolute(path).ok());
    Ok(path.and_then(|path| Some(format!("file:{}", path.to_str()?))).unwrap_or_else(|| text.to_owned()))
}

/// One flag for each row of the engine's table of parameters, and one for capabilities.
#[derive(Debug, Default)]
pub(super) struct ParameterArgs {
    pub(super) parameters: Map<String, Value>,
    pub(super) capabilities: Vec<Value>,
}

const CAPABILITY: &str = "capability";

/// The flag of a row.
pub(super) fn flag(row: &'static Parameter) -> Arg {
    let default = match (&row.kind, row.default()) {
        (Kind::Number { zero: Some(zero), .. }, Setting::Number(0)) => (*zero).to_owned(),
        (Kind::Number { unit, .. }, default) => format!("{} {unit}", row.shown(&default)),
        (_, default) => row.shown(&default),
    };
    let form = match &row.kind {
        Kind::Number { unit: "bytes/s", .. } => "SIZE/s",
        Kind::Number { unit: "bytes", .. } => "SIZE",
        Kind::Number { unit: "ms", .. } => "TIME",
        Kind::Number { .. } => "NUMBER",
        Kind::Switch { .. } => "on|off",
        Kind::Choice { .. } => "NAME",
        Kind::Text { form, .. } => form,
    };
    let meaning = row.meaning.trim_end_matches('.');
    let help = format!("{meaning} [{}: {}; default: {default}]", row.unit(), row.legal());
    let flag = Arg::new(row.name).long(row.name).value_name(form).help(help);
    let flag = flag.value_parser(move |text: &str| value(row, text));
    // Alone it says all; a value needs the `=`, or an address behind it would be one.
    if matches!(row.kind, Kind::Text { form: FILES, .. }) {
        return flag.value_name("FILE").action(ArgAction::Append);
    }
    let alone = match row.name {
        "insecure" => "on",
        "postcopy" => "auto",
        _ => return flag,
    };
    flag.num_args(0..=1).require_equals(true).default_missing_value(alone)
}

/// What the flags of the rows say.
pub(super) fn given(matches: &ArgMatches) -> Map<String, Value> {
    let given = |row: &Parameter| {
        // The other side's parameters have no flag here.
        let values: Vec<Value> =
            matches.try_get_many(row.name).ok().flatten()?.map(|value| row.json(value)).collect();
        let value = match values.as_slice() {
            [one] => one.clone(),
            several => several.iter().filter_map(Value::as_str).collect::<Vec<_>>().join(",").into(),
        };
        Some((row.name.to_owned(), value))
    };
    PARAMETERS.iter().filter_map(given).collect()
}

impl Args for ParameterArgs {
    fn augment_args(command: clap::Command) -> clap::Command {
        Self::flags(command, |_| true)
    }

    fn augment_args_for_update(command: clap::Command) -> clap::Command {
        Self::augment_args(command)
    }
}

impl ParameterArgs {
    /// The flags of a source's rows that are `wanted`.
    pub(super) fn flags(command: clap::Command, wanted: fn(&Parameter) -> bool) -> clap::Command {
        let shown = |row: &Capability| {
            let default = if row.default { "on" } else { "off" };
            format!("{} [default: {default}]", row.name)
        };
        let names: Vec<String> = CAPABILITIES.iter().map(shown).collect();
        let capability = Arg::new(CAPABILITY)
            .long(CAPABILITY)
            .value_name("NAME[=on|off]")
            .help(format!("Switch a capability on or off: {}", names.join(", ")))
            .action(ArgAction::Append)
            .value_parser(capability);
        let rows = PARAMETERS.iter().filter(|row| row.scope.is_sources() && wanted(row));
        command.args(rows.map(flag)).arg(capability)
    }
}

impl FromArgMatches for ParameterArgs {
    fn from_arg_matches(matches: &ArgMatches) -> Result<Self, clap::Error> {
        let capabilities = matches.get_many::<Value>(CAPABILITY).unwrap_or_default().cloned().collect();
        Ok(Self { parameters: given(matches), capabilities })
    }

    fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), clap::Error> {
        *self = Self::from_arg_matches(matches)?;
        Ok(())
    }
}

/// A parameter's value as people write it: `100M` for bytes, `50`, `50ms` or `2s` for times.
fn value(row: &Parameter, text: &str) -> Result<Setting, String> {
    let setting = match &row.kind {
        Kind::Number { unit, .. } => Setting::Number(number(row, unit, text)?),
        Kind::Switch { .. } => match text {
            "on" => Setting::Switch(true),
            "off" => Setting::Switch(false),
            _ => return Err("write on or off".to_owned()),
        },
        Kind::Choice { .. } => row.chosen(text).map_err(|error| error.to_string())?,
        Kind::Text { form: FILES, .. } if text.contains(',') => {
            return Err(
                "a path with a comma can't be given here; for several files write the flag several times"
                    .into(),
            );
        }
        // The machine's process may have another current folder.
        Kind::Text { form: "DIR" | "FILE" | FILES, .. } if !text.is_empty() => {
            let path = std::path::absolute(text).map_err(|error| error.to_string())?;
            Setting::Text(Some(path.to_str().ok_or("the path is not UTF-8")?.into()))
        }
        Kind::Text { .. } => Setting::Text((!text.is_empty()).then(|| text.into())),
    };
    Parameters::default().set(row.name, setting.clone()).map_err(|error| error.to_string())?;
    Ok(setting)
}

fn number(row: &Parameter, unit: &str, text: &str) -> Result<u64, String> {
    match unit {
        "bytes/s" | "bytes" => {
            let size = text.trim_end_matches("/s").parse::<ByteSize>();
            size.map(|size| size.0).map_err(|error| error.to_string())
        }
        "ms" => milliseconds(text).ok_or_else(|| {
            format!("not a time: write milliseconds, or such as 50ms or 2s; legal: {} ms", row.legal())
        }),
        _ => text.parse().map_err(|_| format!("not a number of {unit}; legal: {}", row.legal())),
    }
}

fn milliseconds(text: &str) -> Option<u64> {
    match text.strip_suffix("ms") {
        Some(number) => number.parse().ok(),
        None => match text.strip_suffix('s') {
            Some(number) => number.parse::<u64>().ok()?.checked_mul(1000),
            None => text.parse().ok(),
        },
    }
}

fn capability(text: &str) -> Result<Value, String> {
    let (name, state) = match text.split_once('=') {
        Some((name, "on")) => (name, true),
        Some((name, "off")) => (name, false),
        Some(_) => return Err("write NAME, NAME=on or NAME=off".to_owned()),
        None => (text, true),
    };
    Capability::named(name).map_err(|error| error.to_string())?;
    Ok(json!({ "capability": name, "state": state }))
}

/// Does what the flags say.
pub(super) fn run(mut args: MigrateArgs) -> Result<Exit, Failure> {
    args.virsh.translate(&mut args.parameters)?;
    let args = &args;
    let mut client = args.control.connect()?;
    if let Some(resolution) = &args.resolve {
        client.execute("migrate-resolve", json!({ "resolution": resolution }))?;
        return Ok(Exit::Success);
    }
    if args.go_on {
        client.execute("migrate-continue", json!({ "state": "pre-switchover" }))?;
        return Ok(Exit::Success);
    }
    let uri = args.uri.as_deref().unwrap_or_default();
    let ParameterArgs { parameters, capabilities } = &args.parameters;
    let request = json!({ "uri": uri, "parameters": parameters, "capabilities": capabilities });
    if args.check {
        return check::run(&mut client, request, args.json);
    }
    client.execute("migrate", request)?;
    if args.detach {
        return Ok(Exit::Success);
    }
    listen_for_interrupts()?;
    let VirshArgs { abort_on_error, verbose, undefinesource, .. } = args.virsh;
    let watch = Watch { show: !args.json, verbose, abort_on_error };
    let ended = watch.until_over(&mut client)?;
    tell_warnings(&ended["report"]);
    let shown =
        if args.json { print_json(&ended["report"])? } else { print(&report::table(&ended["report"]))? };
    conclude(&ended, uri, abort_on_error)?;
    if undefinesource {
        return vm::quit(&mut client, &args.control);
    }
    Ok(shown)
}

pub(super) fn listen_for_interrupts() -> Result<(), Failure> {
    LISTENING_SINCE.get_or_init(Instant::now);
    vmm_sys_util::signal::register_signal_handler(libc::SIGINT, on_interrupt)
        .map_err(|error| Failure::text(Exit::Failure, format!("can't listen for Ctrl-C: {error}")))
}

/// What Ctrl-C has asked for. One press may arrive as several signals, because a shell or `timeout` signals the
/// process and its group: what comes within [`SAME_PRESS_MS`] of the first is the first.
struct Interrupts {
    /// When the first came, in milliseconds; [`Self::NONE`] before.
    first_ms: AtomicU64,
    leave: AtomicBool,
}

const SAME_PRESS_MS: u64 = 1000;

static INTERRUPTS: Interrupts = Interrupts::new();
static LISTENING_SINCE: OnceLock<Instant> = OnceLock::new();

impl Interrupts {
    const NONE: u64 = u64::MAX;

    const fn new() -> Self {
        Self { first_ms: AtomicU64::new(Self::NONE), leave: AtomicBool::new(false) }
    }

    /// A signal at this time. Called by a signal handler: atomic operations only.
    fn press(&self, now_ms: u64) {
        match self.first_ms.compare_exchange(Self::NONE, now_ms, Ordering::Relaxed, Ordering::Relaxed) {
            Err(first_ms) if now_ms.saturating_sub(first_ms) >= SAME_PRESS_MS => {
                self.leave.store(true, Ordering::Relaxed);
            }
            _ => {}
        }
    }

    fn cancels(&self) -> bool {
        self.first_ms.load(Ordering::Relaxed) != Self::NONE
    }

    fn leaves(&self) -> bool {
        self.leave.load(Ordering::Relaxed)
    }
}

extern "C" fn on_interrupt(_: libc::c_int, _: *mut libc::siginfo_t, _: *mut libc::c_void) {
    // Set before the handler was; reading it and the monotonic clock is allowed here (signal-safety(7)).
    let Some(since) = LISTENING_SINCE.get() else { return };
    INTERRUPTS.press(u64::try_from(since.elapsed().as_millis()).unwrap_or(0));
}

/// So often a source in doubt has asked before it is a person's matter: about two seconds.
const QUESTIONS: u64 = 4;

/// How a migration is watched.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Watch {
    /// Show progress on a terminal.
    pub(super) show: bool,
    /// Elsewhere too.
    pub(super) verbose: bool,
    /// Cancel at the first warning.
    pub(super) abort_on_error: bool,
}

impl Watch {
    /// Watches until the migration is over, and returns what `query-migrate` says then.
    pub(super) fn until_over(self, client: &mut Client) -> Result<Value, Failure> {
        let mut progress = Progress::new(self.show, self.verbose);
        let mut cancelled = false;
        loop {
            let state = client.execute("query-migrate", json!({}))?;
            match state["status"].as_str() {
                // It may settle by itself.
                Some("in-doubt")
                    if state["doubt"]["asked"].as_u64().is_some_and(|asked| asked < QUESTIONS) =>
                {
                    progress.show(&state);
                }
                Some("completed" | "failed" | "cancelled" | "in-doubt") => {
                    progress.end();
                    return Ok(state);
                }
                _ => progress.show(&state),
            }
            if INTERRUPTS.leaves() {
                progress.end();
                let text = "left; the migration may still run: `tern status` shows it, `tern cancel` ends it";
                return Err(Failure::text(Exit::Failure, text));
            }
            let warned = self.abort_on_error && first_warning(&state).is_some();
            if (INTERRUPTS.cancels() || warned) && !cancelled {
                cancelled = true;
                client.execute("migrate_cancel", json!({}))?;
            }
            thread::sleep(POLL);
        }
    }
}

/// The report's warnings, on the standard error.
pub(super) fn tell_warnings(report: &Value) {
    for warning in report["warnings"].as_array().into_iter().flatten().filter_map(Value::as_str) {
        tracing::warn!("{warning}");
    }
}

fn first_warning(state: &Value) -> Option<&str> {
    state["report"]["warnings"][0].as_str()
}

/// The one error, if it did not arrive.
fn conclude(ended: &Value, uri: &str, abort_on_error: bool) -> Result<(), Failure> {
    let why = ended["error-desc"].as_str().unwrap_or("no reason was given");
    match ended["status"].as_str() {
        Some("completed") => Ok(()),
        Some("cancelled") => Err(Failure::text(
            Exit::MigrationCancelled,
            match first_warning(ended).filter(|_| abort_on_error) {
                Some(warning) => format!(
                    "the migration to {uri} was cancelled, as --abort-on-error asks: {warning}; the guest goes on where it was"
                ),
                None => format!("the migration to {uri} was cancelled; the guest goes on where it was"),
            },
        )),
        Some("in-doubt") => Err(Failure::text(
            Exit::MigrationInDoubt,
            format!(
                "the migration to {uri} is in doubt: {why}\nthe guest is stopped here and keeps its memory; {}\n{}",
                ended["doubt"]["advice"].as_str().unwrap_or("look at the destination"),
                vm::RESOLVE,
            ),
        )),
        _ => Err(Failure::text(
            Exit::MigrationFailed,
            format!("the migration to {uri} failed: {why}; the guest goes on where it was"),
        )),
    }
}

#[cfg(test)]
mod tests {
    use std::io::{BufRead, BufReader, Write};
    use std::os::unix::net::UnixListener;

    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Only {
        #[command(flatten)]
        args: MigrateArgs,
    }

    fn parse(line: &str) -> Result<MigrateArgs, String> {
        let words = ["migrate", "--control", "/c"].into_iter().chain(line.split_whitespace());
        Only::try_parse_from(words).map(|only| only.args).map_err(|error| error.to_string())
    }

    #[test]
    fn parameters_come_from_the_table() {
        let args = parse(
            "tcp:b:1 --max-bandwidth 100M --downtime-limit 2s --max-total-time 500ms --capability events=off",
        )
        .unwrap();
        let expected = json!({"max-bandwidth": 100 << 20, "downtime-limit": 2000, "max-total-time": 500});
        assert_eq!(Value::Object(args.parameters.parameters), expected);
        assert_eq!(args.parameters.capabilities, [json!({"capability": "events", "state": false})]);
        assert!(parse("unix:/m").unwrap().parameters.parameters.is_empty());
    }

    #[test]
    fn post_copy_alone_is_auto_and_takes_no_address_for_its_value() {
        let given = |line: &str| parse(line).unwrap().parameters.parameters["postcopy"].clone();
        assert_eq!(given("--postcopy unix:/m"), "auto");
        assert_eq!(given("unix:/m --postcopy=at-once"), "at-once");
        assert!(parse("unix:/m --postcopy=soon").unwrap_err().contains("when-precopy-stops-paying"));
    }

    #[test]
    fn help_shows_each_parameters_unit_range_and_default() {
        let help = parse("--help").unwrap_err();
        for row in PARAMETERS.iter().filter(|row| row.scope.is_sources()) {
            let shown = format!("[{}: {}; default: ", row.unit(), row.legal());
            let words = |text: &str| text.split_whitespace().collect::<Vec<_>>().join(" ");
            assert!(words(&help).contains(&shown), "no {shown} in {help}");
        }
    }

    #[test]
    fn errors_name_the_flag_and_what_is_legal() {
        for (line, expected) in [
            ("tcp:b:1 --max-bandwidth 1", ["--max-bandwidth", "0 (unlimited) or "]),
            ("tcp:b:1 --downtime-limit soon", ["--downtime-limit", "50ms"]),
            ("tcp:b:1 --capability warp", ["--capability", "events"]),
            ("udp:x", ["URI", "tcp:HOST:PORT"]),
            ("", ["URI", "required"]),
            ("unix:/m --resolve run", ["--resolve", "URI"]),
        ] {
            let text = parse(line).unwrap_err();
            assert!(expected.iter().all(|part| text.contains(part)), "{line}: {text}");
        }
    }

    /// A control socket that answers in this order, whatever it is asked.
    fn answers(lines: Vec<Value>) -> (tempfile::TempDir, std::path::PathBuf, thread::JoinHandle<usize>) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("c");
        let listener = UnixListener::bind(&path).unwrap();
        let thread = thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            writeln!(stream, "{}", json!({"QMP": {}})).unwrap();
            let mut asked = BufReader::new(stream.try_clone().unwrap()).lines();
            let mut count = 0;
            for line in lines {
                if asked.next().is_none() {
                    break;
                }
                writeln!(stream, "{line}").unwrap();
                count += 1;
            }
            count
        });
        (folder, path, thread)
    }

    #[test]
    fn a_migration_is_watched_to_its_end() {
        let state = |status: &str| json!({"return": {"status": status, "error-desc": "port in use"}});
        let lines = vec![json!({"return": {}}), state("setup"), state("active"), state("failed")];
        let (_folder, path, server) = answers(lines);
        let mut client = Client::connect(&path).unwrap();
        let ended = Watch::default().until_over(&mut client).unwrap();
        assert_eq!(conclude(&ended, "unix:/m", false).unwrap_err().exit, Exit::MigrationFailed);
        assert_eq!(server.join().unwrap(), 4);
    }

    #[test]
    fn a_process_that_ends_meanwhile_is_an_error() {
        let (_folder, path, server) = answers(vec![json!({"return": {}})]);
        let mut client = Client::connect(&path).unwrap();
        let failure = Watch::default().until_over(&mut client).unwrap_err();
        assert!(failure.text.contains("has the process ended?"), "{failure:?}");
        server.join().unwrap();
    }

    #[test]
    fn signals_within_a_second_are_one_press() {
        let pressed = |times: &[u64]| {
            let interrupts = Interrupts::new();
            times.iter().for_each(|time_ms| interrupts.press(*time_ms));
            (interrupts.cancels(), interrupts.leaves())
        };
        assert_eq!(pressed(&[]), (false, false));
        assert_eq!(pressed(&[0]), (true, false));
        assert_eq!(pressed(&[5_000, 5_000, 5_999]), (true, false));
        assert_eq!(pressed(&[5_000, 5_001, 6_000]), (true, true));
    }

    #[test]
    fn each_end_has_its_code() {
        let end = |status: &str| {
            conclude(&json!({"status": status, "error-desc": "why"}), "u", false)
                .map_err(|failure| failure.exit)
        };
        assert_eq!(end("completed"), Ok(()));
        assert_eq!(end("failed"), Err(Exit::MigrationFailed));
        assert_eq!(end("cancelled"), Err(Exit::MigrationCancelled));
        assert_eq!(end("in-doubt"), Err(Exit::MigrationInDoubt));
        let failure = conclude(&json!({"status": "failed", "error-desc": "port in use"}), "tcp:b:1", false)
            .unwrap_err();
        assert!(failure.text.contains("tcp:b:1") && failure.text.contains("port in use"));
        let warned = json!({"status": "cancelled", "report": {"warnings": ["the disk is full"]}});
        let told = [true, false].map(|abort| conclude(&warned, "u", abort).unwrap_err().text);
        assert!(told[0].contains("--abort-on-error asks: the disk is full") && !told[1].contains("disk"));
    }
}
