//! What this program says to a vCPU: ports, the TSC, and the ring-0 services of `boot.s`.

#![allow(unsafe_code, reason = "instructions that no Rust function stands for")]

use core::arch::asm;

/// Interrupt vectors.
pub(crate) const TIMER_VECTOR: u8 = 0x40;
pub(crate) const SPURIOUS_VECTOR: u8 = 0xff;

const INVALID_OPCODE: u8 = 6;
const GENERAL_PROTECTION: u8 = 13;

/// Services of ring 0, as `boot.s` numbers them.
const SLEEP: u32 = 1;
const CPUID: u32 = 2;
const WRMSR: u32 = 3;
const STOP: u32 = 4;
const RDMSR: u32 = 5;
const HALT: u32 = 6;
const SET_DEBUG: u32 = 7;
const GET_DEBUG: u32 = 8;
const COPY: u32 = 9;
const AVX: u32 = 10;

/// CPUID leaf 1, ECX (Intel SDM volume 1, 14.3).
const CPUID_XSAVE_AND_AVX: u32 = 1 << 26 | 1 << 28;
/// XCR0, and CPUID leaf 0xd, EAX (Intel SDM volume 1, 13.2 and 13.3).
const X87_SSE_AVX: u64 = 7;
/// Of an XSAVE area with these three: FXSAVE's, the header, the upper halves.
const X87_SSE_AVX_BYTES: u32 = 512 + 64 + 256;

const KERNEL_CODE: u64 = 0x18;

unsafe extern "C" {
    static mut idt: [[u64; 2]; 256];
    fn exception_stubs();
    fn timer_interrupt();
    fn ignore_interrupt();
    fn invalid_opcode();
    fn general_protection();
}

/// Fills the IDT that `boot.s` has already loaded. Before this, any exception is a triple fault.
pub(crate) fn fill_idt() {
    for exception in 0..32 {
        set_gate(exception, exception_stubs as *const () as u64 + 16 * u64::from(exception));
    }
    set_gate(INVALID_OPCODE, invalid_opcode as *const () as u64);
    set_gate(GENERAL_PROTECTION, general_protection as *const () as u64);
    set_gate(TIMER_VECTOR, timer_interrupt as *const () as u64);
    set_gate(SPURIOUS_VECTOR, ignore_interrupt as *const () as u64);
}

fn set_gate(vector: u8, handler: u64) {
    let interrupt_gate = 0x8e00;
    let low = handler & 0xffff | KERNEL_CODE << 16 | interrupt_gate << 32 | (handler >> 16 & 0xffff) << 48;
    // SAFETY: only vCPU 0 writes the table, before any other starts.
    unsafe { (&raw mut idt[usize::from(vector)]).write_volatile([low, handler >> 32]) };
}

/// The TSC, not read ahead of what comes before it. Also a barrier for the compiler: what the
/// VMM does to memory between two turns is read again.
pub(crate) fn rdtsc() -> u64 {
    let (low, high): (u32, u32);
    // SAFETY: reads a counter.
    unsafe { asm!("lfence", "rdtsc", out("eax") low, out("edx") high, options(nostack)) };
    u64::from(high) << 32 | u64::from(low)
}

pub(crate) fn outb(port: u16, value: u8) {
    // SAFETY: I/O does not touch memory; which ports are written is the callers' business.
    unsafe { asm!("out dx, al", in("dx") port, in("al") value, options(nostack, nomem)) };
}

pub(crate) fn inb(port: u16) -> u8 {
    let value;
    // SAFETY: as in `outb`.
    unsafe { asm!("in al, dx", in("dx") port, out("al") value, options(nostack, nomem)) };
    value
}

pub(crate) fn wrmsr(msr: u32, value: u64) {
    // SAFETY: the service writes the MSR and returns; KVM may write memory for some.
    unsafe {
        asm!("call call_ring0", in("r8d") WRMSR, in("ecx") msr, in("eax") value as u32,
            in("edx") (value >> 32) as u32);
    }
}

pub(crate) fn rdmsr(msr: u32) -> u64 {
    let (low, high): (u32, u32);
    // SAFETY: the service reads the MSR and returns.
    unsafe { asm!("call call_ring0", in("r8d") RDMSR, in("ecx") msr, out("eax") low, out("edx") high) };
    u64::from(high) << 32 | u64::from(low)
}

/// DR0 to DR3, DR6, DR7. None of them may be an enabled breakpoint: nothing handles one.
pub(crate) fn set_debug_registers(values: &[u64; 6]) {
    // SAFETY: the service reads six words.
    unsafe { asm!("call call_ring0", in("r8d") SET_DEBUG, in("rdi") values.as_ptr(), out("rax") _) };
}

/// DR0 to DR3, DR6, DR7.
pub(crate) fn debug_registers() -> [u64; 6] {
    let mut values = [0; 6];
    // SAFETY: the service writes six words.
    unsafe { asm!("call call_ring0", in("r8d") GET_DEBUG, in("rdi") values.as_mut_ptr(), out("rax") _) };
    values
}

/// Copies by one `rep movsb` in ring 0.
pub(crate) fn copy_in_ring_0(from: &[u8], to: &mut [u8]) {
    let bytes = from.len().min(to.len());
    // SAFETY: both ranges are as long as the count says, and a borrow each.
    unsafe {
        asm!("call call_ring0", in("r8d") COPY, inout("rcx") bytes => _, inout("rsi") from.as_ptr() => _,
            inout("rdi") to.as_mut_ptr() => _);
    }
}

/// Copies by one `rep movsb` in ring 3.
pub(crate) fn copy(from: &[u8], to: &mut [u8]) {
    let bytes = from.len().min(to.len());
    // SAFETY: as in `copy_in_ring_0`.
    unsafe {
        asm!("rep movsb", inout("rcx") bytes => _, inout("rsi") from.as_ptr() => _,
            inout("rdi") to.as_mut_ptr() => _, options(nostack));
    }
}

