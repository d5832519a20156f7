//! The `tern` command: `run` is the hypervisor; the others are clients of its control socket, or look at this
//! host and its images.
//!
//! What was asked for goes to stdout; errors, progress and logs go to stderr. One error, in one place: what,
//! both values, the remedy, and each cause once.

mod advice;
mod capabilities;
mod check;
mod console;
mod cpu;
mod dump;
mod exit;
mod image;
mod incoming;
mod inspect;
mod migrate;
mod plan;
mod postcopy;
mod progress;
mod report;
mod restore;
mod run;
mod save;
mod schema;
mod terminal;
mod tls;
mod virsh;
mod vm;

use std::error::Error;
use std::io::{self, Write};
use std::process::ExitCode;

use clap::{Parser, Subcommand};
use serde::Serialize;

pub use exit::Exit;
pub(crate) use progress::Progress;
pub use terminal::RawMode;

use crate::control::{CommandError, chain};
use crate::host::{HostFacts, show};

/// A small KVM hypervisor whose guests migrate, running, to another process
#[derive(Debug, Parser)]
#[command(name = "tern", version, after_help = after_help(), max_term_width = 110)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

fn after_help() -> String {
    format!("{EXAMPLES}\n\n{}", exit::EXIT_CODES)
}

const EXAMPLES: &str = "\
Examples:
  tern host
  tern run --image pulse --control /tmp/a.sock --serial unix:/tmp/a.console &
  tern run --incoming unix:/tmp/m.sock --control /tmp/b.sock --serial unix:/tmp/b.console &
  tern migrate --control /tmp/a.sock unix:/tmp/m.sock
  tern COMMAND --help";

#[derive(Debug, Subcommand)]
enum Command {
    /// Run a virtual machine
    #[command(after_help = run::EXAMPLES)]
    Run(Box<run::RunArgs>),
    /// Run a guest from a file, as often as wanted
    #[command(after_help = restore::EXAMPLES)]
    Restore(Box<restore::RestoreArgs>),
    /// Move a running guest to another tern process
    #[command(after_help = migrate::EXAMPLES)]
    Migrate(migrate::MigrateArgs),
    /// Begin, pause or mend a post-copy: a migration whose guest goes on before all of its memory is there
    #[command(after_help = postcopy::EXAMPLES)]
    Postcopy(postcopy::PostcopyArgs),
    /// Save a guest into a file, from which it can be run again
    #[command(after_help = save::EXAMPLES)]
    Save(save::SaveArgs),
    /// Show what a migration may use here and with a destination, and why not the rest
    #[command(after_help = capabilities::EXAMPLES)]
    Capabilities(capabilities::CapabilitiesArgs),
    /// Show whether the guest runs, and where its migration stands
    #[command(
        after_help = "Examples:\n  tern status --control /tmp/a.sock\n  tern status --control /tmp/a.sock --history"
    )]
    Status(vm::StatusArgs),
    /// Print the machine's figures for Prometheus
    #[command(after_help = vm::METRICS_EXAMPLES)]
    Metrics(vm::ControlArgs),
    /// Ask the guest to make do with less memory, or give it back
    #[command(after_help = vm::BALLOON_EXAMPLES)]
    Balloon(vm::BalloonArgs),
    /// Stop the vCPUs; memory and devices stay as they are
    #[command(after_help = "Example:\n  tern pause --control /tmp/a.sock")]
    Pause(vm::ControlArgs),
    /// Let the vCPUs run again
    #[command(after_help = "Example:\n  tern resume --control /tmp/a.sock")]
    Resume(vm::ControlArgs),
    /// Cancel the running migration; the guest goes on where it is
    #[command(after_help = "Example:\n  tern cancel --control /tmp/a.sock")]
    Cancel(vm::ControlArgs),
    /// End the process at once, or ask the guest to switch itself off
    #[command(
        after_help = "Examples:\n  tern stop --control /tmp/a.sock\n  tern stop --powerdown --control /tmp/a.sock"
    )]
    Stop(vm::StopArgs),
    /// Attach this terminal to the guest's serial port; Ctrl-] leaves
    #[command(
        after_help = "Example:\n  tern run --image linux --serial unix:/tmp/a.console --control /tmp/a.sock &\n  tern console --control /tmp/a.sock"
    )]
    Console(vm::ControlArgs),
    /// Show which CPUs guests can see, and make profiles that several hosts have
    #[command(subcommand, after_help = cpu::EXAMPLES)]
    Cpu(cpu::CpuCommand),
    /// Show what this host can, and how to mend what it can't
    #[command(after_help = "Examples:\n  tern host\n  tern host --json | jq .kind")]
    Host(HostArgs),
    /// Build and find guest images
    #[command(subcommand, after_help = image::EXAMPLES)]
    Image(image::ImageCommand),
    /// Show what is in a file made by tern save, or in a recorded migration, whole or damaged
    #[command(after_help = inspect::EXAMPLES)]
    Inspect(inspect::InspectArgs),
    /// Write a guest's memory and registers for a debugger
    #[command(after_help = dump::EXAMPLES)]
    Dump(dump::DumpArgs),
    /// Make certificates or a secret, for guests that cross a network
    #[command(subcommand, after_help = tls::EXAMPLES)]
    Tls(tls::TlsCommand),
    /// Show what this build saves of a guest, and compare builds
    #[command(subcommand, after_help = schema::EXAMPLES)]
    Schema(schema::SchemaCommand),
}

