//! What the control socket asks of the machine: the one trait between them. The machine implements it, and a
//! fake in the tests.
//!
//! Every call returns at once: what takes time (a migration) goes on elsewhere and is seen by `query_migrate`
//! and events. The server has already checked that the state allows the command (`commands.rs` has the
//! table) and that the arguments have the right types.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use tern_migration::config::Parameters;
use tern_migration::{Report, Side, Status};

use super::CommandError;

/// Changes as a client gave them: values by parameter name, for [`Parameters::merged`].
pub type ParameterValues = Map<String, Value>;

/// What the machine is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum RunState {
    /// The vCPUs run.
    Running,
    /// The vCPUs stand still, and `cont` starts them.
    Paused,
    /// A destination: it waits for a guest, or one is arriving.
    InMigrate,
    /// A source in its last stage: stopped, and not handed over yet.
    FinishMigrate,
    /// The guest has moved away.
    PostMigrate,
    /// COMMIT was sent and no answer came: stopped, memory kept, until `migrate-resolve` says who goes on.
    InDoubt,
    /// The guest has switched itself off.
    Shutdown,
    /// A vCPU failed; the error was printed.
    InternalError,
}

impl RunState {
    /// All of them, in the order above.
    pub const ALL: [Self; 8] = [
        Self::Running,
        Self::Paused,
        Self::InMigrate,
        Self::FinishMigrate,
        Self::PostMigrate,
        Self::InDoubt,
        Self::Shutdown,
        Self::InternalError,
    ];

    /// QMP's name. QMP has none for "in doubt": such a machine calls itself `postmigrate`, from which clients
    /// don't start guests by themselves, and `query-status` adds our own name as `detail`.
    pub fn qmp_name(self) -> &'static str {
        match self {
            Self::Running => "running",
            Self::Paused => "paused",
            Self::InMigrate => "inmigrate",
            Self::FinishMigrate => "finish-migrate",
            Self::PostMigrate | Self::InDoubt => "postmigrate",
            Self::Shutdown => "shutdown",
            Self::InternalError => "internal-error",
        }
    }

    /// Our name, for people and for `detail`.
    pub fn name(self) -> &'static str {
        match self {
            Self::InDoubt => "in-doubt",
            other => other.qmp_name(),
        }
    }
}

/// Start a migration.
#[derive(Clone, Debug, PartialEq)]
pub struct MigrateRequest {
    /// Where to: `tcp:HOST:PORT` or `unix:PATH`.
    pub uri: String,
    /// Parameters and capabilities of this migration alone: the defaults, with what the client gave. Checked.
    pub parameters: Parameters,
}

/// Who goes on after a migration in doubt.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Resolution {
    /// The guest runs here: someone has made sure that the destination doesn't and won't.
    Run,
    /// The destination has it: this side's copy is thrown away.
    Discard,
}

/// A vCPU, for `query-cpus-fast`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CpuFacts {
    /// Number from 0.
    pub index: u32,
    /// The host's thread id (gettid).
    pub thread_id: u64,
}

/// Where the guest's serial port goes, for `query-chardev`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SerialFacts {
    /// The terminal of the process.
    Stdio,
    /// A file, written only.
    File(PathBuf),
    /// A listening unix socket; `connected` says whether someone is attached.
    Unix {
        /// The socket's path, absolute.
        path: PathBuf,
        /// A client is attached.
        connected: bool,
    },
    /// Nowhere.
    Null,
}

/// What never changes while the machine lives, apart from the serial client, and the VM generation ID, which comes
/// with a guest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MachineFacts {
    /// The machine's name.
    pub name: String,
    /// Its UUID.
    pub uuid: uuid::Uuid,
    /// The guest's VM generation ID, if it has one.
    pub generation_id: Option<uuid::Uuid>,
    /// Its vCPUs.
    pub cpus: Vec<CpuFacts>,
    /// Its serial port.
    pub serial: SerialFacts,
}

