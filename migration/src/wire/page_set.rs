//! A set of pages on the wire: `missing`, from the source at the switch to post-copy and from the destination when a
//! broken connection is taken up again.
//!
//! ```text
//! stretch: first page u64 (a multiple of 64) | region u16 | reserved u16 = 0 | words u32, then so many u64
//! ```
//!
//! Bit n of a word is page 64 k + n. Stretches rise by region and page, over all frames of a set; the last frame has a flag.

use super::FrameType;
use crate::dirty::DirtyBitmap;
use crate::error::ProtocolError;

const WORD_PAGES: u64 = u64::BITS as u64;
const STRETCH_BYTES: usize = 16;
const WORD_BYTES: usize = size_of::<u64>();
/// So many empty words cost as much as a new stretch.
const GAP_WORDS: usize = STRETCH_BYTES / WORD_BYTES;

/// A set as the payloads of frames, at least one.
pub(crate) fn encode(set: &DirtyBitmap) -> Vec<Vec<u8>> {
    let most = FrameType::Missing.info().max_bytes as usize;
    let mut frames = vec![Vec::new()];
    for region in 0..set.regions() {
        let words = set.words(region);
        let mut at = 0;
        while let Some(start) = set.next_dirty_group(region, at) {
            let used = frames.last().map_or(0, Vec::len);
            let room = most.saturating_sub(used + STRETCH_BYTES) / WORD_BYTES;
            if room == 0 {
                frames.push(Vec::new());
                continue;
            }
            let stretch = stretch(words.get(start..).unwrap_or_default(), room);
            at = start + stretch.len();
            if let (Some(out), Ok(region)) = (frames.last_mut(), u16::try_from(region)) {
                out.extend_from_slice(&(start as u64 * WORD_PAGES).to_le_bytes());
                out.extend_from_slice(&region.to_le_bytes());
                out.extend_from_slice(&[0; 2]);
                out.extend_from_slice(&(stretch.len() as u32).to_le_bytes());
                stretch.iter().for_each(|word| out.extend_from_slice(&word.to_le_bytes()));
            }
        }
    }
    frames
}

/// The words up to a gap, at most `most`; the first one isn't empty.
fn stretch(words: &[u64], most: usize) -> &[u64] {
    let words = words.get(..most).unwrap_or(words);
    let gap = words.windows(GAP_WORDS).position(|window| window.iter().all(|word| *word == 0));
    words.get(..gap.unwrap_or(words.len())).unwrap_or_default()
}

/// Reads the frames of a set.
#[derive(Debug)]
pub(crate) struct PageSetReader {
    set: DirtyBitmap,
    /// No stretch may begin before this.
    next: (u16, u64),
}

impl PageSetReader {
    /// For memory with so many pages in each region.
    pub(crate) fn new(region_pages: impl IntoIterator<Item = u64>) -> Self {
        Self { set: DirtyBitmap::new(region_pages), next: (0, 0) }
    }

    /// The next frame's payload.
    pub(crate) fn read(&mut self, mut bytes: &[u8]) -> Result<(), ProtocolError> {
        while let Some((head, rest)) = bytes.split_first_chunk::<STRETCH_BYTES>() {
            let [p0, p1, p2, p3, p4, p5, p6, p7, r0, r1, z0, z1, w0, w1, w2, w3] = *head;
            let page = u64::from_le_bytes([p0, p1, p2, p3, p4, p5, p6, p7]);
            let (region, reserved) = (u16::from_le_bytes([r0, r1]), u16::from_le_bytes([z0, z1]));
            let words = u32::from_le_bytes([w0, w1, w2, w3]);
            let length = words as usize * WORD_BYTES;
            let Some((words, rest)) = rest.split_at_checked(length).filter(|_| words > 0) else {
                return Err(limit("words", words.into(), (rest.len() / WORD_BYTES) as u64));
            };
            if reserved != 0 {
                return Err(limit("reserved", reserved.into(), 0));
            }
            self.add(region, page, words.as_chunks::<WORD_BYTES>().0)?;
            bytes = rest;
        }
        if bytes.is_empty() {
            return Ok(());
        }
        Err(limit("bytes behind the last stretch", bytes.len() as u64, 0))
    }

