//! Deltas of pages: only the bytes that differ from the content that was sent before.
//!
//! ```text
//! delta = (equal run, changed run, the changed run's bytes as they are now) ...
//! ```
//!
//! A run is a count of bytes as an unsigned LEB128 number of at most two bytes. Only the first equal run may be 0, a
//! changed run never is, and equal bytes at the page's end are left out. It is the form that QEMU has under
//! the same name (its `docs/migration/xbzrle.rst`); encoder and decoder are our own.

mod mask;

use std::ops::Range;

use self::mask::Masks;
use super::proof::PageBytes;
use crate::vm::PAGE_BYTES;

const PAGE: usize = PAGE_BYTES as usize;

/// An equal run of up to so many bytes goes with the changed bytes around it: it costs no more than the two
/// numbers that would set it apart.
const GAP_BYTES: usize = 2;

/// What became of a page.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Encoded {
    /// Both contents are the same: there is nothing to send.
    Same,
    /// The delta is in the first so many bytes.
    Bytes(usize),
    /// It would be longer than the room for it.
    Overflow,
}

/// Why bytes are no delta.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum DeltaError {
    #[error("a delta is empty: a page that has not changed is not sent")]
    Empty,
    #[error("a delta ends at byte {length} in the middle of a run")]
    Short { length: usize },
    #[error("a delta has a number at byte {at} that is longer than two bytes or than it needs to be")]
    Number { at: usize },
    #[error("a delta has an empty run at byte {at}")]
    EmptyRun { at: usize },
    #[error("a delta goes to byte {end} of a page of {PAGE} bytes")]
    Outside { end: usize },
}

/// Writes what has changed from `old` to `new` into `out`, as long as it has room.
pub(crate) fn encode(old: &PageBytes, new: &PageBytes, out: &mut [u8]) -> Encoded {
    encode_runs(&mask::differing(old, new), new, out)
}

fn encode_runs(masks: &Masks, new: &PageBytes, out: &mut [u8]) -> Encoded {
    let changed: u32 = masks.iter().map(|mask| mask.count_ones()).sum();
    if changed == 0 {
        return Encoded::Same;
    }
    if changed as usize > out.len() {
        return Encoded::Overflow;
    }
    let mut writer = Writer { out, length: 0 };
    let mut end = 0;
    for run in Runs::new(masks) {
        let written = writer.number(run.start - end).and_then(|()| writer.number(run.len()));
        end = run.end;
        if written.and_then(|()| writer.bytes(new.get(run)?)).is_none() {
            return Encoded::Overflow;
        }
    }
    Encoded::Bytes(writer.length)
}

/// Makes the old content in `page` the new one. After an error the page is neither.
pub(crate) fn decode(delta: &[u8], page: &mut PageBytes) -> Result<(), DeltaError> {
    if delta.is_empty() {
        return Err(DeltaError::Empty);
    }
    let mut reader = Reader { delta, at: 0 };
    let mut end = 0;
    while reader.at < delta.len() {
        let equal_at = reader.at;
        let equal = reader.number()?;
        let changed_at = reader.at;
        let changed = reader.number()?;
        if equal == 0 && equal_at > 0 {
            return Err(DeltaError::EmptyRun { at: equal_at });
        }
        if changed == 0 {
            return Err(DeltaError::EmptyRun { at: changed_at });
        }
        // All three are less than 2^14.
        let start = end + equal;
        end = start + changed;
        let place = page.get_mut(start..end).ok_or(DeltaError::Outside { end })?;
        place.copy_from_slice(reader.bytes(changed)?);
    }
    Ok(())
}

/// The changed runs of a page, with the short gaps filled.
struct Runs<'m> {
    masks: &'m Masks,
    /// Where the next one begins, or the page's end.
    start: usize,
}

impl<'m> Runs<'m> {
    fn new(masks: &'m Masks) -> Self {
        Self { masks, start: find(masks, 0, 0) }
    }
}

impl Iterator for Runs<'_> {
    type Item = Range<usize>;

    fn next(&mut self) -> Option<Range<usize>> {
        if self.start == PAGE {
            return None;
        }
        let start = self.start;
        loop {
            let end = find(self.masks, self.start, u64::MAX);
            self.start = find(self.masks, end, 0);
            if self.start == PAGE || self.start - end > GAP_BYTES {
                return Some(start..end);
            }
        }
    }
}

/// The first byte from `from` on whose bit is set; with `flip` of all ones, the first whose bit is clear. Else the
/// page's end.
fn find(masks: &Masks, from: usize, flip: u64) -> usize {
    let first = from / 64;
    // Bits below `from` don't count.
    let mut keep = u64::MAX << (from % 64);
    for (index, mask) in masks.iter().enumerate().skip(first) {
        let found = (mask ^ flip) & keep;
        if found != 0 {
            return index * 64 + found.trailing_zeros() as usize;
        }
        keep = u64::MAX;
    }
    PAGE
}

struct Writer<'o> {
    out: &'o mut [u8],
    length: usize,
}

impl Writer<'_> {
    /// `None` if there is no room.
    fn bytes(&mut self, bytes: &[u8]) -> Option<()> {
        let end = self.length + bytes.len();
        self.out.get_mut(self.length..end)?.copy_from_slice(bytes);
        self.length = end;
        Some(())
    }

    /// A number up to [`PAGE`].
    fn number(&mut self, number: usize) -> Option<()> {
        match number {
            0..0x80 => self.bytes(&[number as u8]),
            _ => self.bytes(&[number as u8 | 0x80, (number >> 7) as u8]),
        }
    }
}

struct Reader<'d> {
    delta: &'d [u8],
    at: usize,
}

impl<'d> Reader<'d> {
    fn bytes(&mut self, count: usize) -> Result<&'d [u8], DeltaError> {
        let end = self.at.saturating_add(count);
        let bytes = self.delta.get(self.at..end).ok_or(DeltaError::Short { length: self.delta.len() })?;
        self.at = end;
        Ok(bytes)
    }

    fn byte(&mut self) -> Result<usize, DeltaError> {
        Ok(self.bytes(1)?.iter().map(|byte| usize::from(*byte)).sum())
    }

    fn number(&mut self) -> Result<usize, DeltaError> {
        let at = self.at;
        let low = self.byte()?;
        if low < 0x80 {
            return Ok(low);
        }
        match self.byte()? {
            0 | 0x80.. => Err(DeltaError::Number { at }),
            high => Ok(low & 0x7f | high << 7),
        }
    }
}

#[cfg(test)]
mod tests;
