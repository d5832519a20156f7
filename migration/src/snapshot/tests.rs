//! A small snapshot made by hand: what it says, and that damage to it is found.

use std::fs;
use std::os::unix::net::UnixListener;

use proptest::prelude::*;
use tern_schema::{StateSet, encode_record};

use super::head::HEAD_BYTES;
use super::reader::content_hash;
use super::*;
use crate::vm::{MemoryRegion, PAGE_BYTES, VmFacts};

tern_schema::record! {
    /// A state.
    pub struct PartV1 = "part" 1 {
        /// A word.
        [1] word: u64,
    }
}

const PAGES: [u64; 2] = [5, 400];

fn facts() -> VmFacts {
    let memory =
        (0..).zip(PAGES).map(|(n, pages)| MemoryRegion { gpa: n << 32, length_bytes: pages * PAGE_BYTES });
    VmFacts {
        name: "guest".into(),
        profile: "tern-1".into(),
        tern_version: "0".into(),
        cpus: 1,
        memory: memory.collect(),
        sections: Vec::new(),
        platform: vec![1, 2, 3],
    }
}

/// Every third page has data.
fn content(region: usize, page: u64) -> [u8; 4096] {
    let mut bytes = [0; 4096];
    if page.is_multiple_of(3) {
        let number = page * 10 + region as u64 + 1;
        bytes.as_chunks_mut::<8>().0.iter_mut().for_each(|word| *word = number.to_le_bytes());
    }
    bytes
}

fn entry(region: usize, page: u64) -> PageEntry {
    let hash = content_hash(region, page, &content(region, page));
    if hash == 0 { PageEntry::default() } else { PageEntry { encoding: 1, data_bytes: 4096, hash } }
}

/// A file from its parts; `change` may alter the description and the index before they get their checksums.
fn file(change: impl FnOnce(&mut Vec<u8>, &mut Vec<u8>)) -> Vec<u8> {
    let description = Description { facts: facts(), configuration: b"options".to_vec(), page_bytes: 4096 };
    let layout = Layout::of(&description.facts.memory).unwrap();
    let mut state = StateSet::default();
    state.put(0, &PartV1 { word: 11 }).unwrap();
    let mut state_bytes = Vec::new();
    state.encode(&mut state_bytes);
    let mut out = vec![0; layout.state_offset as usize];
    let mut put = |offset: u64, bytes: &[u8]| {
        out.splice(offset as usize..offset as usize + bytes.len(), bytes.iter().copied());
    };
    let mut ram_hash = 0u64;
    for (region, place) in layout.regions.iter().enumerate() {
        let entries: Vec<_> = (0..place.pages).map(|page| entry(region, page)).collect();
        ram_hash = entries.iter().fold(ram_hash, |sum, entry| sum.wrapping_add(entry.hash));
        (0..place.pages).for_each(|page| put(place.page_offset(page), &content(region, page)));
        for (block, entries) in (0..).zip(entries.chunks(340)) {
            put(place.block_offset(block), &table::encode_block(region as u32, block, entries));
        }
    }
    let index = Index {
        running: true,
        saved_at_unix_ms: 7,
        state_bytes: state_bytes.len() as u32,
        state_hash: crate::ram::proof::state_hash(&state_bytes),
        ram_hash,
        encodings: 3,
        pages_stored: None,
    };
    let (mut description, mut index) = (encode_record(&description), encode_record(&index));
    change(&mut description, &mut index);
    put(4096, &description);
    out.extend_from_slice(&state_bytes);
    let index_place = Extent::of(out.len() as u64, &index);
    out.extend_from_slice(&index);
    let head = Head {
        version: FORMAT_VERSION_PLAIN,
        description: Extent::of(4096, &description),
        index: Some(index_place),
        file_bytes: out.len() as u64,
    };
    out.splice(..HEAD_BYTES, head.bytes());
    out
}

fn whole() -> Vec<u8> {
    file(|_, _| {})
}

/// Reads all that is in it.
fn read_all(bytes: &[u8]) -> Result<(), SnapshotError> {
    let snapshot = Snapshot::parse(bytes)?;
    snapshot.state()?;
    for (region, place) in snapshot.layout().regions.iter().enumerate() {
        let mut out = vec![9; (place.pages * PAGE_BYTES) as usize];
        snapshot.read_pages(region, 0..place.pages, &mut out)?;
    }
    snapshot.verify_tables()
}

