//! The encodings that a page may have on the wire, in one table. A new one is a file and a row.

use crate::vm::PAGE_BYTES;

/// How the content of a page is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Encoding {
    /// All bytes are zero; no data follows.
    Zero = 0,
    /// The page as it is.
    Raw = 1,
}

/// One row of the table.
#[derive(Debug)]
pub(crate) struct EncodingInfo {
    pub(crate) encoding: Encoding,
    /// For people.
    pub(crate) name: &'static str,
    /// Least and most bytes of data that a page may have.
    pub(crate) data_bytes: (u32, u32),
}

/// All encodings; the number on the wire is the position.
pub(crate) const ENCODINGS: &[EncodingInfo] = &[
    EncodingInfo { encoding: Encoding::Zero, name: "zero", data_bytes: (0, 0) },
    EncodingInfo { encoding: Encoding::Raw, name: "raw", data_bytes: (PAGE_BYTES as u32, PAGE_BYTES as u32) },
];

/// Bit n is encoding n: what this build offers.
pub(crate) const ENCODINGS_MASK: u64 = (1 << ENCODINGS.len()) - 1;

/// Names of the encodings in a set.
pub(crate) fn encoding_names(mask: u64) -> Vec<&'static str> {
    ENCODINGS.iter().filter(|row| mask & (1 << row.encoding as u8) != 0).map(|row| row.name).collect()
}

impl Encoding {
    /// The row of this number.
    pub(crate) fn from_number(number: u8) -> Option<&'static EncodingInfo> {
        ENCODINGS.get(usize::from(number))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_number_on_the_wire_is_the_position() {
        for (position, row) in ENCODINGS.iter().enumerate() {
            assert_eq!(row.encoding as usize, position);
        }
    }
}
