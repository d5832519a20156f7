//! Loads an x86-64 ELF kernel: by its PVH note where there is one, otherwise for the 64-bit Linux protocol.
//!
//! The headers are checked here, so that an error can say both values; `linux-loader` then finds the
//! note and copies the segments.

use std::io::{Read, Seek, SeekFrom};
use std::ops::Range;

use linux_loader::loader::KernelLoader;
use linux_loader::loader::elf::{Elf, PvhBootCapability};
use vm_memory::{GuestAddress, GuestMemoryBackend};

use super::image::{ImageReader, LoadedKernel, Opened};
use super::memory_map::LowRam;
use super::{BootError, Compression, Protocol};
use crate::layout;

/// How every ELF file begins.
pub const MAGIC: &[u8] = b"\x7fELF";

const EHDR_BYTES: usize = 64;
const PHDR_BYTES: usize = 56;
const CLASS_64: u8 = 2;
const LITTLE_ENDIAN: u8 = 1;
const TYPE_EXEC: u16 = 2;
const TYPE_DYN: u16 = 3;
const MACHINE_X86_64: u16 = 62;
const PT_LOAD: u32 = 1;

/// Loads `image` at the physical addresses it was linked for.
pub(super) fn load<M: GuestMemoryBackend, R: ImageReader>(
    memory: &M,
    ram: &LowRam,
    image: &mut Opened<R>,
    packed: Option<Compression>,
) -> Result<LoadedKernel, BootError> {
    let range = kernel_range(image).and_then(|range| {
        if range.start < layout::KERNEL_START {
            let limit = layout::KERNEL_START;
            return Err(format!("it wants to be at {:#x}, kernels load at {limit:#x} or above", range.start));
        }
        Ok(range)
    });
    let range = range.map_err(|reason| BootError::BadElf { name: image.name.clone(), reason })?;
    if range.end > ram.end {
        let what = format!("kernel {}", image.name);
        return Err(BootError::TooLittleMemory { what, needed_bytes: range.end, given_bytes: ram.end });
    }
    let loaded = Elf::load(memory, None::<GuestAddress>, &mut image.reader, None)
        .map_err(|error| BootError::BadElf { name: image.name.clone(), reason: error.to_string() })?;
    let (protocol, entry_gpa, entry_end) = match loaded.pvh_boot_cap {
        PvhBootCapability::PvhEntryPresent(entry) => (Protocol::Pvh, entry.0, range.end),
        _ => (Protocol::Linux64, loaded.kernel_load.0, range.end.min(layout::BOOT_MAPPED_BYTES)),
    };
    if entry_gpa < range.start || entry_gpa >= entry_end {
        let start = range.start;
        let reason = format!("its {protocol} entry {entry_gpa:#x} is not within {start:#x}..{entry_end:#x}");
        return Err(BootError::BadElf { name: image.name.clone(), reason });
    }
    Ok(LoadedKernel { protocol, entry_gpa, range, packed })
}

/// The physical range that the loadable segments cover, bss included.
fn kernel_range<R: ImageReader>(image: &mut Opened<R>) -> Result<Range<u64>, String> {
    let mut ehdr = [0; EHDR_BYTES];
    read_at(image, 0, &mut ehdr, "the ELF header")?;
    check_ident(&ehdr)?;
    let table_offset = u64_at(&ehdr, 32);
    let entry_bytes = u16_at(&ehdr, 54);
    if usize::from(entry_bytes) != PHDR_BYTES {
        return Err(format!("its program headers have {entry_bytes} bytes, expected {PHDR_BYTES}"));
    }
    let mut table = vec![0; usize::from(u16_at(&ehdr, 56)) * PHDR_BYTES];
    read_at(image, table_offset, &mut table, "the program headers")?;

    let mut range: Option<Range<u64>> = None;
    for phdr in table.chunks_exact(PHDR_BYTES).filter(|phdr| u32_at(phdr, 0) == PT_LOAD) {
        let segment = segment_range(phdr, image.bytes)?;
        range = Some(match range {
            Some(sum) => sum.start.min(segment.start)..sum.end.max(segment.end),
            None => segment,
        });
    }
    range.filter(|range| !range.is_empty()).ok_or_else(|| "it has no segment to load".to_owned())
}

fn check_ident(ehdr: &[u8]) -> Result<(), String> {
    if !ehdr.starts_with(MAGIC) {
        return Err("it does not begin with the ELF magic".to_owned());
    }
    if (ehdr[4], ehdr[5]) != (CLASS_64, LITTLE_ENDIAN) {
        let (class, order) = (ehdr[4], ehdr[5]);
        return Err(format!(
            "ELF class {class} and byte order {order}, expected 2 (64-bit) and 1 (little-endian)"
        ));
    }
    let (kind, machine) = (u16_at(ehdr, 16), u16_at(ehdr, 18));
    if machine != MACHINE_X86_64 {
        return Err(format!("built for ELF machine {machine}, expected {MACHINE_X86_64} (x86-64)"));
    }
    if kind != TYPE_EXEC && kind != TYPE_DYN {
        return Err(format!(
            "ELF type {kind}, expected {TYPE_EXEC} (executable) or {TYPE_DYN} (shared object)"
        ));
    }
    Ok(())
}

