//! The ends: power-off and reboot.

#![allow(unsafe_code, reason = "the port that switches the machine off")]

use crate::{print, sys};
use core::arch::asm;

/// The ACPI power-management control register of tern's machine (and of QEMU's q35).
const PM1A_CONTROL: u16 = 0x604;
/// Is there where the kernel uses ACPI.
const ACPI: &[u8] = b"/sys/firmware/acpi/tables\0";
/// Sleep enable, sleep type 5: S5 is soft-off.
const SLEEP_S5: u16 = 0x2000 | 5 << 10;

/// Writes back what is cached, then turns the machine off. Checks must be stopped.
///
/// A kernel with ACPI does it. One without cannot, so the register is written from here, as
/// the other would. Where it is not there, the kernel gets its turn; if it has no way
/// either, init ends, and with `panic=-1` the machine is reset.
pub fn off() -> ! {
    print!("AGENT poweroff\n");
    sys::drain(1);
    sys::sync();
    let has_acpi = sys::open(ACPI, sys::O_RDONLY | sys::O_DIRECTORY).is_ok();
    if !has_acpi && sys::ioperm(PM1A_CONTROL, 2).is_ok() {
        // SAFETY: a port write touches no memory; the line above opened the two ports.
        unsafe { asm!("out dx, ax", in("dx") PM1A_CONTROL, in("ax") SLEEP_S5, options(nomem, nostack)) };
    }
    let _ = sys::reboot(sys::REBOOT_POWER_OFF);
    sys::exit(0)
}

/// Writes back what is cached, then resets the machine.
pub fn reset() -> ! {
    print!("AGENT reboot\n");
    sys::drain(1);
    sys::sync();
    let _ = sys::reboot(sys::REBOOT_RESTART);
    sys::exit(0)
}
