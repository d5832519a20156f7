//! Guest memory: mapped once, with a bitmap of what the VMM writes; what is behind it (nothing, a file, a
//! pager); and which of its pages exist.

#![allow(unsafe_code, reason = "mmap of guest memory and the pagemap ioctl take addresses")]

mod kind;
mod reclaim;

use std::fs::File;
use std::io;
use std::num::NonZeroUsize;
use std::ops::Range;
use std::os::fd::AsRawFd;
use std::sync::{Arc, OnceLock};

use tern_devices::GuestRam;
use tern_migration::pager::Pager;
use tern_migration::{DirtyBitmap, PAGE_BYTES};
use thiserror::Error;
use vm_memory::bitmap::AtomicBitmap;
use vm_memory::mmap::{FromRangesError, MmapRegionBuilder, MmapRegionError};
use vm_memory::{Address, FileOffset, GuestMemoryBackend, GuestMemoryRegion, GuestRegionMmap, MmapRegion};

pub use self::kind::advise_huge_pages;
pub use self::reclaim::Reclaimer;
use crate::config::ByteSize;
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
    /// The file was refused.
    #[error("{bytes} bytes of guest memory can't be mapped from byte {offset} of its file on")]
    MapFile {
        /// Bytes of the region.
        bytes: usize,
        /// Place in the file.
        offset: u64,
        /// The host's reason.
        #[source]
        source: MmapRegionError,
    },
    /// No file in memory.
    #[error("the host can't make a file in memory for the guest (memfd_create)")]
    Memfd {
        /// Its reason.
        #[source]
        source: io::Error,
    },
    /// Memory that isn't whole huge pages.
    #[error("--memory {}: with backing=hugetlbfs it must be a multiple of {unit}", given.exact())]
    HugePages {
        /// The size given.
        given: ByteSize,
        /// Size of a huge page.
        unit: ByteSize,
    },
    /// Not as many huge pages are free.
    #[error(
        "the host has no {bytes} bytes of free huge pages; as root: echo {} > /proc/sys/vm/nr_hugepages (now {free} of 2 MiB are free)",
        bytes.div_ceil(2 << 20)
    )]
    HugePagesMissing {
        /// Bytes of the region.
        bytes: usize,
        /// Free huge pages.
        free: u64,
        /// The host's reason.
        #[source]
        source: MmapRegionError,
    },
    /// Transparent huge pages can't be had or refused.
    #[error("the host refuses thp={}", if *.wanted { "on" } else { "off" })]
    Advice {
        /// Were they wanted?
        wanted: bool,
        /// Its reason.
        #[source]
        source: io::Error,
    },
    /// The file doesn't have as many regions.
    #[error("the file has no memory region {region}")]
    NoRegion {
        /// Region's number.
        region: usize,
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

/// To drop so many pages costs less than to look whether there are any.
const LOOK_PAGES: u64 = 512;

const PAGE: NonZeroUsize = NonZeroUsize::new(PAGE_BYTES as usize).unwrap();

/// What guest memory is when nobody has written it yet.
#[derive(Debug, Default)]
pub enum Backing {
    /// Zero. A pager may be put behind it before it is touched.
    #[default]
    Anonymous,
    /// The content of a file, copied on write: the file never changes.
    File {
        /// The file.
        file: File,
        /// Where each region is in it, a multiple of 4096.
        offsets: Vec<u64>,
    },
    /// A file in memory, all of it zero at the start, which the guest writes.
    Shared {
        /// The file.
        file: File,
        /// Where each region is in it.
        offsets: Vec<u64>,
        /// Of huge pages.
        huge: bool,
    },
}

/// Maps `bytes` of memory for a guest, split around the 32-bit hole. Nothing is touched yet.
pub fn map(bytes: u64, backing: &Backing) -> Result<GuestRam, MemoryError> {
    let mut regions = Vec::new();
    for (index, (start, length)) in layout::ram_regions(bytes).into_iter().enumerate() {
        let mapping = map_region(index, length, backing)?;
        let overlap = || MemoryError::Layout { bytes, source: FromRangesError::InvalidGuestRegion };
        regions.push(GuestRegionMmap::new(mapping, start).ok_or_else(overlap)?);
    }
    let layout =
        |source: vm_memory::GuestRegionCollectionError| MemoryError::Layout { bytes, source: source.into() };
    GuestRam::from_regions(regions).map_err(layout)
}

fn map_region(
    index: usize,
    bytes: usize,
    backing: &Backing,
) -> Result<MmapRegion<AtomicBitmap>, MemoryError> {
    let private = libc::MAP_PRIVATE | libc::MAP_NORESERVE;
    let plain = MmapRegionBuilder::new_with_bitmap(bytes, AtomicBitmap::new(bytes, PAGE))
        .with_mmap_prot(libc::PROT_READ | libc::PROT_WRITE);
    match backing {
        Backing::Anonymous => {
            let built = plain.with_mmap_flags(libc::MAP_ANONYMOUS | private).build();
            built.map_err(|source| MemoryError::Map { bytes, source })
        }
        Backing::File { file, offsets } => {
            let offset = *offsets.get(index).ok_or(MemoryError::NoRegion { region: index })?;
            let refused = |source| MemoryError::MapFile { bytes, offset, source };
            let file = file.try_clone().map_err(|error| refused(MmapRegionError::Mmap(error)))?;
            // Nobody else compares them, and a page behind the end would be a SIGBUS.
            let there = file.metadata().map_err(|error| refused(MmapRegionError::Mmap(error)))?.len();
            if offset.saturating_add(bytes as u64) > there {
                return Err(refused(MmapRegionError::MappingPastEof));
            }
            let plain = plain.with_mmap_flags(private).with_file_offset(FileOffset::new(file, offset));
            plain.build().map_err(refused)
        }
        Backing::Shared { file, offsets, huge } => {
            let offset = *offsets.get(index).ok_or(MemoryError::NoRegion { region: index })?;
            let refused = |source| match huge {
                true => MemoryError::HugePagesMissing { bytes, free: kind::free_huge_pages(), source },
                false => MemoryError::Map { bytes, source },
            };
            let file = file.try_clone().map_err(|error| refused(MmapRegionError::Mmap(error)))?;
            // Huge pages are set aside now: one that is missing later would kill the guest.
            let flags = libc::MAP_SHARED | if *huge { 0 } else { libc::MAP_NORESERVE };
            let plain = plain.with_mmap_flags(flags).with_file_offset(FileOffset::new(file, offset));
            plain.build().map_err(refused)
        }
    }
}

/// What is behind a machine's memory: where pages come from that aren't in this process yet.
#[derive(Debug)]
pub struct Behind {
    is_file: bool,
    /// The file in memory that it is, and where each region is in it.
    shared: Option<(File, Vec<u64>)>,
    huge_pages: bool,
    pager: OnceLock<Pager>,
    reclaimer: Arc<Reclaimer>,
}

impl Default for Behind {
    fn default() -> Self {
        Self::of(&Backing::default())
    }
}

impl Behind {
    /// Behind memory that was mapped with `backing`.
    pub fn of(backing: &Backing) -> Self {
        let shared = match backing {
            // Huge pages are never swapped out, so the page map knows them all.
            Backing::Shared { file, offsets, huge: false } => {
                file.try_clone().ok().map(|file| (file, offsets.clone()))
            }
            _ => None,
        };
        Self {
            is_file: matches!(backing, Backing::File { .. }),
            shared,
            huge_pages: matches!(backing, Backing::Shared { huge: true, .. }),
            pager: OnceLock::new(),
            reclaimer: Arc::new(Reclaimer::of(backing)),
        }
    }

    /// Puts a pager behind it: once in a machine's life.
    pub fn set_pager(&self, pager: Pager) -> Result<(), Pager> {
        self.reclaimer.forbid();
        self.pager.set(pager)
    }

    /// Can a pager be put behind it? If not, why, and what helps.
    pub fn can_page_in(&self) -> Result<(), &'static str> {
        match self {
            Self { huge_pages: true, .. } => Err(
                "this machine's memory is of huge pages that were set aside (backing=hugetlbfs), which come as a whole \
                 or not at all; use backing=anon or memfd there",
            ),
            Self { is_file: true, .. } => Err("this machine's memory is mapped from a file"),
            _ => Ok(()),
        }
    }

    /// Those pages of a set of which this process, or the file in memory, may hold something.
    pub fn held(
        &self,
        residency: &Residency,
        ram: &GuestRam,
        pages: &DirtyBitmap,
    ) -> io::Result<Vec<(usize, Range<u64>)>> {
        let (mut rest, mut held) = (pages.clone(), Vec::new());
        for (region, slot) in slots(ram).iter().enumerate() {
            let (mut runs, mut found) = (Vec::new(), Vec::new());
            rest.take_runs(region, 0..pages.words(region).len(), &mut runs);
            for run in runs {
                // The page map of this process doesn't know what only the file has.
                if self.shared.is_some() || run.end - run.start < LOOK_PAGES {
                    found.push(run);
                } else {
                    residency.touched(slot.host_address, run, &mut found)?;
                }
            }
            held.extend(found.into_iter().map(|run| (region, run)));
        }
        Ok(held)
    }

    /// Who gives the host what the guest gives back.
    pub fn reclaimer(&self) -> Arc<Reclaimer> {
        Arc::clone(&self.reclaimer)
    }

    /// The pager, if there is one.
    pub fn pager(&self) -> Option<&Pager> {
        self.pager.get()
    }

    /// Appends those of `pages` to `out` that may hold something other than zeroes, though this process has no
    /// page of its own there.
    fn elsewhere(&self, region: usize, pages: Range<u64>, out: &mut Vec<Range<u64>>) -> io::Result<()> {
        if self.is_file {
            out.push(pages);
        } else if let Some((file, offsets)) = &self.shared {
            if let Some(offset) = offsets.get(region) {
                kind::data(file, *offset, pages, out)?;
            }
        } else if let Some(pager) = self.pager() {
            pager.missing(region, pages, out);
        }
        Ok(())
    }
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
        self.find(base, pages, PAGE_IS_PFNZERO, out)
    }

    /// As [`Self::of`], with those that were only read: the zero page is mapped there.
    pub fn touched(&self, base: u64, pages: Range<u64>, out: &mut Vec<Range<u64>>) -> io::Result<()> {
        self.find(base, pages, 0, out)
    }

    fn find(&self, base: u64, pages: Range<u64>, without: u64, out: &mut Vec<Range<u64>>) -> io::Result<()> {
        if self.scan {
            match self.scan(base, &pages, without, out) {
                // Before Linux 6.7.
                Err(error) if error.raw_os_error() == Some(libc::ENOTTY) => {}
                other => return other,
            }
        }
        self.read(base, pages, out)
    }

    /// Pages of the category `without` are left out.
    fn scan(&self, base: u64, pages: &Range<u64>, without: u64, out: &mut Vec<Range<u64>>) -> io::Result<()> {
        let mut found = [PageRegion::default(); SCAN_RANGES];
        let mut argument = PmScanArg {
            size: size_of::<PmScanArg>() as u64,
            start: base + pages.start * PAGE_BYTES,
            end: base + pages.end * PAGE_BYTES,
            vec: found.as_mut_ptr() as u64,
            vec_len: SCAN_RANGES as u64,
            category_inverted: without,
            category_mask: without,
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

/// Appends those of `pages` (of region `region`, mapped at `base`) that may hold something other than zeroes to
/// `out`, as runs in order: pages of this process, and pages that haven't come yet.
pub fn resident(
    residency: &Residency,
    behind: &Behind,
    (region, base): (usize, u64),
    pages: Range<u64>,
    out: &mut Vec<Range<u64>>,
) -> io::Result<()> {
    // Asked first: a page that comes meanwhile is then in one answer or in both.
    let mut elsewhere = Vec::new();
    behind.elsewhere(region, pages.clone(), &mut elsewhere)?;
    if elsewhere.is_empty() {
        return residency.of(base, pages, out);
    }
    if elsewhere != [pages.clone()] {
        let mut here = Vec::new();
        residency.of(base, pages, &mut here)?;
        elsewhere.append(&mut here);
        elsewhere.sort_unstable_by_key(|run| run.start);
    }
    // Runs of both kinds may overlap.
    let mut all: Vec<Range<u64>> = Vec::with_capacity(elsewhere.len());
    for run in elsewhere {
        match all.last_mut() {
            Some(last) if last.end >= run.start => last.end = last.end.max(run.end),
            _ => all.push(run),
        }
    }
    out.append(&mut all);
    Ok(())
}

/// Of each region of `ram`, the pages that this process has touched, if only to read them.
pub fn touched(residency: &Residency, ram: &GuestRam) -> io::Result<Vec<(usize, Range<u64>)>> {
    let mut all = Vec::new();
    for (region, slot) in slots(ram).iter().enumerate() {
        let mut runs = Vec::new();
        residency.touched(slot.host_address, 0..slot.length_bytes / PAGE_BYTES, &mut runs)?;
        all.extend(runs.into_iter().map(|run| (region, run)));
    }
    Ok(all)
}

fn push(run: Range<u64>, out: &mut Vec<Range<u64>>) {
    match out.last_mut() {
        Some(last) if last.end == run.start => last.end = run.end,
        _ => out.push(run),
    }
}

#[cfg(test)]
mod tests {
    use tern_migration::pager::{Ending, Fetched, PageSource, PagerError};

    use super::*;
    use crate::skip::skip;
    use vm_memory::{Bytes, GuestAddress};

    fn found_by(scan: bool) -> Vec<Range<u64>> {
        let ram = map(16 << 20, &Backing::Anonymous).unwrap();
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
            let runs = found_by(scan);
            let has = |page: u64| runs.iter().any(|run| run.contains(&page));
            assert!([3, 4, 5, 700, 4095].into_iter().all(has), "{runs:?}");
        }
    }

    #[test]
    fn read_pages_are_touched_though_they_do_not_exist() {
        let ram = map(16 << 20, &Backing::Anonymous).unwrap();
        ram.read_obj::<u8>(GuestAddress(900 * PAGE_BYTES)).unwrap();
        ram.write_obj(1u8, GuestAddress(3 * PAGE_BYTES)).unwrap();
        let residency = Residency::new().unwrap();
        let mut out = Vec::new();
        residency.touched(slots(&ram)[0].host_address, 0..4096, &mut out).unwrap();
        assert!([3, 900].iter().all(|page| out.iter().any(|run| run.contains(page))), "{out:?}");
    }

    #[test]
    fn what_lies_in_a_file_counts_as_there_and_the_file_never_changes() {
        let mut file = tempfile::tempfile().unwrap();
        let bytes = [vec![0; 8192], vec![7u8; 1 << 20]].concat();
        io::Write::write_all(&mut file, &bytes).unwrap();
        let backing = Backing::File { file: file.try_clone().unwrap(), offsets: vec![8192] };
        let (ram, behind) = (map(1 << 20, &backing).unwrap(), Behind::of(&backing));
        ram.write_obj(1u8, GuestAddress(PAGE_BYTES)).unwrap();
        assert_eq!(ram.read_obj::<u16>(GuestAddress(PAGE_BYTES)).unwrap(), 0x0701);
        let mut found = Vec::new();
        std::os::unix::fs::FileExt::read_exact_at(&file, &mut [0; 1], 0).unwrap();
        let slot = slots(&ram)[0].host_address;
        resident(&Residency::new().unwrap(), &behind, (0, slot), 10..200, &mut found).unwrap();
        assert_eq!(found, std::slice::from_ref(&(10..200)));
        let mut now = vec![0; bytes.len()];
        std::os::unix::fs::FileExt::read_exact_at(&file, &mut now, 0).unwrap();
        assert!(now == bytes, "a write of the guest is in the file");
        let short = Backing::File { file, offsets: vec![1 << 20] };
        assert!(map(1 << 20, &short).unwrap_err().to_string().contains("from byte 1048576"));
    }

    /// Content in every fourth page.
    struct Fourth;

    impl PageSource for Fourth {
        fn fetch(
            &self,
            _: usize,
            pages: Range<u64>,
            into: &mut [u8],
        ) -> Result<Fetched, Box<dyn std::error::Error + Send + Sync>> {
            into.fill(4);
            Ok(if pages.start.is_multiple_of(4) { Fetched::Content(1) } else { Fetched::Zero(1) })
        }
    }

    #[test]
    fn pages_that_have_not_come_yet_count_as_there() {
        let (ram, behind) = (map(1 << 20, &Backing::Anonymous).unwrap(), Behind::default());
        let (sender, ended) = std::sync::mpsc::channel();
        let told = Box::new(move |ending| drop(sender.send(ending)));
        let pager = match Pager::start(&ram, &[], Arc::new(Fourth), told) {
            Ok(pager) => pager,
            Err(PagerError::Unavailable { remedy }) => return skip(&format!("no userfaultfd: {remedy}")),
            Err(other) => panic!("{other}"),
        };
        assert!(behind.set_pager(pager).is_ok());
        let (residency, base) = (Residency::new().unwrap(), slots(&ram)[0].host_address);
        let found = |pages| {
            let mut out = Vec::new();
            resident(&residency, &behind, (0, base), pages, &mut out).unwrap();
            out
        };
        assert_eq!(found(3..256), std::slice::from_ref(&(3..256)));
        assert_eq!(ram.read_obj::<u8>(GuestAddress(8 * PAGE_BYTES)).unwrap(), 4);
        assert_eq!(ram.read_obj::<u8>(GuestAddress(9 * PAGE_BYTES)).unwrap(), 0);
        // The thread that serves this has noted the two before.
        assert_eq!(ram.read_obj::<u8>(GuestAddress(100 * PAGE_BYTES)).unwrap(), 4);
        assert_eq!(found(3..90), [3..9, 10..90], "a zero page that has come holds nothing");
        behind.pager().unwrap().prefetch().unwrap();
        assert!(matches!(ended.recv().unwrap(), Ending::Complete));
        assert_eq!(found(0..10), [0..1, 4..5, 8..9]);
    }

    #[test]
    fn what_the_vmm_writes_is_in_the_bitmap() {
        let ram = map(1 << 20, &Backing::Anonymous).unwrap();
        ram.write_obj(1u8, GuestAddress(5 * PAGE_BYTES)).unwrap();
        let written = written(ram.iter().next().unwrap());
        assert!(written.is_bit_set(5) && !written.is_bit_set(6));
    }
}
