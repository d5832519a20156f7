//! Rounds: all pages once, then those that were written meanwhile, again and again, until little is left.

use std::ops::Range;
use std::time::Duration;

use tern_schema::StateSet;

use super::carrier::Hashed;
use super::commit::Stopped;
use super::{Attempt, vm_failed};
use crate::config::ON_TIMEOUT_STOP;
use crate::dirty::{DirtyBitmap, dirty_chunks, hot_last};
use crate::error::MigrationError;
use crate::handover::source::{Event, State};
use crate::policy::downtime::{Decision, Figures, is_late};
use crate::policy::link::rate;
use crate::ram::compress::GROUP_PAGES_MAX;
use crate::ram::job::Job;
use crate::ram::proof::state_hash;
use crate::ram::{BATCH_PAGES_MAX, CHUNK_PAGES, RamView};
use crate::stats::{Downtime, Round, Status};
use crate::vm::{PAGE_BYTES, SourceVm};
use crate::wire::RoundEnd;

/// The peer, cancels and the clock are looked at so often while threads send.
const LOOK_EVERY: Duration = Duration::from_millis(20);
const WORD_PAGES: u64 = 64;
/// More than the state of most machines.
const STATE_BYTES: usize = 1 << 20;

/// Memory moves while the guest runs.
pub(super) struct Rounds<'s, 'a, V> {
    pub(super) attempt: &'s mut Attempt<'a, V>,
    pub(super) ram: &'s RamView,
    /// Post-copy was agreed, and has been decided for.
    pub(super) postcopy: bool,
    pub(super) switching: bool,
    pub(super) pending: DirtyBitmap,
    /// What was pending when the last round began.
    pub(super) before: DirtyBitmap,
    /// Pages that the next thread gets.
    job: Job,
    runs: Vec<Range<u64>>,
    resident: Vec<Range<u64>>,
    /// Pages that were dirty when the round began.
    pub(super) round_pages: u64,
    dirty_bytes_before: Option<u64>,
    rounds_within_limit: u32,
    /// The guest is stopped already.
    halt: Option<Halt>,
    /// To be filled, in the versions that the other end has chosen.
    pub(super) set: StateSet,
    /// Room for the state, made before the guest waits for it.
    pub(super) state: Vec<u8>,
}

/// The moment from which the guest stands still.
#[derive(Debug, Clone, Copy)]
struct Halt {
    running: bool,
    started_us: u64,
    stop_us: u64,
}

impl<'s, 'a, V: SourceVm> Rounds<'s, 'a, V> {
    pub(super) fn new(
        attempt: &'s mut Attempt<'a, V>,
        ram: &'s RamView,
        pending: DirtyBitmap,
        postcopy: bool,
        set: StateSet,
    ) -> Self {
        // Every second page of a chunk: no chunk has more runs, so nothing is allocated later.
        let runs = || Vec::with_capacity(CHUNK_PAGES as usize / 2 + 1);
        Self {
            attempt,
            ram,
            postcopy,
            switching: false,
            before: DirtyBitmap::new(ram.region_pages()),
            pending,
            job: Job::default(),
            runs: runs(),
            resident: runs(),
            round_pages: 0,
            dirty_bytes_before: None,
            rounds_within_limit: 0,
            halt: None,
            set,
            state: Vec::with_capacity(STATE_BYTES),
        }
    }

    /// Makes rounds until the guest may be stopped, and stops it.
    pub(super) fn run(mut self) -> Result<Stopped<'s, 'a, V>, MigrationError> {
        self.attempt.live_started_us = Some(self.attempt.control.now_us());
        if self.attempt.live.get().capabilities.stop_first {
            self.halt()?;
        }
        loop {
            if self.switches() {
                break self.switch();
            }
            self.round()?;
            if self.switches() {
                continue;
            }
            let figures = self.figures();
            self.attempt.report.expected_downtime_ms = Some(figures.expected_us().div_ceil(1000));
            self.attempt.publish_if_old();
            if self.attempt.stays_stopped() || self.halt.is_some() {
                return self.stop();
            }
            match figures.decide() {
                Decision::Stop if self.waits_for_manager() => self.await_manager()?,
                Decision::Stop => return self.stop(),
                Decision::Another { within_limit } => self.rounds_within_limit += u32::from(within_limit),
                Decision::GiveUp if self.stops_when_late() => return self.stop(),
                Decision::GiveUp => return Err(not_converging(&figures)),
            }
            self.dirty_bytes_before = Some(figures.dirty_bytes);
        }
    }