/// Bytes of the file that mean something: the rest is between two parts, or the place of a zero page.
fn is_used(offset: usize) -> bool {
    let layout = Layout::of(&facts().memory).unwrap();
    let description = Description { facts: facts(), configuration: b"options".to_vec(), page_bytes: 4096 };
    let description = 4096..4096 + encode_record(&description).len();
    let in_page = layout.regions.iter().enumerate().any(|(region, place)| {
        let page = (offset as u64).checked_sub(place.data_offset).map(|at| at / PAGE_BYTES);
        page.is_some_and(|page| page < place.pages && entry(region, page).hash != 0)
    });
    offset < HEAD_BYTES
        || description.contains(&offset)
        || in_page
        || offset as u64 >= layout.regions[0].table_offset
}

#[test]
fn what_was_saved_is_read() {
    let bytes = whole();
    let snapshot = Snapshot::parse(&bytes[..]).unwrap();
    assert_eq!((snapshot.facts(), snapshot.configuration()), (&facts(), &b"options"[..]));
    assert!(snapshot.index().running && snapshot.is_mappable());
    assert_eq!(snapshot.state().unwrap().take::<PartV1>(0).unwrap().word, 11);
    for (region, pages) in PAGES.into_iter().enumerate() {
        let mut one = [9; 4096];
        for page in 0..pages {
            snapshot.read_page(region, page, &mut one).unwrap();
            assert_eq!(one, content(region, page));
            assert_eq!(snapshot.page(region, page).unwrap(), entry(region, page));
        }
    }
    let mut some = vec![9; 50 * 4096];
    snapshot.read_pages(1, 310..360, &mut some).unwrap();
    assert!((310..360).zip(some.as_chunks::<4096>().0).all(|(page, bytes)| *bytes == content(1, page)));
    snapshot.verify_tables().unwrap();
}

#[test]
fn pages_that_do_not_exist_are_errors() {
    let bytes = whole();
    let snapshot = Snapshot::parse(&bytes[..]).unwrap();
    for (region, page) in [(0, 5), (1, 400), (2, 0), (0, u64::MAX), (usize::MAX, 0)] {
        let error = snapshot.page(region, page).unwrap_err();
        assert!(matches!(error, SnapshotError::NoSuchPage { .. }), "{error}");
    }
    let error = snapshot.read_pages(0, 0..2, &mut [0; 4096]).unwrap_err();
    assert!(matches!(error, SnapshotError::Mismatch { found: 4096, expected: 8192, .. }), "{error}");
}

#[test]
fn each_fault_has_its_own_words() {
    let with = |change: fn(&mut Vec<u8>)| {
        let mut bytes = whole();
        change(&mut bytes);
        let error = read_all(&bytes).unwrap_err();
        (error.code(), error.to_string())
    };
    let (code, text) = with(|bytes| bytes[0] = b'X');
    assert!(code == "not-a-snapshot" && text.contains("\"XERNSNAP\""), "{text}");
    let (code, text) = with(|bytes| bytes[8] = 9);
    assert!(
        code == "snapshot-version" && text.contains("version 9") && text.contains("reads version 2"),
        "{text}"
    );
    let (code, text) = with(|bytes| bytes.truncate(3 << 20));
    assert!(code == "truncated" && text.contains("ends at byte 3145728"), "{text}");
    let (code, text) = with(|bytes| bytes.clear());
    assert!(code == "truncated" && text.contains("ends at byte 0"), "{text}");
    let (code, text) = with(|bytes| bytes.push(0));
    assert!(code == "out-of-bounds" && text.contains("something was appended"), "{text}");
    let (code, text) = with(|bytes| bytes[(2 << 20) + 3 * 4096 + 17] ^= 1);
    assert!(code == "hash" && text.contains("guest-physical 0x3000"), "{text}");
    let (code, _) = with(|bytes| *bytes = b"#!/bin/sh\n".to_vec());
    assert_eq!(code, "not-a-snapshot");
}

