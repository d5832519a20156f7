//! The check can fail: tables with one mistake each, and the property that finds it.

use std::collections::BTreeSet;

use stateright::{Checker, HasDiscoveries, Model};
use tern_migration::handover::destination::{self, Action as There, Event as Arrived, State as Destination};
use tern_migration::handover::source::{self, Action as Here, Event as Happened, State as Source};
use tern_migration::handover::{Answer, Resolution};

use super::world::{Disks, Handover};
use super::{DONE, FINAL, IMAGE, LOCKED, NOT_LOST, ONE_RUNS, SETTLES};

fn finds(model: Handover, property: &'static str) {
    let found = HasDiscoveries::AnyOf(BTreeSet::from([property]));
    let checker = model.checker().threads(2).finish_when(found).spawn_bfs().join();
    assert!(checker.discovery(property).is_some(), "nothing breaks \"{property}\"");
}

fn source(disks: Disks, step: fn(Source, Happened) -> (Source, &'static [Here])) -> Handover {
    Handover { source: step, ..Handover::new(disks, 1) }
}

fn destination(disks: Disks, step: fn(Destination, Arrived) -> (Destination, &'static [There])) -> Handover {
    Handover { destination: step, ..Handover::new(disks, 1) }
}

#[test]
fn a_source_that_goes_on_after_commit() {
    let mutant = source(Disks::Own, |state, event| match (state, event) {
        (Source::GivenUp, Happened::Failed) => (Source::Kept, &[Here::TakeBack, Here::Resume]),
        _ => source::step(state, event),
    });
    finds(mutant, ONE_RUNS);
}

#[test]
fn a_source_that_takes_no_answer_for_a_no() {
    let mutant = source(Disks::Own, |state, event| match (state, event) {
        (Source::InDoubt, Happened::Unanswered) => (Source::Reclaiming, &[Here::Take]),
        _ => source::step(state, event),
    });
    finds(mutant, ONE_RUNS);
}

#[test]
fn a_source_that_lets_a_cancel_through_after_commit() {
    let mutant = source(Disks::Own, |state, event| match (state, event) {
        (Source::GivenUp, Happened::Cancel) => (Source::Kept, &[Here::TakeBack, Here::Resume, Here::Tell]),
        _ => source::step(state, event),
    });
    finds(mutant, ONE_RUNS);
}

#[test]
fn a_source_that_gives_up_before_the_destination_is_prepared() {
    let mutant = source(Disks::Shared, |state, event| match (state, event) {
        (Source::Stopped, Happened::Sent) => (Source::Offered, &[Here::Release, Here::GiveUp]),
        _ => source::step(state, event),
    });
    finds(mutant, NOT_LOST);
}

#[test]
fn a_source_that_goes_on_without_its_disks() {
    let mutant = source(Disks::Shared, |state, event| match (state, event) {
        (Source::Releasing, Happened::Refused) => (Source::Kept, &[Here::Resume, Here::Tell]),
        (Source::Offered, Happened::Prepared) => (Source::Releasing, &[Here::Release, Here::Release]),
        (Source::GivenUp, Happened::Refused | Happened::Released) => (Source::Kept, &[Here::Resume]),
        _ => source::step(state, event),
    });
    finds(mutant, LOCKED);
}

#[test]
fn a_person_who_gets_the_guest_without_the_lock() {
    let mutant = source(Disks::Shared, |state, event| match (state, event) {
        (Source::Claiming, Happened::Refused) => (Source::Kept, &[Here::TakeBack, Here::Resume]),
        _ => source::step(state, event),
    });
    finds(mutant, ONE_RUNS);
}

#[test]
fn a_source_that_is_done_before_it_is_told() {
    let mutant = source(Disks::Own, |state, event| match (state, event) {
        (Source::Releasing, Happened::Released) => (Source::Done, &[Here::GiveUp, Here::Commit]),
        _ => source::step(state, event),
    });
    finds(mutant, DONE);
}

#[test]
fn a_source_that_does_not_ask() {
    let mutant = source(Disks::Own, |state, event| match (state, event) {
        (Source::InDoubt, Happened::Answered(_)) => (state, &[]),
        _ => source::step(state, event),
    });
    finds(mutant, SETTLES);
}

#[test]
fn a_destination_that_starts_before_commit() {
    let mutant = destination(Disks::Own, |state, event| match (state, event) {
        (Destination::Loading, Arrived::Loaded) => (Destination::Starting, &[There::Prepared, There::Start]),
        _ => destination::step(state, event),
    });
    finds(mutant, ONE_RUNS);
}

#[test]
fn a_destination_that_starts_without_the_lock() {
    let mutant = destination(Disks::Shared, |state, event| match (state, event) {
        (Destination::Committed, Arrived::Refused) => (Destination::Starting, &[There::Start]),
        _ => destination::step(state, event),
    });
    finds(mutant, LOCKED);
}

#[test]
fn a_destination_that_takes_commit_after_it_has_given_up() {
    let mutant = destination(Disks::Own, |state, event| match (state, event) {
        (Destination::Over, Arrived::Commit) => (Destination::Committed, &[There::Take]),
        _ => destination::step(state, event),
    });
    finds(mutant.clone(), ONE_RUNS);
    finds(mutant, FINAL);
}

#[test]
fn a_destination_that_says_no_too_early() {
    let answer = |state| match state {
        Destination::Prepared => Answer::Never,
        _ => state.answer(),
    };
    finds(Handover { answer, ..Handover::new(Disks::Own, 1) }, ONE_RUNS);
}

#[test]
fn a_destination_that_waits_for_commit_for_ever() {
    let mutant = destination(Disks::Own, |state, event| match (state, event) {
        (Destination::Prepared, Arrived::Failed) => (state, &[]),
        _ => destination::step(state, event),
    });
    finds(mutant, SETTLES);
}

#[test]
fn a_source_in_post_copy_that_is_done_when_the_guest_runs() {
    let mutant = source(Disks::Own, |state, event| match (state, event) {
        (Source::InDoubt, Happened::RunsInPart) => (Source::Done, &[]),
        _ => source::step(state, event),
    });
    finds(mutant.in_postcopy(), IMAGE);
}

#[test]
fn a_source_in_post_copy_that_takes_a_break_for_the_end_of_the_destination() {
    let mutant = source(Disks::Own, |state, event| match (state, event) {
        (Source::Serving, Happened::Failed) => (Source::Reclaiming, &[Here::Take]),
        _ => source::step(state, event),
    });
    finds(mutant.in_postcopy(), ONE_RUNS);
}

#[test]
fn a_person_who_gets_the_guest_back_from_post_copy_without_the_lock() {
    let mutant = source(Disks::Shared, |state, event| match (state, event) {
        (Source::Serving, Happened::Resolve(Resolution::Run)) => {
            (Source::Kept, &[Here::TakeBack, Here::Resume])
        }
        _ => source::step(state, event),
    });
    finds(mutant.in_postcopy(), ONE_RUNS);
}

#[test]
fn a_source_in_post_copy_that_never_hears_that_all_is_there() {
    let mutant = source(Disks::Own, |state, event| match (state, event) {
        (Source::Serving, Happened::AllThere) => (state, &[]),
        _ => source::step(state, event),
    });
    finds(mutant.in_postcopy(), SETTLES);
}