    fn add(&mut self, region: u16, page: u64, words: &[[u8; WORD_BYTES]]) -> Result<(), ProtocolError> {
        let pages = self.set.pages(region.into());
        if !page.is_multiple_of(WORD_PAGES) || (region, page) < self.next {
            return Err(limit("page order", page, pages));
        }
        let last = words.last().map_or(0, |word| u64::from_le_bytes(*word));
        let before_last = page.saturating_add((words.len() as u64).saturating_sub(1) * WORD_PAGES);
        let end = before_last.saturating_add(u64::from(u64::BITS - last.leading_zeros()));
        if before_last >= pages || end > pages {
            return Err(limit("page", end.max(before_last), pages.saturating_sub(1)));
        }
        let words: Vec<u64> = words.iter().map(|word| u64::from_le_bytes(*word)).collect();
        self.set.add_words_from(region.into(), (page / WORD_PAGES) as usize, &words);
        self.next = (region, before_last.saturating_add(WORD_PAGES));
        Ok(())
    }

    /// All of it.
    pub(crate) fn finish(self) -> DirtyBitmap {
        self.set
    }
}

fn limit(field: &'static str, found: u64, max: u64) -> ProtocolError {
    ProtocolError::Limit { frame: FrameType::Missing.info().name, field, found, max }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn read(frames: &[Vec<u8>], pages: &[u64]) -> Result<DirtyBitmap, ProtocolError> {
        let mut reader = PageSetReader::new(pages.iter().copied());
        frames.iter().try_for_each(|frame| reader.read(frame))?;
        Ok(reader.finish())
    }

    #[test]
    fn long_sets_take_several_frames() {
        // A set of scattered words, with a gap behind each.
        let pages = [64 * 300_000];
        let mut set = DirtyBitmap::new(pages);
        (0..100_000).for_each(|word| set.set(0, word * 3 * 64 + word % 64));
        let frames = encode(&set);
        assert!(frames.len() > 2 && frames.iter().all(|frame| frame.len() <= 1 << 20));
        assert_eq!(read(&frames, &pages).unwrap(), set);
        set.set_all();
        assert_eq!(read(&encode(&set), &pages).unwrap(), set);
    }

    #[test]
    fn what_lies_outside_or_falls_is_refused() {
        let stretch = |page: u64, region: u16, words: &[u64]| {
            let mut out = page.to_le_bytes().to_vec();
            out.extend(region.to_le_bytes());
            out.extend([0; 2]);
            out.extend((words.len() as u32).to_le_bytes());
            words.iter().for_each(|word| out.extend(word.to_le_bytes()));
            out
        };
        let pages = [70, 200];
        assert_eq!(read(&[stretch(64, 0, &[0x3f]), stretch(0, 1, &[1])], &pages).unwrap().count(), 7);
        for (bad, why) in [
            (stretch(64, 0, &[0x40]), "page"),
            (stretch(1, 0, &[1]), "page order"),
            (stretch(0, 2, &[1]), "page"),
            (stretch(64, 0, &[1, 0]), "page"),
            (stretch(0, 0, &[]), "words"),
            ([stretch(0, 1, &[1]), stretch(0, 0, &[1])].concat(), "page order"),
            ([stretch(0, 1, &[1]), stretch(0, 1, &[1])].concat(), "page order"),
            (stretch(u64::MAX - 63, 0, &[1]), "page"),
            (stretch(0, 0, &[1])[..20].to_vec(), "words"),
            (vec![0; 3], "bytes behind"),
        ] {
            let text = read(&[bad], &pages).unwrap_err().to_string();
            assert!(text.contains(why), "{text}: {why}");
        }
    }

    proptest! {
        #[test]
        fn sets_come_back(
            pages in prop::collection::vec(1u64..700, 1..4),
            set in prop::collection::vec((0usize..4, 0u64..700), 0..200),
            full: bool,
        ) {
            let mut wanted = DirtyBitmap::new(pages.iter().copied());
            set.iter().for_each(|(region, page)| wanted.set(*region, *page));
            if full {
                wanted.set_all();
            }
            prop_assert_eq!(read(&encode(&wanted), &pages).unwrap(), wanted);
        }

        #[test]
        fn any_bytes_are_a_set_within_memory_or_an_error(bytes in prop::collection::vec(0u8..4, 0..200)) {
            if let Ok(set) = read(&[bytes], &[70, 200]) {
                let (mut first, mut again) = (DirtyBitmap::new([70, 200]), DirtyBitmap::new([70, 200]));
                first.add(&set);
                again.set_all();
                again.add(&set);
                prop_assert!(first == set && again.count() == 270);
            }
        }
    }
}
