//! What can be said of a snapshot, part by part: of a whole file, and of one that is damaged, unfinished or cut short.

use tern_schema::{Record, decode_record};

use super::slot::encodings_in_files;
use super::{Description, Head, Index, Layout, ReadAt, SnapshotError, source};
use crate::vm::PAGE_BYTES;

/// Longest state: as on a connection.
pub(super) const STATE_MAX_BYTES: u64 = 64 << 20;

/// The parts of a file but for its pages. A part is `None` where the part that leads to it can't be read.
#[derive(Debug)]
pub struct Outline {
    /// Length of the file as it is.
    pub found_bytes: u64,
    /// The first bytes.
    pub head: Result<Head, SnapshotError>,
    /// Has it the length that it should have?
    pub length: Option<Result<(), SnapshotError>>,
    /// What was known at the start.
    pub description: Option<Result<Description, SnapshotError>>,
    /// Where all is.
    pub layout: Option<Result<Layout, SnapshotError>>,
    /// What was known at the end.
    pub index: Option<Result<Index, SnapshotError>>,
    /// Bytes of the machine's state: of a file that has no index, all that begins where a state should.
    pub state: Option<Result<Vec<u8>, SnapshotError>>,
}

impl Outline {
    /// Reads all parts that can be read. Neither pages nor their tables are looked at.
    pub fn read(from: &impl ReadAt) -> Self {
        let found = from.length();
        let head = match found {
            Ok(_) => Head::read(from),
            Err(source) => Err(SnapshotError::Read { part: "length", offset: 0, bytes: 0, source }),
        };
        let found_bytes = from.length().unwrap_or(0);
        let known = head.as_ref().ok();
        let length = known.map(|head| check_length(head, found_bytes));
        let description = known.map(|head| read_description(from, head));
        let described = description.as_ref().and_then(|read| read.as_ref().ok());
        let layout = described.map(|description| Layout::of(&description.facts.memory));
        let places = layout.as_ref().and_then(|layout| layout.as_ref().ok());
        let index = places.and_then(|layout| Some(read_index(from, known?, layout)));
        let end = index.as_ref().and_then(|read| read.as_ref().ok());
        let state = places.and_then(|layout| read_state(from, layout, end, found_bytes));
        Self { found_bytes, head, length, description, layout, index, state }
    }

    /// The parts of a whole file, or the first thing that is wrong with it.
    pub fn whole(self) -> Result<(Description, Layout, Index, Vec<u8>), SnapshotError> {
        let head = self.head?;
        // A part is missing only if one before it is wrong.
        let missing = || SnapshotError::Unfinished;
        head.index.ok_or_else(missing)?;
        self.length.ok_or_else(missing)??;
        let description = self.description.ok_or_else(missing)??;
        let layout = self.layout.ok_or_else(missing)??;
        let index = self.index.ok_or_else(missing)??;
        let state = self.state.ok_or_else(missing)??;
        Ok((description, layout, index, state))
    }
}

fn check_length(head: &Head, found: u64) -> Result<(), SnapshotError> {
    let expected = head.file_bytes;
    if head.index.is_none() {
        return Err(SnapshotError::Unfinished);
    }
    match found.cmp(&expected) {
        std::cmp::Ordering::Less => Err(SnapshotError::Truncated { part: "content", expected, found }),
        std::cmp::Ordering::Equal => Ok(()),
        std::cmp::Ordering::Greater => Err(SnapshotError::TooLong { expected, found }),
    }
}

fn decode<R: Record>(part: &'static str, bytes: &[u8]) -> Result<R, SnapshotError> {
    decode_record(bytes).map_err(|source| SnapshotError::Record { part, source })
}

fn equal(part: &'static str, field: &'static str, found: u64, expected: u64) -> Result<(), SnapshotError> {
    if found == expected { Ok(()) } else { Err(SnapshotError::Mismatch { part, field, found, expected }) }
}

fn read_description(from: &impl ReadAt, head: &Head) -> Result<Description, SnapshotError> {
    const PART: &str = "description";
    let description: Description = decode(PART, &head.description.read(from, PART)?)?;
    equal(PART, "page size", description.page_bytes.into(), PAGE_BYTES)?;
    Ok(description)
}

fn read_index(from: &impl ReadAt, head: &Head, layout: &Layout) -> Result<Index, SnapshotError> {
    const PART: &str = "index";
    let place = head.index.ok_or(SnapshotError::Unfinished)?;
    let index: Index = decode(PART, &place.read(from, PART)?)?;
    let state_bytes = u64::from(index.state_bytes);
    if state_bytes > STATE_MAX_BYTES {
        let (field, found) = ("state's length", state_bytes);
        return Err(SnapshotError::Limit { part: PART, field, found, max: STATE_MAX_BYTES });
    }
    let unknown = index.encodings & !encodings_in_files();
    if unknown != 0 {
        let (field, found) = ("newest encoding", u64::from(63 - unknown.leading_zeros()));
        let max = u64::from(63 - encodings_in_files().leading_zeros());
        return Err(SnapshotError::Limit { part: PART, field, found, max });
    }
    equal(PART, "offset", place.offset, layout.state_offset.saturating_add(state_bytes))?;
    equal(PART, "end of the file", head.file_bytes, place.offset.saturating_add(place.bytes.into()))?;
    Ok(index)
}

fn read_state(
    from: &impl ReadAt,
    layout: &Layout,
    index: Option<&Index>,
    found_bytes: u64,
) -> Option<Result<Vec<u8>, SnapshotError>> {
    const PART: &str = "machine's state";
    let Some(index) = index else {
        let left = found_bytes.checked_sub(layout.state_offset).filter(|left| *left > 0)?;
        return Some(source::read_vec(from, PART, layout.state_offset, left.min(STATE_MAX_BYTES)));
    };
    let bytes = source::read_vec(from, PART, layout.state_offset, index.state_bytes.into());
    Some(bytes.and_then(|bytes| {
        let (found, computed) = (index.state_hash, crate::ram::proof::state_hash(&bytes));
        if found == computed { Ok(bytes) } else { Err(SnapshotError::Proof { part: PART, found, computed }) }
    }))
}
