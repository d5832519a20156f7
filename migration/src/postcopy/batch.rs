//! Pages in post-copy: a frame of them as the source fills it, and as the destination takes it apart.
//!
//! ```text
//! sum of the pages' hashes u64 | records u32 | reserved u32 = 0 | records as in `pages` | data
//! ```
//!
//! Nothing of a frame is used before all of it was checked: its checksum covers the data too, for the guest that could write
//! these pages is stopped.

use std::fmt;
use std::ops::Range;
use std::sync::Arc;

use crate::channel::span::OutSpan;
use crate::dirty::DirtyBitmap;
use crate::error::{MigrationError, ProtocolError};
use crate::pager::Content;
use crate::ram::compress::{Decompressor, GROUP_PAGES_MAX, method_of};
use crate::ram::proof::{MemoryProof, page_hash};
use crate::ram::{
    BATCH_PAGES_MAX, Batch, ENCODINGS, Encoding, PageRecord, RECORD_BYTES, RamView, check_records,
};
use crate::vm::PAGE_BYTES;

const FRAME: &str = "page-in";
const HEAD_BYTES: usize = 16;
const PAGE: usize = PAGE_BYTES as usize;

/// Appends these pages, whose hashes have this sum.
pub(crate) fn fill(sum: u64, batch: &Batch<'_>, out: &mut Vec<u8>) {
    out.extend_from_slice(&sum.to_le_bytes());
    out.extend_from_slice(&(batch.records.len() as u32).to_le_bytes());
    out.extend_from_slice(&[0; 4]);
    batch.records.iter().for_each(|record| record.put(out));
    batch.data.iter().for_each(|span: &OutSpan<'_>| _ = span.append_to(out, usize::MAX));
}

/// Neighbours that are placed together.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Run {
    pub(crate) region: usize,
    pub(crate) pages: Range<u64>,
    from: From,
}

/// Where content is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum From {
    Zero,
    /// Its place in the frame.
    Frame(usize),
    /// Its place in what was decompressed.
    Plain(usize),
}

impl From {
    fn moved(self, bytes: usize) -> Self {
        match self {
            Self::Zero => Self::Zero,
            Self::Frame(at) => Self::Frame(at + bytes),
            Self::Plain(at) => Self::Plain(at + bytes),
        }
    }
}

/// Takes frames apart. One for each thread.
pub(crate) struct Unpacker {
    ram: Arc<RamView>,
    /// Pages that may come.
    missing: Arc<DirtyBitmap>,
    encodings: u64,
    proof: Option<Arc<MemoryProof>>,
    decompressors: [Option<Box<dyn Decompressor>>; ENCODINGS.len()],
    records: Vec<PageRecord>,
    /// Where each record's content is.
    places: Vec<From>,
    plain: Vec<u8>,
}

impl Unpacker {
    /// For these pages of memory, and what was agreed.
    pub(crate) fn new(
        ram: &Arc<RamView>,
        missing: &Arc<DirtyBitmap>,
        encodings: u64,
        proof: Option<&Arc<MemoryProof>>,
    ) -> Self {
        Self {
            ram: Arc::clone(ram),
            missing: Arc::clone(missing),
            // What deltas build on is gone, and a file is no place to look while somebody waits.
            encodings: encodings & !(Encoding::Xbzrle.bit() | Encoding::Known.bit()),
            proof: proof.map(Arc::clone),
            decompressors: [const { None }; ENCODINGS.len()],
            records: Vec::with_capacity(BATCH_PAGES_MAX),
            places: Vec::with_capacity(BATCH_PAGES_MAX),
            plain: Vec::new(),
        }
    }

    /// Checks all of a frame's payload. Returns what is to be placed, by region and page.
    pub(crate) fn unpack(&mut self, payload: &[u8]) -> Result<Vec<Run>, MigrationError> {
        let (sum, records, data_at) = split(payload)?;
        let data = payload.get(data_at..).unwrap_or_default();
        check_records(&self.ram, self.encodings, records, data.len() as u64, &mut self.records)?;
        let missing = |record: &PageRecord| self.missing.get(record.region.into(), record.page);
        if let Some(PageRecord { region, page, .. }) = self.records.iter().find(|record| !missing(record)) {
            return Err(ProtocolError::NotMissing { frame: FRAME, region: *region, page: *page }.into());
        }
        self.decode(data_at, data)?;
        self.compare(sum, payload)?;
        Ok(self.runs())
    }

