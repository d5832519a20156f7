//! The local APIC through its memory page, from ring 3: timer set-up and start of other vCPUs.

#![allow(unsafe_code, reason = "the APIC is registers in memory, and the other vCPUs start in assembly")]

use core::sync::atomic::{AtomicBool, Ordering};

use crate::cpu;

const BASE: u64 = 0xfee0_0000;
const SPURIOUS: u64 = 0xf0;
const COMMAND_LOW: u64 = 0x300;
const COMMAND_HIGH: u64 = 0x310;
const TIMER: u64 = 0x320;
const LINT0: u64 = 0x350;
/// Bits of the interrupts 0x40 to 0x5f that wait to be taken.
const PENDING_0X40: u64 = 0x220;
const INITIAL_COUNT: u64 = 0x380;
const CURRENT_COUNT: u64 = 0x390;
const DIVIDE: u64 = 0x3e0;

const MASKED: u32 = 1 << 16;
const PERIODIC: u32 = 1 << 17;
const TSC_DEADLINE: u32 = 1 << 18;
/// CPUID leaf 1, ecx.
const CPUID_TSC_DEADLINE: u32 = 1 << 24;
const DIVIDE_BY_1: u32 = 0xb;
const INIT_ASSERT: u32 = 0x4500;
const STARTUP: u32 = 0x4600;

/// Below 1 MiB, 4 KiB-aligned: what a startup IPI can name. `boot.s` knows it as cs 0x800.
const TRAMPOLINE: u64 = 0x8000;

static STARTED: AtomicBool = AtomicBool::new(false);

unsafe extern "C" {
    static ap_trampoline: u8;
    static ap_trampoline_end: u8;
    static mut ap_index: u32;
}

/// How this machine wakes a vCPU.
#[derive(Clone, Copy)]
pub(crate) enum Timer {
    TscDeadline,
    OneShot { khz: u64 },
}

impl Timer {
    /// Halts until the TSC reaches `until`.
    pub(crate) fn sleep(self, until: u64, tsc_khz: u64) {
        loop {
            let now = cpu::rdtsc();
            if now >= until {
                return;
            }
            match self {
                Self::TscDeadline => cpu::sleep_deadline(until),
                Self::OneShot { khz } => {
                    let count = u128::from(until - now) * u128::from(khz) / u128::from(tsc_khz);
                    cpu::sleep_one_shot(u32::try_from(count).unwrap_or(u32::MAX).max(1));
                }
            }
        }
    }
}

/// Deadline mode needs both: CPUID may promise it on kvm_pvm although the APIC refuses the mode, and
/// QEMU's own APIC accepts the mode but has no such timer.
pub(crate) fn choose_timer(tsc_khz: u64) -> Timer {
    cpu::outb(0x21, 0xff); // the old PICs stay silent
    cpu::outb(0xa1, 0xff);
    write(TIMER, MASKED | TSC_DEADLINE | u32::from(cpu::TIMER_VECTOR));
    if cpu::cpuid(1)[2] & CPUID_TSC_DEADLINE != 0 && read(TIMER) & TSC_DEADLINE != 0 {
        return Timer::TscDeadline;
    }
    Timer::OneShot { khz: timer_khz(tsc_khz) }
}

/// Turns on this vCPU's APIC and its timer.
pub(crate) fn enable(timer: Timer) {
    write(SPURIOUS, 0x100 | u32::from(cpu::SPURIOUS_VECTOR));
    write(LINT0, MASKED);
    write(DIVIDE, DIVIDE_BY_1);
    let mode = if matches!(timer, Timer::TscDeadline) { TSC_DEADLINE } else { 0 };
    write(TIMER, mode | u32::from(cpu::TIMER_VECTOR));
}

/// The timer's mode: all but the deadline count down from [`set_count`].
#[derive(Clone, Copy)]
pub(crate) enum Mode {
    OneShot,
    Periodic,
}

/// Sets the timer's mode; it counts from the next [`set_count`].
pub(crate) fn set_mode(mode: Mode) {
    let bits = if matches!(mode, Mode::Periodic) { PERIODIC } else { 0 };
    write(TIMER, bits | u32::from(cpu::TIMER_VECTOR));
}

/// Starts the count-down; 0 stops it.
pub(crate) fn set_count(count: u32) {
    write(INITIAL_COUNT, count);
}

/// What the count-down began with, and where it is.
pub(crate) fn counts() -> (u32, u32) {
    (read(INITIAL_COUNT), read(CURRENT_COUNT))
}

/// The timer's entry in the local vector table.
pub(crate) fn timer_entry() -> u32 {
    read(TIMER)
}

/// Has the timer's interrupt come, and not been taken yet?
pub(crate) fn is_timer_pending() -> bool {
    read(PENDING_0X40) & 1 << (cpu::TIMER_VECTOR - 0x40) != 0
}

/// Counts of the timer in a millisecond.
pub(crate) fn timer_khz(tsc_khz: u64) -> u64 {
    write(TIMER, MASKED);
    write(DIVIDE, DIVIDE_BY_1);
    write(INITIAL_COUNT, u32::MAX);
    let start = cpu::rdtsc();
    pause_us(10_000, tsc_khz);
    let ticks = u64::from(u32::MAX - read(CURRENT_COUNT));
    let cycles = cpu::rdtsc() - start;
    write(INITIAL_COUNT, 0);
    (ticks * tsc_khz / cycles).max(1)
}

/// Starts the vCPU with this APIC id and index; false if it does not come within 5 s.
pub(crate) fn start(cpu: u32, tsc_khz: u64) -> bool {
    let code = &raw const ap_trampoline;
    let bytes = (&raw const ap_trampoline_end) as usize - code as usize;
    // SAFETY: the page at TRAMPOLINE is free RAM; the start info there has been copied.
    unsafe {
        core::ptr::copy_nonoverlapping(code, TRAMPOLINE as *mut u8, bytes);
        (&raw mut ap_index).write_volatile(cpu);
    }
    STARTED.store(false, Ordering::Release);
    send(cpu, INIT_ASSERT);
    pause_us(10_000, tsc_khz);
    send(cpu, STARTUP | (TRAMPOLINE >> 12) as u32);
    for wait in 0..5000 {
        if STARTED.load(Ordering::Acquire) {
            return true;
        }
        if wait == 100 {
            send(cpu, STARTUP | (TRAMPOLINE >> 12) as u32); // the second one of the MP specification, B.4
        }
        pause_us(1000, tsc_khz);
    }
    false
}

/// Said by a vCPU that has started.
pub(crate) fn started() {
    STARTED.store(true, Ordering::Release);
}

fn send(cpu: u32, command: u32) {
    write(COMMAND_HIGH, cpu << 24);
    write(COMMAND_LOW, command);
}

fn pause_us(us: u64, tsc_khz: u64) {
    let until = cpu::rdtsc() + us * tsc_khz / 1000;
    while cpu::rdtsc() < until {
        core::hint::spin_loop();
    }
}

fn read(register: u64) -> u32 {
    // SAFETY: the APIC's page is mapped, and reading it has no effect on memory.
    unsafe { ((BASE + register) as *const u32).read_volatile() }
}

fn write(register: u64, value: u32) {
    // SAFETY: as in `read`; the vectors used have gates.
    unsafe { ((BASE + register) as *mut u32).write_volatile(value) };
}
