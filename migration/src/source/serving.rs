//! The source in post-copy: it gives the pages that the destination lacks, those first for which somebody waits.
//!
//! ```text
//! urgent connection   urgent    request -> page-in                            from the state on
//! all others          push-N    next of the order -> encoder -> page-in       once the guest runs there
//!                     the attempt's own thread: looks after them, and says what all of memory should be
//! ```
//!
//! Whoever sends a page takes it out of one pool first, so none goes twice. A break ends all of them; what was sent and has
//! not come is known from the destination when it is found again.

use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use super::lanes::Lane;
use crate::channel::throttle::Throttle;
use crate::config::{LiveParameters, Parameters};
use crate::control::Control;
use crate::dirty::DirtyBitmap;
use crate::error::MigrationError;
use crate::policy::push_order::PushOrder;
use crate::postcopy::lines::Lines;
use crate::postcopy::pages::PagePool;
use crate::postcopy::{batch, request};
use crate::ram::job::{Doing, Job, Moved, Tally};
use crate::ram::{Encoder, Outgoing, PageRecord, RECORD_BYTES};
use crate::thread::Thread;
use crate::vm::PAGE_BYTES;
use crate::wire::{FrameType, HaveAll, RoundEnd, Sync, Wire};

/// The urgent thread looks so often whether all is sent.
const LOOK_EVERY: Duration = Duration::from_millis(20);
/// Pages of a batch: 256 KiB, so that what is asked for meanwhile changes soon what is sent.
const PUSH_PAGES: usize = 64;
/// The urgent connection's place among the channels: it is none.
const NO_CHANNEL: usize = usize::MAX;

/// Which pages go in post-copy.
#[derive(Debug)]
pub(crate) struct Lacking {
    /// The destination doesn't have their newest content.
    pub(crate) missing: DirtyBitmap,
    /// Of them, those that were written in both of the last rounds.
    pub(crate) hot: DirtyBitmap,
}

/// What lasts over all breaks.
pub(super) struct Serving {
    shared: Arc<Shared>,
    life: Option<Life>,
}

struct Shared {
    missing: Arc<DirtyBitmap>,
    hot: DirtyBitmap,
    /// How pages are encoded that nobody waits for, and those that somebody does.
    push: Arc<Outgoing>,
    urgent: Arc<Outgoing>,
    /// Threads that push; at least one a connection.
    threads: usize,
    live: LiveParameters,
    tally: Tally,
    requests: AtomicU64,
    by_request: AtomicU64,
    by_push: AtomicU64,
}

/// The connections from one break to the next.
struct Life {
    common: Arc<Common>,
    threads: Vec<Thread>,
    stage: Stage,
}

struct Common {
    shared: Arc<Shared>,
    lines: Arc<Lines>,
    /// Not taken by anybody yet.
    left: PagePool,
    order: Mutex<PushOrder>,
    /// The urgent connection, when nothing more is sent on it: it stays open until all has come, for what the other end asks
    /// meanwhile must not break it.
    urgent: Mutex<Option<Wire>>,
    /// Pages that were sent, over all connections.
    sent: AtomicU64,
    turn: AtomicUsize,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    /// Only what is asked for is sent.
    Answering,
    Pushing,
    /// All is sent, and the destination looks whether it has come.
    Told,
}

/// What was done so far.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Served {
    pub(crate) requests: u64,
    pub(crate) by_request: u64,
    pub(crate) by_push: u64,
    /// Pages that nobody has taken yet.
    pub(crate) left: u64,
}

/// How pages are encoded.
pub(super) struct Encoding {
    pub(super) push: Arc<Outgoing>,
    pub(super) urgent: Arc<Outgoing>,
    pub(super) threads: usize,
}

