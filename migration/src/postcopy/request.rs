//! Questions for pages that somebody waits for.
//!
//! ```text
//! page u64 | region u16 | reserved u16 = 0 | pages u32        1 to 256 of them, 256 pages together
//! ```

use crate::dirty::DirtyBitmap;
use crate::error::ProtocolError;
use crate::ram::BATCH_PAGES_MAX;

const FRAME: &str = "request";
const ENTRY_BYTES: usize = 16;

/// Appends the question for a page.
pub(crate) fn fill(region: usize, page: u64, out: &mut Vec<u8>) {
    // An offer has at most 1024 regions.
    let Ok(region) = u16::try_from(region) else { return };
    out.extend_from_slice(&page.to_le_bytes());
    out.extend_from_slice(&region.to_le_bytes());
    out.extend_from_slice(&[0; 2]);
    out.extend_from_slice(&1u32.to_le_bytes());
}

/// The pages that are asked for, all of which are in `missing`.
pub(crate) fn read(payload: &[u8], missing: &DirtyBitmap) -> Result<Vec<(u16, u64)>, ProtocolError> {
    let limit = |field, found, max| ProtocolError::Limit { frame: FRAME, field, found, max };
    let (entries, rest) = payload.as_chunks::<ENTRY_BYTES>();
    if entries.is_empty() || !rest.is_empty() {
        let (field, found, expected) = ("length", payload.len() as u64, ENTRY_BYTES as u64);
        return Err(ProtocolError::Mismatch { frame: FRAME, field, found, expected });
    }
    let mut pages = Vec::with_capacity(entries.len());
    for entry in entries {
        let [p0, p1, p2, p3, p4, p5, p6, p7, r0, r1, z0, z1, n0, n1, n2, n3] = *entry;
        let page = u64::from_le_bytes([p0, p1, p2, p3, p4, p5, p6, p7]);
        let (region, count) = (u16::from_le_bytes([r0, r1]), u32::from_le_bytes([n0, n1, n2, n3]));
        let all = pages.len() as u64 + u64::from(count);
        if count == 0 || all > BATCH_PAGES_MAX as u64 || [z0, z1] != [0; 2] {
            return Err(limit("pages", all, BATCH_PAGES_MAX as u64));
        }
        let end = page.checked_add(count.into()).filter(|end| *end <= missing.pages(region.into()));
        let Some(end) = end else {
            return Err(limit("page", page, missing.pages(region.into()).saturating_sub(1)));
        };
        for page in page..end {
            if !missing.get(region.into(), page) {
                return Err(ProtocolError::NotMissing { frame: FRAME, region, page });
            }
            pages.push((region, page));
        }
    }
    Ok(pages)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn missing() -> DirtyBitmap {
        let mut missing = DirtyBitmap::new([70, 200]);
        missing.set_all();
        let mut there = DirtyBitmap::new([70, 200]);
        there.set(1, 5);
        missing.remove(&there);
        missing
    }

    #[test]
    fn a_question_is_for_pages_that_are_missing() {
        let mut out = Vec::new();
        [(0, 69), (1, 4), (1, 199)].into_iter().for_each(|(region, page)| fill(region, page, &mut out));
        assert_eq!(read(&out, &missing()).unwrap(), [(0, 69), (1, 4), (1, 199)]);
        for (region, page, why) in
            [(0, 70, "page is"), (1, 5, "not missing"), (2, 0, "page is"), (1, u64::MAX, "page is")]
        {
            let mut out = Vec::new();
            fill(region, page, &mut out);
            let text = read(&out, &missing()).unwrap_err().to_string();
            assert!(text.contains(why), "{text}");
        }
        let mut many = Vec::new();
        (0..200).filter(|page| *page != 5).for_each(|page| fill(1, page, &mut many));
        (0..70).for_each(|page| fill(0, page, &mut many));
        let text = read(&many, &missing()).unwrap_err().to_string();
        assert!(text.contains("257"), "{text}");
    }

    proptest! {
        #[test]
        fn any_bytes_ask_for_missing_pages_or_for_none(bytes in prop::collection::vec(0u8..6, 0..100)) {
            let missing = missing();
            for (region, page) in read(&bytes, &missing).unwrap_or_default() {
                prop_assert!(missing.get(region.into(), page));
            }
        }
    }
}
