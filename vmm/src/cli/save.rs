//! `tern save`: a guest into a file. A migration whose other end is a file, and what becomes of the guest then.

use std::path::{Path, PathBuf};

use clap::{ArgMatches, Args, FromArgMatches, ValueEnum};
use serde_json::{Value, json};

use super::migrate::{self, ParameterArgs};
use super::vm::{self, ControlArgs};
use super::{Exit, Failure, print, print_json, report};
use crate::control::client::Client;

pub(super) const EXAMPLES: &str = "\
Examples:
  tern save --control /tmp/a.sock web.snap
  tern restore web.snap --control /tmp/b.sock
  tern save --control /tmp/a.sock web.snap --then run
  tern save --control /tmp/a.sock web.snap --compress zstd
  tern save --control /tmp/a.sock web.snap --direct-io on --file-threads 8 --json | jq .total_us

The guest runs while its memory is written, and is stopped for the last of it. The file appears under its \
name when all of it is on the disk; an older one of that name stays until then. Whatever fails, the guest \
goes on.

The first Ctrl-C cancels the save and waits until the guest is back; a second one, at least a second \
later, leaves at once.";

#[derive(Debug, Args)]
pub struct SaveArgs {
    #[command(flatten)]
    control: ControlArgs,
    /// The file to make, or to replace
    #[arg(value_name = "FILE")]
    file: PathBuf,
    /// What becomes of the guest once it is saved
    #[arg(long, value_name = "WHAT", default_value = "quit")]
    then: Then,
    #[command(flatten)]
    parameters: FileParameterArgs,
    /// Print the report as JSON, and no progress
    #[arg(long)]
    json: bool,
}

/// The parameters without those of a connection's security: there is none.
#[derive(Debug, Default)]
struct FileParameterArgs(ParameterArgs);

impl Args for FileParameterArgs {
    fn augment_args(command: clap::Command) -> clap::Command {
        ParameterArgs::flags(command, |row| !row.secures())
    }

    fn augment_args_for_update(command: clap::Command) -> clap::Command {
        Self::augment_args(command)
    }
}

impl FromArgMatches for FileParameterArgs {
    fn from_arg_matches(matches: &ArgMatches) -> Result<Self, clap::Error> {
        ParameterArgs::from_arg_matches(matches).map(Self)
    }

    fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), clap::Error> {
        self.0.update_from_arg_matches(matches)
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Then {
    /// Its process ends
    Quit,
    /// It stays, stopped; `tern resume` lets it go on
    Stop,
    /// It goes on. Its disks go on changing with it, and what was saved needs them as they were
    Run,
}

impl SaveArgs {
    /// The arguments of `migrate`.
    fn request(&self) -> Result<Value, Failure> {
        let absolute = std::path::absolute(&self.file).map_err(|error| Failure::new(&error))?;
        let path = absolute.to_str().ok_or_else(|| {
            let text =
                format!("{}: the control socket takes UTF-8 only; give another name", absolute.display());
            Failure::text(Exit::Usage, text)
        })?;
        let ParameterArgs { parameters, capabilities } = &self.parameters.0;
        let mut capabilities = capabilities.clone();
        capabilities.push(json!({ "capability": "keep-running", "state": self.then == Then::Run }));
        Ok(json!({ "uri": format!("file:{path}"), "parameters": parameters, "capabilities": capabilities }))
    }

    /// Saves; returns the last answer to query-migrate.
    fn save(&self, show_progress: bool) -> Result<(Client, Value), Failure> {
        let request = self.request()?;
        let mut client = self.control.connect()?;
        client.execute("migrate", request)?;
        migrate::listen_for_interrupts()?;
        let watch = migrate::Watch { show: show_progress, ..migrate::Watch::default() };
        let ended = watch.until_over(&mut client)?;
        Ok((client, ended))
    }
}

/// Saves, shows how, and does with the guest as told.
pub(super) fn run(args: &SaveArgs) -> Result<Exit, Failure> {
    let (mut client, ended) = args.save(!args.json)?;
    let report = &ended["report"];
    migrate::tell_warnings(report);
    if args.json {
        print_json(report)?;
    } else {
        print(&report::table(report))?;
    }
    conclude(&ended, &args.file)?;
    if args.then == Then::Quit { vm::quit(&mut client, &args.control) } else { Ok(Exit::Success) }
}

/// Saves a guest that goes on, without a word but the error.
pub(super) fn and_go_on(control: &Path, file: &Path) -> Result<(), Failure> {
    let (control, file) = (ControlArgs { control: control.to_owned() }, file.to_owned());
    let args =
        SaveArgs { control, file, then: Then::Run, parameters: FileParameterArgs::default(), json: true };
    let (_, ended) = args.save(true)?;
    conclude(&ended, &args.file)
}

/// The one error, if there is no file.
fn conclude(ended: &Value, file: &Path) -> Result<(), Failure> {
    let file = file.display();
    match ended["status"].as_str() {
        Some("completed") => Ok(()),
        Some("cancelled") => {
            let text = format!("the save to {file} was cancelled; the guest goes on as before");
            Err(Failure::text(Exit::MigrationCancelled, text))
        }
        _ => {
            let why = ended["error-desc"].as_str().unwrap_or("no reason was given");
            let text = format!("the guest was not saved, and goes on as before: {why}");
            Err(Failure::text(Exit::MigrationFailed, text))
        }
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Only {
        #[command(flatten)]
        args: SaveArgs,
    }

    fn request(line: &str) -> Value {
        let words = ["save", "--control", "/c"].into_iter().chain(line.split_whitespace());
        Only::try_parse_from(words).unwrap_or_else(|error| panic!("{error}")).args.request().unwrap()
    }

    #[test]
    fn a_guest_that_is_to_stop_does_not_go_on() {
        let plain = request("/a/b");
        assert_eq!(plain["uri"], "file:/a/b");
        assert_eq!(plain["parameters"], json!({}));
        assert_eq!(plain["capabilities"], json!([{ "capability": "keep-running", "state": false }]));
        let stop = request("/a/b --then stop --downtime-limit 5ms --file-threads 4 --direct-io on");
        let expected = json!({ "downtime-limit": 5, "file-threads": 4, "direct-io": true });
        assert_eq!(stop["parameters"], expected);
    }

    #[test]
    fn a_file_has_no_flags_of_a_connections_security() {
        use clap::CommandFactory;
        let help = Only::command().render_long_help().to_string();
        assert!(!help.contains("--tls") && !help.contains("--insecure"), "{help}");
        assert!(help.contains("--file-threads") && help.contains("--compress"), "{help}");
    }

    #[test]
    fn a_guest_that_goes_on_keeps_running() {
        let run = request("b --then run");
        assert_eq!(run["parameters"], json!({}));
        assert_eq!(run["capabilities"][0]["state"], true);
        let here = std::env::current_dir().unwrap();
        assert_eq!(run["uri"], format!("file:{}", here.join("b").display()));
    }

    #[test]
    fn each_end_has_its_code() {
        let end = |status: &str| {
            let state = json!({ "status": status, "error-desc": "no room" });
            conclude(&state, Path::new("f")).map_err(|failure| (failure.exit, failure.text))
        };
        assert_eq!(end("completed"), Ok(()));
        assert_eq!(end("cancelled").unwrap_err().0, Exit::MigrationCancelled);
        let (exit, text) = end("failed").unwrap_err();
        assert!(exit == Exit::MigrationFailed && text.contains("no room"), "{text}");
    }
}
