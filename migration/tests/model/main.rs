//! The handover, checked in all orders: the two state machines that the engine drives, between them a network that
//! delays, loses, doubles and reorders, disks' locks that a third process wants as well, a person who decides, and
//! crashes at any point. `TERN_MODEL_ATTEMPTS=5 cargo test -p tern-migration --test model` looks further.

#![allow(clippy::unwrap_used, reason = "a model that can't go on has found a mistake of its own")]

mod moves;
mod mutants;
mod settle;
mod world;

use stateright::{Checker, Model, Property};
use tern_migration::handover::{destination, source};

use self::world::{Disks, Handover, World};

const ONE_RUNS: &str = "at most one side runs the guest";
const LOCKED: &str = "who runs the guest holds its disks";
const NOT_LOST: &str = "before COMMIT the guest is never lost";
const DONE: &str = "the source is done only if the destination has the guest";
const FINAL: &str = "a final answer stays true";
const IMAGE: &str = "in post-copy the source keeps its memory until the destination has all";
const SETTLES: &str = "without further faults all comes to a documented end";
/// These must be found: else the properties hold because nothing happens.
const MOVES: &str = "a guest moves";
const DOUBTS: &str = "a doubt settles by itself, both ways";

fn properties() -> Vec<Property<Handover>> {
    vec![
        Property::always(ONE_RUNS, |_, world: &World| !(world.source.runs && world.destination.runs)),
        Property::always(LOCKED, |model: &Handover, world: &World| {
            model.disks != Disks::Shared || world.runner_has_lock()
        }),
        Property::always(NOT_LOST, |_, world: &World| {
            world.committed || !world.source.alive || world.source_can_go_on()
        }),
        Property::always(DONE, |_, world: &World| {
            world.source.state != source::State::Done || world.was_committed
        }),
        Property::always(IMAGE, |model: &Handover, world: &World| {
            !model.postcopy || world.source.state != source::State::Done || world.all_there
        }),
        Property::always(FINAL, |_, world: &World| {
            let took = world.was_committed || world.destination.runs;
            !(world.said_never && took) && (world.was_committed || !world.said_running)
        }),
        Property::always(SETTLES, |model, world: &World| {
            settle::settled(model, world.clone()).is_documented()
        }),
        Property::sometimes(MOVES, |_, world: &World| {
            world.source.state == source::State::Done
                && world.destination.state == destination::State::Running
        }),
        Property::sometimes(DOUBTS, |_, world: &World| {
            world.doubted && world.source.state == source::State::Kept
        }),
    ]
}

fn attempts() -> u8 {
    std::env::var("TERN_MODEL_ATTEMPTS").ok().and_then(|text| text.parse().ok()).unwrap_or(2)
}

fn check(model: Handover) {
    let (disks, attempts, postcopy) = (model.disks, model.attempts, model.postcopy);
    let checker = model.checker().threads(2).spawn_bfs().join();
    checker.assert_properties();
    let states = checker.unique_state_count();
    println!("{disks:?} disks, {attempts} attempts, post-copy {postcopy}: {states} states");
    assert!(states > 1000, "only {states} states");
}

#[test]
fn with_disks_that_both_sides_share() {
    check(Handover::new(Disks::Shared, attempts()));
}

#[test]
fn with_disks_of_its_own_on_each_side() {
    check(Handover::new(Disks::Own, attempts()));
}

#[test]
fn with_disks_that_both_sides_share_in_post_copy() {
    check(Handover::new(Disks::Shared, attempts()).in_postcopy());
}

#[test]
fn with_disks_of_its_own_on_each_side_in_post_copy() {
    check(Handover::new(Disks::Own, attempts()).in_postcopy());
}
