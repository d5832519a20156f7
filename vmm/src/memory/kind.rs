//! Guest memory that isn't plain: files in memory, huge pages.

#![allow(
    unsafe_code,
    reason = "memfd_create(2), lseek(2) for data and holes, and madvise(2) on mapped memory"
)]

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::fd::{AsRawFd, FromRawFd};

use tern_devices::GuestRam;
use tern_migration::PAGE_BYTES;
use vm_memory::{GuestMemoryBackend, GuestMemoryRegion};

use super::{Backing, MemoryError};
use crate::config::{ByteSize, MemoryBacking};
use crate::layout;

/// The huge pages that are used.
const HUGE_PAGE_BYTES: u64 = 2 << 20;

/// Whether the host uses transparent huge pages for files in memory.
const SHMEM_ENABLED: &str = "/sys/kernel/mm/transparent_hugepage/shmem_enabled";
/// The same for anonymous memory.
const ENABLED: &str = "/sys/kernel/mm/transparent_hugepage/enabled";

impl Backing {
    /// Fresh memory of a configured kind, for a guest of `bytes`.
    pub fn new(kind: MemoryBacking, bytes: u64) -> Result<Self, MemoryError> {
        let (flags, unit) = match kind {
            MemoryBacking::Anon => return Ok(Self::Anonymous),
            MemoryBacking::Memfd => (0, PAGE_BYTES),
            MemoryBacking::Hugetlbfs => (libc::MFD_HUGETLB | libc::MFD_HUGE_2MB, HUGE_PAGE_BYTES),
        };
        let mut offsets = Vec::new();
        let mut end = 0;
        for (_, length) in layout::ram_regions(bytes) {
            if !(length as u64).is_multiple_of(unit) {
                return Err(MemoryError::HugePages { given: ByteSize(bytes), unit: ByteSize(unit) });
            }
            offsets.push(end);
            end += length as u64;
        }
        let file = memfd(flags).and_then(|file| file.set_len(end).map(|()| file));
        let file = file.map_err(|source| MemoryError::Memfd { source })?;
        Ok(Self::Shared { file, offsets, huge: kind == MemoryBacking::Hugetlbfs })
    }
}

/// Huge pages of 2 MiB that nobody has.
pub(super) fn free_huge_pages() -> u64 {
    let free = std::fs::read_to_string("/sys/kernel/mm/hugepages/hugepages-2048kB/free_hugepages");
    free.ok().and_then(|free| free.trim().parse().ok()).unwrap_or(0)
}