    /// Post-copy: stops the guest, whatever is left.
    fn switch(mut self) -> Result<Stopped<'s, 'a, V>, MigrationError> {
        // A round that somebody's word has interrupted isn't over.
        if self.waits_for_manager() && self.attempt.round_started_us.is_none() {
            self.await_manager()?;
        }
        self.stop()
    }

    /// One round with the guest running.
    pub(super) fn round(&mut self) -> Result<(), MigrationError> {
        self.attempt.control.tell_pass(self.attempt.now.round.saturating_add(1));
        let started_us = self.attempt.begin_round();
        self.send_pending(true)?;
        self.drain(true)?;
        if self.is_interrupted() {
            return Ok(());
        }
        self.end_round(started_us, false)?;
        let vm = &mut self.attempt.vm;
        vm.dirty_log_fetch(&mut self.pending).map_err(vm_failed("reading the dirty log"))?;
        self.attempt.now.pages_dirty_at_end = Some(self.pending.count());
        self.close_round(started_us);
        Ok(())
    }

    /// Tells the other end that a round has ended.
    pub(super) fn end_round(&mut self, started_us: u64, last: bool) -> Result<(), MigrationError> {
        let limits = self.attempt.live.get();
        let before = self.attempt.report.rounds.last();
        let proof = self.attempt.report.proof.filter(|_| last);
        let message = RoundEnd {
            pages: self.attempt.now.pages(),
            last,
            pages_untouched: self.attempt.now.pages_untouched,
            pages_dirty_before: before.and_then(|round| round.pages_dirty_at_end),
            dirty_pages_per_s_before: before.and_then(|round| round.dirty_pages_per_s),
            link_bytes_per_s: self.attempt.meter.measured_bytes_per_s(),
            downtime_limit_ms: Some(limits.downtime_limit_ms),
            max_bandwidth_bytes_per_s: Some(limits.max_bandwidth_bytes_per_s),
            max_total_time_ms: Some(limits.max_total_time_ms),
            memory_proof: proof.and_then(|proof| proof.memory),
            state_proof: proof.and_then(|proof| proof.state),
        };
        self.attempt.carrier.end_round(&message)?;
        self.attempt.now.stopped = last;
        self.attempt.now.duration_us = self.attempt.control.since_us(started_us);
        Ok(())
    }

    /// Puts the round into the report and begins the next.
    pub(super) fn close_round(&mut self, started_us: u64) {
        let time_us = self.attempt.control.since_us(started_us);
        let dirty = self.attempt.now.pages_dirty_at_end;
        self.attempt.now.dirty_pages_per_s = dirty.map(|pages| rate(pages, time_us));
        self.attempt.now.finished = true;
        let written = self.attempt.vm.dirty_by_vcpu();
        self.attempt.report.note_vcpus(&written, time_us);
        self.attempt.round_started_us = None;
        let now = self.attempt.now;
        let report = &mut self.attempt.report;
        report.dirty_pages_per_s = now.dirty_pages_per_s.or(report.dirty_pages_per_s);
        report.moved_bytes_per_s = Some(rate(now.wire_bytes, time_us));
        report.remaining_bytes = Some(now.pages_dirty_at_end.unwrap_or(0) * PAGE_BYTES);
        report.push_round(now);
        self.attempt.now = Round { round: self.attempt.now.round.saturating_add(1), ..Round::default() };
    }

    pub(super) fn figures(&self) -> Figures {
        let parameters = self.attempt.live.get();
        Figures {
            dirty_bytes: self.pending.count() * PAGE_BYTES,
            dirty_bytes_before: self.dirty_bytes_before,
            link_bytes_per_s: self.attempt.bytes_per_s(),
            round_trip_us: self.attempt.round_trip_us,
            elapsed_us: self.attempt.control.elapsed_us(),
            rounds_within_limit: self.rounds_within_limit,
            downtime_limit_ms: parameters.downtime_limit_ms,
            max_total_time_ms: parameters.max_total_time_ms,
        }
    }

    /// What becomes of a guest whose time is over?
    fn stops_when_late(&self) -> bool {
        self.attempt.live.get().on_timeout == ON_TIMEOUT_STOP
    }

    fn stop(mut self) -> Result<Stopped<'s, 'a, V>, MigrationError> {
        let Halt { running, started_us: stop_started_us, stop_us } = self.halt()?;
        let downtime = Downtime { stop_us, ..Downtime::default() };
        Ok(Stopped { rounds: self, running, stop_started_us, downtime })
    }

