//! The first serial port: whole lines, one at a time, from any vCPU.

use core::sync::atomic::{AtomicBool, Ordering};

use crate::cpu;
use crate::watch::Watch;

/// Where bytes go.
pub(crate) const PORT: u16 = 0x3f8;
const LINE_STATUS: u16 = PORT + 5;
/// Keeps what was written, and does nothing.
pub(crate) const SCRATCH: u16 = PORT + 7;
const TRANSMITTER_EMPTY: u8 = 0x20;
static LOCKED: AtomicBool = AtomicBool::new(false);

/// 115200 8N1, FIFO on, no interrupts.
pub(crate) fn init() {
    for (register, value) in [(1, 0), (3, 0x80), (0, 1), (1, 0), (3, 3), (2, 7), (4, 3)] {
        cpu::outb(PORT + register, value);
    }
}

/// Takes the port if no other vCPU has it.
pub(crate) fn try_lock() -> bool {
    !LOCKED.swap(true, Ordering::Acquire)
}

pub(crate) fn unlock() {
    LOCKED.store(false, Ordering::Release);
}

/// Prints a line, waiting for the port.
pub(crate) fn print(line: &[u8], watch: &mut Watch) {
    while !try_lock() {
        watch.turn();
        core::hint::spin_loop();
    }
    print_locked(line, watch);
    unlock();
}

/// Prints a line; the caller has the port. Each exit to the VMM costs microseconds, so the port is
/// asked once a line. `rep outsb` would save nothing: KVM exits for each of its bytes. And each byte
/// is a turn, so that printing is no gap, but a gap while printing is seen.
pub(crate) fn print_locked(line: &[u8], watch: &mut Watch) {
    wait_for_transmitter();
    for byte in line {
        cpu::outb(PORT, *byte);
        watch.turn();
    }
}

/// For a vCPU that is about to stop: waits a while for the port, then prints in any case.
pub(crate) fn print_anyway(line: &[u8]) {
    for _ in 0..10_000_000 {
        if try_lock() {
            break;
        }
        core::hint::spin_loop();
    }
    wait_for_transmitter();
    for byte in line {
        cpu::outb(PORT, *byte);
    }
    unlock();
}

fn wait_for_transmitter() {
    while cpu::inb(LINE_STATUS) & TRANSMITTER_EMPTY == 0 {}
}
