//! Page tables: for each page its encoding, the length of its data, and its hash.
//!
//! ```text
//! block of 4096 bytes = crc32 u32 (of the rest) | region u32 | block u64 | 340 entries
//! entry of 12 bytes   = hash u64 | length u16 | encoding u8 | reserved u8 = 0
//! ```
//!
//! A table in blocks with a checksum each, so that one page can be read, and believed, without the whole
//! table. An entry of zeroes is a zero page: its hash is 0 too.

use super::SnapshotError;
use super::cursor::Cursor;
use super::slot::encodings_in_files;
use crate::ram::{Encoding, EncodingInfo};

/// Bytes of a block.
pub(super) const BLOCK_BYTES: usize = 4096;
/// Pages of a block.
pub(super) const BLOCK_PAGES: u64 = ENTRIES as u64;

const ENTRIES: usize = (BLOCK_BYTES - BLOCK_HEAD_BYTES) / ENTRY_BYTES;
const BLOCK_HEAD_BYTES: usize = 16;
const ENTRY_BYTES: usize = 12;
const CRC_BYTES: usize = 4;
const PART: &str = "page table";

pub(super) type Block = [u8; BLOCK_BYTES];

/// What a file says of one page.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct PageEntry {
    /// Number of its encoding: 0 zero, 1 raw; the table in `ram/encode.rs` has all.
    pub encoding: u8,
    /// Bytes of data at the beginning of its place; for compressed pages, at the beginning of their slot, and said by the
    /// first of them.
    pub data_bytes: u16,
    /// Hash of its content; 0 for a zero page.
    pub hash: u64,
}

impl PageEntry {
    /// Is it all zero?
    pub fn is_zero(&self) -> bool {
        self.encoding == Encoding::Zero as u8
    }

    /// Are its bytes in the file as they are in memory?
    pub fn is_raw(&self) -> bool {
        self.encoding == Encoding::Raw as u8
    }

    /// The encoding. One that this build doesn't know is an error.
    pub(super) fn kind(&self) -> Result<Encoding, SnapshotError> {
        self.info().map(|info| info.encoding)
    }

    fn info(&self) -> Result<&'static EncodingInfo, SnapshotError> {
        let known =
            Encoding::from_number(self.encoding).filter(|row| encodings_in_files() & row.encoding.bit() != 0);
        known.ok_or(SnapshotError::Limit {
            part: PART,
            field: "encoding",
            found: self.encoding.into(),
            max: Encoding::Zlib as u64,
        })
    }

    fn put(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(&self.hash.to_le_bytes());
        out.extend_from_slice(&self.data_bytes.to_le_bytes());
        out.extend_from_slice(&[self.encoding, 0]);
    }

    fn get(bytes: &[u8; ENTRY_BYTES]) -> Result<Self, SnapshotError> {
        let mut cursor = Cursor(bytes);
        let (hash, data_bytes) = (cursor.u64(), cursor.u16());
        let [encoding, reserved] = cursor.take();
        let entry = Self { encoding, data_bytes, hash };
        let (least, most) = entry.info()?.data_bytes;
        if reserved != 0 {
            let (field, found) = ("reserved byte", reserved.into());
            return Err(SnapshotError::Limit { part: PART, field, found, max: 0 });
        }
        if !(least..=most).contains(&entry.data_bytes.into()) {
            let (found, expected) = (entry.data_bytes.into(), most.into());
            return Err(SnapshotError::Mismatch { part: PART, field: "data length", found, expected });
        }
        if entry.is_zero() && entry.hash != 0 {
            let (field, found) = ("hash of a zero page", entry.hash);
            return Err(SnapshotError::Mismatch { part: PART, field, found, expected: 0 });
        }
        Ok(entry)
    }
}

/// A block that has these entries, at most 340.
pub(super) fn encode_block(region: u32, block: u64, entries: &[PageEntry]) -> Block {
    let mut out = Vec::with_capacity(BLOCK_BYTES);
    out.extend_from_slice(&[0; CRC_BYTES]);
    out.extend_from_slice(&region.to_le_bytes());
    out.extend_from_slice(&block.to_le_bytes());
    entries.iter().for_each(|entry| entry.put(&mut out));
    out.resize(BLOCK_BYTES, 0);
    let crc = crc32fast::hash(out.get(CRC_BYTES..).unwrap_or_default());
    out.splice(..CRC_BYTES, crc.to_le_bytes());
    out.try_into().unwrap_or([0; BLOCK_BYTES])
}

/// Appends the first `pages` entries of a block to `out`. The rest of it must be zero.
pub(super) fn decode_block(
    bytes: &Block,
    (region, block): (usize, u64),
    pages: u64,
    out: &mut Vec<PageEntry>,
) -> Result<(), SnapshotError> {
    let mut cursor = Cursor(bytes);
    let (found, computed) = (cursor.u32(), crc32fast::hash(cursor.0));
    if found != computed {
        return Err(SnapshotError::Checksum { part: PART, found, computed });
    }
    let place = [("region", cursor.u32().into(), region as u64), ("block", cursor.u64(), block)];
    for (field, found, expected) in place {
        if found != expected {
            return Err(SnapshotError::Mismatch { part: PART, field, found, expected });
        }
    }
    let entries = cursor.0.as_chunks::<ENTRY_BYTES>().0;
    for (number, entry) in (0u64..).zip(entries) {
        let entry = PageEntry::get(entry)?;
        if number < pages {
            out.push(entry);
        } else if entry != PageEntry::default() {
            let (field, found) = ("entry behind the region's end", number);
            return Err(SnapshotError::Limit { part: PART, field, found, max: pages.saturating_sub(1) });
        }
    }
    Ok(())
}
