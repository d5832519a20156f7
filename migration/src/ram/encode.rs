//! The encodings that a page may have on the wire, in one table. A new one is a file and a row.

use super::compress::GROUP_BYTES_MAX;
use super::known::DIGEST_BYTES;
use crate::vm::PAGE_BYTES;

/// How the content of a page is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Encoding {
    /// All bytes are zero; no data follows.
    Zero = 0,
    /// The page as it is.
    Raw = 1,
    /// What has changed since a round in which it was sent.
    Xbzrle = 2,
    /// Compressed, with others.
    Lz4 = 3,
    /// Compressed, with others.
    Zstd = 4,
    /// Compressed, with others.
    Zlib = 5,
    /// The hash of a page that the destination has in a file.
    Known = 6,
}

/// One row of the table.
#[derive(Debug)]
pub(crate) struct EncodingInfo {
    pub(crate) encoding: Encoding,
    /// For people.
    pub(crate) name: &'static str,
    /// Least and most bytes of data that a record may have.
    pub(crate) data_bytes: (u32, u32),
    /// The data of a record may be that of several pages: of the records of this encoding that follow it and have none.
    pub(crate) groups: bool,
}

const fn row(encoding: Encoding, name: &'static str, data_bytes: (u32, u32)) -> EncodingInfo {
    EncodingInfo { encoding, name, data_bytes, groups: false }
}

const fn groups(encoding: Encoding, name: &'static str) -> EncodingInfo {
    EncodingInfo { encoding, name, data_bytes: (0, GROUP_BYTES_MAX as u32), groups: true }
}

const PAGE: u32 = PAGE_BYTES as u32;
/// The round of the base, in front of a delta.
pub(crate) const BASE_BYTES: usize = 4;

/// All encodings; the number on the wire is the position.
pub(crate) const ENCODINGS: &[EncodingInfo] = &[
    row(Encoding::Zero, "zero", (0, 0)),
    row(Encoding::Raw, "raw", (PAGE, PAGE)),
    row(Encoding::Xbzrle, "xbzrle", (BASE_BYTES as u32, PAGE)),
    groups(Encoding::Lz4, "lz4"),
    groups(Encoding::Zstd, "zstd"),
    groups(Encoding::Zlib, "zlib"),
    row(Encoding::Known, "known", (DIGEST_BYTES as u32, DIGEST_BYTES as u32)),
];

/// Bit n is encoding n: what this build can read and write.
pub(crate) const ENCODINGS_MASK: u64 = (1 << ENCODINGS.len()) - 1;
/// Those that no migration does without.
pub(crate) const ENCODINGS_PLAIN: u64 = Encoding::Zero.bit() | Encoding::Raw.bit();

/// Names of the encodings in a set.
pub(crate) fn encoding_names(mask: u64) -> Vec<&'static str> {
    ENCODINGS.iter().filter(|row| mask & row.encoding.bit() != 0).map(|row| row.name).collect()
}

impl Encoding {
    /// The row of this number.
    pub(crate) fn from_number(number: u8) -> Option<&'static EncodingInfo> {
        ENCODINGS.get(usize::from(number))
    }

    /// Its bit in a set.
    pub(crate) const fn bit(self) -> u64 {
        1 << self as u8
    }

    /// Its row.
    pub(crate) fn info(self) -> &'static EncodingInfo {
        &ENCODINGS[self as usize]
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ram::compress::METHODS;

    #[test]
    fn the_number_on_the_wire_is_the_position() {
        for (position, row) in ENCODINGS.iter().enumerate() {
            assert_eq!(row.encoding as usize, position);
        }
    }

    #[test]
    fn every_method_of_compression_is_an_encoding_with_groups() {
        let methods: Vec<_> = METHODS.iter().map(|method| (method.encoding, method.name)).collect();
        let rows = ENCODINGS.iter().filter(|row| row.groups);
        assert_eq!(methods, rows.map(|row| (row.encoding as u8, row.name)).collect::<Vec<_>>());
    }

    #[test]
    fn the_documented_table_is_the_code() {
        let document = include_str!("../../PROTOCOL.md");
        for row in ENCODINGS {
            let start = format!(
                "| {} | {} | {} to {} |",
                row.encoding as u8, row.name, row.data_bytes.0, row.data_bytes.1
            );
            assert!(document.lines().any(|line| line.starts_with(&start)), "no line {start}");
        }
    }
}
