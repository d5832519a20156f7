//! The moment from which the guest is this side's: the destination's table of the handover, carried out.

use std::time::Duration;

use super::{Arriving, Attempt, vm_failed};
use crate::error::MigrationError;
use crate::handover::destination::{Action, Event, State, step};
use crate::stats::Downtime;
use crate::vm::DestinationVm;
use crate::wire::{Commit, FrameType, Prepared as PreparedMessage, Running, Settled};

/// How long the source may take to say that it knows; the guest runs meanwhile.
const SETTLED_MAX: Duration = Duration::from_secs(1);

/// All is loaded and checked; nothing runs.
pub(super) struct Prepared<'s, V> {
    pub(super) attempt: &'s mut Attempt<V>,
    pub(super) running: bool,
    pub(super) downtime: Downtime,
}

/// What the actions need and leave.
#[derive(Debug)]
pub(super) struct Handover {
    pub(super) state: State,
    running: bool,
    load_us: u64,
    resume_us: u64,
    failure: Option<MigrationError>,
    /// The source knows that the guest is here, and will not ask.
    pub(super) settled: bool,
}

impl Default for Handover {
    fn default() -> Self {
        let (state, failure) = (State::Setup, None);
        Self { state, running: false, load_us: 0, resume_us: 0, failure, settled: false }
    }
}

impl<V: DestinationVm> Prepared<'_, V> {
    /// Says that all is ready, and waits to be told that the guest is this side's. A cancel comes before
    /// that or too late: afterwards the source may have given the guest up.
    pub(super) fn start(self) -> Result<bool, MigrationError> {
        let Self { attempt, running, downtime } = self;
        if !attempt.control.cancel.close() {
            return Err(MigrationError::Cancelled);
        }
        attempt.wire.ignore_cancel();
        if let Some(Arriving { arrival, .. }) = &attempt.arriving {
            arrival.check()?;
        }
        (attempt.handover.running, attempt.handover.load_us) = (running, downtime.load_us);
        attempt.step(Event::Loaded)?;
        let commit: Commit = attempt.wire.expect(FrameType::Commit, "waiting for the source to hand over")?;
        let Commit { stop_us, state_save_us, final_ram_us, state_send_us, live_us } = commit;
        attempt.report.live_us = live_us.unwrap_or(attempt.report.live_us);
        if let Some(Arriving { arrival, acceptor, .. }) = &mut attempt.arriving
            && !arrival.commit(acceptor)?
        {
            return Err(attempt.control.halted("waiting for the source to hand over"));
        }
        attempt.step(Event::Commit)?;
        if let Some(error) = attempt.handover.failure.take() {
            return Err(error);
        }
        let resume_us = attempt.handover.resume_us;
        let told = Downtime { stop_us, state_save_us, final_ram_us, state_send_us, resume_us, ..downtime };
        attempt.report.downtime = Some(told);
        if attempt.arriving.is_none() {
            attempt.hear_settled();
        }
        Ok(running)
    }
}

impl<V: DestinationVm> Attempt<V> {
    /// Takes this step, and all that follow from what it asks for. What a source that asks is told is noted before
    /// anything of it is done.
    pub(super) fn step(&mut self, event: Event) -> Result<(), MigrationError> {
        let mut next = Some(event);
        while let Some(event) = next.take() {
            let (state, actions) = step(self.handover.state, event);
            let before = std::mem::replace(&mut self.handover.state, state);
            // Before it was prepared, no source can have given a guest up.
            if state == State::Prepared || self.register.knows(&self.report.session) && before != state {
                self.register.note(&self.report.session, state.answer());
            }
            for action in actions {
                next = self.act(*action)?.or(next);
            }
        }
        Ok(())
    }

    fn act(&mut self, action: Action) -> Result<Option<Event>, MigrationError> {
        match action {
            Action::Prepared => {
                let message = PreparedMessage { load_us: self.handover.load_us };
                self.wire.send(FrameType::Prepared, &message, "saying that all is loaded")?;
                Ok(None)
            }
            Action::Take => {
                let taken = self.vm.take_disks().map_err(vm_failed("taking the guest's disks"));
                Ok(Some(self.outcome(taken, Event::Taken, Event::Refused)))
            }
            Action::Start => {
                let started_us = self.control.now_us();
                let started = self.vm.start(self.handover.running).map_err(vm_failed("starting the guest"));
                self.handover.resume_us = self.control.since_us(started_us);
                Ok(Some(self.outcome(started, Event::Started, Event::Failed)))
            }
            Action::Running => {
                let message = Running { resume_us: self.handover.resume_us };
                let told = self.wire.send(FrameType::Running, &message, "saying that the guest runs");
                // The guest runs here; a source that doesn't hear of it asks.
                if let Err(error) = told {
                    self.report.warnings.push(format!("the source was not told: {}", error.text()));
                }
                Ok(None)
            }
            // `finish` says why, whatever it was.
            Action::Tell => Ok(None),
        }
    }

    fn outcome(&mut self, result: Result<(), MigrationError>, well: Event, badly: Event) -> Event {
        let Err(error) = result else { return well };
        self.handover.failure = Some(error);
        badly
    }

    /// Waits briefly for the source's last word.
    fn hear_settled(&mut self) {
        let _ = self.wire.limit_silence(SETTLED_MAX);
        let heard: Result<Settled, _> =
            self.wire.expect(FrameType::Settled, "waiting for the source's thanks");
        if let (Ok(Settled { total_us, commit_us }), Some(downtime)) = (heard, &mut self.report.downtime) {
            (downtime.total_us, downtime.commit_us) = (Some(total_us), Some(commit_us));
            self.handover.settled = true;
        }
    }
}
