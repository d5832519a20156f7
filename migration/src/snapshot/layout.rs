//! Where things are. All places follow from the list of memory regions, so a file can't claim wrong ones.

use std::ops::Range;

use super::SnapshotError;
use super::table::{BLOCK_BYTES, BLOCK_PAGES};
use crate::vm::{MemoryRegion, PAGE_BYTES};

/// Regions begin at multiples of it, so that they can be mapped with large pages.
const REGION_ALIGN_BYTES: u64 = 2 << 20;
/// Most regions; as in an offer.
const REGIONS_MAX: u64 = 1024;
/// Most guest memory in a file: x86-64 has 52 bits of guest-physical addresses at most.
const MEMORY_MAX_BYTES: u64 = 1 << 52;
const PART: &str = "description";

/// Where one region is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RegionPlace {
    /// First guest-physical address.
    pub gpa: u64,
    /// Number of pages.
    pub pages: u64,
    /// Offset in the file of its first page; page n is n * 4096 further. A multiple of 2 MiB.
    pub data_offset: u64,
    /// Offset in the file of the first block of its page table.
    pub table_offset: u64,
}

impl RegionPlace {
    /// Offset in the file of a page.
    pub fn page_offset(&self, page: u64) -> u64 {
        self.data_offset.saturating_add(page.saturating_mul(PAGE_BYTES))
    }

    /// Number of blocks of its page table.
    pub(super) fn blocks(&self) -> u64 {
        self.pages.div_ceil(BLOCK_PAGES)
    }

    /// The pages of one block.
    pub(super) fn block_pages(&self, block: u64) -> Range<u64> {
        let start = block.saturating_mul(BLOCK_PAGES).min(self.pages);
        start..start.saturating_add(BLOCK_PAGES).min(self.pages)
    }

    /// Offset in the file of a block of its page table.
    pub(super) fn block_offset(&self, block: u64) -> u64 {
        self.table_offset.saturating_add(block.saturating_mul(BLOCK_BYTES as u64))
    }
}

/// Where everything is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Layout {
    /// By region.
    pub regions: Vec<RegionPlace>,
    /// Offset in the file of the machine's state, behind all tables.
    pub state_offset: u64,
}

impl Layout {
    /// The places for this guest memory.
    pub fn of(memory: &[MemoryRegion]) -> Result<Self, SnapshotError> {
        let limit = |field, found, max| SnapshotError::Limit { part: PART, field, found, max };
        if memory.len() as u64 > REGIONS_MAX {
            return Err(limit("number of memory regions", memory.len() as u64, REGIONS_MAX));
        }
        let mut regions = Vec::with_capacity(memory.len());
        let (mut end, mut total) = (REGION_ALIGN_BYTES, 0u64);
        for MemoryRegion { gpa, length_bytes } in memory {
            total = total.saturating_add(*length_bytes);
            if total > MEMORY_MAX_BYTES {
                return Err(limit("guest memory in bytes", total, MEMORY_MAX_BYTES));
            }
            let rest = length_bytes % PAGE_BYTES;
            if rest != 0 {
                let field = "rest of a region's length beyond whole pages";
                return Err(SnapshotError::Mismatch { part: PART, field, found: rest, expected: 0 });
            }
            let pages = length_bytes / PAGE_BYTES;
            regions.push(RegionPlace { gpa: *gpa, pages, data_offset: end, table_offset: 0 });
            // At most 2^52 bytes and 2 MiB for each of 1024 regions: far from an overflow.
            end = (end + length_bytes).next_multiple_of(REGION_ALIGN_BYTES);
        }
        for region in &mut regions {
            region.table_offset = end;
            end += region.blocks() * BLOCK_BYTES as u64;
        }
        Ok(Self { regions, state_offset: end })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn lengths_that_no_guest_has_are_refused() {
        let of = |lengths: &[u64]| {
            let region = |length_bytes: &u64| MemoryRegion { gpa: 0, length_bytes: *length_bytes };
            Layout::of(&lengths.iter().map(region).collect::<Vec<_>>())
        };
        assert!(of(&[1 << 52]).is_ok() && of(&[4096; 1024]).is_ok());
        for wrong in
            [&[1u64 << 53][..], &[u64::MAX, u64::MAX], &[(1 << 52) - 4096, 8192], &[4097], &[4096; 1025]]
        {
            of(wrong).unwrap_err();
        }
    }

    proptest! {
        #[test]
        fn places_rise_and_never_overlap(pages in prop::collection::vec(0u64..1 << 20, 0..10)) {
            let region = |pages: &u64| MemoryRegion { gpa: 0, length_bytes: pages * 4096 };
            let layout = Layout::of(&pages.iter().map(region).collect::<Vec<_>>()).unwrap();
            let mut end = 2 << 20;
            for place in &layout.regions {
                prop_assert!(place.data_offset >= end && place.data_offset.is_multiple_of(2 << 20));
                end = place.page_offset(place.pages);
            }
            for place in &layout.regions {
                prop_assert!(place.table_offset >= end && place.table_offset.is_multiple_of(4096));
                end = place.block_offset(place.blocks());
                let last = place.blocks().saturating_sub(1);
                prop_assert_eq!(place.block_pages(last).end, place.pages);
            }
            prop_assert_eq!(end.max(2 << 20), layout.state_offset.max(end));
        }
    }
}
