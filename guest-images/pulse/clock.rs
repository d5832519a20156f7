//! How fast the TSC runs, from the best source that this machine has.

#![allow(unsafe_code, reason = "the clock is a page that KVM writes meanwhile")]

use core::cell::UnsafeCell;

use crate::cpu;

const MSR_KVM_SYSTEM_TIME: u32 = 0x4b56_4d01;
const KVM_FEATURE_CLOCKSOURCE2: u32 = 1 << 3;
const PIT_HZ: u64 = 1_193_182;
const PIT_COUNT: u64 = 59_659; // 50 ms

/// `pvclock_vcpu_time_info` (kernel's Documentation/virt/kvm/x86/msr.rst).
#[repr(C, align(64))]
#[derive(Clone, Copy)]
pub(crate) struct KvmClock {
    pub(crate) version: u32,
    pad: u32,
    tsc_timestamp: u64,
    system_time: u64,
    tsc_to_system_mul: u32,
    tsc_shift: i8,
    pub(crate) flags: u8,
    pad2: [u8; 2],
}

impl KvmClock {
    pub(crate) const EMPTY: Self = Self {
        version: 0,
        pad: 0,
        tsc_timestamp: 0,
        system_time: 0,
        tsc_to_system_mul: 0,
        tsc_shift: 0,
        flags: 0,
        pad2: [0; 2],
    };

    /// The clock, in ns, when the TSC is `tsc`.
    pub(crate) fn at(&self, tsc: u64) -> u64 {
        let passed = tsc.wrapping_sub(self.tsc_timestamp);
        let shift = u32::from(self.tsc_shift.unsigned_abs());
        let shifted = if self.tsc_shift < 0 { passed >> shift } else { passed << shift };
        let scaled = u128::from(shifted) * u128::from(self.tsc_to_system_mul) >> 32;
        self.system_time.wrapping_add(scaled as u64)
    }
}

struct Shared(UnsafeCell<KvmClock>);

// SAFETY: only vCPU 0 reads it, by volatile reads; KVM writes it.
unsafe impl Sync for Shared {}

static CLOCK: Shared = Shared(UnsafeCell::new(KvmClock::EMPTY));

/// kHz of the TSC.
pub(crate) fn tsc_khz() -> u64 {
    from_crystal().or_else(from_kvm_leaf).or_else(from_kvm_clock).unwrap_or_else(from_pit)
}

/// CPUID 0x15: crystal frequency and its ratio to the TSC.
fn from_crystal() -> Option<u64> {
    if cpu::cpuid(0)[0] < 0x15 {
        return None;
    }
    let [denominator, numerator, crystal_hz, _] = cpu::cpuid(0x15);
    let hz = u64::from(crystal_hz) * u64::from(numerator);
    hz.checked_div(u64::from(denominator)).map(|hz| hz / 1000).filter(|khz| *khz != 0)
}

fn from_kvm_leaf() -> Option<u64> {
    let highest = kvm_leaves()?;
    if highest < 0x4000_0010 {
        return None;
    }
    Some(u64::from(cpu::cpuid(0x4000_0010)[0])).filter(|khz| *khz != 0)
}

/// Has KVM keep this vCPU's clock in the page at this address; false where it has no such clock.
pub(crate) fn switch_on(address: u64) -> bool {
    let has = kvm_leaves().is_some() && cpu::cpuid(0x4000_0001)[0] & KVM_FEATURE_CLOCKSOURCE2 != 0;
    if has {
        cpu::wrmsr(MSR_KVM_SYSTEM_TIME, address | 1);
    }
    has
}

/// Switched on for a moment only, so that no page changes behind the guest's back later.
fn from_kvm_clock() -> Option<u64> {
    let page = CLOCK.0.get();
    switch_on(page as u64).then_some(())?;
    // SAFETY: KVM has filled it before the guest runs on, and this vCPU is the one it is written for.
    let clock = unsafe { page.read_volatile() };
    cpu::wrmsr(MSR_KVM_SYSTEM_TIME, 0);
    let unshifted = (1_000_000_u64 << 32).checked_div(u64::from(clock.tsc_to_system_mul))?;
    let shift = u32::from(clock.tsc_shift.unsigned_abs());
    let khz = if clock.tsc_shift < 0 { unshifted << shift } else { unshifted >> shift };
    Some(khz).filter(|khz| *khz != 0)
}

/// The highest hypervisor leaf, if this is KVM.
fn kvm_leaves() -> Option<u32> {
    let [highest, ebx, ecx, edx] = cpu::cpuid(0x4000_0000);
    ([ebx, ecx, edx] == [0x4b4d_564b, 0x564b_4d56, 0x4d]).then_some(highest)
}

/// Channel 0 in mode 0: its output, bit 7 of the status that command 0xe2 latches, rises at the
/// end of the count. (Not channel 2: its gate is at port 0x61, which small machines lack.)
fn from_pit() -> u64 {
    cpu::outb(0x43, 0x30);
    cpu::outb(0x40, PIT_COUNT as u8);
    cpu::outb(0x40, (PIT_COUNT >> 8) as u8);
    let start = cpu::rdtsc();
    loop {
        cpu::outb(0x43, 0xe2);
        if cpu::inb(0x40) & 0x80 != 0 {
            break;
        }
    }
    let cycles = cpu::rdtsc() - start;
    (u128::from(cycles) * u128::from(PIT_HZ) / u128::from(PIT_COUNT) / 1000).max(1) as u64
}
