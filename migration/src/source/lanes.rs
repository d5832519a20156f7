//! The connections of a migration and the threads that send over them.
//!
//! ```text
//! Rounds --job--> pool --> worker: Encoder --batch--> lane 0, 1, ... (one connection each)
//! ```
//!
//! A worker prefers its own lane, so with as many lanes as workers nobody waits for another. Without threads the caller
//! is the worker.

use std::cell::Cell;
use std::io;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard};

use crate::channel::throttle::Throttle;
use crate::control::Control;
use crate::error::MigrationError;
use crate::policy::encoding::chooser::Sent;
use crate::ram::job::{Doing, Job, Moved, Tally};
use crate::ram::pool::{Panicked, Pool, Worker};
use crate::ram::{Encoder, Encoding, Outgoing, PageRecord, RECORD_BYTES};
use crate::thread;
use crate::wire::{Limit, Wire};

/// One connection.
pub(super) struct Lane {
    wire: Mutex<Wire>,
    /// Pages that were sent over it in this round.
    round_pages: AtomicU64,
}

impl Lane {
    pub(super) fn new(wire: Wire) -> Arc<Self> {
        Arc::new(Self { wire: Mutex::new(wire), round_pages: AtomicU64::new(0) })
    }

    pub(super) fn wire(&self) -> MutexGuard<'_, Wire> {
        thread::lock(&self.wire)
    }

    /// None: somebody sends over it.
    pub(super) fn idle_wire(&self) -> Option<MutexGuard<'_, Wire>> {
        self.wire.try_lock().ok()
    }

    /// So many pages more were sent over it.
    pub(super) fn add_round_pages(&self, pages: u64) {
        self.round_pages.fetch_add(pages, Relaxed);
    }

    /// Pages of the round, which ends here.
    pub(super) fn take_round_pages(&self) -> u64 {
        self.round_pages.swap(0, Relaxed)
    }
}

/// Everything that pages flow through.
pub(super) struct Flow {
    pub(super) shared: Arc<Shared>,
    /// None: it has been ended.
    pool: Option<Pool<Job, MigrationError>>,
    pub(super) threads: usize,
}

pub(super) struct Shared {
    pub(super) lanes: Vec<Arc<Lane>>,
    pub(super) outgoing: Arc<Outgoing>,
    tally: Tally,
    pub(super) throttle: Throttle,
    control: Arc<Control>,
}

impl Panicked for MigrationError {
    fn panicked() -> Self {
        let source = io::Error::other("one of them has panicked");
        Self::Thread { action: "go on", source }
    }
}

impl Flow {
    pub(super) fn start(
        lanes: Vec<Arc<Lane>>,
        outgoing: Outgoing,
        throttle: Throttle,
        threads: usize,
        control: &Arc<Control>,
    ) -> Result<Self, MigrationError> {
        let tally = Tally::new(lanes.len(), control);
        let (outgoing, control) = (Arc::new(outgoing), Arc::clone(control));
        let shared = Arc::new(Shared { lanes, outgoing, tally, throttle, control });
        let encoders = (0..threads.max(1)).map(|_| Encoder::new(&shared.outgoing));
        let mut encoders = encoders.collect::<Result<Vec<_>, _>>()?.into_iter();
        let make = |number| -> Worker<Job, MigrationError> {
            let (shared, encoder) = (Arc::clone(&shared), encoders.next());
            let mut sender = Sender { shared, encoder, number, threads };
            Box::new(move |job| sender.run(&job))
        };
        let pool = Pool::start(&shared.control, "send", threads, make);
        let pool = pool.map_err(|source| MigrationError::Thread { action: "be started", source })?;
        Ok(Self { shared, pool: Some(pool), threads })
    }

    pub(super) fn pool(&self) -> Result<&Pool<Job, MigrationError>, MigrationError> {
        let ended = || self.shared.control.halted("sending memory");
        self.pool.as_ref().ok_or_else(ended)
    }