    /// What a run holds, of the frame that was just unpacked.
    pub(crate) fn content<'a>(&'a self, payload: &'a [u8], run: &Run) -> Content<'a> {
        let bytes = ((run.pages.end - run.pages.start) * PAGE_BYTES) as usize;
        let of = |from: &'a [u8], at: usize| {
            Content::Bytes(from.get(at..at.saturating_add(bytes)).unwrap_or_default())
        };
        match run.from {
            From::Zero => Content::Zero,
            From::Frame(at) => of(payload, at),
            From::Plain(at) => of(&self.plain, at),
        }
    }

    /// How many pages the last frame has.
    pub(crate) fn records(&self) -> &[PageRecord] {
        &self.records
    }

    /// Finds where each page's content is, decompressing what is compressed.
    fn decode(&mut self, data_at: usize, data: &[u8]) -> Result<(), MigrationError> {
        self.places.clear();
        self.plain.clear();
        let mut at = 0;
        // Of each encoding's latest group: its first record, its data and its place in `plain`.
        let mut groups: [Option<Group>; ENCODINGS.len()] = [const { None }; ENCODINGS.len()];
        for number in 0..self.records.len() {
            let Some(PageRecord { encoding, data_bytes, .. }) = self.records.get(number).copied() else {
                break;
            };
            let bytes = data_bytes as usize;
            let place = match encoding {
                Encoding::Zero => From::Zero,
                Encoding::Raw => From::Frame(data_at + at),
                _ => {
                    let slot = groups.get_mut(encoding as usize);
                    let Some(slot) = slot else { continue };
                    if bytes > 0 {
                        let pages = self.group_pages(number);
                        let begin = self.plain.len();
                        self.decompress(number, data.get(at..at + bytes).unwrap_or_default(), pages)?;
                        *slot = Some(Group { next: begin });
                    }
                    let group = slot.as_mut();
                    let Some(group) = group else { continue };
                    group.next += PAGE;
                    From::Plain(group.next - PAGE)
                }
            };
            at += bytes;
            self.places.push(place);
        }
        Ok(())
    }

    /// Pages of the group that begins with this record.
    fn group_pages(&self, first: usize) -> usize {
        let Some(head) = self.records.get(first) else { return 0 };
        let same = self.records.iter().skip(first + 1).filter(|record| record.encoding == head.encoding);
        1 + same.take_while(|record| record.data_bytes == 0).take(GROUP_PAGES_MAX).count()
    }

    fn decompress(&mut self, number: usize, block: &[u8], pages: usize) -> Result<(), MigrationError> {
        let Some(PageRecord { encoding, region, page, .. }) = self.records.get(number).copied() else {
            return Ok(());
        };
        let failed = |error: &dyn fmt::Display| {
            let (encoding, reason) = (encoding.info().name, error.to_string());
            ProtocolError::Undecodable { encoding, region, page, reason }
        };
        let slot = self.decompressors.get_mut(encoding as usize);
        let slot = slot.ok_or_else(|| failed(&"it is not known"))?;
        if slot.is_none() {
            let made = method_of(encoding as u8).map(|method| (method.decompressor)()).transpose();
            *slot = made.map_err(|error| failed(&error))?;
        }
        let begin = self.plain.len();
        self.plain.resize(begin + pages * PAGE, 0);
        let out = self.plain.get_mut(begin..).unwrap_or_default();
        let decompressor = slot.as_mut().ok_or_else(|| failed(&"it has no pages together"))?;
        decompressor.decompress(block, out).map_err(|error| failed(&error).into())
    }

    /// Are these the pages that the source has sent? If so, they count in the proof from here on.
    fn compare(&self, sum: u64, payload: &[u8]) -> Result<(), MigrationError> {
        let Some(proof) = &self.proof else { return Ok(()) };
        let started = std::time::Instant::now();
        let mut hashes = Vec::with_capacity(self.records.len());
        for (record, place) in self.records.iter().zip(&self.places) {
            let bytes = match *place {
                From::Zero => None,
                From::Frame(at) => payload.get(at..),
                From::Plain(at) => self.plain.get(at..),
            };
            let bytes = bytes.and_then(|bytes| bytes.first_chunk::<PAGE>());
            hashes.push(bytes.map_or(0, |bytes| page_hash(record.region, record.page, bytes)));
        }
        let found = hashes.iter().fold(0u64, |sum, hash| sum.wrapping_add(*hash));
        if found != sum {
            let (source_proof, destination_proof) = (sum, found);
            return Err(MigrationError::Proof { what: "batch of pages", source_proof, destination_proof });
        }
        for (PageRecord { region, page, .. }, hash) in self.records.iter().zip(hashes) {
            proof.set(*region, *page, hash);
        }
        proof.spent(started);
        Ok(())
    }

    fn runs(&self) -> Vec<Run> {
        let mut runs: Vec<Run> = Vec::new();
        for (PageRecord { region, page, .. }, from) in self.records.iter().zip(&self.places) {
            if let Some(last) = runs.last_mut()
                && last.region == usize::from(*region)
                && last.pages.end == *page
                && last.from.moved(((last.pages.end - last.pages.start) * PAGE_BYTES) as usize) == *from
            {
                last.pages.end += 1;
                continue;
            }
            runs.push(Run { region: (*region).into(), pages: *page..page.saturating_add(1), from: *from });
        }
        runs
    }
}

