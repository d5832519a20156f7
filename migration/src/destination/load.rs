//! Memory and state arrive.

use std::sync::Arc;
use std::time::Duration;

use tern_schema::StateSet;

use super::channels::{Channels, is_halted};
use super::handover::Prepared;
use super::lobby::Gathered;
use super::{Attempt, vm_failed};
use crate::error::{MigrationError, ProtocolError};
use crate::known::KnownIndex;
use crate::policy::link::rate;
use crate::ram::job::Tally;
use crate::ram::pool::{Pool, Worker, worker_threads};
use crate::ram::proof::MemoryProof;
use crate::ram::{Coded, Decoder, Decoding, ENCODINGS_PLAIN, Incoming, PageReceiver, PageRounds, RamView};
use crate::stats::{Downtime, Round};
use crate::vm::DestinationVm;
use crate::wire::{FLAG_RUNNING, FrameType, RoundEnd, Wire};

/// The report is kept fresh so often while other connections are waited for.
const LOOK_EVERY: Duration = Duration::from_millis(50);

/// Memory arrives.
pub(super) struct Loading<'s, V> {
    attempt: &'s mut Attempt<V>,
    shared: Arc<Incoming>,
    pages: PageReceiver,
    /// Threads that decode; none: who receives does.
    decoders: Option<Arc<Pool<Coded, MigrationError>>>,
    /// All connections but the first.
    channels: Channels,
    /// For post-copy, if that was agreed.
    urgent: Option<Wire>,
    /// What the source says of the state that follows.
    state_proof: Option<u64>,
}

impl<'s, V: DestinationVm> Loading<'s, V> {
    pub(super) fn new(
        attempt: &'s mut Attempt<V>,
        ram: &Arc<RamView>,
        encodings: u64,
        known: Option<Arc<KnownIndex>>,
        Gathered { channels: further, urgent }: Gathered,
    ) -> Result<Self, MigrationError> {
        let started_us = Some(attempt.control.now_us());
        (attempt.live_started_us, attempt.round_started_us) = (started_us, started_us);
        let shared = Arc::new(Incoming {
            proof: attempt.report.proof.is_some().then(|| MemoryProof::new(ram.region_pages())),
            rounds: (encodings != ENCODINGS_PLAIN || !further.is_empty()).then(|| PageRounds::new(ram)),
            encodings,
            known,
            tally: Tally::new(1 + further.len(), &attempt.control),
            ram: Arc::clone(ram),
        });
        let decoders = decoders(&shared, attempt)?;
        let decoding = decoding_by(&shared, decoders.as_ref())?;
        let pages = PageReceiver::new(&shared, 0, decoding);
        let receiver = |(number, wire)| {
            Ok((wire, PageReceiver::new(&shared, number, decoding_by(&shared, decoders.as_ref())?)))
        };
        let further = (1..).zip(further).map(receiver).collect::<Result<Vec<_>, MigrationError>>()?;
        let channels = Channels::start(further, &attempt.control)?;
        Ok(Self { attempt, shared, pages, decoders, channels, urgent, state_proof: None })
    }

