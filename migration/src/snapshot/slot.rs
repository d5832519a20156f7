//! Compressed memory in a file. A slot is the place of 16 pages; if they are compressed, the block of all that aren't zero
//! is at its beginning, and behind it is a hole.
//!
//! ```text
//! page      0     1     2     3    ...  15            entries of a compressed slot:
//! raw     [ A ] [ B ] [   ] [ D ]  ... [   ]          the first page that isn't zero has the block's length,
//! block   [ A B D compressed ]      hole              the others that aren't zero have 0
//! ```

use std::collections::VecDeque;
use std::ops::Range;
use std::sync::{Mutex, PoisonError};

use super::{PageEntry, ReadAt, RegionPlace, SnapshotError, source};
use crate::ram::compress::{Decompressor, GROUP_PAGES_MAX, method_of};
use crate::ram::{ENCODINGS, ENCODINGS_PLAIN};
use crate::vm::PAGE_BYTES;

const PAGE: usize = PAGE_BYTES as usize;
/// Pages of a slot; the last one of a region may have fewer.
pub(super) const SLOT_PAGES: u64 = GROUP_PAGES_MAX as u64;
/// Decoders that are kept for later, each with the slot that it decoded last.
const KEPT: usize = 4;
const PART: &str = "page table";

/// All encodings that a page in a file may have.
pub(super) fn encodings_in_files() -> u64 {
    let groups = ENCODINGS.iter().filter(|row| row.groups);
    groups.fold(ENCODINGS_PLAIN, |set, row| set | row.encoding.bit())
}

/// A compressed slot.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Block {
    pub(super) encoding: u8,
    pub(super) bytes: usize,
    /// How many pages are in it.
    pub(super) pages: usize,
}

impl Block {
    /// Of these entries, which are all of a slot; none if its pages are raw or zero.
    pub(super) fn of(entries: &[PageEntry]) -> Result<Option<Self>, SnapshotError> {
        let mut stored = entries.iter().filter(|entry| !entry.is_zero());
        let Some(first) = stored.next() else { return Ok(None) };
        let mismatch =
            |field, found, expected| SnapshotError::Mismatch { part: PART, field, found, expected };
        let (mut pages, expected) = (1, if first.is_raw() { PAGE as u16 } else { 0 });
        for entry in stored {
            pages += 1;
            if entry.encoding != first.encoding {
                let (found, expected) = (entry.encoding.into(), first.encoding.into());
                return Err(mismatch("encoding of a page in a slot of 16", found, expected));
            }
            if entry.data_bytes != expected {
                let (found, expected) = (entry.data_bytes.into(), expected.into());
                return Err(mismatch("data length of a page in a slot of 16", found, expected));
            }
        }
        if first.is_raw() {
            return Ok(None);
        }
        let bytes = usize::from(first.data_bytes);
        if bytes == 0 || blocks_of(bytes) >= pages {
            let max = (pages.saturating_sub(1) * PAGE) as u64;
            let (field, found) = ("length of a compressed slot", first.data_bytes.into());
            return Err(SnapshotError::Limit { part: PART, field, found, max });
        }
        Ok(Some(Self { encoding: first.encoding, bytes, pages }))
    }
}

/// Pages' places that so many bytes take.
pub(super) fn blocks_of(bytes: usize) -> usize {
    bytes.div_ceil(PAGE)
}

/// The pages of a slot.
pub(super) fn slot_pages(place: &RegionPlace, slot: u64) -> Range<u64> {
    let start = slot.saturating_mul(SLOT_PAGES).min(place.pages);
    start..start.saturating_add(SLOT_PAGES).min(place.pages)
}

/// Decodes slots; used by one thread at a time.
#[derive(Debug, Default)]
pub(super) struct SlotDecoder {
    /// By encoding.
    decompressors: Vec<(u8, Box<dyn Decompressor>)>,
    block: Vec<u8>,
    /// The pages of the block, and which pages of the slot they are.
    pages: Vec<u8>,
    stored: Vec<usize>,
    /// The slot that they are of.
    holds: Option<(usize, u64)>,
}

impl SlotDecoder {
    pub(super) fn holds(&self, region: usize, slot: u64) -> bool {
        self.holds == Some((region, slot))
    }

    /// Reads and decodes a slot, of which `entries` are all.
    pub(super) fn read(
        &mut self,
        from: &impl ReadAt,
        place: &RegionPlace,
        (region, slot): (usize, u64),
        entries: &[PageEntry],
    ) -> Result<(), SnapshotError> {
        self.holds = None;
        let mismatch = |found, expected| {
            let field = "encoding of a page in a slot of 16";
            SnapshotError::Mismatch { part: PART, field, found, expected }
        };
        let Some(block) = Block::of(entries)? else { return Err(mismatch(1, 0)) };
        self.block.resize(block.bytes, 0);
        let offset = place.page_offset(slot.saturating_mul(SLOT_PAGES));
        source::read_exact(from, "compressed pages", offset, &mut self.block)?;
        self.pages.resize(block.pages * PAGE, 0);
        let undecodable = |reason: &dyn ToString| {
            let gpa = place.gpa.saturating_add(slot.saturating_mul(SLOT_PAGES * PAGE_BYTES));
            SnapshotError::Undecodable { region, gpa, reason: reason.to_string() }
        };
        let decompressor = match self.decompressors.iter().position(|(number, _)| *number == block.encoding) {
            Some(at) => self.decompressors.get_mut(at),
            None => {
                let method = method_of(block.encoding).ok_or_else(|| mismatch(block.encoding.into(), 1))?;
                let made = (method.decompressor)().map_err(|error| undecodable(&error))?;
                self.decompressors.push((block.encoding, made));
                self.decompressors.last_mut()
            }
        };
        if let Some((_, decompressor)) = decompressor {
            let done = decompressor.decompress(&self.block, &mut self.pages);
            done.map_err(|error| undecodable(&error))?;
        }
        let stored = entries.iter().enumerate().filter(|(_, entry)| !entry.is_zero());
        self.stored.clear();
        self.stored.extend(stored.map(|(at, _)| at));
        self.holds = Some((region, slot));
        Ok(())
    }

    /// A page's bytes, by its place in the slot; none if it is zero.
    pub(super) fn page(&self, at: usize) -> Option<&[u8]> {
        let place = self.stored.iter().position(|stored| *stored == at)?;
        self.pages.get(place * PAGE..(place + 1) * PAGE)
    }
}

/// Decoders for any number of threads.
#[derive(Debug, Default)]
pub(super) struct SlotDecoders {
    idle: Mutex<VecDeque<SlotDecoder>>,
}

impl SlotDecoders {
    /// The one that holds this slot, or any.
    pub(super) fn take(&self, region: usize, slot: u64) -> SlotDecoder {
        let mut idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner);
        match idle.iter().position(|decoder| decoder.holds(region, slot)) {
            Some(at) => idle.remove(at),
            // What another thread has decoded last, it may want again.
            None if idle.len() >= KEPT => idle.pop_front(),
            None => None,
        }
        .unwrap_or_default()
    }

    pub(super) fn give_back(&self, decoder: SlotDecoder) {
        let mut idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner);
        if idle.len() >= KEPT {
            idle.pop_front();
        }
        idle.push_back(decoder);
    }
}