    /// Stops the guest, unless it is. The clock of the downtime starts before the order, not after it.
    fn halt(&mut self) -> Result<Halt, MigrationError> {
        if let Some(halt) = self.halt {
            return Ok(halt);
        }
        let attempt = &mut *self.attempt;
        attempt.set_status(Status::Device);
        attempt.live_started_us = None;
        let started_us = attempt.control.now_us();
        let continued = attempt.handover.state == State::PreSwitchover;
        attempt.step(if continued { Event::Continue } else { Event::LittleLeft { pause: false } })?;
        let (running, stop_us) = (attempt.handover.was_running, attempt.control.since_us(started_us));
        Ok(*self.halt.insert(Halt { running, started_us, stop_us }))
    }

    /// Sends all pending pages, chunk by chunk. While the guest runs, the dirty bits of a chunk are cleared
    /// just before its pages are read: a write before that is in what is read, a later one is seen again.
    /// While it is stopped nothing has to be cleared, and no limit applies.
    pub(super) fn send_pending(&mut self, live: bool) -> Result<(), MigrationError> {
        self.round_pages = self.pending.count();
        // Nobody writes any more in the last round: there the order is that of memory.
        let chunks = if live {
            let chunks = hot_last(&self.pending, &self.before, CHUNK_PAGES);
            self.before.clone_from(&self.pending);
            chunks
        } else {
            dirty_chunks(&self.pending, CHUNK_PAGES)
        };
        let mut before = None;
        for chunk in chunks {
            if live && self.is_interrupted() {
                break;
            }
            // The pages of a job rise.
            if before.replace(chunk) > Some(chunk) {
                self.submit(live)?;
            }
            self.send_chunk(chunk.region, chunk.start, live)?;
        }
        self.submit(live)
    }

    fn send_chunk(&mut self, region: usize, start: u64, live: bool) -> Result<(), MigrationError> {
        let words = (start / WORD_PAGES) as usize..((start + CHUNK_PAGES) / WORD_PAGES) as usize;
        self.runs.clear();
        self.pending.take_runs(region, words, &mut self.runs);
        let (Some(first), Some(last)) = (self.runs.first(), self.runs.last()) else { return Ok(()) };
        if live {
            let pages = self.ram.pages(region).unwrap_or(0);
            let end = last.end.next_multiple_of(WORD_PAGES).min(pages);
            let cleared = first.start / WORD_PAGES * WORD_PAGES..end;
            let vm = &mut self.attempt.vm;
            vm.dirty_log_clear(region, cleared.clone()).map_err(vm_failed("clearing the dirty log"))?;
            if self.attempt.now.round == 0 {
                self.keep_resident(region, cleared)?;
            }
        }
        self.send_runs(region, live)
    }

    /// Drops from `runs` what was never touched.
    fn keep_resident(&mut self, region: usize, pages: Range<u64>) -> Result<(), MigrationError> {
        self.resident.clear();
        let vm = &self.attempt.vm;
        vm.resident(region, pages, &mut self.resident).map_err(vm_failed("looking for untouched memory"))?;
        let count = |runs: &[Range<u64>]| runs.iter().map(|run| run.end - run.start).sum::<u64>();
        let before = count(&self.runs);
        self.runs = intersection(&self.runs, &self.resident);
        let untouched = before - count(&self.runs);
        *self.attempt.now.pages_untouched.get_or_insert(0) += untouched;
        *self.attempt.report.pages.untouched.get_or_insert(0) += untouched;
        self.attempt.now_here(untouched);
        Ok(())
    }

    fn send_runs(&mut self, region: usize, live: bool) -> Result<(), MigrationError> {
        let region = u16::try_from(region).map_err(|_| MigrationError::Memory {
            region,
            offset_bytes: 0,
            end_bytes: 0,
        })?;
        let runs = std::mem::take(&mut self.runs);
        let most = self.job_pages(live);
        let result = runs.iter().cloned().flatten().try_for_each(|page| {
            if self.job.count >= most {
                self.submit(live)?;
            }
            self.job.add(region, page);
            Ok(())
        });
        self.runs = runs;
        result
    }

    /// Most pages of a job: under a limit so few that one is under 1 % of a second, if they aren't compressed together, and
    /// so few that all threads get some.
    fn job_pages(&self, live: bool) -> usize {
        let threads = self.attempt.carrier.threads();
        let least = if threads > 0 { GROUP_PAGES_MAX } else { 1 };
        let rate = self.attempt.live.get().max_bandwidth_bytes_per_s;
        let paced = if live && rate > 0 { rate / 128 / PAGE_BYTES } else { u64::MAX };
        let shared =
            self.round_pages.div_ceil(threads.max(1) as u64).next_multiple_of(GROUP_PAGES_MAX as u64);
        let most = usize::try_from(paced.min(shared)).unwrap_or(usize::MAX);
        most.clamp(least, BATCH_PAGES_MAX)
    }

