//! Page records: what stands in front of the data of a batch of pages.
//!
//! ```text
//! page u64 | region u16 | encoding u8 | reserved u8 = 0 | data length u32        16 bytes, little endian
//! ```
//!
//! A record says all about its page, so any encoding may travel on any channel and in any phase.

use super::encode::{Encoding, EncodingInfo};
use crate::channel::span::OutSpan;
use crate::error::ProtocolError;

/// Bytes of one record.
pub(crate) const RECORD_BYTES: usize = 16;
/// Most pages of one batch.
pub(crate) const BATCH_PAGES_MAX: usize = 256;

const FRAME: &str = "pages";

/// One page of a batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct PageRecord {
    pub(crate) region: u16,
    pub(crate) page: u64,
    pub(crate) encoding: Encoding,
    pub(crate) data_bytes: u32,
}

/// Pages on their way: what each is, and the data of those that have some.
#[derive(Debug)]
pub(crate) struct Batch<'b> {
    /// Rising by region and page.
    pub(crate) records: &'b [PageRecord],
    /// The data of all of them in their order; neighbours are joined.
    pub(crate) data: Vec<OutSpan<'b>>,
    pub(crate) data_bytes: usize,
}

impl PageRecord {
    pub(crate) fn put(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(&self.page.to_le_bytes());
        out.extend_from_slice(&self.region.to_le_bytes());
        out.extend_from_slice(&[self.encoding as u8, 0]);
        out.extend_from_slice(&self.data_bytes.to_le_bytes());
    }

    /// Reads a record. Region and page are not compared with any memory here.
    pub(crate) fn get(bytes: &[u8; RECORD_BYTES]) -> Result<Self, ProtocolError> {
        let [p0, p1, p2, p3, p4, p5, p6, p7, r0, r1, encoding, reserved, d0, d1, d2, d3] = *bytes;
        let limit = |field, found, max| ProtocolError::Limit { frame: FRAME, field, found, max };
        if reserved != 0 {
            return Err(limit("reserved byte", reserved.into(), 0));
        }
        let data_bytes = u32::from_le_bytes([d0, d1, d2, d3]);
        let info = Encoding::from_number(encoding);
        let Some(EncodingInfo { encoding, data_bytes: (least, most), .. }) = info else {
            let max = super::encode::ENCODINGS.len() as u64 - 1;
            return Err(limit("encoding", encoding.into(), max));
        };
        if !(*least..=*most).contains(&data_bytes) {
            let (found, expected) = (data_bytes.into(), (*most).into());
            return Err(ProtocolError::Mismatch { frame: FRAME, field: "data length", found, expected });
        }
        let page = u64::from_le_bytes([p0, p1, p2, p3, p4, p5, p6, p7]);
        Ok(Self { region: u16::from_le_bytes([r0, r1]), page, encoding: *encoding, data_bytes })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn records_come_back(region: u16, page: u64, raw: bool) {
            let (encoding, data_bytes) = if raw { (Encoding::Raw, 4096) } else { (Encoding::Zero, 0) };
            let record = PageRecord { region, page, encoding, data_bytes };
            let mut bytes = Vec::new();
            record.put(&mut bytes);
            prop_assert_eq!(PageRecord::get(bytes.as_slice().try_into().unwrap()).unwrap(), record);
        }

        #[test]
        fn any_bytes_are_a_record_or_an_error(bytes: [u8; RECORD_BYTES]) {
            if let Ok(record) = PageRecord::get(&bytes) {
                let mut again = Vec::new();
                record.put(&mut again);
                prop_assert_eq!(&again, &bytes);
            }
        }
    }
}