/// Where a group's next page is.
struct Group {
    next: usize,
}

/// The sum, the records, and where the data begins.
fn split(payload: &[u8]) -> Result<(u64, &[u8], usize), ProtocolError> {
    let mismatch = |field, found, expected| ProtocolError::Mismatch { frame: FRAME, field, found, expected };
    let Some((head, rest)) = payload.split_first_chunk::<HEAD_BYTES>() else {
        return Err(mismatch("length", payload.len() as u64, HEAD_BYTES as u64));
    };
    let [s0, s1, s2, s3, s4, s5, s6, s7, n0, n1, n2, n3, reserved @ ..] = *head;
    let count = u32::from_le_bytes([n0, n1, n2, n3]) as usize;
    if count == 0 || count > BATCH_PAGES_MAX || reserved != [0; 4] {
        let (field, found) = ("records", count as u64);
        return Err(ProtocolError::Limit { frame: FRAME, field, found, max: BATCH_PAGES_MAX as u64 });
    }
    let length = count * RECORD_BYTES;
    let records = rest.get(..length).ok_or_else(|| mismatch("length", rest.len() as u64, length as u64))?;
    Ok((u64::from_le_bytes([s0, s1, s2, s3, s4, s5, s6, s7]), records, HEAD_BYTES + length))
}

impl fmt::Debug for Unpacker {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Unpacker").field("encodings", &self.encodings).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ram::job::Job;
    use crate::ram::{Compression, ENCODINGS_MASK, Encoder, Outgoing, compress};
    use crate::vm::GuestRam;
    use proptest::prelude::*;
    use vm_memory::{Bytes, GuestAddress};

    const PAGES: u64 = 80;

    fn guest() -> GuestRam {
        let ram = GuestRam::from_ranges(&[(GuestAddress(0), PAGES as usize * PAGE)]).unwrap();
        for page in (0..PAGES).filter(|page| page % 7 != 3) {
            let text = format!("page {page} ").repeat(700);
            let noise: Vec<u8> = (0..4096u64).map(|at| ((at * at * (page + 3)) >> 5) as u8).collect();
            let bytes = if page % 5 == 0 { &noise[..] } else { &text.as_bytes()[..4000] };
            ram.write_slice(bytes, GuestAddress(page * PAGE_BYTES)).unwrap();
        }
        ram
    }

