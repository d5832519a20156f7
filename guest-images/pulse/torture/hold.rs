//! Registers of ring 3, held for a while with a value of our choice in each: general ones, flags, x87, SSE, AVX
//! where there is any, and the bases of FS and GS.

#![allow(unsafe_code, reason = "one assembly routine loads and stores every register there is")]

use core::arch::global_asm;

use crate::cpu;
use crate::page::{Random, Wrong};

global_asm!(include_str!("hold.s"), options(att_syntax));

unsafe extern "C" {
    fn torture_hold();
}

const MSR_FS_BASE: u32 = 0xc000_0100;
const MSR_GS_BASE: u32 = 0xc000_0101;
const MSR_KERNEL_GS_BASE: u32 = 0xc000_0102;

/// How the general registers lie in [`Hold`].
const NAMES: [&str; 16] = [
    "rax", "rbx", "rcx", "rdx", "rsi", "rdi", "rbp", "rsp", "r8", "r9", "r10", "r11", "r12", "r13", "r14",
    "r15",
];
const RCX: usize = 2;
/// Parts of a YMM register by their lowest bit.
const YMM_NAMES: [&str; 4] = ["ymm_0", "ymm_64", "ymm_128", "ymm_192"];
/// CF, PF, AF, ZF, SF, DF, OF, ID: what ring 3 may set without a trap following. Not AC: `kvm_pvm` runs ring 3
/// with the host's CR0.AM.
const FLAGS: u64 = 0x20_0cd5;
/// All exceptions masked, so that no value raises one.
const X87_MASKS: u16 = 0x003f;
const X87_PRECISION_AND_ROUNDING: u16 = 0x0f00;
/// Condition codes and TOP. Not the exceptions: processors write the instruction's address with them.
const X87_STATUS: u16 = 0x7f00;
const SSE_MASKS: u32 = 0x1f80;
/// Flags and rounding.
const SSE_FREE: u32 = 0x603f;

/// FXSAVE's area (Intel SDM volume 1, 10.5.1), as far as it is compared.
#[repr(C, align(16))]
#[derive(Clone, Copy)]
struct Area {
    control: u16,
    status: u16,
    /// One bit a register: not empty.
    tags: u8,
    reserved: u8,
    /// Last instruction, which processors keep or drop as they like.
    last: [u16; 9],
    mxcsr: u32,
    mxcsr_mask: u32,
    /// Ten bytes each, six unused.
    x87: [[u64; 2]; 8],
    sse: [[u64; 2]; 16],
    unused: [u64; 12],
}

/// What `hold.s` knows by offsets.
#[repr(C, align(64))]
struct Hold {
    area: Area,
    area_after: Area,
    regs: [u64; 16],
    regs_after: [u64; 16],
    flags: u64,
    flags_after: u64,
    stack: u64,
    fs_after: u64,
    /// FS points here.
    fs_mark: u64,
    /// Not zero: the YMM registers, too.
    avx: u64,
    ymm: [[u64; 4]; 16],
    ymm_after: [[u64; 4]; 16],
}

const NO_AREA: Area = Area {
    control: 0,
    status: 0,
    tags: 0,
    reserved: 0,
    last: [0; 9],
    mxcsr: 0,
    mxcsr_mask: 0,
    x87: [[0; 2]; 8],
    sse: [[0; 2]; 16],
    unused: [0; 12],
};
const EMPTY: Hold = Hold {
    area: NO_AREA,
    area_after: NO_AREA,
    regs: [0; 16],
    regs_after: [0; 16],
    flags: 0,
    flags_after: 0,
    stack: 0,
    fs_after: 0,
    fs_mark: 0,
    avx: 0,
    ymm: [[0; 4]; 16],
    ymm_after: [[0; 4]; 16],
};

static mut HOLDS: [Hold; crate::options::MAX_CPUS as usize] = [EMPTY; crate::options::MAX_CPUS as usize];

/// The registers of one vCPU.
pub(crate) struct Registers {
    hold: *mut Hold,
    kernel_gs: u64,
}

impl Registers {
    /// Points GS and FS of this vCPU to its own place. `avx` if it is switched on.
    pub(crate) fn new(cpu: u32, avx: bool) -> Self {
        // SAFETY: each vCPU takes the place of its own number, once.
        let hold = unsafe { &raw mut HOLDS[cpu as usize] };
        // SAFETY: as above.
        unsafe { (*hold).fs_mark = 0x5eed_0000 + u64::from(cpu) };
        // SAFETY: as above.
        unsafe { (*hold).avx = u64::from(avx) };
        let kernel_gs = 0x0000_1234_5678_9000 + u64::from(cpu);
        cpu::wrmsr(MSR_GS_BASE, hold as u64);
        // SAFETY: only the address is taken.
        cpu::wrmsr(MSR_FS_BASE, unsafe { &raw const (*hold).fs_mark } as u64);
        cpu::wrmsr(MSR_KERNEL_GS_BASE, kernel_gs);
        Self { hold, kernel_gs }
    }