#[test]
fn a_file_cut_short_still_tells_what_it_was() {
    let bytes = whole();
    let outline = Outline::read(&&bytes[..3 << 20]);
    assert!(matches!(outline.length, Some(Err(SnapshotError::Truncated { .. }))));
    assert_eq!(outline.description.unwrap().unwrap().facts, facts());
    assert!(outline.index.unwrap().is_err() && outline.state.is_none());
    let state_offset = outline.layout.unwrap().unwrap().state_offset as usize;
    let outline = Outline::read(&&bytes[..state_offset + 20]);
    assert_eq!(outline.state.unwrap().unwrap(), bytes[state_offset..state_offset + 20]);
}

#[test]
fn only_regular_files_are_opened() {
    let folder = tempfile::tempdir().unwrap();
    let open = |name: &str| SnapshotFile::open(&folder.path().join(name)).unwrap_err();
    let text = |error: &SnapshotError| {
        format!("{error}: {}", std::error::Error::source(error).map(ToString::to_string).unwrap_or_default())
    };
    assert_eq!(open("missing").code(), "snapshot-open");
    assert!(text(&open(".")).contains("it is a folder, not a regular file"));
    let _socket = UnixListener::bind(folder.path().join("socket")).unwrap();
    assert!(text(&open("socket")).contains("it is a socket"));
    assert!(text(&SnapshotFile::open("/dev/null".as_ref()).unwrap_err()).contains("a character device"));
    fs::write(folder.path().join("good"), whole()).unwrap();
    SnapshotFile::open(&folder.path().join("good")).unwrap().verify_tables().unwrap();
}

/// Checksums that hold over a record that makes no sense.
#[test]
fn numbers_that_hold_together_only_by_checksum_are_refused() {
    let described = |description: Description| {
        read_all(&file(|bytes, _| *bytes = encode_record(&description))).unwrap_err().code()
    };
    let sane = Description { facts: facts(), configuration: Vec::new(), page_bytes: 4096 };
    assert_eq!(described(Description { page_bytes: 8192, ..sane.clone() }), "out-of-bounds");
    for length_bytes in [u64::MAX, 1 << 51, 4095, 1 << 20] {
        let memory = vec![MemoryRegion { gpa: 0, length_bytes }];
        let facts = VmFacts { memory, ..facts() };
        let code = described(Description { facts, ..sane.clone() });
        assert!(["out-of-bounds", "truncated"].contains(&code), "{code}");
    }
}

proptest! {
    #[test]
    fn a_flipped_bit_is_found_wherever_it_means_something(seed: u64, bit in 0u8..8) {
        let mut bytes = whole();
        // Half of them where there are few bytes and much meaning.
        let start = if seed.is_multiple_of(2) { 0 } else { Layout::of(&facts().memory).unwrap().regions[0].table_offset };
        let length = if start == 0 { 5000 } else { bytes.len() as u64 - start };
        let offset = (start + seed / 2 % length) as usize;
        bytes[offset] ^= 1 << bit;
        prop_assert_eq!(read_all(&bytes).is_err(), is_used(offset), "byte {}", offset);
    }

    #[test]
    fn a_flipped_bit_in_memory_is_found(seed: u64, bit in 0u8..8) {
        let mut bytes = whole();
        let start = Layout::of(&facts().memory).unwrap().regions[1].data_offset;
        let offset = (start + seed % (PAGES[1] * PAGE_BYTES)) as usize;
        bytes[offset] ^= 1 << bit;
        prop_assert_eq!(read_all(&bytes).is_err(), is_used(offset), "byte {}", offset);
    }

    #[test]
    fn any_cut_is_found(seed: u64) {
        let bytes = whole();
        let cut = (seed % bytes.len() as u64) as usize;
        prop_assert!(read_all(&bytes[..cut]).is_err());
    }

    #[test]
    fn records_of_noise_are_errors(description: Vec<u8>, index: Vec<u8>, which in 0..3) {
        let bytes = file(|one, other| {
            if which != 0 {
                *one = description;
            }
            if which != 1 {
                *other = index;
            }
        });
        prop_assert!(read_all(&bytes).is_err());
    }

    #[test]
    fn noise_is_an_error(noise: Vec<u8>, magic: bool) {
        let bytes = if magic { [&MAGIC[..], &1u32.to_le_bytes(), &noise].concat() } else { noise };
        prop_assert!(read_all(&bytes).is_err());
    }
}
