//! kvmclock, which must not go back, on one vCPU or between them; and how often the VMM said that it had
//! stopped the guest.

#![allow(unsafe_code, reason = "the clock is a page that KVM writes meanwhile")]

use core::sync::atomic::{AtomicU64, Ordering, fence};

use crate::clock::{self, KvmClock};
use crate::cpu;
use crate::page::Wrong;

const CPUS: usize = crate::options::MAX_CPUS as usize;
/// The page's flag for a guest that was stopped (KVM_KVMCLOCK_CTRL), which the guest takes back.
const STOPPED: u8 = 1 << 1;
/// What vCPUs may differ by: as the TSC's watch has it.
const TOLERANCE_NS: u64 = 10_000;

static mut PAGES: [KvmClock; CPUS] = [KvmClock::EMPTY; CPUS];
/// The newest that any vCPU has read.
static NEWEST_NS: AtomicU64 = AtomicU64::new(0);

/// One vCPU's clock.
pub(crate) struct Clock {
    page: *mut KvmClock,
    last_ns: u64,
    gap_ns: u64,
    stops: u64,
}

impl Clock {
    /// Switches it on; `None` where there is none.
    pub(crate) fn new(cpu: u32) -> Option<Self> {
        // SAFETY: each vCPU takes the page of its own number.
        let page = unsafe { &raw mut PAGES[cpu as usize] };
        clock::switch_on(page as u64).then_some(Self { page, last_ns: 0, gap_ns: 0, stops: 0 })
    }

    /// Reads it, as the kernel's `Documentation/virt/kvm/x86/msr.rst` says.
    fn read(&mut self) -> u64 {
        loop {
            let before = self.version();
            fence(Ordering::Acquire);
            // SAFETY: this vCPU's page; KVM writes it only while this vCPU doesn't run, and changes the version.
            let clock = unsafe { self.page.read_volatile() };
            let now_ns = clock.at(cpu::rdtsc());
            fence(Ordering::Acquire);
            if self.version() == before && before & 1 == 0 {
                if clock.flags & STOPPED != 0 {
                    self.stops += 1;
                    // SAFETY: the flag is the guest's to take back.
                    unsafe { (&raw mut (*self.page).flags).write_volatile(clock.flags & !STOPPED) };
                }
                return now_ns;
            }
        }
    }

    /// Changes with each of KVM's writes; it must be read before all else, and behind it.
    fn version(&self) -> u32 {
        // SAFETY: as in `read`.
        unsafe { (&raw const (*self.page).version).read_volatile() }
    }

    /// Compares it with what was read before.
    pub(crate) fn check(&mut self) -> Result<(), Wrong> {
        let newest = NEWEST_NS.load(Ordering::Acquire);
        let now_ns = self.read();
        NEWEST_NS.fetch_max(now_ns, Ordering::Release);
        let last = core::mem::replace(&mut self.last_ns, now_ns);
        if now_ns < last {
            return Err(Wrong { field: "kvmclock", expected: last, found: now_ns });
        }
        if last != 0 {
            self.gap_ns = self.gap_ns.max(now_ns - last);
        }
        if now_ns.saturating_add(TOLERANCE_NS) < newest {
            return Err(Wrong { field: "kvmclock_of_other_cpu", expected: newest, found: now_ns });
        }
        Ok(())
    }

    /// The largest step since this was last asked, and how often the guest was told of a stop so far.
    pub(crate) fn take(&mut self) -> (u64, u64) {
        (core::mem::take(&mut self.gap_ns), self.stops)
    }
}