    /// Gives the collected pages to whoever sends them.
    fn submit(&mut self, live: bool) -> Result<(), MigrationError> {
        if self.job.count > 0 {
            while {
                self.look_around(live)?;
                !self.attempt.carrier.has_room(LOOK_EVERY)?
            } {}
            let (round, next) = (self.attempt.now.round, Job::default());
            // No limit applies while the guest waits.
            let live = live && self.halt.is_none();
            let job = Job { round, live, ..std::mem::replace(&mut self.job, next) };
            self.attempt.carrier.pages(job)?;
        }
        self.attempt.note_moved(live);
        Ok(())
    }

    /// Waits until all pages are sent that were given away.
    pub(super) fn drain(&mut self, live: bool) -> Result<(), MigrationError> {
        while !self.attempt.carrier.is_idle(LOOK_EVERY)? {
            self.look_around(live)?;
        }
        self.attempt.note_moved(live);
        Ok(())
    }

    /// All pages have been sent: what the other end should have now.
    pub(super) fn prove(&mut self) {
        let Some(Hashed { memory, spent_us }) = self.attempt.carrier.hashed() else { return };
        let Some(noted) = &mut self.attempt.report.proof else { return };
        let started_us = self.attempt.control.now_us();
        (noted.memory, noted.state) = (Some(memory), Some(state_hash(&self.state)));
        let state_us = self.attempt.control.since_us(started_us);
        noted.stopped_hash_us += spent_us.saturating_sub(noted.hash_us) + state_us;
        noted.hash_us = spent_us + state_us;
    }

    /// Sees whether the peer, a person or the clock ends it; not while the guest is stopped.
    fn look_around(&mut self, live: bool) -> Result<(), MigrationError> {
        if !live {
            return Ok(());
        }
        self.attempt.note_moved(live);
        self.attempt.publish_if_old();
        self.attempt.carrier.hear()?;
        let max_total_time_ms = self.attempt.live.get().max_total_time_ms;
        if self.halt.is_none() && is_late(self.attempt.control.elapsed_us(), max_total_time_ms) {
            if self.stops_when_late() {
                return self.halt().map(|_| ());
            }
            let mut figures = self.figures();
            let unsent = self.pending.count() + self.job.count as u64;
            figures.dirty_bytes = unsent * PAGE_BYTES;
            return Err(not_converging(&figures));
        }
        Ok(())
    }
}

fn not_converging(figures: &Figures) -> MigrationError {
    MigrationError::NotConverging {
        elapsed_ms: figures.elapsed_us / 1000,
        max_total_time_ms: figures.max_total_time_ms,
        expected_downtime_ms: figures.expected_us().div_ceil(1000),
        downtime_limit_ms: figures.downtime_limit_ms,
    }
}

/// Pages that are in both lists of rising runs.
fn intersection(one: &[Range<u64>], other: &[Range<u64>]) -> Vec<Range<u64>> {
    let mut out = Vec::with_capacity(one.len().max(other.len()));
    let (mut one, mut other) = (one.iter().peekable(), other.iter().peekable());
    while let (Some(a), Some(b)) = (one.peek(), other.peek()) {
        let common = a.start.max(b.start)..a.end.min(b.end);
        if !common.is_empty() {
            out.push(common);
        }
        if a.end <= b.end {
            one.next();
        } else {
            other.next();
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn runs(pages: &[bool]) -> Vec<Range<u64>> {
        let set = pages.iter().enumerate().filter(|(_, set)| **set).map(|(page, _)| page as u64);
        set.fold(Vec::new(), |mut out: Vec<Range<u64>>, page| {
            match out.last_mut() {
                Some(last) if last.end == page => last.end += 1,
                _ => out.push(page..page + 1),
            }
            out
        })
    }

    proptest! {
        #[test]
        fn the_intersection_has_the_pages_of_both(pages in prop::collection::vec(any::<(bool, bool)>(), 0..200)) {
            let [one, other, both] = [|p: &(bool, bool)| p.0, |p: &(bool, bool)| p.1, |p: &(bool, bool)| p.0 && p.1]
                .map(|pick| runs(&pages.iter().map(pick).collect::<Vec<_>>()));
            prop_assert_eq!(intersection(&one, &other).into_iter().flatten().collect::<Vec<_>>(),
                both.into_iter().flatten().collect::<Vec<_>>());
        }
    }
}
