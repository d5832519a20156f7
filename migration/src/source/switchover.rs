//! `pause-before-switchover`: when little is left, the manager gets time for its own work, and the guest still runs.

use std::time::Duration;

use super::rounds::Rounds;
use crate::error::MigrationError;
use crate::handover::source::{Event, State};
use crate::stats::Status;
use crate::vm::SourceVm;

/// Between two rounds: often enough that little is left, and seldom enough that the guest doesn't feel it.
const IDLE_ROUND_US: u64 = 500_000;
/// The manager's word is heard within this.
const POLL: Duration = Duration::from_millis(10);

impl<V: SourceVm> Rounds<'_, '_, V> {
    /// Has the manager asked to be waited for, and not been?
    pub(super) fn waits_for_manager(&self) -> bool {
        let attempt = &self.attempt;
        attempt.live.get().capabilities.pause_before_switchover
            && attempt.carrier.gives_away()
            && attempt.handover.state == State::Live
    }

    /// Makes a round now and then until the manager says that the guest may be stopped; then it goes on as usual.
    pub(super) fn await_manager(&mut self) -> Result<(), MigrationError> {
        self.attempt.step(Event::LittleLeft { pause: true })?;
        self.attempt.set_status(Status::PreSwitchover);
        let began_us = self.attempt.control.now_us();
        let mut round_us = began_us;
        while !self.attempt.control.may_switch() {
            let limit_ms = self.attempt.live.get().switchover_limit_ms;
            if limit_ms != 0 && self.attempt.control.since_us(began_us) >= limit_ms.saturating_mul(1000) {
                return Err(MigrationError::NotContinued { switchover_limit_ms: limit_ms });
            }
            self.attempt.carrier.hear()?;
            if self.attempt.control.since_us(round_us) >= IDLE_ROUND_US {
                self.round()?;
                round_us = self.attempt.control.now_us();
            }
            self.attempt.control.pause(POLL)?;
            self.attempt.publish_if_old();
        }
        Ok(())
    }
}