/// Physical range of one loadable segment of a file of `image_bytes`.
fn segment_range(phdr: &[u8], image_bytes: u64) -> Result<Range<u64>, String> {
    let (offset, start) = (u64_at(phdr, 8), u64_at(phdr, 24));
    let (file_bytes, memory_bytes) = (u64_at(phdr, 32), u64_at(phdr, 40));
    if file_bytes > memory_bytes {
        return Err(format!("a segment has {file_bytes} bytes in the file but {memory_bytes} in memory"));
    }
    match offset.checked_add(file_bytes) {
        Some(end) if end <= image_bytes => {}
        _ => {
            return Err(format!(
                "it is cut short: a segment of {file_bytes} bytes begins at {offset}, the image has {image_bytes}"
            ));
        }
    }
    let end = start.checked_add(memory_bytes);
    let end = end.ok_or_else(|| format!("a segment at {start:#x} of {memory_bytes} bytes wraps around"))?;
    Ok(start..end)
}

fn read_at<R: Read + Seek>(
    image: &mut Opened<R>,
    offset: u64,
    buffer: &mut [u8],
    what: &str,
) -> Result<(), String> {
    image.reader.seek(SeekFrom::Start(offset)).and_then(|_| image.reader.read_exact(buffer)).map_err(
        |error| {
            let (wanted, given) = (buffer.len(), image.bytes);
            format!("cannot read {what} ({wanted} bytes at {offset} of {given}): {error}")
        },
    )
}

fn u16_at(bytes: &[u8], offset: usize) -> u16 {
    u16::from_le_bytes([bytes[offset], bytes[offset + 1]])
}

fn u32_at(bytes: &[u8], offset: usize) -> u32 {
    u32::from(u16_at(bytes, offset)) | u32::from(u16_at(bytes, offset + 2)) << 16
}

fn u64_at(bytes: &[u8], offset: usize) -> u64 {
    u64::from(u32_at(bytes, offset)) | u64::from(u32_at(bytes, offset + 4)) << 32
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::boot::image::opened_bytes;
    use crate::boot::testing::{TestElf, ram, read};

    fn load_bytes(bytes: &[u8], memory_bytes: u64) -> Result<LoadedKernel, BootError> {
        let memory = ram(memory_bytes);
        load(&memory, &LowRam::of(&memory)?, &mut opened_bytes("test.elf", bytes), None)
    }

    #[test]
    fn pvh_note_is_preferred() {
        let kernel = load_bytes(&TestElf::default().build(), 64 << 20).unwrap();
        assert_eq!((kernel.protocol, kernel.entry_gpa), (Protocol::Pvh, 0x10_0010));
        assert_eq!(kernel.range, 0x10_0000..0x10_2000);
    }

    #[test]
    fn without_a_note_the_elf_entry_counts() {
        let elf = TestElf { pvh_entry: None, ..TestElf::default() };
        let kernel = load_bytes(&elf.build(), 64 << 20).unwrap();
        assert_eq!((kernel.protocol, kernel.entry_gpa), (Protocol::Linux64, 0x10_0000));
    }

    #[test]
    fn segment_bytes_arrive() {
        let elf = TestElf::default();
        let memory = ram(4 << 20);
        load(&memory, &LowRam::of(&memory).unwrap(), &mut opened_bytes("x", &elf.build()), None).unwrap();
        assert_eq!(read(&memory, elf.load_gpa, elf.code.len()), elf.code);
    }

    #[test]
    fn refusals_name_both_values() {
        let base = TestElf::default;
        let cases = [
            (TestElf { class: 1, ..base() }, "class 1"),
            (TestElf { machine: 40, ..base() }, "machine 40, expected 62"),
            (TestElf { kind: 1, ..base() }, "type 1"),
            (TestElf { load_gpa: 0x8000, ..base() }, "0x8000, kernels load at 0x100000"),
            (TestElf { load_gpa: u64::MAX - 8, ..base() }, "wraps around"),
            (TestElf { memory_bytes: 1, ..base() }, "but 1 in memory"),
            (TestElf { memory_bytes: 1 << 30, ..base() }, "1074790400 bytes, the guest has 67108864"),
            (TestElf { pvh_entry: Some(0x20), ..base() }, "PVH entry 0x20 is not within 0x100000..0x102000"),
            (TestElf { pvh_entry: None, entry: 0x20, ..base() }, "entry 0x20 is not within"),
        ];
        for (elf, expected) in cases {
            let text = load_bytes(&elf.build(), 64 << 20).err().map(|error| error.to_string()).unwrap();
            assert!(text.contains(expected), "{text:?} lacks {expected:?}");
        }
    }

    #[test]
    fn every_truncation_is_an_error() {
        let elf = TestElf::default().build();
        for len in 0..elf.len() {
            assert!(load_bytes(&elf[..len], 4 << 20).is_err(), "{len} of {} bytes", elf.len());
        }
    }
}
