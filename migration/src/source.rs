//! The source's side of a migration.
//!
//! ```text
//! Connected --agree--> Agreed --run--> Rounds --stop--> Stopped --offer--> Offered --commit--> Done
//!     '-------------------+---------------+----------------+----------------'            |
//!                         | failure, cancel: the guest runs on here                      |
//!                         v                                                              v
//!                 Failed, Cancelled                          no answer after COMMIT: InDoubt
//! ```
//!
//! Where it goes is behind [`carrier::Carrier`]: over a link to a peer, or into a file, which never takes the
//! right to run the guest.
//!
//! Each phase is a plain struct that the next one is made of, so no step can be taken twice or out of
//! order. The machine itself stays in `Attempt`, which knows what has to be undone.

mod agree;
pub(crate) mod carrier;
mod check;
mod commit;
mod doubt;
mod handover;
mod healing;
mod lanes;
mod link;
mod opening;
mod postcopy;
mod rounds;
pub(crate) mod serving;
mod switchover;
mod terms;

use std::sync::Arc;

use crate::channel::{Address, Connection, Connector, Route, Security, Uri};
use crate::config::LiveParameters;
use crate::control::Control;
use crate::error::MigrationError;
use crate::handover::source::{Event, State};
use crate::policy::link::LinkMeter;
use crate::ram::RamView;
use crate::snapshot::SaveFile;
use crate::stats::{ErrorReport, Report, Round, Side, Status};
use crate::vm::{DiskFailures, PAGE_BYTES, SourceVm, VmError};

use self::agree::Connected;
use self::carrier::Carrier;
use self::handover::Handover;
use self::link::Link;

pub use self::check::{CheckReport, SectionChoice, check};
pub use self::doubt::{Doubt, ResolveError, Standing, inquire, wait};

/// The report that others read is at most this old while the guest runs.
const PUBLISH_EVERY_US: u64 = 100_000;

/// How a migration ended for the source.
#[derive(Debug)]
pub enum Outcome {
    /// The guest is on the destination. This side keeps it stopped and must never run it again.
    Completed,
    /// A copy of the guest is in a file, and the guest is still this side's.
    Saved {
        /// It goes on as before (capability `keep-running`); false: it is still stopped, as [`SourceVm::stop`]
        /// has left it, and whoever has the machine decides.
        resumed: bool,
    },
    /// Cancelled: the guest goes on here as before, with nothing lost.
    Cancelled,
    /// Failed: the guest goes on here as before, with nothing lost. Only after
    /// [`MigrationError::Resume`] it doesn't: it is stopped, with all its memory.
    Failed(MigrationError),
    /// The guest was given up and the destination's answer did not come: it may run there, or not at all.
    /// This side keeps it stopped, with all its memory, until a person has looked at the destination.
    InDoubt(Doubt),
    /// Post-copy: a person has given up the destination and this copy of the guest too. It must never run again.
    Discarded,
}

/// The machine, and how the migration ended.
#[derive(Debug)]
pub struct SourceEnd<V> {
    /// The machine that was moved in.
    pub vm: V,
    /// What became of its guest.
    pub outcome: Outcome,
}

/// Connects to `uri` and moves the guest of `vm` there; otherwise as [`migrate`].
pub fn migrate_to<V: SourceVm>(
    vm: V,
    uri: &Uri,
    live: &LiveParameters,
    control: &Arc<Control>,
) -> SourceEnd<V> {
    if let Uri::File { path } = uri {
        let route = Route::new(uri);
        return set_out(vm, route.clone(), live, control, || {
            Ok((Box::new(SaveFile::create(path, live, control)?), route))
        });
    }
    let connector: Arc<dyn Connector> = Arc::new(Address::new(uri, Security::of(&live.get())));
    migrate_by(vm, &connector, live, control)
}

/// Moves the guest of `vm` to where `connector` leads; otherwise as [`migrate`].
pub fn migrate_by<V: SourceVm>(
    vm: V,
    connector: &Arc<dyn Connector>,
    live: &LiveParameters,
    control: &Arc<Control>,
) -> SourceEnd<V> {
    set_out(vm, connector.route(), live, control, || {
        let connection = connector.connect(control)?;
        let route = connection.route.clone();
        Ok((Box::new(Link::new(connection, Some(connector), live, control)), route))
    })
}

/// The other end, and then all phases.
fn set_out<V: SourceVm>(
    vm: V,
    route: Route,
    live: &LiveParameters,
    control: &Arc<Control>,
    open: impl FnOnce() -> Result<(Box<dyn Carrier>, Route), MigrationError>,
) -> SourceEnd<V> {
    let mut report = Report::new(Side::Source);
    report.set_route(route);
    report.set_parameters(&live.get());
    control.announce(report.clone(), Status::Setup, None);
    let error = match open() {
        Ok((carrier, route)) => return carry(vm, carrier, route, live, control),
        Err(error) => error,
    };
    control.cancel.close();
    let cancelled = matches!(error, MigrationError::Cancelled);
    let status = if cancelled { Status::Cancelled } else { Status::Failed };
    control.announce(report, status, Some(&error));
    SourceEnd { vm, outcome: if cancelled { Outcome::Cancelled } else { Outcome::Failed(error) } }
}

