//! The stop of the guest: the rest of its memory, its state, and the one point of no return.
//!
//! Nothing here logs or makes JSON, and buffers were made before: the guest is waiting.

use std::time::Instant;

use tern_schema::StateSet;

use super::rounds::Rounds;
use super::{Attempt, vm_failed};
use crate::error::MigrationError;
use crate::stats::Downtime;
use crate::vm::{PAGE_BYTES, SourceVm};
use crate::wire::{Commit, FLAG_RUNNING, FrameType, Prepared, Running};

/// The guest is stopped, and part of its memory is still here only.
pub(super) struct Stopped<'s, 'a, V> {
    pub(super) rounds: Rounds<'s, 'a, V>,
    pub(super) running: bool,
    pub(super) stop_started: Instant,
    pub(super) downtime: Downtime,
}

/// The destination has all and waits.
pub(super) struct Offered<'s, 'a, V> {
    attempt: &'s mut Attempt<'a, V>,
    stop_started: Instant,
    downtime: Downtime,
}

impl<'s, 'a, V: SourceVm> Stopped<'s, 'a, V> {
    /// Saves, then looks at the dirty log once: saving may write guest memory, and nothing does after it.
    pub(super) fn offer(self) -> Result<Offered<'s, 'a, V>, MigrationError> {
        let Self { mut rounds, running, stop_started, mut downtime } = self;
        let mut state = StateSet::default();
        downtime.state_save_us =
            timed(|| rounds.attempt.vm.save(&mut state).map_err(vm_failed("saving the guest's state")))?;
        downtime.final_ram_us = timed(|| send_last_pages(&mut rounds))?;
        let attempt = rounds.attempt;
        let mut load_us = 0;
        downtime.state_send_us = Some(timed(|| {
            load_us = send_state(attempt, &state, running)?;
            Ok(())
        })?);
        downtime.load_us = load_us;
        Ok(Offered { attempt, stop_started, downtime })
    }
}

fn send_last_pages<V: SourceVm>(rounds: &mut Rounds<'_, '_, V>) -> Result<(), MigrationError> {
    let started = rounds.attempt.begin_round();
    let vm = &mut rounds.attempt.vm;
    vm.dirty_log_fetch(&mut rounds.pending).map_err(vm_failed("reading the dirty log"))?;
    rounds.attempt.report.remaining_bytes = Some(rounds.pending.count() * PAGE_BYTES);
    rounds.send_pending(false)?;
    rounds.end_round(started, true)?;
    rounds.close_round(started);
    Ok(())
}

fn send_state<V: SourceVm>(
    attempt: &mut Attempt<'_, V>,
    state: &StateSet,
    running: bool,
) -> Result<u64, MigrationError> {
    let flags = if running { FLAG_RUNNING } else { 0 };
    let wire = &mut attempt.wire;
    let bytes = wire.send_with(FrameType::State, flags, "sending the state", |out| state.encode(out))?;
    attempt.report.bytes.state += bytes;
    let prepared: Prepared = wire.expect(FrameType::Prepared, "waiting for the peer to load the state")?;
    Ok(prepared.load_us)
}

impl<V: SourceVm> Offered<'_, '_, V> {
    /// Gives the guest up and says so. Either a cancel comes before this, or it comes too late.
    pub(super) fn commit(self) -> Result<Downtime, MigrationError> {
        let Self { attempt, stop_started, mut downtime } = self;
        if !attempt.control.cancel.close() {
            return Err(MigrationError::Cancelled);
        }
        attempt.wire.ignore_cancel();
        let commit_started = Instant::now();
        attempt.undo.given_up = true;
        attempt.vm.give_up();
        let Downtime { stop_us, state_save_us, final_ram_us, state_send_us, .. } = downtime;
        let live_us = Some(attempt.report.live_us);
        let commit = Commit { stop_us, state_save_us, final_ram_us, state_send_us, live_us };
        attempt.wire.send(FrameType::Commit, &commit, "handing the guest over")?;
        let state = "waiting for the peer to say that the guest runs";
        let answer: Running = attempt.wire.expect(FrameType::Running, state)?;
        downtime.resume_us = answer.resume_us;
        downtime.commit_us = Some(commit_started.elapsed().as_micros() as u64);
        downtime.total_us = Some(stop_started.elapsed().as_micros() as u64);
        attempt.report.downtime = Some(downtime);
        Ok(downtime)
    }
}

fn timed(action: impl FnOnce() -> Result<(), MigrationError>) -> Result<u64, MigrationError> {
    let started = Instant::now();
    action()?;
    Ok(started.elapsed().as_micros() as u64)
}