    /// All rounds, then the state.
    pub(super) fn run(mut self) -> Result<Prepared<'s, V>, MigrationError> {
        match self.rounds() {
            Ok(()) => self.load_state(),
            Err(error) => Err(self.cause(error)),
        }
    }

    /// What has really failed, if this is only what it has left.
    fn cause(&self, error: MigrationError) -> MigrationError {
        if !is_halted(&error) {
            return error;
        }
        let decoding = || self.decoders.as_ref().and_then(|decoders| decoders.wait().err());
        self.channels.fault().filter(|fault| !is_halted(fault)).or_else(decoding).unwrap_or(error)
    }

    fn rounds(&mut self) -> Result<(), MigrationError> {
        const STATE: &str = "receiving memory";
        loop {
            let header = self.attempt.wire.receive(STATE)?;
            match header.frame {
                FrameType::Pages => {
                    self.pages.receive(&header, &mut self.attempt.wire)?;
                    self.note_moved();
                    self.attempt.publish_if_old();
                }
                FrameType::RoundEnd => {
                    if self.end_round()? {
                        return Ok(());
                    }
                }
                _ => return Err(self.attempt.wire.unexpected(&header, STATE, "pages or round-end")),
            }
        }
    }

    /// What has come since the last time, into the report.
    fn note_moved(&mut self) {
        let moved = self.shared.tally.take();
        self.attempt.now.add(&moved);
        self.attempt.report.add_moved(&moved);
    }

    fn end_round(&mut self) -> Result<bool, MigrationError> {
        let told: RoundEnd = self.attempt.wire.message(FrameType::RoundEnd)?;
        let RoundEnd { pages, last, .. } = told;
        while !self.channels.all_here(LOOK_EVERY)? {
            self.note_moved();
            self.attempt.publish_if_old();
        }
        if let Some(decoders) = &self.decoders {
            decoders.wait()?;
        }
        self.note_moved();
        let received = self.attempt.now.pages();
        if pages != received {
            let (frame, field) = ("round-end", "number of pages");
            return Err(ProtocolError::Mismatch { frame, field, found: pages, expected: received }.into());
        }
        if last {
            self.compare_memory(&told)?;
        }
        self.hear(&told);
        self.attempt.now.stopped = last;
        self.attempt.now = self.attempt.unfinished().unwrap_or(self.attempt.now);
        self.attempt.now.finished = true;
        self.attempt.report.moved_bytes_per_s =
            Some(rate(self.attempt.now.wire_bytes, self.attempt.now.duration_us));
        self.attempt.report.push_round(self.attempt.now);
        self.attempt.measure_live();
        self.attempt.now = Round { round: self.attempt.now.round.wrapping_add(1), ..Round::default() };
        self.attempt.round_started_us = (!last).then(|| self.attempt.control.now_us());
        if let (Some(proof), Some(noted)) = (&self.shared.proof, &mut self.attempt.report.proof) {
            noted.hash_us = proof.spent_us();
        }
        if last {
            self.attempt.live_started_us = None;
            self.attempt.report.remaining_bytes = Some(0);
        }
        self.attempt.wire.epoch = self.attempt.wire.epoch.wrapping_add(1);
        self.channels.release(last);
        Ok(last)
    }

    /// Is memory here what it is at the source?
    fn compare_memory(&mut self, told: &RoundEnd) -> Result<(), MigrationError> {
        let (Some(proof), Some(noted)) = (&self.shared.proof, &mut self.attempt.report.proof) else {
            return Ok(());
        };
        let (Some(memory), Some(_)) = (told.memory_proof, told.state_proof) else {
            let (frame, field) = ("round-end", "number of proofs");
            let found = told.memory_proof.iter().chain(&told.state_proof).count() as u64;
            return Err(ProtocolError::Mismatch { frame, field, found, expected: 2 }.into());
        };
        self.state_proof = told.state_proof;
        noted.stopped_hash_us = proof.spent_us().saturating_sub(noted.hash_us);
        (noted.hash_us, noted.memory) = (proof.spent_us(), Some(proof.sum()));
        compare("memory", memory, proof.sum())
    }

    /// Is the state that has come what the source sent?
    fn compare_state(&mut self) -> Result<(), MigrationError> {
        let Some(state) = self.state_proof else { return Ok(()) };
        let (Some(proof), Some(noted)) = (&self.shared.proof, &mut self.attempt.report.proof) else {
            return Ok(());
        };
        let found = proof.state(self.attempt.wire.payload());
        noted.stopped_hash_us += proof.spent_us().saturating_sub(noted.hash_us);
        (noted.hash_us, noted.state) = (proof.spent_us(), Some(found));
        compare("state", state, found)
    }

    /// What only the source can know, into the report.
    fn hear(&mut self, told: &RoundEnd) {
        let Attempt { report, now, .. } = &mut *self.attempt;
        now.pages_untouched = told.pages_untouched;
        if let Some(untouched) = told.pages_untouched {
            let all = report.pages.untouched.get_or_insert(0);
            *all = all.saturating_add(untouched);
        }
        if let Some(before) = report.rounds.last_mut() {
            before.pages_dirty_at_end = told.pages_dirty_before;
            before.dirty_pages_per_s = told.dirty_pages_per_s_before;
        }
        report.dirty_pages_per_s = told.dirty_pages_per_s_before.or(report.dirty_pages_per_s);
        report.link_bytes_per_s = told.link_bytes_per_s.or(report.link_bytes_per_s);
        report.downtime_limit_ms = told.downtime_limit_ms.or(report.downtime_limit_ms);
        report.max_bandwidth_bytes_per_s =
            told.max_bandwidth_bytes_per_s.or(report.max_bandwidth_bytes_per_s);
        report.max_total_time_ms = told.max_total_time_ms.or(report.max_total_time_ms);
    }

    fn load_state(mut self) -> Result<Prepared<'s, V>, MigrationError> {
        const STATE: &str = "waiting for the state";
        let header = self.attempt.wire.receive(STATE)?;
        if header.frame != FrameType::State {
            return Err(self.attempt.wire.unexpected(&header, STATE, "state"));
        }
        let started_us = self.attempt.control.now_us();
        self.compare_state()?;
        let attempt = self.attempt;
        attempt.report.bytes.state += u64::from(header.length);
        let state = StateSet::decode(attempt.wire.payload()).map_err(ProtocolError::from)?;
        attempt.vm.load(state).map_err(vm_failed("loading the guest's state"))?;
        let downtime = Downtime { load_us: attempt.control.since_us(started_us), ..Downtime::default() };
        let running = header.flags & FLAG_RUNNING != 0;
        Ok(Prepared { attempt, running, downtime })
    }
}