impl Serving {
    pub(super) fn new(
        lacking: Lacking,
        encoding: Encoding,
        channels: usize,
        live: &LiveParameters,
        control: &Arc<Control>,
    ) -> Self {
        let Encoding { push, urgent, threads } = encoding;
        let shared = Shared {
            missing: Arc::new(lacking.missing),
            hot: lacking.hot,
            push,
            urgent,
            threads: threads.max(channels),
            live: live.clone(),
            tally: Tally::new(channels, control),
            requests: AtomicU64::new(0),
            by_request: AtomicU64::new(0),
            by_push: AtomicU64::new(0),
        };
        Self { shared: Arc::new(shared), life: None }
    }

    /// Pages that the destination was without at the switch.
    pub(super) fn missing(&self) -> &DirtyBitmap {
        &self.shared.missing
    }

    /// From here on who waits for a page gets it. `left`: what the destination lacks.
    pub(super) fn answer(
        &mut self,
        urgent: Wire,
        left: &DirtyBitmap,
        control: &Arc<Control>,
    ) -> Result<(), MigrationError> {
        let common = Arc::new(Common {
            shared: Arc::clone(&self.shared),
            lines: Lines::new(control),
            left: PagePool::new(left),
            order: Mutex::new(PushOrder::new(self.shared.hot.clone())),
            urgent: Mutex::default(),
            sent: AtomicU64::new(0),
            turn: AtomicUsize::new(0),
        });
        let life = self.life.insert(Life { common, threads: Vec::new(), stage: Stage::Answering });
        let encoder = Encoder::new(&self.shared.urgent)?;
        life.spawn("urgent".to_owned(), move |common| common.answer_all(urgent, encoder))
    }

    /// Goes on for `most`. True: the destination has all.
    pub(super) fn serve(&mut self, lanes: &[Arc<Lane>], most: Duration) -> Result<bool, MigrationError> {
        let Some(life) = &mut self.life else { return Ok(false) };
        life.common.lines.check()?;
        match life.stage {
            Stage::Answering => life.push(lanes)?,
            Stage::Pushing => {
                let threads = life.threads.len();
                if life.common.lines.all_done(threads, most)? {
                    return life.tell(lanes).map(|()| false);
                }
                hear(lanes, Duration::ZERO, false)?;
            }
            Stage::Told => return hear(lanes, most, true),
        }
        Ok(false)
    }

    /// Why the connections have broken, if they have.
    pub(super) fn fault(&self) -> Option<MigrationError> {
        self.life.as_ref()?.common.lines.check().err()
    }

    /// Ends all connections, and waits for the threads.
    pub(super) fn part(&mut self) {
        self.life = None;
    }

    pub(super) fn take_moved(&self) -> Moved {
        self.shared.tally.take()
    }

    pub(super) fn served(&self) -> Served {
        let Shared { requests, by_request, by_push, .. } = &*self.shared;
        let load = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let left = self.life.as_ref().map_or(0, |life| life.common.left.left());
        Served { requests: load(requests), by_request: load(by_request), by_push: load(by_push), left }
    }
}

/// Looks whether the destination has said something on the first connection, which is that it has all, if that is `due`.
fn hear(lanes: &[Arc<Lane>], most: Duration, due: bool) -> Result<bool, MigrationError> {
    const STATE: &str = "waiting for the destination to have all memory";
    // While somebody sends over it, that is where it shows that the peer has gone.
    let Some(mut wire) = lanes.first().and_then(|lane| lane.idle_wire()) else { return Ok(false) };
    if !wire.peer_speaks_within(most) {
        return Ok(false);
    }
    let header = wire.receive(STATE)?;
    if header.frame != FrameType::HaveAll || !due {
        return Err(wire.unexpected(&header, STATE, if due { "have-all" } else { "nothing" }));
    }
    wire.message::<HaveAll>(FrameType::HaveAll).map(|_| true)
}

