//! The smallest guest: a PVH ELF of three instructions that writes one byte to the serial port and sleeps.
//!
//! It shows when a VMM gets to the guest's first instruction: the byte is the third one. What a host needs to
//! interpret or to translate before a real kernel says something is no part of the figure.

/// Where it is loaded and starts; PVH starts in 32-bit protected mode, paging off.
const LOAD_ADDRESS: u64 = 0x10_0000;
const ELF_HEADER_BYTES: u64 = 64;
const PROGRAM_HEADER_BYTES: u64 = 56;
/// XEN_ELFNOTE_PHYS32_ENTRY of Xen's `elfnote.h`: the address of the 32-bit entry.
const NOTE_PHYS32_ENTRY: u32 = 18;
/// The byte it prints.
pub const BYTE: u8 = b'A';

#[rustfmt::skip]
const CODE: &[u8] = &[
    0x66, 0xba, 0xf8, 0x03, // mov dx, 0x3f8
    0xb0, BYTE,             // mov al, BYTE
    0xee,                   // out dx, al
    0xf4,                   // hlt
    0xeb, 0xfd,             // jmp back to the hlt
];

/// QEMU takes multiples of 64 KiB.
const FIRMWARE_BYTES: usize = 64 << 10;
#[rustfmt::skip]
const FIRMWARE_CODE: &[u8] = &[
    0xba, 0xf8, 0x03, // mov dx, 0x3f8
    0xb0, BYTE,       // mov al, BYTE
    0xee,             // out dx, al
    0xf4,             // hlt
    0xeb, 0xfd,       // jmp back to the hlt
];

/// The guest as an ELF file: one segment with the code, and the PVH note behind it.
pub fn elf() -> Vec<u8> {
    let code_at = ELF_HEADER_BYTES + 2 * PROGRAM_HEADER_BYTES;
    let code_bytes = CODE.len().next_multiple_of(8) as u64;
    let note = note();
    let mut file = elf_header();
    // PT_LOAD, readable and executable.
    file.extend(program_header(1, 5, code_at, LOAD_ADDRESS, code_bytes, 4096));
    // PT_NOTE, not part of memory.
    file.extend(program_header(4, 4, code_at + code_bytes, 0, note.len() as u64, 4));
    file.extend(CODE);
    file.resize((code_at + code_bytes) as usize, 0);
    file.extend(note);
    file
}

/// ELF specification, chapter 4: a 64-bit little-endian x86-64 executable with two program headers.
fn elf_header() -> Vec<u8> {
    let mut header = b"\x7fELF\x02\x01\x01".to_vec();
    header.resize(16, 0);
    header.extend([2u16, 62].map(u16::to_le_bytes).concat());
    header.extend(1u32.to_le_bytes());
    header.extend([LOAD_ADDRESS, ELF_HEADER_BYTES, 0].map(u64::to_le_bytes).concat());
    header.extend(0u32.to_le_bytes());
    let sizes = [ELF_HEADER_BYTES as u16, PROGRAM_HEADER_BYTES as u16, 2, 0, 0, 0];
    header.extend(sizes.map(u16::to_le_bytes).concat());
    header
}

fn program_header(kind: u32, flags: u32, at: u64, address: u64, bytes: u64, align: u64) -> Vec<u8> {
    let mut header = [kind, flags].map(u32::to_le_bytes).concat();
    header.extend([at, address, address, bytes, bytes, align].map(u64::to_le_bytes).concat());
    header
}

/// The same as a firmware image: at the reset vector, 16 bytes below its end, in 16-bit code.
pub fn firmware() -> Vec<u8> {
    let mut image = vec![0xf4; FIRMWARE_BYTES - 16];
    image.extend(FIRMWARE_CODE);
    image.resize(FIRMWARE_BYTES, 0xf4);
    image
}

fn note() -> Vec<u8> {
    let mut note = [4u32, 8, NOTE_PHYS32_ENTRY].map(u32::to_le_bytes).concat();
    note.extend(b"Xen\0");
    note.extend(LOAD_ADDRESS.to_le_bytes());
    note
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn headers_have_the_sizes_they_name() {
        assert_eq!(elf_header().len() as u64, ELF_HEADER_BYTES);
        assert_eq!(program_header(0, 0, 0, 0, 0, 0).len() as u64, PROGRAM_HEADER_BYTES);
        let file = elf();
        let code_at = (ELF_HEADER_BYTES + 2 * PROGRAM_HEADER_BYTES) as usize;
        assert_eq!(&file[code_at..code_at + CODE.len()], CODE);
        assert!(file.ends_with(&note()));
    }
}
