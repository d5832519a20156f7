//! Mutations of a valid migration, each into a destination of its own: the guest arrives as it was sent, or it does
//! not arrive and does not run, unless what was changed is the offer to prove that. Nothing panics, nothing waits, nothing is allocated for a length that is only claimed.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

use std::collections::BTreeMap;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use tern_fuzz::recording::{WAYS, control, options, record, record_way, said, take};
use tern_fuzz::{memory, mutate, peer, seeds, stream};
use tern_migration::Side;
use tern_migration::destination::receive;
use tern_migration::fake::FakeVm;

const SEEDS: u64 = 20_000;
/// Two buffers and a first piece of a state, 1 MiB each, and what a report holds: what a destination may have for any
/// stream, apart from twice what has really come. A stream can claim a state of 64 MiB.
const FIXED_BYTES: usize = 6 << 20;
/// Far above what a destination takes to hear a stream to its end: longer is a wait for something that can't come.
const HANG: Duration = Duration::from_secs(20);

#[test]
fn a_mutated_stream_brings_the_guest_or_nothing() {
    let recording = record(&options()).unwrap().expect("the recorded migration succeeds");
    let sent = &recording.source;
    let [arrived, unproved, most_held] = [(); 3].map(|()| AtomicUsize::new(0));
    let reasons = Mutex::new(BTreeMap::<String, u32>::new());
    let all = seeds::seeds(SEEDS);
    seeds::for_each(all.clone(), |seed| {
        let mutation = mutate::of(&recording.to_destination, seed);
        let what = format!("seed {seed}: {}", mutation.what);
        let (connection, _peer) = said(&mutation.bytes).unwrap();
        let vm = FakeVm::new(options()).unwrap();
        let control = control(Side::Destination).unwrap();
        let began = Instant::now();
        let (ended, held) = memory::most_bytes(|| receive(vm, connection, &control));
        assert!(began.elapsed() < HANG, "{what}: took {:?}", began.elapsed());
        assert!(held <= FIXED_BYTES + 2 * mutation.bytes.len(), "{what}: {held} bytes were held");
        most_held.fetch_max(held, Ordering::SeqCst);
        match ended {
            // Its offer was changed too: it offers no proof, and all its checksums are right.
            Ok(_) if control.report().proof.is_none() => drop(unproved.fetch_add(1, Ordering::SeqCst)),
            Ok(received) => {
                assert_eq!(received.vm.first_difference(sent), None, "{what}: other memory arrived");
                assert_eq!(received.vm.writes(), sent.writes(), "{what}: another state arrived");
                arrived.fetch_add(1, Ordering::SeqCst);
            }
            Err(failed) => {
                assert!(!failed.vm.is_running(), "{what}: the guest runs after {}", failed.error.text());
                assert!(!failed.committed, "{what}: {}", failed.error.text());
                *reasons.lock().unwrap().entry(failed.error.code().to_owned()).or_default() += 1;
            }
        }
    });
    let (arrived, reasons) = (arrived.into_inner() as u64, reasons.into_inner().unwrap());
    let tried = all.end - all.start;
    let unproved = unproved.into_inner() as u64;
    println!(
        "{arrived} of {tried} arrived, {unproved} without proof; refused: {reasons:?}; most held: {most_held:?} bytes"
    );
    // Most mutations are seen, in more than one way; some change what doesn't matter.
    if tried == SEEDS {
        assert!(arrived > 0 && arrived + unproved < tried / 2 && reasons.len() > 5, "{arrived}, {reasons:?}");
        assert!(unproved < tried / 50, "{unproved} have lost their proof");
    }
}

/// As above, with every encoding that there is.
#[test]
fn a_mutated_stream_of_any_encoding_brings_the_guest_or_nothing() {
    let recordings: Vec<_> = WAYS
        .into_iter()
        .map(|way| record_way(way).unwrap().expect("the recorded migration succeeds"))
        .collect();
    let (arrived, unproved) = (AtomicUsize::new(0), AtomicUsize::new(0));
    let reasons = Mutex::new(BTreeMap::<String, u32>::new());
    let all = seeds::seeds(SEEDS / 4);
    seeds::for_each(all.clone(), |seed| {
        let (recording, known) = &recordings[seed as usize % recordings.len()];
        let mutation = mutate::of(&recording.to_destination, seed);
        let what = format!("seed {seed}: {}", mutation.what);
        let (connection, _peer) = said(&mutation.bytes).unwrap();
        let vm = FakeVm::new(options()).unwrap();
        let control = control(Side::Destination).unwrap();
        let began = Instant::now();
        let ended = take(vm, connection, known.as_ref(), &control).unwrap();
        assert!(began.elapsed() < HANG, "{what}: took {:?}", began.elapsed());
        match ended {
            Ok(_) if control.report().proof.is_none() => drop(unproved.fetch_add(1, Ordering::SeqCst)),
            Ok(received) => {
                assert_eq!(
                    received.vm.first_difference(&recording.source),
                    None,
                    "{what}: other memory arrived"
                );
                arrived.fetch_add(1, Ordering::SeqCst);
            }
            Err(failed) => {
                assert!(!failed.vm.is_running() && !failed.committed, "{what}: {}", failed.error.text());
                *reasons.lock().unwrap().entry(failed.error.code().to_owned()).or_default() += 1;
            }
        }
    });
    let (arrived, reasons) = (arrived.into_inner() as u64, reasons.into_inner().unwrap());
    let tried = all.end - all.start;
    println!("{arrived} of {tried} arrived; refused: {reasons:?}");
    if tried == SEEDS / 4 {
        assert!(arrived > 0 && arrived < tried / 2, "{arrived}, {reasons:?}");
        assert!(reasons.contains_key("undecodable-page"), "{reasons:?}");
    }
}

#[test]
fn mutated_answers_leave_the_guest_on_one_side() {
    let recording = record(&options()).unwrap().expect("the recorded migration succeeds");
    let handed_over = AtomicUsize::new(0);
    let all = seeds::seeds(SEEDS / 10);
    seeds::for_each(all.clone(), |seed| {
        let mutation = mutate::of(&recording.to_source, seed);
        let began = Instant::now();
        let arrived = peer::answered(stream::parse(&mutation.bytes)).unwrap();
        assert!(began.elapsed() < HANG, "seed {seed}: {}: took {:?}", mutation.what, began.elapsed());
        handed_over.fetch_add(usize::from(arrived), Ordering::SeqCst);
    });
    let (tried, handed_over) = (all.end - all.start, handed_over.into_inner() as u64);
    println!("{handed_over} of {tried} handed over");
    if tried == SEEDS / 10 {
        assert!(handed_over > 0 && handed_over < tried / 2, "{handed_over} of {tried} handed over");
    }
}
