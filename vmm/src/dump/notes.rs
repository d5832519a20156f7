//! The registers of a vCPU as notes: `NT_PRSTATUS`, which every debugger reads (`struct elf_prstatus` of Linux), and
//! "QEMU", with the control registers and segments, which `crash` reads to find a kernel (version 1, as QEMU's
//! dump-guest-memory writes it).

use super::elf::{note, put16, put32, put64};
use crate::vcpu::{RegsV1, SegmentV1, SregsV1, TableV1, VcpuV1};

const NT_PRSTATUS: u32 = 1;
const PRSTATUS_BYTES: usize = 336;
const PRSTATUS_REGISTERS_AT: usize = 112;
const QEMU_STATE_VERSION: u32 = 1;
const QEMU_STATE_BYTES: u32 = 440;
const MSR_KERNEL_GS_BASE: u32 = 0xc000_0102;

/// Both notes. `number` counts from 1: debuggers take 0 for "no thread".
pub(super) fn of(number: u32, vcpu: &VcpuV1) -> Vec<u8> {
    [note("CORE", NT_PRSTATUS, &prstatus(number, vcpu)), note("QEMU", 0, &qemu(vcpu))].concat()
}

fn prstatus(number: u32, vcpu: &VcpuV1) -> Vec<u8> {
    let mut out = Vec::with_capacity(PRSTATUS_BYTES);
    // Signal, current signal, pending and held signals.
    put32(&mut out, &[0, 0, 0]);
    put16(&mut out, &[0, 0]);
    put64(&mut out, &[0, 0]);
    put32(&mut out, &[number, 0, 0, 0]);
    // No times are known.
    out.resize(PRSTATUS_REGISTERS_AT, 0);
    let RegsV1 { rax, rbx, rcx, rdx, rsi, rdi, rsp, rbp, r8, r9, r10, r11, .. } = vcpu.regs;
    let RegsV1 { r12, r13, r14, r15, rip, rflags, .. } = vcpu.regs;
    let SregsV1 { cs, ds, es, fs, gs, ss, .. } = &vcpu.sregs;
    let selector = |segment: &SegmentV1| u64::from(segment.selector);
    put64(&mut out, &[r15, r14, r13, r12, rbp, rbx, r11, r10, r9, r8, rax, rcx, rdx, rsi, rdi]);
    // The number of a system call: none.
    put64(&mut out, &[u64::MAX, rip, selector(cs), rflags, rsp, selector(ss), fs.base, gs.base]);
    put64(&mut out, &[selector(ds), selector(es), selector(fs), selector(gs)]);
    out.resize(PRSTATUS_BYTES, 0);
    out
}

fn qemu(vcpu: &VcpuV1) -> Vec<u8> {
    let mut out = Vec::with_capacity(QEMU_STATE_BYTES as usize);
    put32(&mut out, &[QEMU_STATE_VERSION, QEMU_STATE_BYTES]);
    let RegsV1 { rax, rbx, rcx, rdx, rsi, rdi, rsp, rbp, r8, r9, r10, r11, .. } = vcpu.regs;
    let RegsV1 { r12, r13, r14, r15, rip, rflags, .. } = vcpu.regs;
    put64(&mut out, &[rax, rbx, rcx, rdx, rsi, rdi, rsp, rbp]);
    put64(&mut out, &[r8, r9, r10, r11, r12, r13, r14, r15, rip, rflags]);
    let SregsV1 { cs, ds, es, fs, gs, ss, tr, ldt, gdt, idt, cr0, cr2, cr3, cr4, .. } = &vcpu.sregs;
    for part in [cs, ds, es, fs, gs, ss, ldt, tr] {
        segment(&mut out, part);
    }
    for TableV1 { base, limit } in [gdt, idt] {
        put32(&mut out, &[0, u32::from(*limit), 0, 0]);
        put64(&mut out, &[*base]);
    }
    put64(&mut out, &[*cr0, 0, *cr2, *cr3, *cr4]);
    let kernel_gs = vcpu.msrs.iter().find(|msr| msr.index == MSR_KERNEL_GS_BASE);
    put64(&mut out, &[kernel_gs.map_or(0, |msr| msr.value)]);
    out
}

/// Selector, limit, attributes as in a descriptor's second word, padding, base.
fn segment(out: &mut Vec<u8>, segment: &SegmentV1) {
    let SegmentV1 { base, limit, selector, attributes } = segment;
    let [kind, system, dpl, present, avl, long, big, granularity, _] = attributes.map(u32::from);
    let flags = kind << 8 | system << 12 | dpl << 13 | present << 15;
    let flags = flags | avl << 20 | long << 21 | big << 22 | granularity << 23;
    put32(out, &[u32::from(*selector), *limit, flags, 0]);
    put64(out, &[*base]);
}
