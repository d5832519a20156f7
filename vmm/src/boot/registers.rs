//! How vCPU 0 begins, as plain data and as the structures that KVM takes.
//!
//! - PVH: 32-bit protected mode without paging, RBX = `hvm_start_info` (Xen's `docs/misc/pvh.pandoc`).
//! - Linux64: long mode, identity-mapped, RSI = `boot_params` (Linux' `Documentation/arch/x86/boot.rst`, "64-bit").

use std::fmt;

use kvm_bindings::{kvm_lapic_state, kvm_regs, kvm_segment, kvm_sregs};
use vm_memory::GuestMemoryBackend;

use super::{BootError, write};
use crate::layout;

/// How a kernel is entered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Protocol {
    /// Xen's PVH entry point, in 32-bit mode.
    Pvh,
    /// The 64-bit entry point of Linux.
    Linux64,
}

impl fmt::Display for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Pvh => "PVH",
            Self::Linux64 => "64-bit Linux",
        })
    }
}

/// Register state of vCPU 0 before its first instruction. What is not here is as the protocol fixes it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Decides CPU mode and segments.
    pub protocol: Protocol,
    /// Guest-physical address of the first instruction.
    pub rip: u64,
    /// Stack pointer; PVH has none.
    pub rsp: u64,
    /// PVH: guest-physical address of `hvm_start_info`.
    pub rbx: u64,
    /// Linux64: guest-physical address of `boot_params`.
    pub rsi: u64,
}

/// EFLAGS with interrupts off: only the bit that is always set.
const RFLAGS_RESERVED: u64 = 1 << 1;
const CR0_PE: u64 = 1 << 0;
const CR0_ET: u64 = 1 << 4;
const CR0_PG: u64 = 1 << 31;
const CR4_PAE: u64 = 1 << 5;
const EFER_LME: u64 = 1 << 8;
const EFER_LMA: u64 = 1 << 10;

/// Segment kinds of the boot GDT: type field of the descriptor (Intel SDM volume 3, 3.4.5.1 and 3.5).
const CODE_EXECUTE_READ_ACCESSED: u8 = 0xb;
const DATA_READ_WRITE_ACCESSED: u8 = 0x3;
const TSS_BUSY: u8 = 0xb;

fn flat(selector: u16, type_: u8, long: bool) -> kvm_segment {
    kvm_segment {
        base: 0,
        limit: 0xffff_ffff,
        selector,
        type_,
        present: 1,
        s: 1,
        g: 1,
        // A code segment is either long or 32-bit.
        l: u8::from(long),
        db: u8::from(!long),
        ..kvm_segment::default()
    }
}

fn code(protocol: Protocol) -> kvm_segment {
    flat(1 << 3, CODE_EXECUTE_READ_ACCESSED, protocol == Protocol::Linux64)
}

fn data() -> kvm_segment {
    flat(2 << 3, DATA_READ_WRITE_ACCESSED, false)
}

fn tss() -> kvm_segment {
    kvm_segment { limit: 0x67, selector: 3 << 3, type_: TSS_BUSY, present: 1, ..kvm_segment::default() }
}

/// The descriptor that a guest would load to get `segment` (Intel SDM volume 3, figure 3-8).
fn descriptor(segment: &kvm_segment) -> u64 {
    let limit = u64::from(if segment.g == 1 { segment.limit >> 12 } else { segment.limit });
    let access = u64::from(segment.type_)
        | u64::from(segment.s) << 4
        | u64::from(segment.dpl) << 5
        | u64::from(segment.present) << 7;
    let flags = u64::from(segment.avl)
        | u64::from(segment.l) << 1
        | u64::from(segment.db) << 2
        | u64::from(segment.g) << 3;
    let base = segment.base;
    limit & 0xffff
        | (base & 0xff_ffff) << 16
        | access << 40
        | (limit >> 16 & 0xf) << 48
        | flags << 52
        | (base >> 24 & 0xff) << 56
}

fn gdt(protocol: Protocol) -> [u64; 4] {
    [0, descriptor(&code(protocol)), descriptor(&data()), descriptor(&tss())]
}

/// Writes the GDT that [`configure_sregs`] points to.
pub(super) fn write_gdt<M: GuestMemoryBackend>(memory: &M, protocol: Protocol) -> Result<(), BootError> {
    let bytes: Vec<u8> = gdt(protocol).iter().flat_map(|entry| entry.to_le_bytes()).collect();
    write(memory, layout::BOOT_GDT, &bytes, "the boot GDT")
}

/// Sets the general registers of vCPU 0; all that `entry` doesn't name becomes zero.
pub fn configure_regs(entry: &Entry, regs: &mut kvm_regs) {
    *regs = kvm_regs {
        rip: entry.rip,
        rsp: entry.rsp,
        rbx: entry.rbx,
        rsi: entry.rsi,
        rflags: RFLAGS_RESERVED,
        ..kvm_regs::default()
    };
}

