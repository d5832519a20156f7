//! What a person is told when a vCPU can't go on: where, which instruction, and what to do.

use std::fmt;

use iced_x86::{Decoder, DecoderOptions, Formatter, NasmFormatter};
use kvm_bindings::{KVM_INTERNAL_ERROR_EMULATION, kvm_regs};
use kvm_ioctls::VcpuFd;
use tern_migration::GuestRam;
use vm_memory::{Bytes, GuestAddress};

const LONGEST_INSTRUCTION_BYTES: usize = 15;

/// Why a vCPU stopped for good.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VcpuFault {
    /// Which vCPU.
    pub index: u32,
    /// What KVM said.
    pub cause: String,
    /// Where, if it could be read.
    pub rip: u64,
    /// The instruction's bytes, if they could be read.
    pub bytes: Vec<u8>,
    /// The instruction, disassembled.
    pub instruction: String,
    /// Register values that help to find the place.
    pub registers: String,
    /// What to do.
    pub remedy: &'static str,
}

impl fmt::Display for VcpuFault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { index, cause, rip, bytes, instruction, registers, remedy } = self;
        let hex: Vec<String> = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
        writeln!(f, "vCPU {index} stopped: {cause}")?;
        writeln!(f, "  at rip={rip:#x}: {instruction}  [{}]", hex.join(" "))?;
        writeln!(f, "  {registers}")?;
        write!(f, "  {remedy}")
    }
}

impl std::error::Error for VcpuFault {}

const REMEDY_EMULATION: &str = "KVM's interpreter does not know this instruction: hide the feature from the \
    guest (a kernel: clearcpuid=... or nosmap/nosmep), or run on a host with VMX or SVM; `tern host` tells \
    which this is";
const REMEDY_OTHER: &str =
    "the guest or its kernel is at fault, or this host's KVM: see the host's kernel log";

const REMEDY_TRIPLE: &str = "the kernel has no handler for what happened here: look at this instruction. A \
    Linux that means this as a reset (reboot=t) is told to use another way with reboot=k";

/// A fault without details of KVM's own.
pub(super) fn plain(vcpu: &mut VcpuFd, ram: &GuestRam, index: u32, cause: String) -> VcpuFault {
    with_memory(vcpu, ram, index, cause, REMEDY_OTHER)
}

/// A triple fault: an exception whose handling faulted, and so did the handling of that.
pub(super) fn triple(vcpu: &mut VcpuFd, ram: &GuestRam, index: u32) -> VcpuFault {
    with_memory(vcpu, ram, index, "triple fault".to_owned(), REMEDY_TRIPLE)
}

fn with_memory(vcpu: &VcpuFd, ram: &GuestRam, index: u32, cause: String, remedy: &'static str) -> VcpuFault {
    let regs = vcpu.get_regs().unwrap_or_default();
    let bytes = instruction_bytes(vcpu, ram, regs.rip);
    fault(vcpu, index, cause, &regs, bytes, remedy)
}

/// KVM_EXIT_INTERNAL_ERROR, with the instruction bytes that KVM adds where it has them.
#[allow(unsafe_code, reason = "the exit's union; the exit reason says which member is meant")]
pub(super) fn internal_error(vcpu: &mut VcpuFd, ram: &GuestRam, index: u32) -> VcpuFault {
    let regs = vcpu.get_regs().unwrap_or_default();
    // SAFETY: after KVM_EXIT_INTERNAL_ERROR these members are what KVM filled; all are plain integers.
    let (suberror, count, data, insn_size, insn) = unsafe {
        let run = vcpu.get_kvm_run().__bindgen_anon_1;
        let insn = run.emulation_failure.__bindgen_anon_1.__bindgen_anon_1;
        (run.internal.suberror, run.internal.ndata, run.internal.data, insn.insn_size, insn.insn_bytes)
    };
    if suberror != KVM_INTERNAL_ERROR_EMULATION {
        let data: Vec<String> = data.iter().take(count as usize).map(|word| format!("{word:#x}")).collect();
        let cause = format!("KVM internal error {suberror}, data [{}]", data.join(", "));
        return with_memory(vcpu, ram, index, cause, REMEDY_OTHER);
    }
    // With at least three words of data, the second and third hold the instruction (api.rst, 5).
    let given = insn.get(..usize::from(insn_size)).filter(|bytes| count >= 3 && !bytes.is_empty());
    let bytes = given.map_or_else(|| instruction_bytes(vcpu, ram, regs.rip), <[u8]>::to_vec);
    let cause = "KVM could not emulate an instruction (internal error 1)".to_owned();
    fault(vcpu, index, cause, &regs, bytes, REMEDY_EMULATION)
}

fn fault(
    vcpu: &VcpuFd,
    index: u32,
    cause: String,
    regs: &kvm_regs,
    bytes: Vec<u8>,
    remedy: &'static str,
) -> VcpuFault {
    let (length, instruction) = disassemble(&bytes, regs.rip, bitness(vcpu));
    let sregs = vcpu.get_sregs().unwrap_or_default();
    let registers = format!(
        "rsp={:#x} rax={:#x} rcx={:#x} rdx={:#x} rflags={:#x} cs={:#x} cpl={} cr0={:#x} cr2={:#x} cr3={:#x} \
         cr4={:#x} efer={:#x}",
        regs.rsp,
        regs.rax,
        regs.rcx,
        regs.rdx,
        regs.rflags,
        sregs.cs.selector,
        sregs.cs.dpl,
        sregs.cr0,
        sregs.cr2,
        sregs.cr3,
        sregs.cr4,
        sregs.efer
    );
    let bytes = bytes.into_iter().take(length).collect();
    VcpuFault { index, cause, rip: regs.rip, bytes, instruction, registers, remedy }
}

fn bitness(vcpu: &VcpuFd) -> u32 {
    let cs = vcpu.get_sregs().unwrap_or_default().cs;
    match (cs.l, cs.db) {
        (1, _) => 64,
        (_, 1) => 32,
        _ => 16,
    }
}

/// The first instruction of `bytes` and its length; all bytes count if none can be decoded.
fn disassemble(bytes: &[u8], rip: u64, bitness: u32) -> (usize, String) {
    let mut decoder = Decoder::with_ip(bitness, bytes, rip, DecoderOptions::NONE);
    if !decoder.can_decode() {
        return (0, "(no instruction bytes)".to_owned());
    }
    let instruction = decoder.decode();
    if instruction.is_invalid() {
        return (bytes.len(), "(not an instruction)".to_owned());
    }
    let mut text = String::new();
    NasmFormatter::new().format(&instruction, &mut text);
    (instruction.len(), text)
}

fn instruction_bytes(vcpu: &VcpuFd, ram: &GuestRam, rip: u64) -> Vec<u8> {
    let byte = |gva: u64| -> Option<u8> {
        let translation = vcpu.translate_gva(gva).ok().filter(|t| t.valid != 0)?;
        ram.read_obj(GuestAddress(translation.physical_address)).ok()
    };
    (0..LONGEST_INSTRUCTION_BYTES as u64).map_while(|offset| byte(rip.wrapping_add(offset))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_instruction_is_named_and_cut_to_its_length() {
        let (length, text) = disassemble(&[0xf3, 0x48, 0x0f, 0xb8, 0xc1, 0x90, 0x90], 0x1000, 64);
        assert_eq!((length, text.as_str()), (5, "popcnt rax,rcx"));
    }

    #[test]
    fn nothing_to_read_is_said() {
        assert_eq!(disassemble(&[], 0, 64), (0, "(no instruction bytes)".to_owned()));
    }
}
