//! Memory and state arrive.

use std::sync::Arc;
use std::time::Duration;

use tern_schema::StateSet;

use super::arrival::{Arrival, Terms};
use super::channels::{Channels, is_halted};
use super::handover::Prepared;
use super::life::Requests;
use super::lobby::Gathered;
use super::{Arriving, Attempt, vm_failed};
use crate::dirty::DirtyBitmap;
use crate::error::{MigrationError, ProtocolError};
use crate::known::KnownIndex;
use crate::pager::OnEnd;
use crate::policy::link::rate;
use crate::ram::job::Tally;
use crate::ram::pool::{Pool, Worker, worker_threads};
use crate::ram::proof::MemoryProof;
use crate::ram::{Coded, Decoder, Decoding, ENCODINGS_PLAIN, Incoming, PageReceiver, PageRounds, RamView};
use crate::stats::{Downtime, PostcopyReport, Round};
use crate::vm::{DestinationVm, PAGE_BYTES};
use crate::wire::{FLAG_LAST, FLAG_RUNNING, FrameType, PageSetReader, RoundEnd, Wire};

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
    /// Pages that the source keeps back, as far as it has told them; and all of them.
    telling: Option<PageSetReader>,
    missing: Option<DirtyBitmap>,
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
        let proven = attempt.report.proof.is_some();
        let shared = Arc::new(Incoming {
            proof: proven.then(|| Arc::new(MemoryProof::new(ram.region_pages()))),
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
        let (telling, missing, state_proof) = (None, None, None);
        Ok(Self { attempt, shared, pages, decoders, channels, urgent, telling, missing, state_proof })
    }

    /// All rounds, then the state.
    pub(super) fn run(mut self) -> Result<Prepared<'s, V>, MigrationError> {
        match self.rounds() {
            Ok(()) => self.arm().and_then(Self::load_state),
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
                FrameType::Missing if self.urgent.is_some() && self.missing.is_none() => {
                    self.hear_missing(header.flags & FLAG_LAST != 0)?;
                }
                FrameType::RoundEnd if self.telling.is_none() => {
                    if self.end_round()? {
                        return Ok(());
                    }
                }
                _ => return Err(self.attempt.wire.unexpected(&header, STATE, "pages or round-end")),
            }
        }
    }

    /// Some of the pages that the source keeps back.
    fn hear_missing(&mut self, last: bool) -> Result<(), MigrationError> {
        let ram = &self.shared.ram;
        let telling = self.telling.get_or_insert_with(|| PageSetReader::new(ram.region_pages()));
        telling.read(self.attempt.wire.payload())?;
        if last {
            self.missing = self.telling.take().map(PageSetReader::finish);
        }
        Ok(())
    }

    /// Post-copy: from here on the pages that the source keeps back are missing, and come when somebody touches them.
    fn arm(mut self) -> Result<Self, MigrationError> {
        let (Some(missing), Some(mut urgent)) = (self.missing.take(), self.urgent.take()) else {
            return Ok(self);
        };
        urgent.epoch = self.attempt.wire.epoch;
        let Incoming { ram, proof, encodings, .. } = &*self.shared;
        let Attempt { vm, report, control, register, acceptor, .. } = &mut *self.attempt;
        let acceptor =
            acceptor.as_ref().ok_or(MigrationError::NoPostcopy { reason: "it was made by others" })?;
        let pages_missing = missing.count();
        let switched_at_us = control.elapsed_us();
        let told = PostcopyReport { pages_missing, switched_at_us, ..PostcopyReport::default() };
        report.postcopy = Some(PostcopyReport { pages_left: pages_missing, ..told });
        report.remaining_bytes = Some(pages_missing * PAGE_BYTES);
        let terms = Terms {
            ram: Arc::clone(ram),
            missing,
            encodings: *encodings,
            proof: proof.as_ref().map(Arc::clone),
            register: Arc::clone(register),
            session: report.session.clone(),
            channels: self.channels.count() + 1,
        };
        let page_in = |missing: &DirtyBitmap, requests: Arc<Requests>, on_end: OnEnd| {
            vm.page_in(missing, requests, on_end).map_err(vm_failed("having memory come later"))
        };
        let arrival = Arrival::new(terms, urgent, control, page_in)?;
        let further =
            std::mem::replace(&mut self.channels, Channels::start(Vec::new(), control)?).into_wires();
        self.attempt.arriving = Some(Arriving { arrival, further, acceptor: Arc::clone(acceptor) });
        Ok(self)
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
        self.channels.release(last, self.missing.is_some());
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
        // What is to come counts when it comes. All threads have done with what came before.
        if let Some(missing) = &self.missing {
            proof.forget(missing);
        }
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
