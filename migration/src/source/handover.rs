//! The source's table of the handover, carried out: each action is done here, and what comes of it is the next event.

use std::sync::Arc;

use super::{Attempt, vm_failed};
use crate::error::MigrationError;
use crate::handover::source::{Action, Event, State, step};
use crate::vm::SourceVm;
use crate::wire::Commit;

/// What the actions need and leave.
#[derive(Debug)]
pub(super) struct Handover {
    pub(super) state: State,
    /// Did the guest run when it was stopped?
    pub(super) was_running: bool,
    /// To be sent when the guest is given up.
    pub(super) commit: Commit,
    /// How long the other end took to start the guest.
    pub(super) resume_us: u64,
    /// Why the attempt ends.
    pub(super) failure: Option<MigrationError>,
    /// Why the guest doesn't go on here.
    pub(super) not_resumed: Option<crate::vm::VmError>,
}

impl Default for Handover {
    fn default() -> Self {
        let commit =
            Commit { stop_us: 0, state_save_us: 0, final_ram_us: 0, state_send_us: None, live_us: None };
        let (failure, not_resumed) = (None, None);
        Self { state: State::Setup, was_running: false, commit, resume_us: 0, failure, not_resumed }
    }
}

impl<V: SourceVm> Attempt<'_, V> {
    /// Takes this step, and all that follow from what it asks for.
    pub(super) fn step(&mut self, event: Event) -> Result<(), MigrationError> {
        let mut next = Some(event);
        while let Some(event) = next.take() {
            let (state, actions) = step(self.handover.state, event);
            self.handover.state = state;
            for action in actions {
                next = self.act(*action)?.or(next);
            }
        }
        Ok(())
    }

    fn act(&mut self, action: Action) -> Result<Option<Event>, MigrationError> {
        match action {
            Action::Stop => {
                let control = Arc::clone(&self.control);
                let cancelled = || control.cancel.is_cancelled();
                let stopped = self.vm.stop(&cancelled);
                if cancelled() {
                    return Err(MigrationError::Cancelled);
                }
                self.handover.was_running = stopped.map_err(vm_failed("stopping the guest"))?;
            }
            Action::Release => {
                let released = self.vm.release_disks().map_err(vm_failed("letting the disks go"));
                return Ok(Some(self.outcome(released, Event::Released, Event::Refused)));
            }
            Action::Take => {
                let taken = self.vm.take_disks();
                let event = if taken.is_ok() { Event::Taken } else { Event::Refused };
                self.handover.not_resumed = taken.err();
                return Ok(Some(event));
            }
            Action::GiveUp => self.vm.give_up(),
            Action::Commit => {
                let answer = self.carrier.commit(&self.handover.commit, &mut self.report);
                let told = answer.map(|resume_us| self.handover.resume_us = resume_us);
                let well = if self.report.postcopy.is_some() { Event::RunsInPart } else { Event::Running };
                return Ok(Some(self.outcome(told, well, Event::Failed)));
            }
            Action::TakeBack => self.vm.take_back(),
            Action::Resume => {
                self.end_log();
                self.handover.not_resumed = self.vm.resume().err();
            }
            Action::Tell => self.tell_peer(),
            // Whoever gets the machine back asks, with `Doubt`.
            Action::Ask => {}
        }
        Ok(None)
    }

    fn outcome(&mut self, result: Result<(), MigrationError>, well: Event, badly: Event) -> Event {
        let Err(error) = result else { return well };
        self.handover.failure = Some(error);
        badly
    }

    /// The guest goes on here already, and only then the peer is told.
    fn tell_peer(&mut self) {
        if let Some(error) = self.handover.failure.take() {
            let error = self.carrier.last_words(error);
            self.carrier.abandon(&error);
            self.handover.failure = Some(error);
        }
    }
}
