//! The header in front of every frame, and the table of all frames.
//!
//! ```text
//! type u8 | flags u8 | reserved u16 = 0 | round u32 | number u32 | length u32 | covered u32 | crc32 u32
//! ```
//!
//! Little endian, 24 bytes. `length` bytes follow. The checksum (CRC-32, IEEE) is over the 20 bytes before
//! it and the first `covered` bytes behind it: all of a message; of a batch of pages the records alone,
//! since the guest writes its pages while they are sent.

use crate::error::ProtocolError;
use crate::ram::{BATCH_PAGES_MAX, RECORD_BYTES};
use crate::vm::PAGE_BYTES;

/// The first bytes of a connection, both ways.
pub(crate) const MAGIC: [u8; 8] = *b"TERN-MIG";
/// Bytes of a header.
pub(crate) const HEADER_BYTES: usize = 24;
/// Bytes of a header that the checksum covers.
const COVERED_BYTES: usize = 20;
/// Flag of a state frame: the guest was running when it was stopped.
pub(crate) const FLAG_RUNNING: u8 = 1;
/// Flag of a probe: the destination says what has come.
pub(crate) const FLAG_ANSWER: u8 = 1;

/// Flag of missing pages: the last of them.
pub(crate) const FLAG_LAST: u8 = 1;

/// What a frame holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum FrameType {
    Hello = 1,
    Offer = 2,
    Agreed = 3,
    Refused = 4,
    Pages = 5,
    RoundEnd = 6,
    State = 7,
    Prepared = 8,
    Commit = 9,
    Running = 10,
    Failed = 11,
    Answer = 12,
    Probe = 13,
    Echo = 14,
    Sync = 15,
    Settled = 16,
    Missing = 17,
    PageIn = 18,
    Request = 19,
    HaveAll = 20,
    Known = 21,
}

/// One row of the table.
#[derive(Debug)]
pub(crate) struct FrameInfo {
    pub(crate) frame: FrameType,
    pub(crate) name: &'static str,
    /// Most bytes behind the header.
    pub(crate) max_bytes: u64,
    /// Legal flags.
    pub(crate) flags: u8,
}

const PAGES_MAX_BYTES: u64 = BATCH_PAGES_MAX as u64 * (RECORD_BYTES as u64 + PAGE_BYTES);

const fn row(frame: FrameType, name: &'static str, max_bytes: u64, flags: u8) -> FrameInfo {
    FrameInfo { frame, name, max_bytes, flags }
}

/// All frames; row n is type n + 1.
pub(crate) const FRAMES: &[FrameInfo] = &[
    row(FrameType::Hello, "hello", 4096, 0),
    row(FrameType::Offer, "offer", 1 << 20, 0),
    row(FrameType::Agreed, "agreed", 64 << 10, 0),
    row(FrameType::Refused, "refused", 64 << 10, 0),
    row(FrameType::Pages, "pages", PAGES_MAX_BYTES, 0),
    row(FrameType::RoundEnd, "round-end", 4096, 0),
    row(FrameType::State, "state", 64 << 20, FLAG_RUNNING),
    row(FrameType::Prepared, "prepared", 4096, 0),
    row(FrameType::Commit, "commit", 4096, 0),
    row(FrameType::Running, "running", 4096, 0),
    row(FrameType::Failed, "failed", 64 << 10, 0),
    row(FrameType::Answer, "answer", 1 << 20, 0),
    row(FrameType::Probe, "probe", 1 << 20, FLAG_ANSWER),
    row(FrameType::Echo, "echo", 4096, 0),
    row(FrameType::Sync, "sync", 4096, 0),
    row(FrameType::Settled, "settled", 4096, 0),
    row(FrameType::Missing, "missing", 1 << 20, FLAG_LAST),
    row(FrameType::PageIn, "page-in", PAGES_MAX_BYTES + 16, 0),
    row(FrameType::Request, "request", 4096, 0),
    row(FrameType::HaveAll, "have-all", 4096, 0),
    row(FrameType::Known, "known", 1 << 20, 0),
];

impl FrameType {
    /// Its row.
    pub(crate) fn info(self) -> &'static FrameInfo {
        &FRAMES[self as usize - 1]
    }
}

/// A header.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Header {
    pub(crate) frame: FrameType,
    pub(crate) flags: u8,
    pub(crate) epoch: u32,
    pub(crate) sequence: u32,
    pub(crate) length: u32,
    pub(crate) head: u32,
    pub(crate) checksum: u32,
}

impl Header {
    /// Writes itself over the first bytes of `out`, with the checksum of all of `out`.
    pub(crate) fn seal(&self, out: &mut [u8]) {
        let mut bytes = [0; HEADER_BYTES];
        let numbers = [self.epoch, self.sequence, self.length, self.head];
        let fields = [self.frame as u8, self.flags, 0, 0];
        let parts = fields.into_iter().chain(numbers.into_iter().flat_map(u32::to_le_bytes));
        bytes.iter_mut().zip(parts).for_each(|(byte, part)| *byte = part);
        let Some((place, covered)) = out.split_first_chunk_mut::<HEADER_BYTES>() else { return };
        let checksum = checksum(&bytes, covered).to_le_bytes();
        bytes.iter_mut().skip(COVERED_BYTES).zip(checksum).for_each(|(byte, part)| *byte = part);
        *place = bytes;
    }

