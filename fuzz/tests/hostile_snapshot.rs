//! Mutations of a saved guest, each restored into a machine of its own: it is the guest that was saved, or it is
//! refused and does not run. Whatever bit of the file changes.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

use std::collections::BTreeMap;
use std::fs::File;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use tern_fuzz::random::Random;
use tern_fuzz::recording::{control, options, save};
use tern_fuzz::sparse::Sparse;
use tern_fuzz::{fields, memory, sections, seeds};
use tern_migration::Side;
use tern_migration::destination::{Filling, Restore, restore};
use tern_migration::fake::FakeVm;
use tern_migration::fuzzing::state_hash;
use tern_migration::snapshot::{Index, SnapshotFile};
use tern_schema::decode_record;

const SEEDS: u64 = 1500;
/// Pieces of reading, tables and the report.
const FIXED_BYTES: usize = 16 << 20;
const BLOCK_BYTES: usize = 4096;

/// What a file's parts are, and which of them a mutation may change.
fn mutate(file: &Sparse, random: &mut Random) -> (Sparse, String) {
    let mut file = file.clone();
    let what = match random.below(8) {
        0 => {
            file.length = random.any() % file.length;
            format!("cut to {} bytes", file.length)
        }
        // Anywhere: mostly a hole.
        1 => flip(&mut file, random.any() % (8 << 20), random),
        2 | 3 => {
            let (offset, piece) = file.pieces[random.below(file.pieces.len())].clone();
            let what = flip(&mut file, offset + random.below(piece.len()) as u64, random);
            if random.one_in(2) {
                file.seal();
            }
            what
        }
        4 => swap(&mut file, random),
        // Description or index, with the length that it has then.
        which => {
            let (length_at, offset) =
                if which == 5 { (12, 4096) } else { (20, u64::from_le_bytes(first(&file.at(24, 8)))) };
            let length = u32::from_le_bytes(first(&file.at(length_at, 4))) as usize;
            let mut record = file.at(offset, length);
            let what = sections::mutate_record(&mut record, random);
            file.put(length_at, (record.len() as u32).to_le_bytes().to_vec());
            if which != 5 {
                file.length = offset + record.len() as u64;
                file.put(32, file.length.to_le_bytes().to_vec());
            }
            file.put(offset, record);
            file.seal();
            format!("the record at {offset}: {what}")
        }
    };
    (file, what)
}

fn first<const N: usize>(bytes: &[u8]) -> [u8; N] {
    *bytes.first_chunk().unwrap()
}

fn flip(file: &mut Sparse, offset: u64, random: &mut Random) -> String {
    let mut byte = file.at(offset, 1);
    random.flip(&mut byte);
    file.put(offset, byte);
    format!("a flipped bit at {offset}")
}

/// Two blocks change places: pages, blocks of tables.
fn swap(file: &mut Sparse, random: &mut Random) -> String {
    let [one, other] = [(); 2].map(|()| file.pieces[random.below(file.pieces.len())].0);
    let (first, second) = (file.at(one, BLOCK_BYTES), file.at(other, BLOCK_BYTES));
    file.put(one, second);
    file.put(other, first);
    file.seal();
    format!("the blocks at {one} and {other} have changed places")
}

#[test]
fn a_mutated_file_is_the_same_guest_or_none() {
    for compress in ["none", "lz4", "zstd"] {
        mutated_files(compress);
    }
}

