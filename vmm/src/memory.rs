//! Guest memory: anonymous, mapped once, with a bitmap of what the VMM writes; and which pages of it exist.

#![allow(unsafe_code, reason = "mmap of guest memory and the pagemap ioctl take addresses")]

use std::fs::File;
use std::io;
use std::num::NonZeroUsize;
use std::ops::Range;
use std::os::fd::AsRawFd;

use tern_devices::GuestRam;
use tern_migration::PAGE_BYTES;
use thiserror::Error;
use vm_memory::bitmap::AtomicBitmap;
use vm_memory::mmap::{FromRangesError, MmapRegionBuilder, MmapRegionError};
use vm_memory::{Address, GuestMemoryBackend, GuestMemoryRegion, GuestRegionMmap, MmapRegion};

use crate::kvm::Slot;
use crate::layout;

/// Why guest memory could not be had.
#[derive(Debug, Error)]
pub enum MemoryError {
    /// The host refused.
    #[error("the host can't map {bytes} bytes of guest memory; give --memory less, or free some (`free -h`)")]
    Map {
        /// Bytes of the region.
        bytes: usize,
        /// Its reason.
        #[source]
        source: MmapRegionError,
    },
    /// The regions don't fit together.
    #[error("guest memory of {bytes} bytes can't be laid out")]
    Layout {
        /// Bytes in all.
        bytes: u64,
        /// Why.
        #[source]
        source: FromRangesError,
    },
}

const PAGE: NonZeroUsize = NonZeroUsize::new(PAGE_BYTES as usize).unwrap();

/// Maps `bytes` of memory for a guest, split around the 32-bit hole. Nothing is touched yet.
pub fn map(bytes: u64) -> Result<GuestRam, MemoryError> {
    let mut regions = Vec::new();
    for (start, length) in layout::ram_regions(bytes) {
        let flags = libc::MAP_ANONYMOUS | libc::MAP_PRIVATE | libc::MAP_NORESERVE;
        let mapping = MmapRegionBuilder::new_with_bitmap(length, AtomicBitmap::new(length, PAGE))
            .with_mmap_prot(libc::PROT_READ | libc::PROT_WRITE)
            .with_mmap_flags(flags)
            .build()
            .map_err(|source| MemoryError::Map { bytes: length, source })?;
        let overlap = || MemoryError::Layout { bytes, source: FromRangesError::InvalidGuestRegion };
        regions.push(GuestRegionMmap::new(mapping, start).ok_or_else(overlap)?);
    }
    let layout =
        |source: vm_memory::GuestRegionCollectionError| MemoryError::Layout { bytes, source: source.into() };
    GuestRam::from_regions(regions).map_err(layout)
}

/// The memory slots of `ram`, in order.
pub fn slots(ram: &GuestRam) -> Vec<Slot> {
    ram.iter()
        .map(|region| Slot {
            gpa: region.start_addr().raw_value(),
            length_bytes: region.len(),
            host_address: region.as_ptr() as u64,
        })
        .collect()
}

/// Which pages of a region the VMM and its devices wrote.
pub fn written(region: &GuestRegionMmap<AtomicBitmap>) -> &AtomicBitmap {
    MmapRegion::bitmap(region)
}

/// PM_SCAN: `struct pm_scan_arg` of the kernel's `include/uapi/linux/fs.h` (Linux 6.7).
#[repr(C)]
#[derive(Debug, Default)]
struct PmScanArg {
    size: u64,
    flags: u64,
    start: u64,
    end: u64,
    walk_end: u64,
    vec: u64,
    vec_len: u64,
    max_pages: u64,
    category_inverted: u64,
    category_mask: u64,
    category_anyof_mask: u64,
    return_mask: u64,
}

#[repr(C)]
#[derive(Debug, Default, Clone, Copy)]
struct PageRegion {
    start: u64,
    end: u64,
    categories: u64,
}

mod request {
    use super::PmScanArg;
    vmm_sys_util::ioctl_iowr_nr!(PAGEMAP_SCAN, b'f' as u32, 16, PmScanArg);
}

const PAGE_IS_PRESENT: u64 = 1 << 3;
const PAGE_IS_SWAPPED: u64 = 1 << 4;
const PAGE_IS_PFNZERO: u64 = 1 << 5;
/// Bits 63 and 62 of a pagemap entry: present, swapped (`Documentation/admin-guide/mm/pagemap.rst`).
const PAGEMAP_EXISTS: u64 = 0b11 << 62;
const SCAN_RANGES: usize = 256;

