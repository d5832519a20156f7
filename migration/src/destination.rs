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
mod arrival;
mod attending;
mod channels;
mod check;
mod handover;
mod life;
mod load;
mod lobby;
mod restore;

use std::sync::Arc;

use crate::channel::{Acceptor, Connection, Route};
use crate::config::LiveParameters;
use crate::control::Control;
use crate::error::{MigrationError, ProtocolError};
use crate::handover::Register;
use crate::handover::destination::Event;
use crate::known::KnownPages;
use crate::ram::RamView;
use crate::stats::{ErrorReport, Report, Round, Side, Status};
use crate::vm::{DestinationVm, PAGE_BYTES, VmError};
use crate::wire::{Peer, Purpose, Wire, greet};

use self::agree::Connected;
use self::handover::Handover;
use self::lobby::Met;

pub use self::arrival::Arrival;
pub use self::lobby::attend;
pub use self::restore::{Filling, Restore, restore};

const PUBLISH_EVERY_US: u64 = 100_000;

/// The guest has arrived.
#[derive(Debug)]
pub struct Received<V> {
    /// The machine that was moved in.
    pub vm: V,
    /// Does the guest run? False: it was paused on the source, and is paused here.
    pub running: bool,
    /// The source knows that the guest is here. If not, it may ask: see [`attend`].
    pub settled: bool,
    /// Post-copy: a part of its memory is still at the source, and comes as long as this is kept. It listens for the source by
    /// itself.
    pub arrival: Option<Arrival>,
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
    /// As in [`Received`]: only if `committed`.
    pub arrival: Option<Arrival>,
    /// Why.
    pub error: MigrationError,
}

/// Waits at `acceptor` for a source, turning everybody else away and answering those who only ask, and takes its guest into `vm`; otherwise as
/// [`receive`]. The attempt begins, also for its clock, when the source has introduced itself.
pub fn receive_from<V: DestinationVm>(
    vm: V,
    acceptor: &Arc<dyn Acceptor>,
    control: &Arc<Control>,
) -> Result<Received<V>, Box<ReceiveError<V>>> {
    receive_with(vm, acceptor, &LiveParameters::default(), &Arc::default(), None, control)
}

/// As [`receive_from`], with the parameters of this side. `register` remembers for sources in doubt what became of all
/// attempts of this process; `known`: pages that the source needn't send.
pub fn receive_with<V: DestinationVm>(
    vm: V,
    acceptor: &Arc<dyn Acceptor>,
    live: &LiveParameters,
    register: &Arc<Register>,
    known: Option<&Arc<KnownPages>>,
    control: &Arc<Control>,
) -> Result<Received<V>, Box<ReceiveError<V>>> {
    match lobby::meet(&vm, &**acceptor, register, known, control) {
        Ok(Met { wire, route, peer, strangers }) => {
            let mut attempt = Attempt::new(vm, wire, route, register, control);
            attempt.report.strangers = strangers.count;
            attempt.report.warnings = strangers.texts;
            attempt.acceptor = Some(Arc::clone(acceptor));
            attempt.decompress_threads = live.get().decompress_threads;
            attempt.known = known.map(Arc::clone);
            attempt.set_status(Status::Setup);
            attempt.run(Ok(peer))
        }
        Err(error) => {
            control.cancel.close();
            let cancelled = matches!(error, MigrationError::Cancelled);
            let status = if cancelled { Status::Cancelled } else { Status::Failed };
            let mut report = Report::new(Side::Destination);
            report.set_route(acceptor.route());
            control.announce(report, status, Some(&error));
            Err(Box::new(ReceiveError { vm, committed: false, arrival: None, error }))
        }
    }
}

/// Takes a guest from the peer into `vm`, which was never run. Blocks until it is over. `control` is for this
/// attempt alone.
pub fn receive<V: DestinationVm>(
    vm: V,
    connection: Connection,
    control: &Arc<Control>,
) -> Result<Received<V>, Box<ReceiveError<V>>> {
    let route = connection.route.clone();
    let (wire, register) = (Wire::new(connection, Side::Destination, control), Arc::default());
    let mut attempt = Attempt::new(vm, wire, route, &register, control);
    attempt.set_status(Status::Setup);
    let met = greet(&mut attempt.wire, &register).and_then(|peer| match peer.purpose {
        Purpose::Migration => Ok(peer),
        Purpose::Check | Purpose::Inquiry | Purpose::Recover => {
            Err(ProtocolError::Purpose { peer_tern: peer.tern_version }.into())
        }
        Purpose::Channel | Purpose::Urgent => Err(ProtocolError::NoSession { found: peer.session }.into()),
    });
    attempt.run(met)
}

/// A guest of which a part is missing, before it runs.
struct Arriving {
    arrival: Arrival,
    /// All connections but the first and the urgent one.
    further: Vec<Wire>,
    acceptor: Arc<dyn Acceptor>,
}