impl Life {
    fn spawn(
        &mut self,
        name: String,
        run: impl FnOnce(&Common) -> Result<(), MigrationError> + Send + 'static,
    ) -> Result<(), MigrationError> {
        let (common, control) = (Arc::clone(&self.common), Arc::clone(&self.common.lines.control));
        let guarded = move || {
            let mut end = End { lines: Arc::clone(&common.lines), result: None };
            end.result = Some(run(&common));
        };
        let thread = control.spawn(name, guarded);
        let thread = thread.map_err(|source| MigrationError::Thread { action: "be started", source })?;
        self.threads.push(thread);
        Ok(())
    }

    /// Starts to send what nobody has asked for.
    fn push(&mut self, lanes: &[Arc<Lane>]) -> Result<(), MigrationError> {
        self.stage = Stage::Pushing;
        let shared = Arc::clone(&self.common.shared);
        let rate = |parameters: &Parameters| parameters.max_postcopy_bandwidth_bytes_per_s;
        let throttle = Arc::new(Throttle::with_rate(&shared.live, &self.common.lines.control, rate));
        for number in 0..shared.threads {
            let (encoder, throttle) = (Encoder::new(&shared.push)?, Arc::clone(&throttle));
            let lanes = lanes.to_vec();
            let run = move |common: &Common| common.push_all(&lanes, number, encoder, &throttle);
            self.spawn(format!("push-{number}"), run)?;
        }
        Ok(())
    }

    /// All is sent: says so on each connection, and what all of memory should be there.
    fn tell(&mut self, lanes: &[Arc<Lane>]) -> Result<(), MigrationError> {
        const STATE: &str = "ending the push";
        self.stage = Stage::Told;
        for lane in lanes.iter().skip(1) {
            lane.wire().send(FrameType::Sync, &Sync { pages: lane.take_round_pages() }, STATE)?;
        }
        let memory_proof = self.common.shared.push.proof.as_ref().map(|proof| proof.sum());
        let end = RoundEnd::last_of_postcopy(self.common.sent.load(Ordering::SeqCst), memory_proof);
        match lanes.first() {
            Some(lane) => lane.wire().send(FrameType::RoundEnd, &end, STATE),
            None => Ok(()),
        }
    }

    fn end(&mut self) {
        self.common.lines.part();
        self.threads.drain(..).for_each(Thread::join);
    }
}

impl Drop for Life {
    fn drop(&mut self) {
        self.end();
    }
}

/// Says how a thread has ended, even if it panics.
struct End {
    lines: Arc<Lines>,
    result: Option<Result<(), MigrationError>>,
}

impl Drop for End {
    fn drop(&mut self) {
        use crate::ram::pool::Panicked as _;
        self.lines.ended(self.result.take().unwrap_or_else(|| Err(MigrationError::panicked())));
    }
}

impl Common {
    /// Answers until all is sent, and says so.
    fn answer_all(&self, mut wire: Wire, mut encoder: Encoder) -> Result<(), MigrationError> {
        const STATE: &str = "waiting for requests";
        let mut pages = 0;
        loop {
            if wire.peer_speaks_within(LOOK_EVERY) {
                let header = wire.receive(STATE)?;
                if header.frame != FrameType::Request {
                    return Err(wire.unexpected(&header, STATE, "request"));
                }
                pages += self.answer(&mut wire, &mut encoder)?;
                continue;
            }
            self.lines.control.check(STATE)?;
            if self.left.left() == 0 {
                wire.send(FrameType::Sync, &Sync { pages }, "ending the push")?;
                break;
            }
        }
        *self.urgent.lock().unwrap_or_else(PoisonError::into_inner) = Some(wire);
        Ok(())
    }