#[derive(Debug, clap::Args)]
struct HostArgs {
    /// As JSON
    #[arg(long)]
    json: bool,
}

/// A failed command: its text, causes included, and how the process ends.
#[derive(Debug)]
pub(crate) struct Failure {
    exit: Exit,
    text: String,
}

impl Failure {
    fn new(error: &(dyn Error + 'static)) -> Self {
        Self::with(Exit::Failure, error)
    }

    fn usage(error: &(dyn Error + 'static)) -> Self {
        Self::with(Exit::Usage, error)
    }

    fn with(exit: Exit, error: &(dyn Error + 'static)) -> Self {
        Self { exit, text: chain(error) }
    }

    fn text(exit: Exit, text: impl Into<String>) -> Self {
        Self { exit, text: text.into() }
    }
}

impl From<crate::control::client::ClientError> for Failure {
    fn from(error: crate::control::client::ClientError) -> Self {
        Self::new(&error)
    }
}

impl From<CommandError> for Failure {
    fn from(error: CommandError) -> Self {
        Self::new(&error)
    }
}

/// The whole process: reads the command line, does it, and says how it ended.
pub fn main() -> ExitCode {
    let cli = Cli::parse();
    log_to_stderr();
    match dispatch(cli.command) {
        Ok(exit) => exit.into(),
        Err(failure) => {
            // Without stderr there is still the exit code.
            let _ = writeln!(io::stderr(), "tern: {}", failure.text);
            failure.exit.into()
        }
    }
}

fn dispatch(command: Command) -> Result<Exit, Failure> {
    match command {
        Command::Run(args) => run::run(*args),
        Command::Restore(args) => restore::run(*args),
        Command::Migrate(args) => migrate::run(args),
        Command::Postcopy(args) => postcopy::run(&args),
        Command::Save(args) => save::run(&args),
        Command::Capabilities(args) => capabilities::run(&args),
        Command::Status(args) => vm::status(&args),
        Command::Metrics(args) => vm::metrics(&args),
        Command::Balloon(args) => vm::balloon(&args),
        Command::Pause(args) => vm::simple(&args, "stop"),
        Command::Resume(args) => vm::simple(&args, "cont"),
        Command::Cancel(args) => vm::simple(&args, "migrate_cancel"),
        Command::Stop(args) => vm::stop(&args),
        Command::Console(args) => console::run(&args),
        Command::Host(HostArgs { json }) => {
            let facts = HostFacts::probe();
            if json { print_json(&facts) } else { print(&show(&facts)) }
        }
        Command::Cpu(command) => cpu::run(&command),
        Command::Image(command) => image::run(&command),
        Command::Inspect(args) => inspect::run(&args),
        Command::Dump(args) => dump::run(&args),
        Command::Schema(command) => schema::run(&command),
        Command::Tls(command) => tls::run(&command),
    }
}

/// Logs go to stderr; `TERN_LOG` says which, as in `TERN_LOG=debug` or `TERN_LOG=tern_migration=trace`.
fn log_to_stderr() {
    let filter = tracing_subscriber::EnvFilter::builder()
        .with_default_directive(tracing::level_filters::LevelFilter::WARN.into())
        .with_env_var("TERN_LOG")
        .from_env_lossy();
    // A line that can't be written (a full disk, a reader that has gone) would be reported by a panic of the thread.
    let lines = tracing_subscriber::fmt().log_internal_errors(false);
    lines.with_env_filter(filter).with_writer(io::stderr).without_time().init();
}

/// Writes a line for people to the standard error. Nobody may be there to read it, and no process ends for that.
pub(crate) fn tell(line: &str) {
    let _ = writeln!(io::stderr(), "{line}");
}

/// Prints a result. A reader that has seen enough (`tern host | head`) is no error.
fn print(text: &str) -> Result<Exit, Failure> {
    let mut stdout = io::stdout().lock();
    match stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush()) {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => {
            Err(Failure::text(Exit::Failure, format!("can't write to stdout: {error}")))
        }
        _ => Ok(Exit::Success),
    }
}

fn print_json(value: &impl Serialize) -> Result<Exit, Failure> {
    let text = serde_json::to_string_pretty(value).map_err(|error| Failure::new(&error))?;
    print(&(text + "\n"))
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_command_line_is_sound() {
        Cli::command().debug_assert();
    }

    #[test]
    fn every_command_has_an_example() {
        let mut cli = Cli::command();
        cli.build();
        let mut commands = vec![&cli];
        while let Some(command) = commands.pop() {
            let help = command.get_after_help().map(ToString::to_string).unwrap_or_default();
            assert!(help.contains("Example") && help.contains("  tern "), "{} has none", command.get_name());
            commands.extend(command.get_subcommands().filter(|inner| inner.get_name() != "help"));
        }
    }
}