/// All bytes from one port, by one `rep insb`.
pub(crate) fn in_string(port: u16, to: &mut [u8]) {
    // SAFETY: KVM or the processor writes as many bytes as `to` has.
    unsafe {
        asm!("rep insb", in("dx") port, inout("rcx") to.len() => _, inout("rdi") to.as_mut_ptr() => _,
            options(nostack));
    }
}

/// All bytes to one port, by one `rep outsb`.
pub(crate) fn out_string(port: u16, from: &[u8]) {
    // SAFETY: reads as many bytes as `from` has.
    unsafe {
        asm!("rep outsb", in("dx") port, inout("rcx") from.len() => _, inout("rsi") from.as_ptr() => _,
            options(nostack));
    }
}

/// The selectors in CS, DS, ES, FS, GS, SS.
pub(crate) fn selectors() -> [u64; 6] {
    let (cs, ds, es, fs, gs, ss): (u64, u64, u64, u64, u64, u64);
    // SAFETY: reads registers.
    unsafe {
        asm!("mov {0:r}, cs", "mov {1:r}, ds", "mov {2:r}, es", "mov {3:r}, fs", "mov {4:r}, gs",
            "mov {5:r}, ss", out(reg) cs, out(reg) ds, out(reg) es, out(reg) fs, out(reg) gs, out(reg) ss,
            options(nomem, nostack));
    }
    [cs, ds, es, fs, gs, ss]
}

/// CPUID as ring 0 sees it: on some hosts ring 3 sees more than the VMM has set.
/// Returns eax, ebx, ecx, edx.
pub(crate) fn cpuid(leaf: u32) -> [u32; 4] {
    let (eax, ebx, ecx, edx): (u32, u64, u32, u32);
    // SAFETY: rbx belongs to the compiler, so it is kept in another register.
    unsafe {
        asm!("mov {keep}, rbx", "call call_ring0", "xchg {keep}, rbx", keep = out(reg) ebx,
            in("r8d") CPUID, inout("eax") leaf => eax, inout("ecx") 0 => ecx, out("edx") edx);
    }
    [eax, ebx as u32, ecx, edx]
}

/// Whether a vCPU has AVX, and lets it be switched on.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Avx {
    On,
    /// CPUID has none.
    Absent,
    /// CPUID has it, but CR4 or XSETBV raises an exception, or XCR0 is another one after it: so where CPUID
    /// shows more than the VMM has set, or an interpreter of ring 0 does not know XSETBV.
    Refused,
}

/// Switches AVX on for this vCPU, by CR4.OSXSAVE and XCR0, if it can.
pub(crate) fn switch_on_avx() -> Avx {
    let offered = cpuid(1)[2] & CPUID_XSAVE_AND_AVX == CPUID_XSAVE_AND_AVX;
    if !offered || u64::from(cpuid(0xd)[0]) & X87_SSE_AVX != X87_SSE_AVX {
        return Avx::Absent;
    }
    let taken: u32;
    // SAFETY: the service changes eax, ecx, edx, CR4 and XCR0 only.
    unsafe { asm!("call call_ring0", in("r8d") AVX, out("eax") taken, out("ecx") _, out("edx") _) };
    if taken == 1 && is_avx_on() && xcr0_of_ring_3() & X87_SSE_AVX == X87_SSE_AVX {
        Avx::On
    } else {
        Avx::Refused
    }
}

/// XCR0 as the machine has it, by what CPUID makes of it: XGETBV in ring 0 is not known to `kvm_pvm`, and in ring 3
/// it reads the host's there.
pub(crate) fn is_avx_on() -> bool {
    cpuid(0xd)[1] == X87_SSE_AVX_BYTES
}

/// Only where CR4.OSXSAVE is set.
fn xcr0_of_ring_3() -> u64 {
    let (low, high): (u32, u32);
    // SAFETY: reads a register.
    unsafe { asm!("xgetbv", in("ecx") 0, out("eax") low, out("edx") high, options(nostack, nomem)) };
    u64::from(high) << 32 | u64::from(low)
}

/// Arms the TSC deadline and halts until an interrupt.
pub(crate) fn sleep_deadline(tsc: u64) {
    // SAFETY: the service changes eax, ecx, edx only.
    unsafe {
        asm!("call call_ring0", in("r8d") SLEEP, inout("eax") tsc as u32 => _, inout("ecx") 1 => _,
            inout("edx") (tsc >> 32) as u32 => _);
    }
}

/// Arms the one-shot timer and halts until an interrupt.
pub(crate) fn sleep_one_shot(count: u32) {
    // SAFETY: as in `sleep_deadline`.
    unsafe {
        asm!("call call_ring0", in("r8d") SLEEP, inout("eax") count => _, inout("ecx") 0 => _, out("edx") _);
    }
}

/// Halts until an interrupt; one that is pending already ends it at once.
pub(crate) fn halt() {
    // SAFETY: the service comes back behind the interrupt.
    unsafe { asm!("call call_ring0", in("r8d") HALT) };
}

/// Halts this vCPU for ever.
pub(crate) fn stop() -> ! {
    // SAFETY: the service does not return.
    unsafe { asm!("call call_ring0", in("r8d") STOP, options(noreturn)) };
}

/// Powers off by ACPI as tern has it (PM1a_CNT: S5), else resets by the i8042, else stops.
pub(crate) fn power_off() -> ! {
    // SAFETY: as in `outb`.
    unsafe { asm!("out dx, ax", in("dx") 0x604_u16, in("ax") 0x3400_u16, options(nostack, nomem)) };
    outb(0x64, 0xfe);
    stop()
}
