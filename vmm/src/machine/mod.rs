//! A machine's life in this process: built, booted or filled by a migration, run, and ended.
//!
//! ```text
//! main thread   one event loop: devices, control socket, signals, notices
//! vcpu-N        run the guest; tell the loop by a notice when one ends
//! migration     has the Vm while it moves; brings it back in a notice
//! ```
//!
//! Whatever changes the machine happens in the main thread, between two rounds of the event loop, so nothing
//! here races.

mod booting;
mod checking;
mod doubt;
mod error;
mod event_loop;
mod features;
mod history;
mod migration;
mod notice;
mod opening;
mod operations;
mod postcopy;
mod restoring;
mod signals;
mod state;

pub use booting::{Plan, plan};
pub use error::RunError;
pub use state::Machine;

use tern_migration::snapshot::SnapshotFile;

use crate::config::VmConfig;

/// Why a machine ended without an error.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ExitReason {
    /// The guest switched itself off.
    PowerOff,
    /// The guest reset its machine, which was told not to start anew.
    GuestReset,
    /// `quit`.
    Quit,
    /// The signal of this number.
    Signal(i32),
    /// The guest moved away, and nobody needs this side any more.
    Discarded,
}

/// Runs a machine to its end. `snapshot`: the file that `config` names as the guest's, if it is open already, such
/// as `config` was read from.
///
/// # Errors
/// [`RunError`]: it could not be built or booted, or a vCPU failed.
pub fn run(config: VmConfig, snapshot: Option<SnapshotFile>) -> Result<ExitReason, RunError> {
    event_loop::run(config, snapshot)
}
