//! Where a state comes to when nothing fails any more: all that waits happens, in one fair order.

use tern_migration::handover::destination::State as There;
use tern_migration::handover::source::State as Here;
use tern_migration::handover::{destination::Event as Arrived, source::Event as Happened};

use super::world::{Handover, Side, World};

/// More than the longest way to an end.
const STEPS_MAX: usize = 100;

/// The end.
pub fn settled(model: &Handover, mut world: World) -> World {
    for _ in 0..STEPS_MAX {
        let before = world.clone();
        go_on(model, &mut world);
        if world == before {
            break;
        }
    }
    world
}

fn go_on(model: &Handover, world: &mut World) {
    if world.source.alive && !world.source.todo.is_empty() {
        return world.do_here(model, true);
    }
    if world.destination.alive && !world.destination.todo.is_empty() {
        return world.do_there(model, true);
    }
    if world.destination.alive && !world.destination.state.is_over() {
        if !world.to_destination.is_empty() {
            return world.deliver(model, Side::Destination);
        }
        if world.cut[Side::Destination as usize] || !world.source.alive || world.source_has_left() {
            return world.there(model, Arrived::Failed);
        }
    }
    if world.source.alive {
        source_goes_on(model, world);
    }
}

fn source_goes_on(model: &Handover, world: &mut World) {
    let has_left = world.source_has_left();
    if !has_left && !world.to_source.is_empty() {
        return world.deliver(model, Side::Source);
    }
    let over = !world.destination.alive || world.destination.state.is_over();
    if !has_left && (over || world.cut[Side::Source as usize] || world.cut[Side::Destination as usize]) {
        return world.here(model, Happened::Failed);
    }
    match world.source.state {
        Here::Live => world.here(model, Happened::LittleLeft { pause: false }),
        Here::PreSwitchover => world.here(model, Happened::Continue),
        Here::Stopped => world.here(model, Happened::Sent),
        Here::InDoubt | Here::HeldThere if world.destination.alive && world.destination.state.is_over() => {
            world.answers.clear();
            world.answer(model);
            let answer = world.answers.pop_first().unwrap();
            world.hear(model, answer);
        }
        Here::Serving if world.pages_can_come(model) => {
            world.all_there = true;
            world.here(model, Happened::AllThere);
        }
        Here::HeldThere if !world.destination.alive => world.here(model, Happened::Unanswered),
        _ => {}
    }
}

impl World {
    /// Is this one of the ends that PROTOCOL.md names?
    pub fn is_documented(&self) -> bool {
        let nothing_to_do = self.source.todo.is_empty() && self.destination.todo.is_empty();
        let (here, there) = (self.source.state, self.destination.state);
        let gone = !self.destination.alive;
        nothing_to_do
            && match (self.source.alive, here) {
                // The source's process has ended, and its copy with it.
                (false, _) => gone || there.is_over(),
                (true, Here::Kept) => {
                    self.source.runs && (gone || there == There::Over || there == There::Held)
                }
                (true, Here::Stranded | Here::Discarded) => gone || there.is_over(),
                (true, Here::Done) => gone || there == There::Running || there == There::Held,
                // Nobody is there who could be asked, or could take the rest: a person decides.
                (true, Here::InDoubt | Here::Serving) => gone,
                (true, Here::HeldThere) => there == There::Held,
                (
                    true,
                    Here::Setup
                    | Here::Live
                    | Here::PreSwitchover
                    | Here::Stopped
                    | Here::Offered
                    | Here::Releasing
                    | Here::GivenUp
                    | Here::Claiming
                    | Here::Reclaiming,
                ) => false,
            }
    }
}
