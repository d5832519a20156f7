//! The destination's side of a migration.
//!
//! ```text
//! Connected --agree--> Agreed --load--> Prepared --commit--> Running
//!     '-------------------+----------------'                    '-- start fails: the guest is here, stopped
//!                         | failure, cancel: nothing runs here
//!                         v
//!                  ReceiveError
//! ```

mod agree;
mod load;

use crate::channel::{Connection, Listener};
use crate::control::Control;
use crate::error::MigrationError;
use crate::ram::RamView;
use crate::stats::{ErrorReport, Report, Side, Status};
use crate::vm::DestinationVm;
use crate::wire::Wire;

use self::agree::Connected;

const PUBLISH_EVERY_US: u64 = 100_000;

/// The guest has arrived.
#[derive(Debug)]
pub struct Received<V> {
    /// The machine that was moved in.
    pub vm: V,
    /// Does the guest run? False: it was paused on the source, and is paused here.
    pub running: bool,
}

/// The guest has not arrived, or doesn't run.
#[derive(Debug)]
pub struct ReceiveError<V> {
    /// The machine that was moved in. Unless `committed`, its memory may be half filled: the next attempt
    /// needs a machine that is built anew.
    pub vm: V,
    /// The source has given the guest up and only starting it failed: **this machine holds the only guest**
    /// and must be kept.
    pub committed: bool,
    /// Why.
    pub error: MigrationError,
}

/// Waits at `listener` for a peer and takes its guest into `vm`; otherwise as [`receive`].
pub fn receive_from<V: DestinationVm>(
    vm: V,
    listener: &Listener,
    control: &Control,
) -> Result<Received<V>, Box<ReceiveError<V>>> {
    match listener.accept(control) {
        Ok(connection) => receive(vm, connection, control),
        Err(error) => {
            control.cancel.close();
            let cancelled = matches!(error, MigrationError::Cancelled);
            let status = if cancelled { Status::Cancelled } else { Status::Failed };
            control.announce(Side::Destination, status, Some(&error));
            Err(Box::new(ReceiveError { vm, committed: false, error }))
        }
    }
}

/// Takes a guest from the peer into `vm`, which was never run. Blocks until it is over. `control` is for this
/// attempt alone.
pub fn receive<V: DestinationVm>(
    vm: V,
    connection: Connection,
    control: &Control,
) -> Result<Received<V>, Box<ReceiveError<V>>> {
    let ram = RamView::new(vm.ram());
    let mut attempt = Attempt::new(vm, connection, control);
    let result = Connected { attempt: &mut attempt, ram: &ram }
        .agree()
        .and_then(agree::Agreed::load)
        .and_then(load::Prepared::start);
    attempt.finish(result)
}

/// Everything that lasts over the phases.
struct Attempt<'a, V> {
    vm: V,
    wire: Wire<'a>,
    control: &'a Control,
    report: Report,
    committed: bool,
    published_us: u64,
}

impl<'a, V: DestinationVm> Attempt<'a, V> {
    fn new(vm: V, connection: Connection, control: &'a Control) -> Self {
        let mut report = Report::new(Side::Destination);
        report.transport = connection.kind;
        let wire = Wire::new(connection, Side::Destination, control);
        Self { vm, wire, control, report, committed: false, published_us: 0 }
    }

    fn set_status(&mut self, status: Status) {
        self.report.status = status;
        self.publish();
        self.control.tell(status);
    }

    fn publish(&mut self) {
        self.report.total_us = self.control.elapsed_us();
        self.report.bytes.messages = self.wire.message_bytes;
        self.published_us = self.report.total_us;
        self.control.publish(&self.report);
    }

    fn publish_if_old(&mut self) {
        if self.control.elapsed_us().saturating_sub(self.published_us) >= PUBLISH_EVERY_US {
            self.publish();
        }
    }

    fn finish(mut self, result: Result<bool, MigrationError>) -> Result<Received<V>, Box<ReceiveError<V>>> {
        self.control.cancel.close();
        let error = match result {
            Ok(running) => {
                self.set_status(Status::Completed);
                return Ok(Received { vm: self.vm, running });
            }
            Err(error) => self.wire.last_words(error),
        };
        self.wire.farewell(&error);
        self.report.error = Some(ErrorReport::from(&error));
        let cancelled = matches!(error, MigrationError::Cancelled);
        self.set_status(if cancelled { Status::Cancelled } else { Status::Failed });
        Err(Box::new(ReceiveError { vm: self.vm, committed: self.committed, error }))
    }
}