    pub(super) fn take_moved(&self) -> Moved {
        self.shared.tally.take()
    }

    /// No round follows, and all pages are sent: the threads end, and the connections are somebody else's.
    pub(super) fn retire(&mut self) -> Vec<Arc<Lane>> {
        self.pool = None;
        // The threads had the others.
        match Arc::get_mut(&mut self.shared) {
            Some(shared) => std::mem::take(&mut shared.lanes),
            None => self.shared.lanes.clone(),
        }
    }

    /// Ends all threads, whatever they are at: what they were to send is not sent.
    pub(super) fn end(&mut self) {
        if self.threads > 0 {
            self.shared.control.halt.cancel();
        }
        self.pool = None;
    }
}

/// What a thread works with.
struct Sender {
    shared: Arc<Shared>,
    encoder: Option<Encoder>,
    number: usize,
    threads: usize,
}

impl Sender {
    fn run(&mut self, job: &Job) -> Result<(), MigrationError> {
        let result = self.encode_and_send(job);
        // The others may be waiting for a peer that will not move any more.
        if result.is_err() && self.threads > 0 {
            self.shared.control.halt.cancel();
        }
        result
    }

    fn encode_and_send(&mut self, job: &Job) -> Result<(), MigrationError> {
        let Self { shared, encoder: Some(encoder), number, threads } = self else { return Ok(()) };
        let started_us = shared.control.now_us();
        if *threads > 0 {
            shared.tally.timed(Doing::Encoding, || encoder.encode(job))?;
        } else {
            encoder.encode(job)?;
        }
        let encoding_us = shared.control.since_us(started_us).saturating_sub(encoder.take_trials_us());
        let mut batch = encoder.batch()?;
        // Waiting for a connection is waiting for the link.
        let started_us = shared.control.now_us();
        let (lane, mut wire) = shared.lane(*number);
        let Shared { tally, throttle, .. } = &**shared;
        let held_us = Cell::new(0);
        let pass = |bytes| {
            let started_us = shared.control.now_us();
            let passed = tally.untimed(|| throttle.pass(bytes));
            held_us.set(held_us.get() + shared.control.since_us(started_us));
            passed
        };
        let piece_bytes = throttle.piece_bytes().filter(|_| job.live);
        let limit = piece_bytes.map(|piece_bytes| Limit { piece_bytes, pass: &pass });
        tally.timed(Doing::Sending, || wire.send_pages(&mut batch, limit.as_ref()))?;
        if let Some(auto) = shared.outgoing.auto().filter(|_| job.live) {
            let sending_us = shared.control.since_us(started_us).saturating_sub(held_us.get());
            auto.sent(sent(encoder.records(), encoding_us, sending_us));
        }
        if let Some(lane) = shared.lanes.get(lane) {
            lane.add_round_pages(encoder.records().len() as u64);
        }
        shared.tally.add(lane, encoder.records());
        Ok(())
    }
}

fn sent(records: &[PageRecord], encoding_us: u64, sending_us: u64) -> Sent {
    let pages = records.iter().filter(|record| record.encoding != Encoding::Zero).count() as u64;
    let data: u64 = records.iter().map(|record| u64::from(record.data_bytes)).sum();
    Sent { pages, bytes: data + (records.len() * RECORD_BYTES) as u64, sending_us, encoding_us }
}

impl Shared {
    /// The worker's own lane; while that is in use, any other.
    fn lane(&self, number: usize) -> (usize, MutexGuard<'_, Wire>) {
        let count = self.lanes.len();
        let own = number % count.max(1);
        let free = (0..count).map(|step| (own + step) % count);
        let mut free = free.filter_map(|at| Some((at, self.lanes.get(at)?.idle_wire()?)));
        if let Some(found) = free.next() {
            return found;
        }
        // There is always a first lane.
        #[expect(clippy::indexing_slicing, reason = "own is below their number, and there is always one")]
        (own, self.lanes[own].wire())
    }
}