/// Sets mode, segments and tables of vCPU 0. The rest (APIC base, above all) stays as KVM gave it.
pub fn configure_sregs(entry: &Entry, sregs: &mut kvm_sregs) {
    sregs.cs = code(entry.protocol);
    for segment in [&mut sregs.ds, &mut sregs.es, &mut sregs.fs, &mut sregs.gs, &mut sregs.ss] {
        *segment = data();
    }
    sregs.tr = tss();
    sregs.gdt.base = layout::BOOT_GDT;
    sregs.gdt.limit = (size_of_val(&gdt(entry.protocol)) - 1) as u16;
    // No handlers yet: any exception before the kernel has its own is a triple fault.
    sregs.idt.base = 0;
    sregs.idt.limit = 0;
    match entry.protocol {
        Protocol::Pvh => {
            sregs.cr0 = CR0_PE | CR0_ET;
            sregs.cr3 = 0;
            sregs.cr4 = 0;
            sregs.efer = 0;
        }
        Protocol::Linux64 => {
            sregs.cr0 = CR0_PE | CR0_ET | CR0_PG;
            sregs.cr3 = layout::BOOT_PML4;
            sregs.cr4 = CR4_PAE;
            sregs.efer = EFER_LME | EFER_LMA;
        }
    }
}

const LAPIC_LVT_LINT0: usize = 0x350;
const LAPIC_LVT_LINT1: usize = 0x360;
const LVT_EXTINT_UNMASKED: u32 = 0x700;
const LVT_NMI_UNMASKED: u32 = 0x400;

/// Wires a vCPU's local interrupt pins as firmware does and as MADT and MP table say: LINT0 to the PIC, LINT1 to
/// NMI. For every vCPU, or a kernel without an IOAPIC driver never sees a timer tick.
pub fn configure_lapic(lapic: &mut kvm_lapic_state) {
    for (register, value) in [(LAPIC_LVT_LINT0, LVT_EXTINT_UNMASKED), (LAPIC_LVT_LINT1, LVT_NMI_UNMASKED)] {
        for (byte, new) in lapic.regs[register..].iter_mut().zip(value.to_le_bytes()) {
            *byte = i8::from_le_bytes([new]);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::boot::testing::{ram, read};

    fn entry(protocol: Protocol) -> Entry {
        Entry { protocol, rip: 0x100_0000, rsp: 0x8ff0, rbx: 0x6100, rsi: 0x7000 }
    }

    #[test]
    fn descriptors_are_the_well_known_ones() {
        assert_eq!(
            gdt(Protocol::Pvh),
            [0, 0x00cf_9b00_0000_ffff, 0x00cf_9300_0000_ffff, 0x0000_8b00_0000_0067]
        );
        assert_eq!(gdt(Protocol::Linux64)[1], 0x00af_9b00_0000_ffff);
    }

    #[test]
    fn gdt_is_where_sregs_say() {
        let memory = ram(2 << 20);
        write_gdt(&memory, Protocol::Linux64).unwrap();
        let mut sregs = kvm_sregs::default();
        configure_sregs(&entry(Protocol::Linux64), &mut sregs);
        let bytes = read(&memory, sregs.gdt.base, usize::from(sregs.gdt.limit) + 1);
        let expected: Vec<u8> = gdt(Protocol::Linux64).iter().flat_map(|entry| entry.to_le_bytes()).collect();
        assert_eq!(bytes, expected);
    }

    #[test]
    fn pvh_is_flat_protected_mode() {
        let mut sregs =
            kvm_sregs { cr0: 0x6000_0010, cr4: 0x20, apic_base: 0xfee0_0900, ..kvm_sregs::default() };
        configure_sregs(&entry(Protocol::Pvh), &mut sregs);
        assert_eq!((sregs.cr0, sregs.cr3, sregs.cr4, sregs.efer), (0x11, 0, 0, 0));
        assert_eq!((sregs.cs.l, sregs.cs.db, sregs.cs.limit), (0, 1, 0xffff_ffff));
        assert_eq!((sregs.tr.type_, sregs.tr.limit, sregs.apic_base), (0xb, 0x67, 0xfee0_0900));
    }

    #[test]
    fn linux64_is_long_mode_with_paging() {
        let mut sregs = kvm_sregs::default();
        configure_sregs(&entry(Protocol::Linux64), &mut sregs);
        assert_eq!((sregs.cr0, sregs.cr3, sregs.cr4, sregs.efer), (0x8000_0011, 0x9000, 0x20, 0x500));
        assert_eq!((sregs.cs.l, sregs.cs.db), (1, 0));
    }

    #[test]
    fn general_registers_are_only_the_entrys() {
        let mut regs = kvm_regs { rax: 7, r15: 9, rflags: 0x202, ..kvm_regs::default() };
        configure_regs(&entry(Protocol::Pvh), &mut regs);
        assert_eq!((regs.rip, regs.rsp, regs.rbx, regs.rsi), (0x100_0000, 0x8ff0, 0x6100, 0x7000));
        assert_eq!((regs.rax, regs.r15, regs.rflags), (0, 0, 2));
    }

    #[test]
    fn local_pins_are_wired() {
        let mut lapic = kvm_lapic_state { regs: [-1; 1024] };
        configure_lapic(&mut lapic);
        assert_eq!(lapic.regs[0x350..0x354], [0, 7, 0, 0]);
        assert_eq!(lapic.regs[0x360..0x364], [0, 4, 0, 0]);
        assert_eq!(lapic.regs[0x354], -1);
    }
}