/// Everything that lasts over the phases.
struct Attempt<V> {
    vm: V,
    wire: Wire,
    /// Where further connections come from, if any can.
    acceptor: Option<Arc<dyn Acceptor>>,
    control: Arc<Control>,
    report: Report,
    /// Parameter of this side.
    decompress_threads: u64,
    /// Pages that needn't come.
    known: Option<Arc<KnownPages>>,
    handover: Handover,
    /// Post-copy has begun.
    arriving: Option<Arriving>,
    register: Arc<Register>,
    published_us: u64,
    /// While memory arrives.
    live_started_us: Option<u64>,
    /// The round that arrives, and since when; none between two rounds.
    now: Round,
    round_started_us: Option<u64>,
}

impl<V: DestinationVm> Attempt<V> {
    fn new(vm: V, wire: Wire, route: Route, register: &Arc<Register>, control: &Arc<Control>) -> Self {
        let mut report = Report::new(Side::Destination);
        report.set_route(route);
        report.memory_bytes = RamView::new(vm.ram()).region_pages().sum::<u64>() * PAGE_BYTES;
        Self {
            vm,
            wire,
            acceptor: None,
            control: Arc::clone(control),
            report,
            decompress_threads: 0,
            known: None,
            handover: Handover::default(),
            arriving: None,
            register: Arc::clone(register),
            published_us: 0,
            live_started_us: None,
            now: Round::default(),
            round_started_us: None,
        }
    }

    /// All phases, if the peer was met.
    fn run(mut self, met: Result<Peer, MigrationError>) -> Result<Received<V>, Box<ReceiveError<V>>> {
        let ram = Arc::new(RamView::new(self.vm.ram()));
        let result = met
            .and_then(|peer| Connected { attempt: &mut self, ram: &ram, peer }.agree())
            .and_then(agree::Agreed::load)
            .and_then(handover::Prepared::start);
        self.finish(result)
    }

    fn set_status(&mut self, status: Status) {
        self.report.status = status;
        self.publish();
        self.control.tell(status);
    }

    fn measure_live(&mut self) {
        if let Some(started_us) = self.live_started_us {
            self.report.live_us = self.control.since_us(started_us);
        }
    }

    /// The round that arrives, as it is now.
    fn unfinished(&self) -> Option<Round> {
        let duration_us = self.control.since_us(self.round_started_us?);
        Some(Round { duration_us, ..self.now })
    }

    fn publish(&mut self) {
        self.measure_live();
        self.report.total_us = self.control.elapsed_us();
        self.report.bytes.messages = self.wire.message_bytes();
        self.published_us = self.report.total_us;
        let mut shown = self.report.clone();
        if let Some(round) = self.unfinished() {
            shown.push_round(round);
        }
        self.control.publish(shown);
    }

    fn publish_if_old(&mut self) {
        if self.control.elapsed_us().saturating_sub(self.published_us) >= PUBLISH_EVERY_US {
            self.publish();
        }
    }

    fn finish(mut self, result: Result<bool, MigrationError>) -> Result<Received<V>, Box<ReceiveError<V>>> {
        self.control.cancel.close();
        self.measure_live();
        self.live_started_us = None;
        if let Some(round) = self.unfinished() {
            self.report.push_round(round);
            self.round_started_us = None;
        }
        let error = match result {
            Ok(running) => {
                let Some(Arriving { arrival, further, .. }) = self.arriving.take() else {
                    self.set_status(Status::Completed);
                    let settled = self.handover.settled;
                    return Ok(Received { vm: self.vm, running, settled, arrival: None });
                };
                self.report.status = Status::PostcopyActive;
                let arrival = Some(arrival.go_on(self.report, Some(self.wire), further));
                return Ok(Received { vm: self.vm, running, settled: true, arrival });
            }
            Err(error) => {
                let arriving = self.arriving.as_ref().filter(|_| channels::is_halted(&error));
                let cause = arriving.and_then(|arriving| arriving.arrival.check().err());
                self.wire.last_words(cause.unwrap_or(error))
            }
        };
        let cancelled = matches!(error, MigrationError::Cancelled);
        if !self.handover.state.is_over() {
            let over = self.step(if cancelled { Event::Cancel } else { Event::Failed });
            debug_assert!(over.is_ok(), "nothing is sent at the end");
        }
        let committed = self.handover.state.is_committed();
        // Nobody waits for pages any more, unless the guest is here.
        let arriving = self.arriving.take().filter(|_| committed);
        self.wire.farewell(&error);
        self.report.error = Some(ErrorReport::from(&error));
        let arrival = match arriving {
            Some(Arriving { arrival, .. }) => {
                self.report.status = Status::PostcopyPaused;
                Some(arrival.go_on(self.report, None, Vec::new()))
            }
            None => {
                self.set_status(if cancelled { Status::Cancelled } else { Status::Failed });
                None
            }
        };
        Err(Box::new(ReceiveError { vm: self.vm, committed, arrival, error }))
    }
}

fn vm_failed(action: &'static str) -> impl FnOnce(VmError) -> MigrationError {
    move |source| MigrationError::Vm { action, source }
}
