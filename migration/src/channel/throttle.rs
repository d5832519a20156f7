//! One bandwidth limit for all connections of a migration, whoever sends: each thread reserves the time of its bytes
//! and waits for that, so the limit holds over all of them, and none is forgotten.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use super::pacer::Pacer;
use crate::config::{LiveParameters, Parameters};
use crate::control::Control;
use crate::error::MigrationError;

/// A change of the limit is obeyed within this.
const PAUSE_MAX_US: u64 = 50_000;

/// The limit, as the parameters say at each moment.
#[derive(Debug)]
pub(crate) struct Throttle {
    pacer: Mutex<Pacer>,
    live: LiveParameters,
    /// Which limit.
    rate: fn(&Parameters) -> u64,
    control: Arc<Control>,
}

impl Throttle {
    pub(crate) fn new(live: &LiveParameters, control: &Arc<Control>) -> Self {
        Self::with_rate(live, control, |parameters| parameters.max_bandwidth_bytes_per_s)
    }

    /// With another limit than that of pre-copy.
    pub(crate) fn with_rate(
        live: &LiveParameters,
        control: &Arc<Control>,
        rate: fn(&Parameters) -> u64,
    ) -> Self {
        let pacer = Mutex::new(Pacer::new(rate(&live.get()), control.now_us()));
        Self { pacer, live: live.clone(), rate, control: Arc::clone(control) }
    }

    fn rate_bytes_per_s(&self) -> u64 {
        (self.rate)(&self.live.get())
    }

    /// Most bytes that may go at once: so few that they are under 1 % of a second. None: there is no limit.
    pub(crate) fn piece_bytes(&self) -> Option<usize> {
        Pacer::piece_bytes(self.rate_bytes_per_s())
    }

    /// Waits until `bytes` may be sent.
    pub(crate) fn pass(&self, bytes: u64) -> Result<(), MigrationError> {
        let mut reserved: Option<(u64, u64)> = None;
        loop {
            let (now_us, rate) = (self.control.now_us(), self.rate_bytes_per_s());
            if rate == 0 {
                return Ok(());
            }
            let due_us = match reserved {
                Some((under, due_us)) if under == rate => due_us,
                // What was reserved under another limit is forgotten with it.
                _ => {
                    let mut pacer = self.pacer.lock().unwrap_or_else(PoisonError::into_inner);
                    pacer.set_rate(rate, now_us);
                    let due_us = now_us.saturating_add(pacer.wait_us(now_us));
                    pacer.sent(bytes);
                    reserved = Some((rate, due_us));
                    due_us
                }
            };
            let left_us = due_us.saturating_sub(now_us);
            if left_us == 0 {
                return Ok(());
            }
            self.control.pause(Duration::from_micros(left_us.min(PAUSE_MAX_US)))?;
        }
    }
}