    /// One request. Returns how many pages went.
    fn answer(&self, wire: &mut Wire, encoder: &mut Encoder) -> Result<u64, MigrationError> {
        let shared = &self.shared;
        let mut wanted = request::read(wire.payload(), &shared.missing)?;
        shared.requests.fetch_add(1, Ordering::Relaxed);
        if let Some((region, page)) = wanted.last() {
            self.order().requested((*region).into(), *page);
        }
        // What somebody has taken is on its way.
        wanted.retain(|(region, page)| self.left.take((*region).into(), *page));
        wanted.sort_unstable();
        if wanted.is_empty() {
            return Ok(0);
        }
        let mut job = Job::default();
        wanted.iter().for_each(|(region, page)| job.add(*region, *page));
        encoder.encode(&job)?;
        self.send(wire, encoder, &shared.urgent, NO_CHANNEL)?;
        shared.by_request.fetch_add(job.count as u64, Ordering::Relaxed);
        Ok(job.count as u64)
    }

    fn order(&self) -> std::sync::MutexGuard<'_, PushOrder> {
        self.order.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Sends what nobody has asked for, until nothing is left.
    fn push_all(
        &self,
        lanes: &[Arc<Lane>],
        number: usize,
        mut encoder: Encoder,
        throttle: &Throttle,
    ) -> Result<(), MigrationError> {
        loop {
            self.lines.control.check("sending memory")?;
            let places = self.order().next(&self.left, most_pages(throttle));
            let Some(job) = job(&places) else { return Ok(()) };
            self.shared.tally.timed(Doing::Encoding, || encoder.encode(&job))?;
            throttle.pass(bytes(encoder.records()))?;
            let own = if lanes.len() > 1 { number } else { 0 };
            let lane = self.free_lane(lanes, own);
            let Some((at, lane)) = lane else { return Ok(()) };
            let mut wire = lane.wire();
            self.shared
                .tally
                .timed(Doing::Sending, || self.send(&mut wire, &encoder, &self.shared.push, at))?;
            lane.add_round_pages(job.count as u64);
            self.shared.by_push.fetch_add(job.count as u64, Ordering::Relaxed);
        }
    }

    /// The thread's own connection; with more threads than connections each in turn.
    fn free_lane<'l>(&self, lanes: &'l [Arc<Lane>], number: usize) -> Option<(usize, &'l Arc<Lane>)> {
        let turn = if self.shared.threads > lanes.len() {
            self.turn.fetch_add(1, Ordering::Relaxed)
        } else {
            number
        };
        let at = turn.checked_rem(lanes.len())?;
        Some((at, lanes.get(at)?))
    }

    fn send(
        &self,
        wire: &mut Wire,
        encoder: &Encoder,
        outgoing: &Outgoing,
        channel: usize,
    ) -> Result<(), MigrationError> {
        let pages = encoder.batch()?;
        let sum = outgoing.proof.as_ref().map_or(0, |proof| {
            let hash =
                |sum: u64, record: &PageRecord| sum.wrapping_add(proof.get(record.region, record.page));
            pages.records.iter().fold(0, hash)
        });
        let fill = |out: &mut Vec<u8>| batch::fill(sum, &pages, out);
        wire.send_with(FrameType::PageIn, 0, "sending memory", fill)?;
        self.sent.fetch_add(pages.records.len() as u64, Ordering::SeqCst);
        self.shared.tally.add(channel, pages.records);
        Ok(())
    }
}

/// What these pages take on the wire.
fn bytes(records: &[PageRecord]) -> u64 {
    let data: u64 = records.iter().map(|record| u64::from(record.data_bytes)).sum();
    data + (records.len() * RECORD_BYTES) as u64
}

/// Under a limit so few that a batch is under 1 % of a second.
fn most_pages(throttle: &Throttle) -> usize {
    let piece = throttle.piece_bytes().map(|bytes| bytes / PAGE_BYTES as usize);
    piece.map_or(PUSH_PAGES, |pages| pages.clamp(1, PUSH_PAGES))
}

/// These pages, which rise; none: there are none.
fn job(places: &[(usize, u64)]) -> Option<Job> {
    let mut job = Job { live: true, ..Job::default() };
    for (region, page) in places {
        // An offer has at most 1024 regions.
        job.add(u16::try_from(*region).ok()?, *page);
    }
    (job.count > 0).then_some(job)
}