fn memfd(flags: libc::c_uint) -> io::Result<File> {
    // SAFETY: the name is a C string; nothing else of ours is touched.
    let fd = unsafe { libc::memfd_create(c"guest-memory".as_ptr(), flags | libc::MFD_CLOEXEC) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the descriptor was just made, and nobody else knows it.
    Ok(unsafe { File::from_raw_fd(fd) })
}

/// Appends the pages of a region that lies at byte `offset` of a file in memory and has data there, also such as was
/// swapped out: this process's page map doesn't know those.
pub(super) fn data(file: &File, offset: u64, pages: Range<u64>, out: &mut Vec<Range<u64>>) -> io::Result<()> {
    let end = offset + pages.end * PAGE_BYTES;
    let mut at = offset + pages.start * PAGE_BYTES;
    while at < end {
        let Some(start) = seek(file, at, libc::SEEK_DATA)?.filter(|start| *start < end) else { break };
        let stop = seek(file, start, libc::SEEK_HOLE)?.unwrap_or(end).min(end);
        let (first, last) = ((start.max(at) - offset) / PAGE_BYTES, (stop - offset).div_ceil(PAGE_BYTES));
        out.push(first..last);
        at = stop;
    }
    Ok(())
}

/// None: there is nothing of that kind behind `from`.
fn seek(file: &File, from: u64, whence: libc::c_int) -> io::Result<Option<u64>> {
    let from = libc::off_t::try_from(from).map_err(io::Error::other)?;
    // SAFETY: takes three integers.
    let found = unsafe { libc::lseek(file.as_raw_fd(), from, whence) };
    match u64::try_from(found) {
        Ok(found) => Ok(Some(found)),
        Err(_) if io::Error::last_os_error().raw_os_error() == Some(libc::ENXIO) => Ok(None),
        Err(_) => Err(io::Error::last_os_error()),
    }
}

/// Asks the host for transparent huge pages behind `ram`, or tells it to use none. Returns why that may have no
/// effect.
pub fn advise_huge_pages(ram: &GuestRam, wanted: bool) -> Result<Option<String>, MemoryError> {
    let advice = if wanted { libc::MADV_HUGEPAGE } else { libc::MADV_NOHUGEPAGE };
    let mut shared = false;
    for region in ram.iter() {
        shared |= region.file_offset().is_some();
        // SAFETY: the range is the region's mapping; the advice changes no content.
        let done = unsafe { libc::madvise(region.as_ptr().cast(), region.len() as usize, advice) };
        if done != 0 {
            return Err(MemoryError::Advice { wanted, source: io::Error::last_os_error() });
        }
    }
    let switch = if shared { SHMEM_ENABLED } else { ENABLED };
    let state = std::fs::read_to_string(switch).unwrap_or_default();
    let refused = wanted && ["[never]", "[deny]"].iter().any(|word| state.contains(word));
    Ok(refused.then(|| {
        format!("thp=on has no effect: {switch} says {}; as root: echo advise > {switch}", state.trim())
            .replace("echo advise", if shared { "echo advise" } else { "echo madvise" })
    }))
}

#[cfg(test)]
mod tests {
    use vm_memory::{Bytes, GuestAddress};

    use super::super::{Behind, Residency, map, resident, slots};
    use super::*;

    #[test]
    fn what_was_written_in_a_file_in_memory_is_found_even_where_it_is_not_mapped() {
        let backing = Backing::new(MemoryBacking::Memfd, 16 << 20).unwrap();
        let (ram, behind) = (map(16 << 20, &backing).unwrap(), Behind::of(&backing));
        for page in [3, 4, 700] {
            ram.write_obj(1u8, GuestAddress(page * PAGE_BYTES)).unwrap();
        }
        let base = slots(&ram)[0].host_address;
        let found = || {
            let mut out = Vec::new();
            resident(&Residency::new().unwrap(), &behind, (0, base), 0..4096, &mut out).unwrap();
            out
        };
        let has = |page: u64| found().iter().any(|run| run.contains(&page));
        assert!([3, 4, 700].into_iter().all(has) && !has(2000), "{:?}", found());
        // As if the host had taken them away for a while: the file still has them.
        // SAFETY: the range is mapped, and its content is the file's.
        unsafe { libc::madvise(base as *mut _, 16 << 20, libc::MADV_DONTNEED) };
        assert!([3, 4, 700].into_iter().all(has) && !has(2000), "{:?}", found());
        assert_eq!(ram.read_obj::<u8>(GuestAddress(700 * PAGE_BYTES)).unwrap(), 1);
    }

    #[test]
    fn huge_pages_are_whole_ones() {
        let error = Backing::new(MemoryBacking::Hugetlbfs, (4 << 20) + 4096).unwrap_err().to_string();
        assert!(error.contains("2 MiB") && error.contains("--memory"), "{error}");
    }

    #[test]
    fn advice_is_taken() {
        let ram = map(16 << 20, &Backing::Anonymous).unwrap();
        let state = std::fs::read_to_string(ENABLED).unwrap_or_default();
        // A kernel without transparent huge pages refuses, and says so.
        if state.is_empty() {
            advise_huge_pages(&ram, true).unwrap_err();
            return;
        }
        let warning = advise_huge_pages(&ram, true).unwrap();
        assert_eq!(warning.is_some(), state.contains("[never]"), "{warning:?}");
        assert_eq!(advise_huge_pages(&ram, false).unwrap(), None);
    }
}