/// Moves the guest of `vm` to the peer. Blocks until it is over; call it on a thread of its own. Obeys
/// changes of `live` within 100 ms. `control` is for this attempt alone.
pub fn migrate<V: SourceVm>(
    vm: V,
    connection: Connection,
    live: &LiveParameters,
    control: &Arc<Control>,
) -> SourceEnd<V> {
    let route = connection.route.clone();
    carry(vm, Box::new(Link::new(connection, None, live, control)), route, live, control)
}

/// All phases.
pub(crate) fn carry<V: SourceVm>(
    vm: V,
    carrier: Box<dyn Carrier>,
    route: Route,
    live: &LiveParameters,
    control: &Arc<Control>,
) -> SourceEnd<V> {
    let ram = RamView::new(vm.ram());
    let mut attempt = Attempt::new(vm, carrier, route, live, control);
    let result = Connected { attempt: &mut attempt, ram: &ram }
        .agree()
        .and_then(agree::Agreed::start)
        .and_then(rounds::Rounds::run)
        .and_then(commit::Stopped::offer)
        .and_then(commit::Offered::commit);
    attempt.finish(result)
}

/// Everything that lasts over the phases.
struct Attempt<'a, V> {
    vm: V,
    carrier: Box<dyn Carrier>,
    live: &'a LiveParameters,
    control: Arc<Control>,
    report: Report,
    handover: Handover,
    log_started: bool,
    /// Disk requests that had failed before.
    disk_failures_before: u64,
    /// What the link carries.
    meter: LinkMeter,
    /// How much memory is moved while threads are at it, encoding included.
    flow: LinkMeter,
    round_trip_us: u64,
    published_us: u64,
    /// While the guest runs and memory moves.
    live_started_us: Option<u64>,
    /// The round that is being made, and since when; none between two rounds.
    now: Round,
    round_started_us: Option<u64>,
}

impl<'a, V: SourceVm> Attempt<'a, V> {
    fn new(
        vm: V,
        carrier: Box<dyn Carrier>,
        route: Route,
        live: &'a LiveParameters,
        control: &Arc<Control>,
    ) -> Self {
        let mut report = Report::new(Side::Source);
        report.set_route(route);
        report.disk_errors = Some(0);
        let now_us = control.elapsed_us();
        let disk_failures_before = vm.disk_failures().count;
        Self {
            vm,
            carrier,
            live,
            control: Arc::clone(control),
            report,
            handover: Handover::default(),
            log_started: false,
            disk_failures_before,
            meter: LinkMeter::new(),
            flow: LinkMeter::new(),
            round_trip_us: 0,
            published_us: now_us,
            live_started_us: None,
            now: Round::default(),
            round_started_us: None,
        }
    }

    /// A guest that is kept and doesn't go on: nobody waits for it, and another round would only take longer.
    fn stays_stopped(&self) -> bool {
        !self.carrier.gives_away() && !self.live.get().capabilities.keep_running
    }

    fn set_status(&mut self, status: Status) {
        self.report.status = status;
        self.publish();
        self.control.tell(status);
    }

    fn begin_round(&mut self) -> u64 {
        *self.round_started_us.insert(self.control.now_us())
    }

    /// What has been sent since the last time, into the report.
    fn note_moved(&mut self, live: bool) {
        let moved = self.carrier.take_moved();
        self.meter.add(moved.bytes(), moved.sending_us);
        self.flow.add(moved.page_bytes(), moved.working_us);
        self.now.add(&moved);
        self.report.add_moved(&moved);
        self.now_here(moved.pages());
        if let (Some(hashed), Some(noted)) = (self.carrier.hashed(), &mut self.report.proof) {
            let before = std::mem::replace(&mut noted.hash_us, hashed.spent_us);
            noted.stopped_hash_us += if live { 0 } else { hashed.spent_us.saturating_sub(before) };
        }
    }

    /// Memory that can be moved in a second.
    fn bytes_per_s(&self) -> u64 {
        if self.carrier.threads() > 0 { self.flow.bytes_per_s() } else { self.meter.bytes_per_s() }
    }

    /// `pages` of those that were still to be sent are done.
    fn now_here(&mut self, pages: u64) {
        let bytes = pages * PAGE_BYTES;
        self.report.remaining_bytes = self.report.remaining_bytes.map(|left| left.saturating_sub(bytes));
    }

