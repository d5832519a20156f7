//! What a page of the working set holds, and how a visit checks it. Pure: no hardware here.
//!
//! ```text
//! word 0        generation: one more at each visit
//! word 1        page number (guest-physical address / 4096)
//! words 2..511  content, made from (page number, generation of the last visit that reached it)
//! ```
//!
//! The checksum of all 512 words is kept in the ledger, outside the page, so that a visit
//! with `bytes=1` really changes only one byte (two when the generation carries).

use crate::ledger::Entry;
use crate::options::{Content, PAGE_BYTES};

pub(crate) const PAGE_WORDS: usize = 512;
pub(crate) type Page = [u64; PAGE_WORDS];

/// The generation that `fill` writes.
pub(crate) const FIRST_GENERATION: u32 = 1;

/// How a page is rewritten at each visit.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Writing {
    pub(crate) content: Content,
    pub(crate) changed_bytes: u64,
}

/// The first thing found wrong with a page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Wrong {
    pub(crate) field: &'static str,
    pub(crate) expected: u64,
    pub(crate) found: u64,
}

impl Writing {
    /// Writes a whole new page, of the first generation.
    pub(crate) fn fill(self, page: &mut Page, number: u64) -> Entry {
        let reached = if self.content == Content::Zero { self.words() } else { PAGE_WORDS };
        page[reached..].fill(0);
        self.write(page, number, FIRST_GENERATION, reached)
    }

    /// Writes the generation after `before`, in as many bytes as a visit changes.
    pub(crate) fn advance(self, page: &mut Page, number: u64, before: Entry) -> Entry {
        self.write(page, number, before.generation.wrapping_add(1), self.words())
    }

    /// Compares a page with what the ledger says of it.
    pub(crate) fn check(self, page: &Page, number: u64, entry: Entry) -> Result<(), Wrong> {
        let blank = self.is_blank(entry.generation);
        let differ = |field, expected, found| {
            if expected == found { Ok(()) } else { Err(Wrong { field, expected, found }) }
        };
        differ("number", if blank { 0 } else { number }, page[1])?;
        differ("generation", if blank { 0 } else { u64::from(entry.generation) }, page[0])?;
        differ("checksum", u64::from(entry.checksum), u64::from(checksum(page)))
    }

    fn write(self, page: &mut Page, number: u64, generation: u32, words: usize) -> Entry {
        if self.is_blank(generation) {
            page[..words].fill(0);
        } else {
            page[0] = u64::from(generation);
            if words > 1 {
                page[1] = number;
                self.write_content(&mut page[2..words], number, generation);
            }
        }
        Entry { generation, checksum: checksum(page) }
    }

    fn write_content(self, words: &mut [u64], number: u64, generation: u32) {
        let mut random = Random::new(number ^ u64::from(generation) << 40);
        match self.content {
            Content::Constant => words.fill(u64::from(0x40 + generation % 64) * 0x0101_0101_0101_0101),
            Content::Random => words.fill_with(|| random.next()),
            Content::Text | Content::Zero => words.fill_with(|| VOCABULARY[(random.next() >> 59) as usize]),
        }
    }

    fn is_blank(self, generation: u32) -> bool {
        self.content == Content::Zero && generation.is_multiple_of(2)
    }

    /// Words that a visit writes: a page that turns all zero loses its number, too.
    fn words(self) -> usize {
        match self.changed_bytes {
            PAGE_BYTES => PAGE_WORDS,
            64 => 8,
            _ if self.content == Content::Zero => 2,
            _ => 1,
        }
    }
}

/// Sees any change of any word, and of their order. Four lanes, so that multiplications overlap.
pub(crate) fn checksum(page: &Page) -> u32 {
    const ODD: u64 = 0x9e37_79b9_7f4a_7c15;
    let mut lanes = [1_u64, 2, 3, 4];
    for words in page.chunks_exact(lanes.len()) {
        for (lane, word) in lanes.iter_mut().zip(words) {
            *lane = (*lane ^ word).wrapping_mul(ODD);
        }
    }
    let all =
        lanes.iter().fold(0_u64, |sum, lane| (sum.rotate_left(17) ^ lane ^ lane >> 32).wrapping_mul(ODD));
    (all ^ all >> 32) as u32
}

/// `splitmix64`: small, fast and good enough to choose pages and fill them.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Random(u64);

impl Random {
    pub(crate) fn new(seed: u64) -> Self {
        Self(seed)
    }

    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ self.0 >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ mixed >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ mixed >> 31
    }

    /// A number below `limit`, which is not 0.
    pub(crate) fn below(&mut self, limit: u64) -> u64 {
        ((u128::from(self.next()) * u128::from(limit)) >> 64) as u64
    }
}

/// Eight letters each, so that a page of them looks like text to a compressor.
const VOCABULARY: [u64; 32] = {
    let words: [&[u8; 8]; 32] = [
        b"the page",
        b" moves  ",
        b"while a ",
        b"guest   ",
        b"writes .",
        b" A round",
        b" ends , ",
        b"and one ",
        b"begins  ",
        b"after it",
        b" . Each ",
        b"copy is ",
        b"checked ",
        b"against ",
        b"what was",
        b" sent . ",
        b"No bit  ",
        b"is lost ",
        b"or comes",
        b" twice ;",
        b" the    ",
        b"last one",
        b" stops  ",
        b"time .  ",
        b"Devices ",
        b"follow  ",
        b"memory ,",
        b"then the",
        b" source ",
        b"commits ",
        b", ready ",
        b"to go . ",
    ];
    let mut numbers = [0; 32];
    let mut at = 0;
    while at < numbers.len() {
        numbers[at] = u64::from_le_bytes(*words[at]);
        at += 1;
    }
    numbers
};
