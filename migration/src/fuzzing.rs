//! Private parsers, each as a function that says whether it took the bytes. For the fuzz targets alone; the
//! larger parts are driven through the crate's own API.

use crate::ram::compress::{self, GROUP_PAGES_MAX, METHODS};
use crate::ram::xbzrle::{self, Encoded};
use crate::vm::PAGE_BYTES;
use crate::wire::{
    Agreed, Commit, Failed, HEADER_BYTES, Header, Hello, Offer, Prepared, Refused, RoundEnd, Running,
};
use tern_schema::{Record, decode_record, encode_record};

/// The hash of a whole encoded state, as a file's index has it.
pub fn state_hash(bytes: &[u8]) -> u64 {
    crate::ram::proof::state_hash(bytes)
}

/// A header and what it covers.
pub fn frame(bytes: &[u8]) -> bool {
    let Some((header, payload)) = bytes.split_first_chunk::<HEADER_BYTES>() else { return false };
    let Ok(read) = Header::read(header) else { return false };
    let covered = payload.get(..read.head as usize);
    covered.is_some_and(|covered| read.check(header, covered).is_ok())
}

/// A message: the first byte says which, the rest is the record. What is taken must come back as it is.
pub fn message(bytes: &[u8]) -> bool {
    let Some((which, bytes)) = bytes.split_first() else { return false };
    match which % 9 {
        0 => comes_back::<Hello>(bytes),
        1 => comes_back::<Offer>(bytes),
        2 => comes_back::<Agreed>(bytes),
        3 => comes_back::<Refused>(bytes),
        4 => comes_back::<RoundEnd>(bytes),
        5 => comes_back::<Prepared>(bytes),
        6 => comes_back::<Commit>(bytes),
        7 => comes_back::<Running>(bytes),
        _ => comes_back::<Failed>(bytes),
    }
}

fn comes_back<R: Record + PartialEq>(bytes: &[u8]) -> bool {
    let Ok(record) = decode_record::<R>(bytes) else { return false };
    assert!(decode_record::<R>(&encode_record(&record)).as_ref() == Ok(&record), "{} changed", R::RECORD);
    true
}

/// A page that has something in all places, so that a byte that is not as it was shows.
fn page(seed: usize) -> [u8; PAGE_BYTES as usize] {
    std::array::from_fn(|at| (at * 31 + at / 256 + seed) as u8)
}

/// A delta of a page. What the page becomes must have a delta of its own that leads to it.
pub fn delta(bytes: &[u8]) -> bool {
    let (old, mut new) = (page(0), page(0));
    if xbzrle::decode(bytes, &mut new).is_err() {
        return false;
    }
    let mut room = [0; 2 * PAGE_BYTES as usize];
    let mut again = old;
    match xbzrle::encode(&old, &new, &mut room) {
        Encoded::Same => {}
        Encoded::Bytes(length) => {
            let decoded = xbzrle::decode(room.get(..length).unwrap_or_default(), &mut again);
            assert!(decoded.is_ok(), "{decoded:?}");
        }
        Encoded::Overflow => assert!(again == new, "a delta of a page is longer than two"),
    }
    assert!(again == new, "a delta leads elsewhere");
    true
}

/// Deltas of the encoder's own.
pub fn deltas() -> Vec<Vec<u8>> {
    let old = page(0);
    let changes: [fn(usize) -> bool; 4] = [|at| at < 64, |at| at % 100 < 3, |at| at > 4000, |_| true];
    let delta = |changed: fn(usize) -> bool| {
        let new = std::array::from_fn(|at| if changed(at) { !old[at] } else { old[at] });
        let mut room = vec![0; 2 * PAGE_BYTES as usize];
        let Encoded::Bytes(length) = xbzrle::encode(&old, &new, &mut room) else { return Vec::new() };
        room.truncate(length);
        room
    };
    changes.into_iter().map(delta).collect()
}

/// The names of all methods of compression.
pub fn methods() -> impl Iterator<Item = &'static str> {
    METHODS.iter().map(|method| method.name)
}

/// A block of a method: the first byte says how many pages are due. What it becomes must come back by a block of this
/// build's.
pub fn block(method: &str, bytes: &[u8]) -> bool {
    let (Some(method), Some((pages, block))) = (compress::method(method), bytes.split_first()) else {
        return false;
    };
    let bytes = (usize::from(*pages) % GROUP_PAGES_MAX + 1) * PAGE_BYTES as usize;
    let Ok(mut decompressor) = (method.decompressor)() else { return false };
    let mut pages = vec![0; bytes];
    if decompressor.decompress(block, &mut pages).is_err() {
        return false;
    }
    let mut again = Vec::new();
    let compressor = (method.compressor)(method.default_level);
    if compressor.is_ok_and(|mut compressor| compressor.compress(&pages, &mut again)) {
        let mut back = vec![1; bytes];
        let result = decompressor.decompress(&again, &mut back);
        assert!(result.is_ok() && back == pages, "{}: {result:?}", method.name);
    }
    true
}

/// Blocks of this build's: one page, four, and sixteen.
pub fn blocks(method: &str) -> Vec<Vec<u8>> {
    let block = |pages: u8| {
        let method = compress::method(method)?;
        let content: Vec<u8> = (0..pages).flat_map(|seed| page(usize::from(seed))).collect();
        let mut block = vec![pages - 1];
        let mut compressor = (method.compressor)(method.default_level).ok()?;
        compressor.compress(&content, &mut block).then_some(block)
    };
    [1, 4, 16].into_iter().filter_map(block).collect()
}
