//! Every fault at every message, both ways. The invariant is the harness's.

use std::sync::atomic::Ordering;
use std::time::Duration;

use tern_migration::fake::{Direction, FakeVm, Fault, LogMode, Options, relay};
use tern_migration::source::Outcome;
use tern_migration::{LiveParameters, Side};

use crate::harness::{Ends, PATIENT, assert_invariant, assert_second_succeeds, control, on_threads, run};

const IMPATIENT: Duration = Duration::from_millis(200);

fn options(log: LogMode) -> Options {
    Options { log, ..Options::default() }
}

struct Ran {
    ends: Ends,
    hit: bool,
}

fn run_with(options: &Options, way: Direction, at: u32, fault: &Fault, timeout: Duration) -> Ran {
    let controls = [control(Side::Source), control(Side::Destination)];
    run_controlled(options, way, at, fault, timeout, controls)
}

fn run_controlled(
    options: &Options,
    way: Direction,
    at: u32,
    fault: &Fault,
    timeout: Duration,
    controls: [std::sync::Arc<tern_migration::Control>; 2],
) -> Ran {
    let (near, far, counters) = relay(way, at, fault.clone()).unwrap();
    let pair = (near.with_timeout(timeout), far.with_timeout(timeout));
    let source = FakeVm::booted(options.clone()).unwrap();
    let destination = FakeVm::new(options.clone()).unwrap();
    let ends = run(source, destination, pair, &LiveParameters::default(), controls);
    let counter = usize::from(way == Direction::ToSource);
    Ran { ends, hit: counters[counter].load(Ordering::SeqCst) > at }
}

/// Messages of a migration without faults, both ways. How many rounds are made depends on the machine's
/// speed, so a few more are tried.
fn messages(options: &Options) -> [(Direction, u32); 2] {
    let (near, far, counters) = relay(Direction::ToSource, 0, Fault::None).unwrap();
    let (source, destination) =
        (FakeVm::booted(options.clone()).unwrap(), FakeVm::new(options.clone()).unwrap());
    let controls = [control(Side::Source), control(Side::Destination)];
    let ends = run(source, destination, (near, far), &LiveParameters::default(), controls);
    assert!(matches!(ends.source.outcome, Outcome::Completed));
    let [there, back] = counters.map(|counter| counter.load(Ordering::SeqCst));
    // Magic, hello, agreed, prepared, running.
    assert_eq!(back, 5);
    // Magic, hello, offer, two rounds with pages at least, state, commit, settled.
    assert!(there >= 10, "{there} messages");
    [(Direction::ToDestination, there), (Direction::ToSource, back)]
}

fn at_every_message(name: &str, log: LogMode, timeout: Duration, faults: &[Fault]) {
    let plain = options(log);
    let cases: Vec<_> = messages(&plain)
        .into_iter()
        .flat_map(|(way, count)| (0..count + 2).map(move |at| (way, at)))
        .flat_map(|(way, at)| faults.iter().map(move |fault| (way, at, fault.clone())))
        .collect();
    on_threads(&cases, |(way, at, fault)| {
        let options = options(log);
        let what = format!("{name} {fault:?} at message {at} {way:?}");
        let Ran { ends, hit } = run_with(&options, *way, *at, fault, timeout);
        let completed = matches!(ends.source.outcome, Outcome::Completed);
        // Twice the last message of a side harms nobody, and nothing harms the last word of all; every other fault does.
        let last_word = *way == Direction::ToDestination && completed;
        assert!(
            completed != hit || last_word || matches!(fault, Fault::Double),
            "{what}: {:?}",
            ends.source.outcome
        );
        assert_invariant(ends, &options, &what);
    });
}

#[test]
fn a_cut_before_every_message() {
    for log in crate::harness::LOG_MODES {
        at_every_message("cut", log, PATIENT, &[Fault::CutBefore]);
    }
}

#[test]
fn a_cut_inside_every_message() {
    at_every_message("cut", LogMode::Plain, PATIENT, &[Fault::CutInside]);
}

#[test]
fn a_flipped_bit_in_every_message() {
    let faults: Vec<_> = [0, 7, 33, 70, 101, 150, 195, 500, 3001].map(Fault::Flip).into();
    at_every_message("flip", LogMode::Manual { initially_set: true }, IMPATIENT, &faults);
}

#[test]
fn every_message_twice() {
    at_every_message("double", LogMode::Manual { initially_set: false }, PATIENT, &[Fault::Double]);
}

#[test]
fn noise_in_place_of_every_message() {
    at_every_message("garbage", LogMode::Plain, IMPATIENT, &[Fault::Garbage]);
}

#[test]
fn every_message_cut_short() {
    at_every_message("truncate", LogMode::Plain, IMPATIENT, &[Fault::Truncate]);
}

#[test]
fn silence_from_every_message_on() {
    at_every_message("stall", LogMode::Plain, IMPATIENT, &[Fault::Stall]);
}

#[test]
fn a_cancel_at_every_message() {
    let cases: Vec<_> = messages(&options(LogMode::Plain))
        .into_iter()
        .flat_map(|(way, count)| (0..count).map(move |at| (way, at)))
        .flat_map(|(way, at)| [Side::Source, Side::Destination].map(|side| (way, at, side)))
        .collect();
    on_threads(&cases, |(way, at, side)| {
        let options = options(LogMode::Plain);
        let controls = [control(Side::Source), control(Side::Destination)];
        let cancelled = usize::from(*side == Side::Destination);
        let fault = Fault::Cancel(std::sync::Arc::clone(&controls[cancelled]));
        let ran = run_controlled(&options, *way, *at, &fault, PATIENT, controls);
        let what = format!("cancel of the {side:?} at message {at} {way:?}: {:?}", ran.ends.source.outcome);
        // A cancel comes in time or too late, but it never leaves anybody in doubt.
        assert!(!matches!(ran.ends.source.outcome, Outcome::InDoubt(_)), "{what}");
        let there = ran.ends.destination.as_ref().err();
        let there = there.map(|failed| failed.error.text());
        if *side == Side::Source && matches!(ran.ends.source.outcome, Outcome::Cancelled) {
            assert!(there.is_some(), "{what}");
        }
        assert_invariant(ran.ends, &options, &what);
    });
}

#[test]
fn a_cancelled_peer_says_so() {
    let options = Options { region_pages: vec![5000], ..Options::default() };
    let controls = [control(Side::Source), control(Side::Destination)];
    let fault = Fault::Cancel(std::sync::Arc::clone(&controls[1]));
    let ran = run_controlled(&options, Direction::ToDestination, 3, &fault, PATIENT, controls);
    let Outcome::Failed(error) = &ran.ends.source.outcome else { panic!("{:?}", ran.ends.source.outcome) };
    assert_eq!(error.text(), "the destination gave up: the migration was cancelled");
    assert_second_succeeds(ran.ends.source.vm, &options, "second");
}