    /// A frame with these pages, and the guest's memory.
    fn frame(method: Option<&str>, pages: &[u64], proven: bool) -> (Vec<u8>, Arc<RamView>) {
        let ram = Arc::new(RamView::new(&guest()));
        let proof = proven.then(|| Arc::new(MemoryProof::new([PAGES].into_iter())));
        let method = method.and_then(compress::method);
        let outgoing = Arc::new(Outgoing {
            ram: Arc::clone(&ram),
            proof: proof.clone(),
            cache: None,
            overflows: Default::default(),
            known: None,
            compression: method.map(|method| Compression::Fixed(method, method.default_level)),
        });
        let mut encoder = Encoder::new(&outgoing).unwrap();
        let mut job = Job::default();
        pages.iter().for_each(|page| job.add(0, *page));
        encoder.encode(&job).unwrap();
        let sum = pages.iter().map(|page| proof.as_ref().map_or(0, |proof| proof.get(0, *page)));
        let mut out = Vec::new();
        fill(sum.fold(0, u64::wrapping_add), &encoder.batch().unwrap(), &mut out);
        (out, ram)
    }

    fn unpacker(ram: &Arc<RamView>, proven: bool) -> Unpacker {
        let mut missing = DirtyBitmap::new([PAGES]);
        (0..PAGES - 1).for_each(|page| missing.set(0, page));
        let proof = proven.then(|| Arc::new(MemoryProof::new([PAGES].into_iter())));
        Unpacker::new(ram, &Arc::new(missing), ENCODINGS_MASK, proof.as_ref())
    }

    #[test]
    fn pages_come_back_in_every_encoding_and_neighbours_together() {
        let pages: Vec<u64> = (0..40).chain(50..52).collect();
        for method in [None, Some("lz4"), Some("zstd"), Some("zlib")] {
            let (frame, ram) = frame(method, &pages, true);
            let mut unpacker = unpacker(&ram, true);
            let runs = unpacker.unpack(&frame).unwrap();
            assert!(runs.len() < pages.len() && method.is_none_or(|_| frame.len() < pages.len() * PAGE));
            let mut found = Vec::new();
            for run in &runs {
                let zero = vec![0; PAGE * pages.len()];
                let content = match unpacker.content(&frame, run) {
                    Content::Bytes(bytes) => bytes,
                    Content::Zero => &zero,
                };
                for (page, bytes) in run.pages.clone().zip(content.as_chunks::<PAGE>().0) {
                    let mut wanted = [0; PAGE];
                    ram.read(0, page, &mut wanted).unwrap();
                    assert!(*bytes == wanted, "page {page} by {method:?}");
                    found.push(page);
                }
            }
            assert_eq!(found, pages);
        }
    }

    #[test]
    fn what_was_not_missing_or_is_not_what_was_sent_is_refused() {
        let (mut bytes, ram) = frame(None, &[1, 2], true);
        let last = bytes.len() - 1;
        bytes[last] ^= 1;
        let error = unpacker(&ram, true).unpack(&bytes).unwrap_err();
        assert!(matches!(error, MigrationError::Proof { .. }), "{error}");
        let (bytes, ram) = frame(None, &[1, PAGES - 1], true);
        let error = unpacker(&ram, true).unpack(&bytes).unwrap_err();
        assert!(error.to_string().contains("not missing"), "{error}");
    }

    proptest! {
        #[test]
        fn a_damaged_frame_is_refused_or_has_the_pages_that_were_sent(
            method in prop::option::of(prop::sample::select(vec!["lz4", "zstd", "zlib"])),
            flips in prop::collection::vec((any::<prop::sample::Index>(), 1u8..), 1..4),
            cut in any::<prop::sample::Index>(), short: bool,
        ) {
            let (mut bytes, ram) = frame(method, &[0, 1, 2, 3, 10, 11, 60], true);
            flips.iter().for_each(|(at, bits)| { let at = at.index(bytes.len()); bytes[at] ^= bits });
            bytes.truncate(if short { cut.index(bytes.len()) } else { bytes.len() });
            let mut unpacker = unpacker(&ram, true);
            for run in unpacker.unpack(&bytes).unwrap_or_default() {
                let Content::Bytes(content) = unpacker.content(&bytes, &run) else { continue };
                for (page, bytes) in run.pages.clone().zip(content.as_chunks::<PAGE>().0) {
                    let mut wanted = [0; PAGE];
                    ram.read(0, page, &mut wanted).unwrap();
                    prop_assert!(*bytes == wanted);
                }
            }
        }
    }
}
