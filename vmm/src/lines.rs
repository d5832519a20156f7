//! The two lines through which a guest ends its machine: reset and power-off.
//!
//! A guest that has pulled one must not be handed over: the destination wouldn't know. So whoever looks at
//! a line marks the guest as leaving *before* taking the event away, and [`Lines::is_leaving`] looks at both.

#![allow(unsafe_code, reason = "poll(2) on two eventfds, which must not be read to be looked at")]

use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use vmm_sys_util::eventfd::EventFd;

/// Shared by the main loop, the vCPUs and the migration.
#[derive(Clone)]
pub struct Lines {
    reset: Arc<EventFd>,
    power_off: Arc<EventFd>,
    leaving: Arc<AtomicBool>,
}

impl Lines {
    /// Watches the two lines of a machine.
    pub fn new(reset: Arc<EventFd>, power_off: Arc<EventFd>) -> Self {
        Self { reset, power_off, leaving: Arc::default() }
    }

    /// The guest ends; from any thread.
    pub fn mark_leaving(&self) {
        self.leaving.store(true, Ordering::SeqCst);
    }

    /// Has the guest ended, or is it about to?
    pub fn is_leaving(&self) -> bool {
        is_pulled(&self.reset) || is_pulled(&self.power_off) || self.leaving.load(Ordering::SeqCst)
    }

    /// Was the reset line pulled since the last look?
    pub fn take_reset(&self) -> bool {
        self.take(&self.reset)
    }

    /// Was the power-off line pulled since the last look?
    pub fn take_power_off(&self) -> bool {
        self.take(&self.power_off)
    }

    fn take(&self, line: &EventFd) -> bool {
        if !is_pulled(line) {
            return false;
        }
        self.mark_leaving();
        line.read().is_ok()
    }
}

fn is_pulled(line: &EventFd) -> bool {
    let mut poll = libc::pollfd { fd: line.as_raw_fd(), events: libc::POLLIN, revents: 0 };
    // SAFETY: one pollfd, which lives through the call; it doesn't wait.
    unsafe { libc::poll(&raw mut poll, 1, 0) == 1 }
}

#[cfg(test)]
mod tests {
    use super::*;
    use vmm_sys_util::eventfd::EFD_NONBLOCK;

    #[test]
    fn a_guest_that_pulled_a_line_is_leaving_before_and_after_someone_looks() {
        let event = || Arc::new(EventFd::new(EFD_NONBLOCK).unwrap());
        let (reset, power_off) = (event(), event());
        let lines = Lines::new(Arc::clone(&reset), power_off);
        assert!(!lines.is_leaving() && !lines.take_reset());
        reset.write(1).unwrap();
        assert!(lines.is_leaving());
        assert!(!lines.take_power_off() && lines.take_reset() && !lines.take_reset());
        assert!(lines.is_leaving());
    }
}