    /// Holds new values for `turns` of a loop of some cycles, and compares.
    pub(crate) fn hold(&mut self, turns: u64, random: &mut Random) -> Result<(), Wrong> {
        // SAFETY: this vCPU's own place; the assembly works on it through GS, between these two borrows.
        let hold = unsafe { &mut *self.hold };
        fill(hold, turns, random);
        // SAFETY: keeps what the System V ABI says, and expects GS to point to a filled `Hold`, as it does.
        unsafe { torture_hold() };
        // SAFETY: as above; the call may have changed it.
        compare(unsafe { &*self.hold })
    }

    /// The bases, and what is on, as ring 0 reads them.
    pub(crate) fn check_system(&self) -> Result<(), Wrong> {
        // SAFETY: this vCPU's own place.
        if unsafe { (*self.hold).avx } != 0 {
            differ("xcr0", 1, u64::from(cpu::is_avx_on()))?;
        }
        differ("gs_base", self.hold as u64, cpu::rdmsr(MSR_GS_BASE))?;
        // SAFETY: only the address is taken.
        let mark = unsafe { &raw const (*self.hold).fs_mark } as u64;
        differ("fs_base", mark, cpu::rdmsr(MSR_FS_BASE))?;
        differ("kernel_gs_base", self.kernel_gs, cpu::rdmsr(MSR_KERNEL_GS_BASE))
    }
}

fn fill(hold: &mut Hold, turns: u64, random: &mut Random) {
    let sixteen = |random: &mut Random| random.next() as u16;
    hold.area.control = X87_MASKS | 0x40 | sixteen(random) & X87_PRECISION_AND_ROUNDING;
    hold.area.status = sixteen(random) & X87_STATUS;
    hold.area.tags = random.next() as u8;
    hold.area.mxcsr = SSE_MASKS | random.next() as u32 & SSE_FREE;
    for value in hold.area.x87.iter_mut() {
        *value = [random.next(), u64::from(sixteen(random))];
    }
    for (low, whole) in hold.area.sse.iter_mut().zip(&mut hold.ymm) {
        *low = [random.next(), random.next()];
        *whole = [low[0], low[1], random.next(), random.next()];
    }
    for value in hold.regs.iter_mut() {
        *value = random.next();
    }
    hold.regs[RCX] = turns;
    hold.flags = random.next() & FLAGS | 2;
}

fn compare(hold: &Hold) -> Result<(), Wrong> {
    for (index, (before, after)) in hold.regs.iter().zip(&hold.regs_after).enumerate() {
        differ(NAMES[index], if index == RCX { 0 } else { *before }, *after)?;
    }
    differ("rflags", hold.flags & FLAGS, hold.flags_after & FLAGS)?;
    differ("fs_word", hold.fs_mark, hold.fs_after)?;
    let (before, after) = (&hold.area, &hold.area_after);
    differ("fcw", u64::from(before.control), u64::from(after.control))?;
    differ("fsw", u64::from(before.status), u64::from(after.status))?;
    differ("ftw", u64::from(before.tags), u64::from(after.tags))?;
    differ("mxcsr", u64::from(before.mxcsr), u64::from(after.mxcsr))?;
    for (before, after) in before.x87.iter().zip(&after.x87) {
        differ("x87_mantissa", before[0], after[0])?;
        differ("x87_exponent", before[1], after[1] & 0xffff)?;
    }
    for (before, after) in before.sse.iter().zip(&after.sse) {
        differ("xmm_low", before[0], after[0])?;
        differ("xmm_high", before[1], after[1])?;
    }
    if hold.avx == 0 {
        return Ok(());
    }
    for (before, after) in hold.ymm.iter().zip(&hold.ymm_after) {
        for (name, (before, after)) in YMM_NAMES.iter().zip(before.iter().zip(after)) {
            differ(name, *before, *after)?;
        }
    }
    Ok(())
}

/// `Wrong`, if the two differ.
pub(crate) fn differ(field: &'static str, expected: u64, found: u64) -> Result<(), Wrong> {
    if expected == found { Ok(()) } else { Err(Wrong { field, expected, found }) }
}
