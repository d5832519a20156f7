//! Places the initrd at the end of RAM below the 32-bit hole, above the kernel.

use std::ops::Range;

use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend};

use super::image::{BootImage, ImageReader, Opened, open, opened_bytes};
use super::memory_map::LowRam;
use crate::boot::BootError;
use crate::layout::PAGE_BYTES;

/// Copies `image` to page-aligned memory between `kernel_end` and the end of low RAM; answers its range.
pub(super) fn load<M: GuestMemoryBackend>(
    memory: &M,
    ram: &LowRam,
    image: &BootImage<'_>,
    kernel_end: u64,
) -> Result<Range<u64>, BootError> {
    match image {
        BootImage::File(path) => load_opened(memory, ram, open("initrd", path)?, kernel_end),
        BootImage::Bytes { name, bytes } => load_opened(memory, ram, opened_bytes(name, bytes), kernel_end),
    }
}

/// Where an initrd of `bytes` goes, or how much room there is instead.
fn place(bytes: u64, kernel_end: u64, ram_end: u64) -> Result<Range<u64>, u64> {
    let lowest = kernel_end.next_multiple_of(PAGE_BYTES);
    let start = ram_end.checked_sub(bytes).map(|start| start - start % PAGE_BYTES);
    match start {
        Some(start) if start >= lowest => Ok(start..start + bytes),
        _ => Err(ram_end.saturating_sub(lowest)),
    }
}

fn load_opened<M: GuestMemoryBackend, R: ImageReader>(
    memory: &M,
    ram: &LowRam,
    mut image: Opened<R>,
    kernel_end: u64,
) -> Result<Range<u64>, BootError> {
    let bytes = image.bytes;
    if bytes == 0 {
        return Err(BootError::InitrdEmpty { name: image.name });
    }
    let range = place(bytes, kernel_end, ram.end).map_err(|free_bytes| BootError::InitrdTooLarge {
        name: image.name.clone(),
        bytes,
        free_bytes,
    })?;
    let copied =
        memory.read_exact_volatile_from(GuestAddress(range.start), &mut image.reader, bytes as usize);
    match copied {
        Ok(()) => Ok(range),
        // The room was checked, so what failed is reading the file: it shrank, or the disk has an error.
        Err(error) => Err(image.unreadable("initrd", std::io::Error::other(error))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::boot::testing::{ram, read};

    #[test]
    fn goes_to_the_end_of_ram_page_aligned() {
        assert_eq!(place(0x1001, 0x20_0000, 0x40_0000), Ok(0x3f_e000..0x3f_f001));
    }

    #[test]
    fn fits_exactly_or_not_at_all() {
        assert_eq!(place(0x20_0000, 0x1f_ffff, 0x40_0000), Ok(0x20_0000..0x40_0000));
        assert_eq!(place(0x20_0001, 0x1f_ffff, 0x40_0000), Err(0x20_0000));
        assert_eq!(place(u64::MAX, 0x1000, 0x40_0000), Err(0x3f_f000));
    }

    #[test]
    fn content_arrives_and_stays_below_the_hole() {
        let memory = ram((3 << 30) + (2 << 20));
        let low = LowRam::of(&memory).unwrap();
        let image = BootImage::Bytes { name: "initrd", bytes: b"070701 archive" };
        let range = load(&memory, &low, &image, 0x20_0000).unwrap();
        assert_eq!(range, 0xbfff_f000..0xbfff_f00e);
        assert_eq!(read(&memory, range.start, 14), b"070701 archive");
    }

    #[test]
    fn errors_name_file_and_sizes() {
        let memory = ram(2 << 20);
        let low = LowRam::of(&memory).unwrap();
        let big = vec![1; 1 << 20];
        let image = BootImage::Bytes { name: "big.cpio", bytes: &big };
        let text = load(&memory, &low, &image, 0x10_1000).unwrap_err().to_string();
        assert!(text.contains("big.cpio") && text.contains("1048576") && text.contains("1044480"), "{text}");
        let empty = BootImage::Bytes { name: "none.cpio", bytes: &[] };
        assert!(matches!(load(&memory, &low, &empty, 0x10_1000), Err(BootError::InitrdEmpty { .. })));
    }
}
