//! The proof of equality: whatever bit changes on the way, the destination refuses the guest and the source keeps
//! it.

use std::sync::atomic::Ordering;

use serde_json::json;
use tern_migration::fake::{Direction, FakeVm, Fault, LogMode, Options, relay};
use tern_migration::source::Outcome;
use tern_migration::{Blame, LiveParameters, Parameters, Side};

use crate::harness::{
    Ends, LOG_MODES, PATIENT, assert_invariant, assert_moved, control, on_threads, plain_run, run,
};

/// A guest that rests: each page is sent once, so that nothing mends a damaged one.
fn resting() -> Options {
    Options { writes_per_call: 0, region_pages: vec![70, 600], touched_every: 1, ..Options::default() }
}

fn run_with(options: &Options, at: u32, fault: Fault, live: &LiveParameters) -> (Ends, u32) {
    let (near, far, counters) = relay(Direction::ToDestination, at, fault).unwrap();
    let pair = (near.with_timeout(PATIENT), far.with_timeout(PATIENT));
    let (source, destination) =
        (FakeVm::booted(options.clone()).unwrap(), FakeVm::new(options.clone()).unwrap());
    let ends = run(source, destination, pair, live, [control(Side::Source), control(Side::Destination)]);
    (ends, counters[0].load(Ordering::SeqCst))
}

fn verify(on: bool) -> LiveParameters {
    let changes = json!({"capabilities": [{"capability": "verify", "state": on}]});
    LiveParameters::new(Parameters::default().merged(changes.as_object().unwrap()).unwrap())
}

/// The proof refused it: both sides' values are in both texts.
fn assert_refused(ends: Ends, options: &Options, what: &str) {
    let there = &ends.destination.as_ref().err().unwrap().error;
    assert_eq!((there.code(), there.blame()), ("proof", Blame::Link), "{what}: {}", there.text());
    let (near, far) = (ends.source_report.proof.unwrap(), ends.destination_report.proof.unwrap());
    let values = if there.text().starts_with("the state") {
        [near.state, far.state]
    } else {
        [near.memory, far.memory]
    };
    let values = values.map(|value| format!("{:#018x}", value.unwrap()));
    assert_ne!(values[0], values[1]);
    let Outcome::Failed(error) = &ends.source.outcome else { panic!("{what}: {:?}", ends.source.outcome) };
    for text in [there.text(), error.text()] {
        assert!(values.iter().all(|value| text.contains(value)), "{what}: {text}");
    }
    assert_invariant(ends, options, what);
}

#[test]
fn a_flipped_bit_in_any_batch_of_pages_is_found() {
    let options = resting();
    let (ends, messages) = run_with(&options, 0, Fault::None, &verify(true));
    assert_moved(&ends, true);
    let cases: Vec<_> = (0..messages)
        .flat_map(|at| [0, 1, 32_768 * 17 + 5, 32_768 * 200 + 32_767].map(|bit| (at, bit)))
        .collect();
    let found = std::sync::atomic::AtomicU32::new(0);
    on_threads(&cases, |(at, bit)| {
        let options = resting();
        let (ends, _) = run_with(&options, *at, Fault::FlipData(*bit), &verify(true));
        if matches!(ends.source.outcome, Outcome::Completed) {
            // A message without page data.
            return assert_moved(&ends, true);
        }
        assert_refused(ends, &options, &format!("bit {bit} of message {at}"));
        found.fetch_add(1, Ordering::SeqCst);
    });
    // Three batches of the first round, and the page that saving has written.
    assert_eq!(found.load(Ordering::SeqCst), 4 * 4);
}

#[test]
fn a_changed_state_is_found_even_if_its_frame_is_in_order() {
    let options = resting();
    let (_, messages) = run_with(&options, 0, Fault::None, &verify(true));
    // The state, COMMIT and the last word are the last three.
    let cases: Vec<usize> = (0..40).map(|n| n * 977).collect();
    on_threads(&cases, |bit| {
        let options = resting();
        let (ends, _) = run_with(&options, messages - 3, Fault::Forge(*bit), &verify(true));
        assert!(ends.destination.as_ref().err().unwrap().error.text().starts_with("the state"));
        assert_refused(ends, &options, &format!("bit {bit} of the state"));
    });
}

#[test]
fn both_sides_compute_the_same_and_say_what_it_cost() {
    for log in LOG_MODES {
        for (touched_every, writes_per_call) in [(1, 0), (3, 5), (1000, 200)] {
            let options = Options { log, touched_every, writes_per_call, ..Options::default() };
            let mut source = FakeVm::booted(options.clone()).unwrap();
            // Pages that are zero though touched, and pages that come many times.
            source.guest().zero_page(1, 0);
            source.start_writer();
            let ends = plain_run(source, FakeVm::new(options).unwrap());
            assert_moved(&ends, true);
            let (near, far) = (ends.source_report.proof.unwrap(), ends.destination_report.proof.unwrap());
            assert!(near.memory.is_some_and(|sum| sum != 0) && near.state.is_some());
            assert_eq!((near.memory, near.state), (far.memory, far.state));
            assert!([near, far].iter().all(|proof| proof.stopped_hash_us <= proof.hash_us));
            let json = serde_json::to_value(&ends.source_report).unwrap();
            assert_eq!(json["proof"]["memory"].as_str().unwrap().len(), 16);
        }
    }
}

#[test]
fn it_can_be_switched_off() {
    let options = Options { log: LogMode::Plain, ..resting() };
    let (ends, _) = run_with(&options, 0, Fault::None, &verify(false));
    assert_moved(&ends, true);
    assert_eq!((ends.source_report.proof, ends.destination_report.proof), (None, None));
    let options = Options { log: LogMode::Plain, ..resting() };
    // Nobody but the fake's own state knows then that a page is another one.
    let (ends, _) = run_with(&options, 3, Fault::FlipData(7), &verify(false));
    assert_eq!(ends.destination.as_ref().err().unwrap().error.code(), "vm");
    assert_invariant(ends, &options, "without a proof");
}
