//! Saves with compressed memory: the same guest comes out, however its pages are asked for, and the file stays small.

use std::os::unix::fs::MetadataExt;

use super::*;
use crate::snapshot::slot::SLOT_PAGES;
use crate::snapshot::{FORMAT_VERSION_PLAIN, Head, Snapshot};

fn options() -> Options {
    Options { region_pages: vec![70, 3001], working_set_pages: 900, touched_every: 1, ..Options::default() }
}

/// All pages, one by one from both ends, all at once, and in runs that begin and end within slots.
fn assert_reads(path: &Path, vm: &FakeVm) {
    let snapshot = SnapshotFile::open(path).unwrap();
    for (region, place) in snapshot.layout().regions.clone().iter().enumerate() {
        let mut all = vec![1; (place.pages * PAGE_BYTES) as usize];
        snapshot.read_pages(region, 0..place.pages, &mut all).unwrap();
        let page = |page: u64| &all[(page * PAGE_BYTES) as usize..((page + 1) * PAGE_BYTES) as usize];
        let mut one = [1; 4096];
        for (up, down) in (0..place.pages).zip((0..place.pages).rev()) {
            for number in [up, down] {
                snapshot.read_page(region, number, &mut one).unwrap();
                assert!(one[..] == vm.page(region, number) && one == page(number), "{region} {number}");
            }
        }
        for first in (0..place.pages.saturating_sub(40)).step_by(37) {
            let mut some = vec![1; 40 * 4096];
            snapshot.read_pages(region, first..first + 40, &mut some).unwrap();
            assert!((first..).zip(some.as_chunks::<4096>().0).all(|(at, bytes)| bytes == page(at)));
        }
    }
    snapshot.verify_tables().unwrap();
    assert_no_leftovers(&snapshot);
}

/// Where no entry has data there is none, whatever was there in an earlier round.
fn assert_no_leftovers(snapshot: &SnapshotFile) {
    for (region, place) in snapshot.layout().regions.iter().enumerate() {
        for start in (0..place.pages).step_by(SLOT_PAGES as usize) {
            let mut entries = Vec::new();
            snapshot.entries(region, start..place.pages.min(start + SLOT_PAGES), &mut entries).unwrap();
            let block = entries.iter().find(|entry| !entry.is_zero() && !entry.is_raw());
            let used = |at: usize| match block {
                Some(first) => at * 4096 < usize::from(first.data_bytes),
                None => entries[at].is_raw(),
            };
            for at in (0..entries.len()).filter(|at| !used(*at)) {
                let mut bytes = [1; 4096];
                snapshot.file().read_exact_at(&mut bytes, place.page_offset(start + at as u64)).unwrap();
                assert_eq!(bytes, [0; 4096], "region {region} page {start} + {at}");
            }
        }
    }
}

