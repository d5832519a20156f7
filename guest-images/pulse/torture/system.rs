//! Registers that only ring 0 can read: MSRs and debug registers. Set once for each turn, read again later.

use super::hold::differ;
use crate::cpu;
use crate::page::{Random, Wrong};

/// A register that keeps what is written to it, and does nothing while ring 3 makes no system call.
struct Kept {
    name: &'static str,
    msr: u32,
    /// Bits of the value that may be anything; the others are in `fixed`.
    free: u64,
    fixed: u64,
}

const CANONICAL: u64 = 0x0000_7fff_ffff_ffff;

/// Intel SDM volume 4, table 2-2.
const KEPT: [Kept; 8] = [
    Kept { name: "star", msr: 0xc000_0081, free: 0xffff_ffff_0000_0000, fixed: 0 },
    Kept { name: "lstar", msr: 0xc000_0082, free: CANONICAL, fixed: 0 },
    Kept { name: "cstar", msr: 0xc000_0083, free: CANONICAL, fixed: 0 },
    Kept { name: "syscall_mask", msr: 0xc000_0084, free: 0xffff_ffff, fixed: 0 },
    Kept { name: "sysenter_cs", msr: 0x174, free: 0xfff8, fixed: 0 },
    Kept { name: "sysenter_esp", msr: 0x175, free: CANONICAL, fixed: 0 },
    Kept { name: "sysenter_eip", msr: 0x176, free: CANONICAL, fixed: 0 },
    // Entries 4 to 7, which no page table entry of ours names: write-back or write-through each.
    Kept { name: "pat", msr: 0x277, free: 0x0202_0202_0000_0000, fixed: 0x0404_0404_0007_0406 },
];

/// DR7: lengths and kinds of the four breakpoints are free, all of them are off; bit 10 is always set.
const DR7_FREE: u64 = 0xffff_0000;
const DR7_SET: u64 = 0x400;
/// DR6: bits 0 to 3 are free, bits 4 to 11 and 16 to 31 read as ones.
const DR6_FREE: u64 = 0xf;
const DR6_SET: u64 = 0xffff_0ff0;
const DEBUG_NAMES: [&str; 6] = ["dr0", "dr1", "dr2", "dr3", "dr6", "dr7"];

/// What is in them.
pub(crate) struct System {
    kept: [u64; KEPT.len()],
    debug: [u64; 6],
    selectors: [u64; 6],
}

impl System {
    /// Writes new values.
    pub(crate) fn set(random: &mut Random) -> Self {
        let mut kept = [0; KEPT.len()];
        for (value, register) in kept.iter_mut().zip(&KEPT) {
            *value = random.next() & register.free | register.fixed;
            cpu::wrmsr(register.msr, *value);
        }
        let mut debug = [0; 6];
        debug[..4].iter_mut().for_each(|address| *address = random.next() & CANONICAL);
        debug[4] = random.next() & DR6_FREE | DR6_SET;
        debug[5] = random.next() & DR7_FREE | DR7_SET;
        cpu::set_debug_registers(&debug);
        Self { kept, debug, selectors: cpu::selectors() }
    }

    /// Reads all again.
    pub(crate) fn check(&self) -> Result<(), Wrong> {
        for (value, register) in self.kept.iter().zip(&KEPT) {
            differ(register.name, *value, cpu::rdmsr(register.msr))?;
        }
        let found = cpu::debug_registers();
        for ((name, value), found) in DEBUG_NAMES.iter().zip(self.debug).zip(found) {
            differ(name, value, found)?;
        }
        for (value, found) in self.selectors.iter().zip(cpu::selectors()) {
            differ("selector", *value, found)?;
        }
        Ok(())
    }
}
