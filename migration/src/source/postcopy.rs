//! The switch to post-copy: with the guest stopped, the destination is told which pages it lacks; once it runs there, it is
//! given them.

use std::time::Duration;

use super::rounds::Rounds;
use super::serving::{Lacking, Served};
use super::{Attempt, vm_failed};
use crate::dirty::DirtyBitmap;
use crate::error::MigrationError;
use crate::handover::source::Event;
use crate::policy::postcopy::{Decision, Figures};
use crate::stats::{PostcopyReport, Status};
use crate::vm::{PAGE_BYTES, SourceVm};

/// Persons and the report are looked after so often.
const LOOK_EVERY: Duration = Duration::from_millis(20);

impl<V: SourceVm> Rounds<'_, '_, V> {
    /// Shall the guest be handed over now, with what is still here? Then it is noted why.
    pub(super) fn switches(&mut self) -> bool {
        if self.switching {
            return true;
        }
        if !self.postcopy {
            return false;
        }
        let Some(mode) = self.attempt.live.get().postcopy_mode() else { return false };
        let precopy = self.figures();
        let figures = Figures {
            mode,
            asked: self.attempt.control.wants_postcopy(),
            rounds: self.attempt.now.round,
            dirty_bytes: precopy.dirty_bytes,
            dirty_bytes_before: self.round_pages * PAGE_BYTES,
            link_bytes_per_s: precopy.link_bytes_per_s,
            expected_us: precopy.expected_us(),
            downtime_limit_ms: precopy.downtime_limit_ms,
        };
        let Decision::PostCopy(reason) = figures.decide() else { return false };
        let switched_at_us = self.attempt.control.elapsed_us();
        let report =
            PostcopyReport { reason: Some(reason.to_string()), switched_at_us, ..PostcopyReport::default() };
        self.attempt.report.postcopy = Some(report);
        self.switching = true;
        true
    }

    /// Has somebody asked for it in the middle of a round?
    pub(super) fn is_interrupted(&self) -> bool {
        self.postcopy && !self.switching && self.attempt.control.wants_postcopy()
    }

    /// In place of the last pages: which they are. Nothing writes memory any more.
    pub(super) fn tell_missing(&mut self) -> Result<(), MigrationError> {
        let started_us = match self.attempt.round_started_us {
            Some(started_us) => started_us,
            None => self.attempt.begin_round(),
        };
        // What was never sent: if it was never touched either, the destination has it.
        let unsent = (self.attempt.now.round == 0).then(|| self.pending.clone());
        let vm = &mut self.attempt.vm;
        vm.dirty_log_fetch(&mut self.pending).map_err(vm_failed("reading the dirty log"))?;
        if let Some(unsent) = unsent {
            let untouched = self.untouched(unsent)?;
            self.pending.remove(&untouched);
        }
        let missing = self.pending.clone();
        self.pending.clear_all();
        let mut hot = std::mem::replace(&mut self.before, DirtyBitmap::new(self.ram.region_pages()));
        hot.keep(&missing);
        let count = missing.count();
        self.attempt.report.remaining_bytes = Some(count * PAGE_BYTES);
        if let Some(report) = &mut self.attempt.report.postcopy {
            (report.pages_missing, report.pages_left) = (count, count);
        }
        self.attempt.carrier.lacks(Lacking { missing, hot })?;
        self.prove();
        self.end_round(started_us, true)?;
        self.close_round(started_us);
        self.attempt.report.remaining_bytes = Some(count * PAGE_BYTES);
        Ok(())
    }

    /// Those of `unsent` that were never touched.
    fn untouched(&mut self, mut unsent: DirtyBitmap) -> Result<DirtyBitmap, MigrationError> {
        let mut touched = DirtyBitmap::new(self.ram.region_pages());
        let mut found = Vec::new();
        for region in 0..unsent.regions() {
            found.clear();
            let pages = 0..unsent.pages(region);
            let vm = &self.attempt.vm;
            vm.resident(region, pages, &mut found).map_err(vm_failed("looking for untouched memory"))?;
            found.iter().cloned().flatten().for_each(|page| touched.set(region, page));
        }
        unsent.remove(&touched);
        let count = unsent.count();
        *self.attempt.now.pages_untouched.get_or_insert(0) += count;
        *self.attempt.report.pages.untouched.get_or_insert(0) += count;
        Ok(unsent)
    }
}

impl<V: SourceVm> Attempt<'_, V> {
    /// The guest is the destination's, or may be, if that was not heard: gives it what it lacks, until it has all.
    pub(super) fn serve(&mut self, unheard: Option<MigrationError>) -> Result<(), MigrationError> {
        match unheard {
            Some(error) => self.heal(error)?,
            None => self.set_status(Status::PostcopyActive),
        }
        loop {
            match self.obey_while_serving().and_then(|()| self.carrier.serve(LOOK_EVERY)) {
                Ok(true) => break,
                Ok(false) => self.publish_if_old(),
                Err(error) => self.heal(error)?,
            }
            self.note_served();
        }
        self.note_served();
        self.report.remaining_bytes = Some(0);
        if let (Some(hashed), Some(noted)) = (self.carrier.hashed(), &mut self.report.proof) {
            (noted.memory, noted.hash_us) = (Some(hashed.memory), hashed.spent_us);
        }
        self.step(Event::AllThere)
    }

    /// What has been done so far, into the report.
    fn note_served(&mut self) {
        self.note_moved(true);
        let Served { requests, by_request, by_push, left } = self.carrier.served();
        if let Some(report) = &mut self.report.postcopy {
            (report.requests, report.pages_by_request) = (requests, by_request);
            (report.pages_by_push, report.pages_left) = (by_push, left);
        }
    }
}