/// How many migrations have ended so.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct MigrationCount {
    /// Which end this machine was.
    pub side: Side,
    /// How they ended.
    pub status: Status,
    /// How many since this process began.
    pub migrations: u64,
}

/// The latest migrations of this process, in and out.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct MigrationHistory {
    /// Oldest first; the last one may be running.
    pub reports: Vec<Report>,
    /// All that are over.
    pub counts: Vec<MigrationCount>,
}

/// The machine as the control socket sees it.
pub trait Operations: Send {
    /// For `query-name`, `query-cpus-fast`, `query-chardev`.
    fn facts(&self) -> MachineFacts;
    /// For `query-status`, and for the check of each command's legal states.
    fn run_state(&self) -> RunState;
    /// Stops the vCPUs; returns when all have stopped. The machine posts `STOP`.
    fn stop(&mut self) -> Result<(), CommandError>;
    /// Starts them again. The machine posts `RESUME`.
    fn cont(&mut self) -> Result<(), CommandError>;
    /// Ends the process soon, after the answer has been sent: sets a flag that the main loop looks at.
    fn quit(&mut self) -> Result<(), CommandError>;
    /// Starts the machine anew.
    fn reset(&mut self) -> Result<(), CommandError>;
    /// `query-balloon`: what the guest has of its memory, and what it was asked to make do with.
    fn query_balloon(&self) -> Result<Value, CommandError>;
    /// Asks the guest to make do with so much of its memory.
    fn balloon(&mut self, left_bytes: u64) -> Result<(), CommandError>;
    /// Presses the ACPI power button.
    fn powerdown(&mut self) -> Result<(), CommandError>;
    /// Starts a migration in a thread of its own.
    fn migrate(&mut self, request: MigrateRequest) -> Result<(), CommandError>;
    /// Starts to ask a destination whether the guest fits there, in a thread of its own. The machine posts
    /// `MIGRATION_CHECK` at the end.
    fn check(&mut self, request: MigrateRequest) -> Result<(), CommandError>;
    /// `query-migrate-check`'s whole answer; `{}` if there was no check yet.
    fn query_check(&self) -> Value;
    /// Starts listening, in a process that was started with `--incoming defer`. An error leaves it ready for
    /// another try. `changes` apply to what `set_parameters` has set before.
    fn migrate_incoming(&mut self, uri: &str, changes: &ParameterValues) -> Result<(), CommandError>;
    /// `query-migrate`'s whole answer: QMP's fields, and our `report`. `{}` if there was no migration yet.
    fn query_migrate(&self) -> Value;
    /// Cancels the migration; nothing happens where none runs.
    fn cancel(&mut self) -> Result<(), CommandError>;
    /// Changes the running migration's parameters, or, before `migrate-incoming`, that one's. All or nothing.
    fn set_parameters(&mut self, changes: &ParameterValues) -> Result<(), CommandError>;
    /// The latest migrations.
    fn history(&self) -> MigrationHistory;
    /// What a migration may use, and why not the rest: an object of lists. With an address, at that destination.
    fn features(&self, uri: Option<&str>) -> Result<Value, CommandError>;
    /// The parameters of the running or awaited migration, or the defaults.
    fn parameters(&self) -> Parameters;
    /// Ends a migration in doubt.
    fn resolve(&mut self, resolution: Resolution) -> Result<(), CommandError>;
    /// Ends the wait before the switch-over.
    fn go_on(&mut self) -> Result<(), CommandError>;
    /// Lets post-copy begin; nothing happens if it has.
    fn start_postcopy(&mut self) -> Result<(), CommandError>;
    /// Breaks the connections of a post-copy.
    fn pause_postcopy(&mut self) -> Result<(), CommandError>;
    /// Makes the connections of a post-copy at another address.
    fn recover_postcopy(&mut self, uri: &str) -> Result<(), CommandError>;
}