/// Tells which pages of guest memory exist. Pages that don't were never written and read as zero.
#[derive(Debug)]
pub struct Residency {
    pagemap: File,
    scan: bool,
}

impl Residency {
    /// Opens this process's page map.
    pub fn new() -> io::Result<Self> {
        Ok(Self { pagemap: File::open("/proc/self/pagemap")?, scan: true })
    }

    /// Appends those of `pages` (of a region mapped at `base`) that exist to `out`, as runs in order.
    pub fn of(&self, base: u64, pages: Range<u64>, out: &mut Vec<Range<u64>>) -> io::Result<()> {
        if self.scan {
            match self.scan(base, &pages, out) {
                // Before Linux 6.7.
                Err(error) if error.raw_os_error() == Some(libc::ENOTTY) => {}
                other => return other,
            }
        }
        self.read(base, pages, out)
    }

    fn scan(&self, base: u64, pages: &Range<u64>, out: &mut Vec<Range<u64>>) -> io::Result<()> {
        let mut found = [PageRegion::default(); SCAN_RANGES];
        let mut argument = PmScanArg {
            size: size_of::<PmScanArg>() as u64,
            start: base + pages.start * PAGE_BYTES,
            end: base + pages.end * PAGE_BYTES,
            vec: found.as_mut_ptr() as u64,
            vec_len: SCAN_RANGES as u64,
            category_inverted: PAGE_IS_PFNZERO,
            category_mask: PAGE_IS_PFNZERO,
            category_anyof_mask: PAGE_IS_PRESENT | PAGE_IS_SWAPPED,
            return_mask: PAGE_IS_PRESENT,
            ..PmScanArg::default()
        };
        while argument.start < argument.end {
            // SAFETY: the kernel reads the argument and writes at most `vec_len` entries of `found`.
            let count =
                unsafe { libc::ioctl(self.pagemap.as_raw_fd(), request::PAGEMAP_SCAN(), &raw mut argument) };
            let count = usize::try_from(count).map_err(|_| io::Error::last_os_error())?;
            for region in found.iter().take(count) {
                push((region.start - base) / PAGE_BYTES..(region.end - base) / PAGE_BYTES, out);
            }
            argument.start = argument.walk_end;
        }
        Ok(())
    }

    fn read(&self, base: u64, pages: Range<u64>, out: &mut Vec<Range<u64>>) -> io::Result<()> {
        use std::os::unix::fs::FileExt;
        let mut entries = [0u8; 4096];
        let mut page = pages.start;
        while page < pages.end {
            let count = ((pages.end - page) as usize).min(entries.len() / 8);
            let buffer = entries.get_mut(..count * 8).unwrap_or_default();
            self.pagemap.read_exact_at(buffer, (base / PAGE_BYTES + page) * 8)?;
            for entry in buffer.as_chunks::<8>().0 {
                if u64::from_le_bytes(*entry) & PAGEMAP_EXISTS != 0 {
                    push(page..page + 1, out);
                }
                page += 1;
            }
        }
        Ok(())
    }
}

fn push(run: Range<u64>, out: &mut Vec<Range<u64>>) {
    match out.last_mut() {
        Some(last) if last.end == run.start => last.end = run.end,
        _ => out.push(run),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use vm_memory::{Bytes, GuestAddress};

    fn resident(scan: bool) -> Vec<Range<u64>> {
        let ram = map(16 << 20).unwrap();
        for page in [3, 4, 5, 700, 4095] {
            ram.write_obj(1u8, GuestAddress(page * PAGE_BYTES)).unwrap();
        }
        // Reading maps the zero page, which is not a page of the guest's.
        ram.read_obj::<u8>(GuestAddress(900 * PAGE_BYTES)).unwrap();
        let residency = Residency { scan, ..Residency::new().unwrap() };
        let mut out = Vec::new();
        residency.of(slots(&ram)[0].host_address, 0..4096, &mut out).unwrap();
        out
    }

    #[test]
    fn written_pages_exist() {
        for scan in [true, false] {
            let runs = resident(scan);
            let has = |page: u64| runs.iter().any(|run| run.contains(&page));
            assert!([3, 4, 5, 700, 4095].into_iter().all(has), "{runs:?}");
        }
    }

    #[test]
    fn what_the_vmm_writes_is_in_the_bitmap() {
        let ram = map(1 << 20).unwrap();
        ram.write_obj(1u8, GuestAddress(5 * PAGE_BYTES)).unwrap();
        let written = written(ram.iter().next().unwrap());
        assert!(written.is_bit_set(5) && !written.is_bit_set(6));
    }
}