/// Threads that decode, if something has to be decoded and the parameter says so.
fn decoders<V>(
    shared: &Arc<Incoming>,
    attempt: &Attempt<V>,
) -> Result<Option<Arc<Pool<Coded, MigrationError>>>, MigrationError> {
    let threads = worker_threads(attempt.decompress_threads);
    if shared.encodings == ENCODINGS_PLAIN || threads < 2 {
        return Ok(None);
    }
    let all = (0..threads).map(|_| Decoder::new(shared)).collect::<Result<Vec<_>, _>>()?;
    let mut all = all.into_iter();
    let make = |_| -> Worker<Coded, MigrationError> {
        let mut decoder = all.next();
        let control = Arc::clone(&attempt.control);
        Box::new(move |coded| {
            let result = decoder.as_mut().map_or(Ok(()), |decoder| decoder.decode(&coded));
            if result.is_err() {
                // Those who receive may be waiting.
                control.halt.cancel();
            }
            result
        })
    };
    let pool = Pool::start(&attempt.control, "decode", threads, make);
    let pool = pool.map_err(|source| MigrationError::Thread { action: "be started", source })?;
    Ok(Some(Arc::new(pool)))
}

fn decoding_by(
    shared: &Arc<Incoming>,
    decoders: Option<&Arc<Pool<Coded, MigrationError>>>,
) -> Result<Decoding, MigrationError> {
    Ok(match decoders {
        Some(pool) => Decoding::There(Arc::clone(pool)),
        None => Decoding::Here(Box::new(Decoder::new(shared)?)),
    })
}

fn compare(what: &'static str, source_proof: u64, destination_proof: u64) -> Result<(), MigrationError> {
    if source_proof == destination_proof {
        return Ok(());
    }
    Err(MigrationError::Proof { what, source_proof, destination_proof })
}
