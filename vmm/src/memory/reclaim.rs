//! Memory that the guest gives back goes to the host.

#![allow(unsafe_code, reason = "madvise(2) on guest memory")]

use std::sync::atomic::{AtomicBool, Ordering};

use tern_devices::virtio::Segment;
use tern_devices::{GuestRam, Reclaim};
use tern_migration::PAGE_BYTES;
use vm_memory::bitmap::Bitmap;
use vm_memory::{Address, GuestMemoryBackend, GuestMemoryRegion};

use super::{Backing, written};

/// How a page of this memory is given to the host.
#[derive(Debug)]
pub struct Reclaimer {
    /// Not of huge pages that were set aside, nor where what was dropped would come again from a file.
    allowed: AtomicBool,
    advice: libc::c_int,
}

impl Reclaimer {
    /// For memory of this kind.
    pub fn of(backing: &Backing) -> Self {
        let (allowed, advice) = match backing {
            Backing::Anonymous => (true, libc::MADV_DONTNEED),
            Backing::Shared { huge, .. } => (!huge, libc::MADV_REMOVE),
            Backing::File { .. } => (false, libc::MADV_DONTNEED),
        };
        Self { allowed: AtomicBool::new(allowed), advice }
    }

    /// From here on nothing is taken: a pager would be asked for it again.
    pub fn forbid(&self) {
        self.allowed.store(false, Ordering::SeqCst);
    }
}

impl Reclaim for Reclaimer {
    fn take(&self, ram: &GuestRam, range: Segment) {
        if !self.allowed.load(Ordering::SeqCst) {
            return;
        }
        let Some(region) = ram.find_region(range.address) else { return };
        let first = range.address.unchecked_offset_from(region.start_addr()).next_multiple_of(PAGE_BYTES);
        let offset = range.address.unchecked_offset_from(region.start_addr());
        let end = offset.saturating_add(range.bytes as u64).min(region.len()) / PAGE_BYTES * PAGE_BYTES;
        let Some(bytes) = end.checked_sub(first).filter(|bytes| *bytes > 0) else { return };
        // Both are inside a mapping, so they fit into a usize.
        let (first, bytes) = (first as usize, bytes as usize);
        // SAFETY: the range is inside the region's mapping; what is there becomes zero, as the guest has agreed to, and no
        // Rust reference to guest memory exists.
        unsafe { libc::madvise(region.as_ptr().wrapping_add(first).cast(), bytes, self.advice) };
        // Behind it: whoever has read the old content meanwhile is told to look again.
        written(region).mark_dirty(first, bytes);
    }
}

#[cfg(test)]
mod tests {
    use vm_memory::{Bytes, GuestAddress};

    use super::super::map;
    use super::*;
    use crate::config::MemoryBacking;

    #[test]
    fn what_is_taken_reads_as_zero_and_counts_as_written_and_its_neighbours_stay() {
        for kind in [MemoryBacking::Anon, MemoryBacking::Memfd] {
            let backing = Backing::new(kind, 2 << 20).unwrap();
            let ram = map(2 << 20, &backing).unwrap();
            ram.write_slice(&[7; 6 * 4096], GuestAddress(0)).unwrap();
            let region = ram.iter().next().unwrap();
            written(region).reset();
            let reclaimer = Reclaimer::of(&backing);
            // From the middle of page 0 to the middle of page 3: 1 and 2 are whole.
            reclaimer.take(&ram, Segment { address: GuestAddress(2048), bytes: 3 * 4096 });
            let value = |page: u64| ram.read_obj::<u8>(GuestAddress(page * 4096)).unwrap();
            assert_eq!([0, 1, 2, 3, 4].map(value), [7, 0, 0, 7, 7], "{kind:?}");
            let dirty = |page: usize| written(region).is_bit_set(page);
            assert_eq!([0, 1, 2, 3].map(dirty), [false, true, true, false], "{kind:?}");
            reclaimer.forbid();
            reclaimer.take(&ram, Segment { address: GuestAddress(0), bytes: 2 << 20 });
            assert_eq!(value(3), 7);
        }
    }

    #[test]
    fn a_range_outside_memory_or_without_a_whole_page_is_left_alone() {
        let ram = map(2 << 20, &Backing::Anonymous).unwrap();
        ram.write_slice(&[7; 4096], GuestAddress((2 << 20) - 4096)).unwrap();
        let reclaimer = Reclaimer::of(&Backing::Anonymous);
        for (address, bytes) in [(4 << 20, 4096), (u64::MAX - 1, 9), (100, 4000), ((2 << 20) - 4095, 8192)] {
            reclaimer.take(&ram, Segment { address: GuestAddress(address), bytes });
        }
        assert_eq!(ram.read_obj::<u8>(GuestAddress((2 << 20) - 1)).unwrap(), 7);
    }
}