#[test]
fn a_busy_guest_is_saved_whole_and_small() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("vm");
    let room = || fs::metadata(&path).unwrap().blocks();
    for log in [LogMode::Plain, LogMode::Manual { initially_set: true }] {
        let saved = |changes: &str| {
            let mut vm = FakeVm::booted(Options { log, ..options() }).unwrap();
            vm.start_writer();
            let end = save(vm, &path, changes);
            assert!(matches!(end.outcome, Outcome::Saved { resumed: false }), "{:?}", end.outcome);
            assert_reads(&path, &end.vm);
            end.vm
        };
        saved("{}");
        let raw = room();
        assert_eq!(Head::read(&File::open(&path).unwrap()).unwrap().version, FORMAT_VERSION_PLAIN);
        for method in ["lz4", "zstd", "zlib", "auto"] {
            for threads in [1, 4] {
                saved(&format!(r#"{{"compress": "{method}", "file-threads": {threads}}}"#));
                assert!(room() < raw, "{method}: {} of {raw} blocks", room());
                let snapshot = SnapshotFile::open(&path).unwrap();
                assert!(!snapshot.is_mappable());
                assert_eq!(Head::read(snapshot.file()).unwrap().version, 2);
            }
        }
    }
}

#[test]
fn memory_goes_past_the_page_cache_too() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("vm");
    let end = save(FakeVm::booted(options()).unwrap(), &path, r#"{"compress": "zstd", "direct-io": true}"#);
    match end.outcome {
        Outcome::Saved { .. } => assert_reads(&path, &end.vm),
        // Some file systems don't have it.
        Outcome::Failed(error) => assert_eq!(error.code(), "direct-io"),
        other => panic!("{other:?}"),
    }
}

/// A whole file in memory, with what it holds.
fn bytes() -> (Vec<u8>, FakeVm) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("vm");
    let options =
        Options { region_pages: vec![40], working_set_pages: 30, touched_every: 1, ..Options::default() };
    let end = save(FakeVm::booted(options).unwrap(), &path, r#"{"compress": "lz4"}"#);
    assert!(matches!(end.outcome, Outcome::Saved { .. }), "{:?}", end.outcome);
    (fs::read(&path).unwrap(), end.vm)
}

/// Each page, if it can be read.
fn pages(bytes: &[u8]) -> Option<Vec<Option<Vec<u8>>>> {
    let snapshot = Snapshot::parse(bytes).ok()?;
    let page = |page| {
        let mut out = [0; 4096];
        snapshot.read_page(0, page, &mut out).ok().map(|()| out.to_vec())
    };
    Some((0..snapshot.layout().regions[0].pages).map(page).collect())
}

#[test]
fn damage_is_found_and_never_shown_as_memory() {
    let (whole, vm) = bytes();
    let start = Layout::of(&vm_memory(&whole)).unwrap().regions[0].data_offset as usize;
    let mut found = 0;
    for offset in (start..start + 40 * 4096).step_by(53) {
        let mut damaged = whole.clone();
        damaged[offset] ^= 0x41;
        for (page, content) in pages(&damaged).unwrap().iter().enumerate() {
            found += u32::from(content.is_none());
            assert!(
                content.as_ref().is_none_or(|content| *content == vm.page(0, page as u64)),
                "{offset} {page}"
            );
        }
    }
    assert!(found > 0);
}

fn vm_memory(bytes: &[u8]) -> Vec<crate::vm::MemoryRegion> {
    Snapshot::parse(bytes).unwrap().facts().memory.clone()
}

/// A table whose checksums hold, and whose entries make no sense together.
#[test]
fn entries_that_contradict_each_other_are_refused() {
    let (whole, _) = bytes();
    let snapshot = Snapshot::parse(&whole[..]).unwrap();
    let place = snapshot.layout().regions[0];
    let mut entries = Vec::new();
    snapshot.entries(0, 0..place.pages, &mut entries).unwrap();
    let slot = (0..2).map(|slot| slot * SLOT_PAGES as usize);
    let first = slot.flat_map(|start| start..start + 15).find(|at| entries[*at].encoding == 3).unwrap();
    type Change = fn(&mut crate::snapshot::PageEntry);
    let changes: [(&str, Change, usize); 5] = [
        ("data length", |entry| entry.data_bytes = 7, first + 1),
        ("encoding", |entry| (entry.encoding, entry.data_bytes) = (1, 4096), first + 1),
        ("encoding", |entry| entry.encoding = 4, first + 1),
        ("length of a compressed slot", |entry| entry.data_bytes = 0, first),
        ("length of a compressed slot", |entry| entry.data_bytes = 0xf001, first),
    ];
    for (what, change, at) in changes {
        let mut entries = entries.clone();
        change(&mut entries[at]);
        let mut damaged = whole.clone();
        let block = crate::snapshot::table::encode_block(0, 0, &entries);
        let offset = place.block_offset(0) as usize;
        damaged.splice(offset..offset + block.len(), block);
        let snapshot = Snapshot::parse(&damaged[..]).unwrap();
        let mut out = vec![0; (place.pages * PAGE_BYTES) as usize];
        let error = snapshot.read_pages(0, 0..place.pages, &mut out).unwrap_err();
        assert!(error.code() == "out-of-bounds" && error.to_string().contains(what), "{what}: {error}");
    }
}