    /// Reads a header and compares it with the limits of its type.
    pub(crate) fn read(bytes: &[u8; HEADER_BYTES]) -> Result<Self, ProtocolError> {
        let [kind, flags, r0, r1, numbers @ ..] = bytes;
        let mut words = [0u32; 5];
        let chunks = numbers.as_chunks::<4>().0;
        words.iter_mut().zip(chunks).for_each(|(word, chunk)| *word = u32::from_le_bytes(*chunk));
        let [epoch, sequence, length, head, checksum] = words;
        let row = usize::from(*kind).checked_sub(1).and_then(|row| FRAMES.get(row));
        let info = row.ok_or(ProtocolError::UnknownFrame { found: *kind })?;
        let covered_max = match info.frame {
            FrameType::Pages => length.min((BATCH_PAGES_MAX * RECORD_BYTES) as u32),
            _ => length,
        };
        let limits = [
            ("length", u64::from(length), info.max_bytes),
            ("covered length", u64::from(head), u64::from(covered_max)),
            ("flags", u64::from(flags & !info.flags), 0),
            ("reserved", u64::from(u16::from_le_bytes([*r0, *r1])), 0),
        ];
        for (field, found, max) in limits {
            if found > max {
                return Err(ProtocolError::Limit { frame: info.name, field, found, max });
            }
        }
        if info.frame != FrameType::Pages && head != length {
            let (found, expected) = (head.into(), length.into());
            return Err(ProtocolError::Mismatch {
                frame: info.name,
                field: "covered length",
                found,
                expected,
            });
        }
        Ok(Self { frame: info.frame, flags: *flags, epoch, sequence, length, head, checksum })
    }

    /// Compares the checksum.
    pub(crate) fn check(&self, header: &[u8; HEADER_BYTES], covered: &[u8]) -> Result<(), ProtocolError> {
        let computed = checksum(header, covered);
        if computed != self.checksum {
            let (frame, found) = (self.frame.info().name, self.checksum);
            return Err(ProtocolError::Checksum { frame, found, computed });
        }
        Ok(())
    }
}

fn checksum(header: &[u8; HEADER_BYTES], covered: &[u8]) -> u32 {
    let mut crc = crc32fast::Hasher::new();
    crc.update(header.get(..COVERED_BYTES).unwrap_or_default());
    crc.update(covered);
    crc.finalize()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn the_table_is_in_the_order_of_the_numbers() {
        for (row, info) in FRAMES.iter().enumerate() {
            assert_eq!((info.frame as usize, info.frame.info().name), (row + 1, info.name));
        }
    }

    #[test]
    fn the_documented_table_is_the_code() {
        let document = include_str!("../../PROTOCOL.md");
        for (row, info) in FRAMES.iter().enumerate() {
            let FrameInfo { name, max_bytes, flags, .. } = info;
            let from = |side: &str| format!("| {} | {name} | {side} | {max_bytes} | ", row + 1);
            let line = ["source", "destination", "both"].map(from);
            let line = line.iter().find_map(|start| document.lines().find(|line| line.starts_with(start)));
            let line = line.unwrap_or_else(|| panic!("no line for {name}"));
            assert_eq!(line.contains("none"), *flags == 0, "{line}");
        }
        assert_eq!(document.lines().filter(|l| l.contains("| both |")).count(), 3);
    }

    fn sealed(epoch: u32, sequence: u32, payload: &[u8]) -> Vec<u8> {
        let length = payload.len() as u32;
        let frame = FrameType::Hello;
        let header = Header { frame, flags: 0, epoch, sequence, length, head: length, checksum: 0 };
        let mut bytes = vec![0; HEADER_BYTES];
        bytes.extend_from_slice(payload);
        header.seal(&mut bytes);
        bytes
    }

    fn read(bytes: &[u8]) -> Result<Header, ProtocolError> {
        let (header, payload) = bytes.split_first_chunk().unwrap();
        let read = Header::read(header)?;
        read.check(header, payload).map(|()| read)
    }

    proptest! {
        #[test]
        fn headers_come_back(epoch: u32, sequence: u32, payload: Vec<u8>) {
            let header = read(&sealed(epoch, sequence, &payload)).unwrap();
            prop_assert_eq!((header.epoch, header.sequence), (epoch, sequence));
            prop_assert_eq!(header.length as usize, payload.len());
        }

        #[test]
        fn any_flipped_bit_is_found(payload: Vec<u8>, bit: usize) {
            let mut bytes = sealed(3, 4, &payload);
            let bit = bit % (bytes.len() * 8);
            bytes[bit / 8] ^= 1 << (bit % 8);
            prop_assert!(read(&bytes).is_err());
        }

        #[test]
        fn any_bytes_are_a_header_within_the_limits_or_an_error(bytes: [u8; HEADER_BYTES]) {
            if let Ok(header) = Header::read(&bytes) {
                prop_assert!(u64::from(header.length) <= header.frame.info().max_bytes);
                prop_assert!(header.head <= header.length);
            }
        }
    }
}
