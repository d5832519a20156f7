//! The stop of the guest: the rest of its memory, its state, and the one point of no return.
//!
//! Nothing here logs or makes JSON, and buffers were made before: the guest is waiting.

use std::sync::Arc;

use super::rounds::Rounds;
use super::{Attempt, Outcome, vm_failed};
use crate::control::Control;
use crate::error::MigrationError;
use crate::handover::source::{Event, State};
use crate::stats::{Downtime, Status};
use crate::vm::{PAGE_BYTES, SourceVm};
use crate::wire::Commit;

/// The guest is stopped, and part of its memory is still here only.
pub(super) struct Stopped<'s, 'a, V> {
    pub(super) rounds: Rounds<'s, 'a, V>,
    pub(super) running: bool,
    pub(super) stop_started_us: u64,
    pub(super) downtime: Downtime,
}

/// The other end has all and waits.
pub(super) struct Offered<'s, 'a, V> {
    attempt: &'s mut Attempt<'a, V>,
    stop_started_us: u64,
    downtime: Downtime,
}

impl<'s, 'a, V: SourceVm> Stopped<'s, 'a, V> {
    /// Saves, then looks at the dirty log once: saving may write guest memory, and nothing does after it.
    pub(super) fn offer(self) -> Result<Offered<'s, 'a, V>, MigrationError> {
        let Self { mut rounds, running, stop_started_us, mut downtime } = self;
        let control = Arc::clone(&rounds.attempt.control);
        downtime.state_save_us = timed(&control, || save(&mut rounds))?;
        downtime.final_ram_us = timed(&control, || match rounds.switching {
            true => rounds.tell_missing(),
            false => send_last_pages(&mut rounds),
        })?;
        let Rounds { attempt, state, .. } = rounds;
        let sending_us = attempt.control.now_us();
        downtime.load_us =
            attempt.carrier.state(&state, running && !attempt.live.get().capabilities.arrive_paused)?;
        downtime.state_send_us = Some(attempt.control.since_us(sending_us));
        attempt.report.bytes.state += state.len() as u64;
        attempt.step(Event::Sent)?;
        Ok(Offered { attempt, stop_started_us, downtime })
    }
}

fn save<V: SourceVm>(rounds: &mut Rounds<'_, '_, V>) -> Result<(), MigrationError> {
    let Rounds { attempt, set, state, .. } = rounds;
    attempt.vm.save(set).map_err(vm_failed("saving the guest's state"))?;
    set.encode(state);
    Ok(())
}

fn send_last_pages<V: SourceVm>(rounds: &mut Rounds<'_, '_, V>) -> Result<(), MigrationError> {
    let started_us = rounds.attempt.begin_round();
    let vm = &mut rounds.attempt.vm;
    vm.dirty_log_fetch(&mut rounds.pending).map_err(vm_failed("reading the dirty log"))?;
    rounds.attempt.report.remaining_bytes = Some(rounds.pending.count() * PAGE_BYTES);
    rounds.send_pending(false)?;
    rounds.drain(false)?;
    rounds.prove();
    rounds.end_round(started_us, true)?;
    rounds.close_round(started_us);
    Ok(())
}

impl<V: SourceVm> Offered<'_, '_, V> {
    /// Makes it final. A guest that changes hands is given up just before; either a cancel comes before that, or it
    /// comes too late. One that is kept may go on before its file is on the disk.
    pub(super) fn commit(self) -> Result<Outcome, MigrationError> {
        let Self { attempt, stop_started_us, mut downtime } = self;
        let gives_away = attempt.carrier.gives_away();
        let resumed = !gives_away && !attempt.stays_stopped();
        if resumed {
            downtime.resume_us = timed(&Arc::clone(&attempt.control), || attempt.keep_running())?;
            downtime.total_us = Some(attempt.control.since_us(stop_started_us));
            attempt.set_status(Status::Active);
        }
        attempt.carrier.settle()?;
        attempt.report.proof = attempt.carrier.proof().or(attempt.report.proof);
        if !attempt.control.cancel.close() {
            return Err(MigrationError::Cancelled);
        }
        let commit_us = attempt.control.now_us();
        let Downtime { stop_us, state_save_us, final_ram_us, state_send_us, .. } = downtime;
        let live_us = Some(attempt.report.live_us);
        let commit = Commit { stop_us, state_save_us, final_ram_us, state_send_us, live_us };
        let mut unheard = None;
        if gives_away {
            if let Err(error) = attempt.hand_over(commit) {
                let may_serve = attempt.report.postcopy.is_some();
                if !may_serve || attempt.handover.state != State::InDoubt {
                    return Err(error);
                }
                unheard = Some(error);
            }
            downtime.resume_us = attempt.handover.resume_us;
            downtime.total_us = Some(attempt.control.since_us(stop_started_us));
        } else {
            attempt.carrier.commit(&commit, &mut attempt.report)?;
        }
        downtime.commit_us = Some(attempt.control.since_us(commit_us));
        let serves = attempt.handover.state == State::Serving || unheard.is_some();
        if serves {
            attempt.report.downtime = Some(downtime);
            attempt.serve(unheard)?;
        }
        attempt.carrier.settled(&downtime);
        if serves {
            attempt.hold();
        }
        attempt.report.downtime = Some(downtime);
        Ok(if gives_away { Outcome::Completed } else { Outcome::Saved { resumed } })
    }
}

impl<V: SourceVm> Attempt<'_, V> {
    /// Lets the disks go, gives the guest up and says so, all as the table has it.
    fn hand_over(&mut self, commit: Commit) -> Result<(), MigrationError> {
        self.handover.commit = commit;
        self.step(Event::Prepared)?;
        if matches!(self.handover.state, State::Done | State::Serving) {
            return Ok(());
        }
        Err(self.handover.failure.take().unwrap_or(MigrationError::Cancelled))
    }
}

fn timed(
    control: &Control,
    action: impl FnOnce() -> Result<(), MigrationError>,
) -> Result<u64, MigrationError> {
    let started_us = control.now_us();
    action()?;
    Ok(control.since_us(started_us))
}
