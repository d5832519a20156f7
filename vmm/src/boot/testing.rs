//! What the boot tests share: guest memory, and kernels made to measure.

use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

use crate::layout;

pub(crate) fn ram(bytes: u64) -> GuestMemoryMmap<()> {
    GuestMemoryMmap::from_ranges(&layout::ram_regions(bytes)).unwrap()
}

pub(crate) fn read(memory: &GuestMemoryMmap<()>, gpa: u64, bytes: usize) -> Vec<u8> {
    let mut buffer = vec![0; bytes];
    memory.read_slice(&mut buffer, GuestAddress(gpa)).unwrap();
    buffer
}

pub(crate) fn u16_at(bytes: &[u8], offset: usize) -> u16 {
    u16::from_le_bytes(bytes[offset..offset + 2].try_into().unwrap())
}

pub(crate) fn u32_at(bytes: &[u8], offset: usize) -> u32 {
    u32::from_le_bytes(bytes[offset..offset + 4].try_into().unwrap())
}

pub(crate) fn u64_at(bytes: &[u8], offset: usize) -> u64 {
    u64::from_le_bytes(bytes[offset..offset + 8].try_into().unwrap())
}

/// An ELF kernel of one segment, and a PVH note unless told otherwise.
pub(crate) struct TestElf {
    pub(crate) class: u8,
    pub(crate) kind: u16,
    pub(crate) machine: u16,
    pub(crate) entry: u64,
    pub(crate) load_gpa: u64,
    pub(crate) memory_bytes: u64,
    pub(crate) code: Vec<u8>,
    pub(crate) pvh_entry: Option<u32>,
}

impl Default for TestElf {
    fn default() -> Self {
        // Repetitive with some variety, so that it packs and the x86 filter finds calls to rewrite.
        let code = (0..4000_u32).map(|i| if i % 5 == 0 { 0xe8 } else { (i / 7) as u8 }).collect();
        Self {
            class: 2,
            kind: 2,
            machine: 62,
            entry: 0x10_0000,
            load_gpa: 0x10_0000,
            memory_bytes: 0x2000,
            code,
            pvh_entry: Some(0x10_0010),
        }
    }
}

impl TestElf {
    pub(crate) fn build(&self) -> Vec<u8> {
        let note = self.pvh_entry.map(pvh_note).unwrap_or_default();
        let note_offset = 64 + 2 * 56;
        let code_offset = note_offset + note.len() as u64;
        let note_kind = if self.pvh_entry.is_some() { 4 } else { 0 };
        let code_bytes = self.code.len() as u64;

        let mut elf = b"\x7fELF".to_vec();
        elf.extend([self.class, 1, 1]);
        elf.extend([0; 9]);
        elf.extend([self.kind, self.machine].map(u16::to_le_bytes).concat());
        elf.extend(1_u32.to_le_bytes());
        elf.extend([self.entry, 64, 0].map(u64::to_le_bytes).concat());
        elf.extend(0_u32.to_le_bytes());
        elf.extend([64, 56, 2, 0, 0, 0].map(u16::to_le_bytes).concat());
        elf.extend(phdr(1, code_offset, self.load_gpa, code_bytes, self.memory_bytes));
        elf.extend(phdr(note_kind, note_offset, 0, note.len() as u64, 0));
        elf.extend(note);
        elf.extend(&self.code);
        elf
    }
}

fn phdr(kind: u32, offset: u64, gpa: u64, file_bytes: u64, memory_bytes: u64) -> Vec<u8> {
    let mut bytes = [kind, 5].map(u32::to_le_bytes).concat();
    bytes.extend([offset, gpa, gpa, file_bytes, memory_bytes, 0x1000].map(u64::to_le_bytes).concat());
    bytes
}

fn pvh_note(entry: u32) -> Vec<u8> {
    let mut note = [4_u32, 4, 18].map(u32::to_le_bytes).concat();
    note.extend(b"Xen\0");
    note.extend(entry.to_le_bytes());
    note
}

/// A bzImage around `payload`, of boot protocol 2.15, with `setup_sects` at its old default.
pub(crate) fn bzimage(payload: &[u8]) -> Vec<u8> {
    let payload_offset = 0x100_usize;
    let code = 5 * 512;
    let mut image = vec![0_u8; code + payload_offset];
    image[0x1fe..0x200].copy_from_slice(&[0x55, 0xaa]);
    image[0x202..0x206].copy_from_slice(b"HdrS");
    image[0x206..0x208].copy_from_slice(&0x020f_u16.to_le_bytes());
    image[0x248..0x24c].copy_from_slice(&(payload_offset as u32).to_le_bytes());
    image[0x24c..0x250].copy_from_slice(&(payload.len() as u32).to_le_bytes());
    image.extend(payload);
    image.extend(b"signature");
    image
}