    fn measure_live(&mut self) {
        if let Some(started_us) = self.live_started_us {
            self.report.live_us = self.control.since_us(started_us);
        }
    }

    /// The round that is being made, as it is now.
    fn unfinished(&self) -> Option<Round> {
        let duration_us = self.control.since_us(self.round_started_us?);
        Some(Round { duration_us, ..self.now })
    }

    /// The guest's disk errors since the start; the first is a warning.
    fn note_disk_failures(&mut self) {
        let DiskFailures { count, latest } = self.vm.disk_failures();
        let count = count.saturating_sub(self.disk_failures_before);
        if count > 0 && self.report.disk_errors == Some(0) {
            let latest = latest.unwrap_or_default();
            let text =
                format!("a disk request failed on this host, and the guest saw an I/O error: {latest}");
            self.report.warnings.push(text);
        }
        self.report.disk_errors = Some(count);
    }

    fn publish(&mut self) {
        self.report.set_parameters(&self.live.get());
        self.note_disk_failures();
        self.measure_live();
        self.report.total_us = self.control.elapsed_us();
        self.report.bytes.messages = self.carrier.message_bytes();
        self.report.xbzrle = self.carrier.deltas();
        self.report.compression = self.carrier.chosen();
        self.report.link_bytes_per_s = self.meter.measured_bytes_per_s();
        self.published_us = self.report.total_us;
        let mut shown = self.report.clone();
        if let Some(round) = self.unfinished() {
            shown.push_round(round);
        }
        self.control.publish(shown);
    }

    /// Publishes now and then; never called while the guest is stopped.
    fn publish_if_old(&mut self) {
        if self.control.elapsed_us().saturating_sub(self.published_us) >= PUBLISH_EVERY_US {
            self.publish();
        }
    }

    fn finish(mut self, result: Result<Outcome, MigrationError>) -> SourceEnd<V> {
        // Whoever cancels from here on is told that it is too late.
        self.control.cancel.close();
        self.measure_live();
        self.live_started_us = None;
        if let Some(round) = self.unfinished() {
            self.report.push_round(round);
            self.round_started_us = None;
        }
        let outcome = match result {
            Ok(outcome) => outcome,
            Err(error) => self.give_back(error),
        };
        self.end_log();
        let (status, error) = match &outcome {
            Outcome::Completed | Outcome::Saved { .. } | Outcome::Discarded => (Status::Completed, None),
            Outcome::Cancelled => (Status::Cancelled, Some(&MigrationError::Cancelled)),
            Outcome::Failed(error) => (Status::Failed, Some(error)),
            Outcome::InDoubt(doubt) => (Status::InDoubt, Some(&doubt.error)),
        };
        self.report.error = error.map(ErrorReport::from);
        self.set_status(status);
        SourceEnd { vm: self.vm, outcome }
    }

    /// The guest goes on here, though it isn't over yet: what is left to do needs neither it nor its log.
    fn keep_running(&mut self) -> Result<(), MigrationError> {
        self.vm.resume().map_err(vm_failed("letting the guest go on"))?;
        self.step(Event::GoesOn)?;
        self.end_log();
        Ok(())
    }

    /// What follows for the guest from a failure or a cancel, as the table says.
    fn give_back(&mut self, error: MigrationError) -> Outcome {
        let event = if matches!(error, MigrationError::Cancelled) { Event::Cancel } else { Event::Failed };
        let before = self.handover.state;
        if before.can_cancel() {
            self.end_log();
        }
        self.handover.failure = Some(error);
        if !before.is_over()
            && let Err(error) = self.step(event)
        {
            self.handover.failure = Some(error);
        }
        let Handover { state, failure, not_resumed, .. } = std::mem::take(&mut self.handover);
        let error = failure.unwrap_or(MigrationError::Cancelled);
        match (state, not_resumed) {
            (State::Kept | State::Stranded, Some(source)) => {
                Outcome::Failed(MigrationError::Resume { after: Box::new(error), source })
            }
            (State::Kept | State::Stranded, None) if matches!(error, MigrationError::Cancelled) => {
                Outcome::Cancelled
            }
            (State::Kept | State::Stranded, None) => Outcome::Failed(error),
            (State::Discarded, _) => Outcome::Discarded,
            _ => {
                let error = self.carrier.last_words(error);
                Outcome::InDoubt(Doubt::new(error, self.report.session.clone()))
            }
        }
    }

    fn end_log(&mut self) {
        if self.log_started {
            self.stop_log();
        }
    }

    fn stop_log(&mut self) {
        self.log_started = false;
        if let Err(source) = self.vm.dirty_log_stop() {
            let error = vm_failed("stopping the dirty log")(source);
            self.report.warnings.push(error.text());
        }
    }
}

fn vm_failed(action: &'static str) -> impl FnOnce(VmError) -> MigrationError {
    move |source| MigrationError::Vm { action, source }
}
