//! What is in the file by now: kind and hash of each page. It becomes the page tables.

use super::table::{BLOCK_BYTES, BLOCK_PAGES, encode_block};
use super::{Layout, PageEntry};

/// Entries of all pages. Memory for pages that are zero is never touched.
#[derive(Debug)]
pub(super) struct Ledger {
    regions: Vec<Region>,
}

#[derive(Debug)]
struct Region {
    hashes: Vec<u64>,
    /// Encoding and length of the data: 0 for a zero page.
    kinds: Vec<u32>,
}

/// What goes into the index.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Totals {
    pub(super) ram_hash: u64,
    pub(super) encodings: u64,
    pub(super) pages_stored: u64,
}

impl Ledger {
    /// All pages are zero.
    pub(super) fn new(layout: &Layout) -> Self {
        let region = |pages: u64| {
            let pages = usize::try_from(pages).unwrap_or(usize::MAX);
            Region { hashes: vec![0; pages], kinds: vec![0; pages] }
        };
        Self { regions: layout.regions.iter().map(|place| region(place.pages)).collect() }
    }

    pub(super) fn get(&self, region: u16, page: u64) -> PageEntry {
        let found = self.regions.get(usize::from(region)).and_then(|region| {
            let page = usize::try_from(page).ok()?;
            Some((*region.kinds.get(page)?, *region.hashes.get(page)?))
        });
        found.map_or_else(PageEntry::default, |(kind, hash)| {
            let [low, high, encoding, _] = kind.to_le_bytes();
            PageEntry { encoding, data_bytes: u16::from_le_bytes([low, high]), hash }
        })
    }

    pub(super) fn set(&mut self, region: u16, page: u64, entry: &PageEntry) {
        let Some(region) = self.regions.get_mut(usize::from(region)) else { return };
        let Ok(page) = usize::try_from(page) else { return };
        if let (Some(kind), Some(hash)) = (region.kinds.get_mut(page), region.hashes.get_mut(page)) {
            *kind = u32::from(entry.data_bytes) | u32::from(entry.encoding) << u16::BITS;
            *hash = entry.hash;
        }
    }

    /// Appends some blocks of a region's table to `out`, and adds their pages to `totals`.
    pub(super) fn encode(
        &self,
        region: u16,
        pages: u64,
        blocks: std::ops::Range<u64>,
        totals: &mut Totals,
        out: &mut Vec<u8>,
    ) {
        let mut entries = Vec::with_capacity(BLOCK_PAGES as usize);
        out.reserve((blocks.end - blocks.start) as usize * BLOCK_BYTES);
        for block in blocks {
            let start = block * BLOCK_PAGES;
            entries.clear();
            entries.extend((start..(start + BLOCK_PAGES).min(pages)).map(|page| self.get(region, page)));
            for entry in &entries {
                totals.ram_hash = totals.ram_hash.wrapping_add(entry.hash);
                totals.encodings |= 1u64.checked_shl(entry.encoding.into()).unwrap_or(0);
                totals.pages_stored += u64::from(!entry.is_zero());
            }
            out.extend_from_slice(&encode_block(region.into(), block, &entries));
        }
    }
}
