//! The first 48 bytes: whose file it is, and where its description and its index are.
//!
//! ```text
//!  0 "TERNSNAP"                 8 u32 format version        12 u32 description: bytes
//! 16 u32 description: crc32    20 u32 index: bytes          24 u64 index: offset
//! 32 u64 bytes of the file     40 u32 index: crc32          44 u32 crc32 of bytes 0 to 43
//! ```
//!
//! It is written twice: at the start without an index, and once all else is in the file.

use super::cursor::Cursor;
use super::{SnapshotError, source};
use crate::snapshot::ReadAt;
use crate::vm::PAGE_BYTES;

/// The first eight bytes.
pub const MAGIC: [u8; 8] = *b"TERNSNAP";
/// The newest version that this build writes and reads: with compressed memory.
pub const FORMAT_VERSION: u32 = 2;
/// The oldest, in which each page is zero or raw. What has no compressed memory is still written so.
pub const FORMAT_VERSION_PLAIN: u32 = 1;
/// Where the description begins.
pub(super) const DESCRIPTION_OFFSET: u64 = PAGE_BYTES;
/// Longest description: it has to end before the first page.
pub(super) const DESCRIPTION_MAX_BYTES: u64 = 1 << 20;
/// Longest index.
pub(super) const INDEX_MAX_BYTES: u64 = 4096;

pub(super) const HEAD_BYTES: usize = 48;
const CRC_AT: usize = HEAD_BYTES - 4;
const PART: &str = "head";

/// Length and checksum of a part.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Extent {
    /// First byte.
    pub offset: u64,
    /// Length.
    pub bytes: u32,
    /// CRC-32 (IEEE) of the bytes.
    pub crc32: u32,
}

/// The head of a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Head {
    /// Version of the format.
    pub version: u32,
    /// What is known at the start.
    pub description: Extent,
    /// What is known at the end; none in an unfinished file.
    pub index: Option<Extent>,
    /// Length of the finished file.
    pub file_bytes: u64,
}

impl Extent {
    pub(super) fn of(offset: u64, bytes: &[u8]) -> Self {
        let length = u32::try_from(bytes.len()).unwrap_or(u32::MAX);
        Self { offset, bytes: length, crc32: crc32fast::hash(bytes) }
    }

    /// Reads the part, and compares its checksum.
    pub(super) fn read(&self, from: &impl ReadAt, part: &'static str) -> Result<Vec<u8>, SnapshotError> {
        let bytes = source::read_vec(from, part, self.offset, self.bytes.into())?;
        let (found, computed) = (self.crc32, crc32fast::hash(&bytes));
        if found == computed { Ok(bytes) } else { Err(SnapshotError::Checksum { part, found, computed }) }
    }
}

impl Head {
    pub(super) fn bytes(&self) -> [u8; HEAD_BYTES] {
        let index = self.index.unwrap_or_default();
        let mut out = Vec::with_capacity(HEAD_BYTES);
        out.extend_from_slice(&MAGIC);
        for word in [self.version, self.description.bytes, self.description.crc32, index.bytes] {
            out.extend_from_slice(&word.to_le_bytes());
        }
        out.extend_from_slice(&index.offset.to_le_bytes());
        out.extend_from_slice(&self.file_bytes.to_le_bytes());
        out.extend_from_slice(&index.crc32.to_le_bytes());
        out.extend_from_slice(&crc32fast::hash(&out).to_le_bytes());
        out.try_into().unwrap_or([0; HEAD_BYTES])
    }

    /// Reads the head: magic, version, checksum, limits.
    pub(super) fn read(from: &impl ReadAt) -> Result<Self, SnapshotError> {
        let mut bytes = [0; HEAD_BYTES];
        let whole = source::read_exact(from, PART, 0, &mut bytes);
        let mut cursor = Cursor(&bytes);
        let magic: [u8; 8] = cursor.take();
        // A short file of something else is something else first of all.
        if magic != MAGIC && (whole.is_ok() || !MAGIC.starts_with(trimmed(&magic))) {
            return Err(SnapshotError::Magic { first_bytes: format!("\"{}\"", magic.escape_ascii()) });
        }
        whole?;
        let version = cursor.u32();
        if !(FORMAT_VERSION_PLAIN..=FORMAT_VERSION).contains(&version) {
            return Err(SnapshotError::Version { found: version, known: FORMAT_VERSION });
        }
        let (description_bytes, description_crc, index_bytes) = (cursor.u32(), cursor.u32(), cursor.u32());
        let (index_offset, file_bytes) = (cursor.u64(), cursor.u64());
        let (index_crc, found) = (cursor.u32(), cursor.u32());
        let computed = crc32fast::hash(bytes.get(..CRC_AT).unwrap_or_default());
        if found != computed {
            return Err(SnapshotError::Checksum { part: PART, found, computed });
        }
        at_most("description's length", description_bytes.into(), DESCRIPTION_MAX_BYTES)?;
        at_most("index's length", index_bytes.into(), INDEX_MAX_BYTES)?;
        let description =
            Extent { offset: DESCRIPTION_OFFSET, bytes: description_bytes, crc32: description_crc };
        let index = Extent { offset: index_offset, bytes: index_bytes, crc32: index_crc };
        Ok(Self { version, description, index: (index_bytes != 0).then_some(index), file_bytes })
    }
}

fn at_most(field: &'static str, found: u64, max: u64) -> Result<(), SnapshotError> {
    if found <= max { Ok(()) } else { Err(SnapshotError::Limit { part: PART, field, found, max }) }
}

/// The bytes before the zeroes at the end.
fn trimmed(bytes: &[u8]) -> &[u8] {
    let end = bytes.iter().rposition(|byte| *byte != 0).map_or(0, |last| last + 1);
    bytes.get(..end).unwrap_or_default()
}
