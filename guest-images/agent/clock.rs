//! The clock watcher: monotonic and boot time never go backwards, and how far
//! apart two looks at the clock were.
//!
//! Time is read through the vDSO, as programs do: that exercises the clock page
//! which a migration must carry over, and costs no system call.

use crate::{print, sys, vdso};

/// Reads the clocks and remembers what it saw. One per process.
pub struct Clock {
    gettime: Option<vdso::ClockGettime>,
    last_monotonic_ns: u64,
    last_boot_ns: u64,
    gap_ns: u64,
}

impl Clock {
    pub fn new(gettime: Option<vdso::ClockGettime>) -> Self {
        let mut clock = Clock { gettime, last_monotonic_ns: 0, last_boot_ns: 0, gap_ns: 0 };
        clock.look();
        clock.gap_ns = 0;
        clock
    }

    /// A watcher for a forked process, which starts from this moment.
    pub fn fresh(&self) -> Self {
        Clock::new(self.gettime)
    }

    fn read(&self, clock: usize) -> u64 {
        let mut time = sys::Timespec::default();
        match self.gettime {
            Some(gettime) if gettime(clock as i32, &mut time) == 0 => time.as_ns(),
            _ => sys::clock_gettime(clock).as_ns(),
        }
    }

    /// Looks at both clocks, checks them, and returns monotonic time in nanoseconds.
    pub fn look(&mut self) -> u64 {
        let monotonic_ns = self.read(sys::CLOCK_MONOTONIC);
        let boot_ns = self.read(sys::CLOCK_BOOTTIME);
        check("monotonic", self.last_monotonic_ns, monotonic_ns);
        check("boottime", self.last_boot_ns, boot_ns);
        self.gap_ns = self.gap_ns.max(monotonic_ns.saturating_sub(self.last_monotonic_ns));
        self.last_monotonic_ns = monotonic_ns;
        self.last_boot_ns = boot_ns;
        monotonic_ns
    }

    /// Monotonic and boot time of the last look, in nanoseconds.
    pub fn last_ns(&self) -> (u64, u64) {
        (self.last_monotonic_ns, self.last_boot_ns)
    }

    /// The largest gap between two looks since the last call, in nanoseconds.
    pub fn take_gap_ns(&mut self) -> u64 {
        core::mem::take(&mut self.gap_ns)
    }

    /// Whether time is read without system calls.
    pub fn is_fast(&self) -> bool {
        self.gettime.is_some()
    }
}

fn check(name: &str, before_ns: u64, now_ns: u64) {
    if now_ns < before_ns {
        print!("\nAGENT CORRUPT what=clock clock={name} before_ns={before_ns} now_ns={now_ns}\n");
    }
}
