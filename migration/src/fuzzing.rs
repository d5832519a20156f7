//! Private parsers, each as a function that says whether it took the bytes. For the fuzz targets alone; the
//! larger parts are driven through the crate's own API.

use std::sync::Arc;
use std::sync::atomic::AtomicU64;

use crate::dirty::DirtyBitmap;
use crate::pager::Content;
use crate::postcopy::batch::{self, Unpacker};
use crate::postcopy::request;
use crate::ram::compress::{self, GROUP_PAGES_MAX, METHODS, Method};
use crate::ram::job::Job;
use crate::ram::xbzrle::{self, Encoded};
use crate::ram::{Compression, ENCODINGS_MASK, Encoder, Outgoing, RamView};
use crate::vm::{GuestRam, PAGE_BYTES};
use crate::wire::{
    Agreed, Commit, Failed, HEADER_BYTES, Header, Hello, Offer, PageSetReader, Prepared, Refused, RoundEnd,
    Running, encode_page_set,
};
use tern_schema::{Record, decode_record, encode_record};
use vm_memory::{Bytes, GuestAddress};

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

/// Pages of the regions of which some are missing.
const MISSING_PAGES: [u64; 2] = [70, 100];

fn missing() -> DirtyBitmap {
    let (mut missing, mut there) = (DirtyBitmap::new(MISSING_PAGES), DirtyBitmap::new(MISSING_PAGES));
    missing.set_all();
    (0..9).for_each(|page| there.set(1, page * 11));
    missing.remove(&there);
    missing
}

/// A frame of the pages that are missing in post-copy. What is taken must come back, and lie within memory.
pub fn page_set(bytes: &[u8]) -> bool {
    let read = |frames: &[&[u8]]| {
        let mut reader = PageSetReader::new(MISSING_PAGES);
        frames.iter().try_for_each(|frame| reader.read(frame)).map(|()| reader.finish())
    };
    let Ok(set) = read(&[bytes]) else { return false };
    let frames = encode_page_set(&set);
    let again = read(&frames.iter().map(Vec::as_slice).collect::<Vec<_>>());
    assert!(again.is_ok_and(|again| again == set), "a set of pages changed");
    true
}

/// Such frames.
pub fn page_sets() -> Vec<Vec<u8>> {
    let mut few = DirtyBitmap::new(MISSING_PAGES);
    [(0, 3), (0, 69), (1, 64)].into_iter().for_each(|(region, page)| few.set(region, page));
    [missing(), few].iter().flat_map(encode_page_set).collect()
}

/// Questions for pages in post-copy. All that is asked for must be missing.
pub fn request(bytes: &[u8]) -> bool {
    let missing = missing();
    let Ok(pages) = request::read(bytes, &missing) else { return false };
    assert!(!pages.is_empty() && pages.iter().all(|(region, page)| missing.get((*region).into(), *page)));
    true
}

/// Such questions.
pub fn requests() -> Vec<Vec<u8>> {
    let question = |pages: &[(usize, u64)]| {
        let mut out = Vec::new();
        pages.iter().for_each(|(region, page)| request::fill(*region, *page, &mut out));
        out
    };
    vec![question(&[(0, 69)]), question(&[(1, 1), (1, 98), (0, 0)])]
}

fn guest() -> Option<Arc<RamView>> {
    let ranges = [(GuestAddress(0), 70 << 12), (GuestAddress(1 << 30), 100 << 12)];
    let ram = GuestRam::from_ranges(&ranges).ok()?;
    for number in (0..60).filter(|number| number % 4 != 1) {
        ram.write_slice(&page(number), GuestAddress(number as u64 * PAGE_BYTES)).ok()?;
    }
    Some(Arc::new(RamView::new(&ram)))
}

/// A frame of pages in post-copy, behind its checksum. What is to be placed must be missing, and each page have all of its
/// content.
pub fn page_in(bytes: &[u8]) -> bool {
    let (Some(ram), missing) = (guest(), Arc::new(missing())) else { return false };
    let mut unpacker = Unpacker::new(&ram, &missing, ENCODINGS_MASK, None);
    let Ok(runs) = unpacker.unpack(bytes) else { return false };
    for run in runs {
        assert!(run.pages.clone().all(|page| missing.get(run.region, page)), "{run:?} isn't missing");
        if let Content::Bytes(content) = unpacker.content(bytes, &run) {
            let pages = run.pages.end - run.pages.start;
            assert!(content.len() as u64 == pages * PAGE_BYTES, "{run:?} has {} bytes", content.len());
        }
    }
    true
}

/// Such frames: in each encoding, and as they are.
pub fn page_ins() -> Vec<Vec<u8>> {
    let frame = |method: Option<&'static Method>| {
        let outgoing = Arc::new(Outgoing {
            ram: guest()?,
            proof: None,
            cache: None,
            overflows: AtomicU64::new(0),
            known: None,
            compression: method.map(|method| Compression::Fixed(method, method.default_level)),
        });
        let (mut encoder, mut job, mut out) = (Encoder::new(&outgoing).ok()?, Job::default(), Vec::new());
        (0..6).chain(20..22).for_each(|page| job.add(0, page));
        job.add(1, 4);
        encoder.encode(&job).ok()?;
        batch::fill(0, &encoder.batch().ok()?, &mut out);
        Some(out)
    };
    METHODS.iter().map(Some).chain([None]).filter_map(frame).collect()
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