fn mutated_files(compress: &'static str) {
    let (saved, source) = save(&options(), compress).unwrap().expect("the guest is saved");
    let folder = tempfile::tempdir().unwrap();
    let (next, arrived, most_held) = (AtomicU64::new(0), AtomicUsize::new(0), AtomicUsize::new(0));
    let reasons = Mutex::new(BTreeMap::<String, u32>::new());
    let all = seeds::seeds(SEEDS);
    seeds::for_each(all.clone(), |seed| {
        let (file, what) = mutate(&saved, &mut Random::new(seed));
        let what = format!("seed {seed}: {what}");
        let path = folder.path().join(next.fetch_add(1, Ordering::SeqCst).to_string());
        file.write_to(&File::create(&path).unwrap()).unwrap();
        let vm = FakeVm::new(options()).unwrap();
        let control = control(Side::Destination).unwrap();
        let (ended, held) = memory::most_bytes(|| {
            let snapshot = Arc::new(SnapshotFile::open(&path).map_err(|error| error.code().to_owned())?);
            let (filling, renew) = (Filling::Eager, Box::new(|_: &mut FakeVm, ()| Ok(())));
            let from = Restore { path: path.clone(), snapshot, filling, renew, paused: false };
            restore(vm, from, &control).map_err(|failed| {
                assert!(!failed.vm.is_running(), "{what}: the guest runs after {}", failed.error.text());
                failed.error.code().to_owned()
            })
        });
        std::fs::remove_file(&path).unwrap();
        assert!(held <= FIXED_BYTES, "{what}: {held} bytes were held");
        most_held.fetch_max(held, Ordering::SeqCst);
        match ended {
            Ok(received) => {
                assert_eq!(received.vm.first_difference(&source), None, "{what}: another guest");
                assert_eq!(received.vm.writes(), source.writes(), "{what}: another state");
                arrived.fetch_add(1, Ordering::SeqCst);
            }
            Err(code) => *reasons.lock().unwrap().entry(code).or_default() += 1,
        }
    });
    let (arrived, reasons) = (arrived.into_inner() as u64, reasons.into_inner().unwrap());
    let tried = all.end - all.start;
    println!("{arrived} of {tried} arrived; refused: {reasons:?}; most held: {most_held:?} bytes");
    if tried == SEEDS {
        assert!(arrived > 0 && arrived < tried / 2 && reasons.len() > 3, "{arrived} arrived, {reasons:?}");
    }
}

/// The file with another state, whose length, hash and checksums are right.
fn with_state(saved: &Sparse, change: impl FnOnce(&mut Vec<sections::Section>)) -> Sparse {
    let mut file = saved.clone();
    let index_at = u64::from_le_bytes(first(&file.at(24, 8)));
    let record = file.at(index_at, u32::from_le_bytes(first(&file.at(20, 4))) as usize);
    let bytes = decode_record::<Index>(&record).unwrap().state_bytes;
    let state_at = index_at - u64::from(bytes);
    let mut state = sections::parse(&file.at(state_at, bytes as usize));
    change(&mut state);
    let (state, mut index) = (sections::write(&state), fields::parse(&record).unwrap());
    fields::set_integer(&mut index, 3, state.len() as u64);
    fields::set_integer(&mut index, 4, state_hash(&state));
    let (index, index_at) = (fields::write(&index), state_at + state.len() as u64);
    file.length = index_at + index.len() as u64;
    file.put(state_at, state);
    file.put(24, index_at.to_le_bytes().to_vec());
    file.put(20, (index.len() as u32).to_le_bytes().to_vec());
    file.put(32, file.length.to_le_bytes().to_vec());
    file.put(index_at, index);
    file.seal();
    file
}

#[test]
fn a_section_that_is_there_twice_is_refused() {
    let (saved, source) = save(&options(), "none").unwrap().expect("the guest is saved");
    let folder = tempfile::tempdir().unwrap();
    let restored = |file: &Sparse| {
        let path = folder.path().join("guest.snap");
        file.write_to(&File::create(&path).unwrap()).unwrap();
        let snapshot = Arc::new(SnapshotFile::open(&path).unwrap());
        let (filling, renew) = (Filling::Eager, Box::new(|_: &mut FakeVm, ()| Ok(())));
        let from = Restore { path, snapshot, filling, renew, paused: false };
        let control = control(Side::Destination).unwrap();
        restore(FakeVm::new(options()).unwrap(), from, &control)
            .map(|received| received.vm)
            .map_err(|failed| (failed.vm.is_running(), failed.error.text()))
    };
    let same = restored(&with_state(&saved, |_| {})).expect("nothing was changed");
    assert_eq!(same.first_difference(&source), None);
    let twice = with_state(&saved, |state| state.push(state[0].clone()));
    let (runs, text) = restored(&twice).expect_err("a section was there twice");
    assert!(!runs && text.contains("occurs twice"), "{text}");
}
