//! What can happen next in a world, and what it makes of it.

use stateright::{Model, Property};
use tern_migration::handover::Resolution;
use tern_migration::handover::destination::Event as Arrived;
use tern_migration::handover::source::{self, Event as Happened};

use super::world::{Disks, Handover, Holder, Side, World};

/// Most answers that are on their way at once: enough for each to be overtaken.
const ANSWERS_MAX: usize = 2;

/// One step of anything.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Move {
    /// The first thing that is to be done is done, or fails.
    Do(Side, bool),
    Here(Happened),
    There(Arrived),
    Deliver(Side),
    /// The connection to this side breaks behind the first so many messages.
    Cut(Side, usize),
    Crash(Side),
    Ask,
    QuestionLost,
    /// It arrives; a copy of it may still be on its way.
    Question {
        again: bool,
    },
    /// A new process listens where the destination did.
    Stranger,
    Answer {
        answer: u8,
        again: bool,
    },
    AnswerLost(u8),
    OtherProcess(bool),
    /// Post-copy: all pages have come.
    AllCome,
    /// The source hears it.
    AllHeard,
    Again,
}

impl World {
    fn moves_of_network(&self, moves: &mut Vec<Move>) {
        if self.waits(Side::Source) && !self.to_source.is_empty() && !self.source_has_left() {
            moves.push(Move::Deliver(Side::Source));
        }
        if self.waits(Side::Destination) && !self.to_destination.is_empty() {
            moves.push(Move::Deliver(Side::Destination));
        }
        for (side, queue) in [(Side::Source, &self.to_source), (Side::Destination, &self.to_destination)] {
            if !self.cut[side as usize] {
                moves.extend((0..=queue.len()).map(|kept| Move::Cut(side, kept)));
            }
        }
    }

    fn moves_of_questions(&self, moves: &mut Vec<Move>) {
        use source::State::{HeldThere, InDoubt, Serving};
        let doubts = self.waits(Side::Source) && matches!(self.source.state, InDoubt | HeldThere | Serving);
        if doubts && !self.asked && self.answers.len() < ANSWERS_MAX {
            moves.push(Move::Ask);
        }
        if self.asked {
            moves.push(Move::QuestionLost);
            if self.waits(Side::Destination) {
                moves.extend([true, false].map(|again| Move::Question { again }));
            }
            if !self.destination.alive {
                moves.push(Move::Stranger);
            }
        }
        for answer in self.answers.iter().copied() {
            moves.push(Move::AnswerLost(answer));
            if self.waits(Side::Source) {
                moves.extend([true, false].map(|again| Move::Answer { answer, again }));
            }
        }
    }

    fn moves_of_sides(&self, model: &Handover, moves: &mut Vec<Move>) {
        let dead = !self.destination.alive;
        let looked = model.disks == Disks::Shared || dead;
        if self.waits(Side::Source) {
            let events = [true, false].map(|pause| Happened::LittleLeft { pause });
            let others =
                [Happened::Continue, Happened::Sent, Happened::Failed, Happened::Cancel, Happened::Cont];
            let persons = [Happened::Resolve(Resolution::Discard), Happened::Unanswered];
            moves.extend(events.into_iter().chain(others).chain(persons).map(Move::Here));
            if looked {
                moves.push(Move::Here(Happened::Resolve(Resolution::Run)));
            }
        }
        if self.waits(Side::Destination) {
            moves.extend([Arrived::Failed, Arrived::Cancel, Arrived::Cont].map(Move::There));
        }
        for side in [Side::Source, Side::Destination] {
            let alive = if side == Side::Source { self.source.alive } else { self.destination.alive };
            if alive && !self.waits(side) {
                moves.extend([true, false].map(|well| Move::Do(side, well)));
            }
            if alive {
                moves.push(Move::Crash(side));
            }
        }
    }
}

impl Model for Handover {
    type State = World;
    type Action = Move;

    fn init_states(&self) -> Vec<World> {
        let lock = if self.disks == Disks::Shared { Holder::Side(Side::Source) } else { Holder::Nobody };
        vec![World::new(1, lock)]
    }

    fn actions(&self, world: &World, moves: &mut Vec<Move>) {
        world.moves_of_sides(self, moves);
        world.moves_of_network(moves);
        world.moves_of_questions(moves);
        if self.disks == Disks::Shared {
            match world.lock {
                Holder::Nobody => moves.push(Move::OtherProcess(true)),
                Holder::AnotherProcess => moves.push(Move::OtherProcess(false)),
                Holder::Side(_) => {}
            }
        }
        if world.pages_can_come(self) && world.waits(Side::Source) {
            moves.push(if world.all_there { Move::AllHeard } else { Move::AllCome });
        }
        let over = world.source.state == source::State::Kept && world.source.runs;
        if over && world.waits(Side::Source) && world.attempt < self.attempts {
            moves.push(Move::Again);
        }
    }

    fn next_state(&self, before: &World, step: Move) -> Option<World> {
        let mut world = before.clone();
        match step {
            Move::Do(Side::Source, well) => world.do_here(self, well),
            Move::Do(Side::Destination, well) => world.do_there(self, well),
            Move::Here(event) => world.here(self, event),
            Move::There(event) => world.there(self, event),
            Move::Deliver(to) => world.deliver(self, to),
            Move::Cut(to, kept) => {
                world.queue(to).truncate(kept);
                world.cut[to as usize] = true;
            }
            Move::Crash(side) => world.crash(side),
            Move::Ask => world.asked = true,
            Move::QuestionLost => world.asked = false,
            Move::Question { again } => {
                world.asked = again;
                world.answer(self);
            }
            Move::Stranger => {
                world.asked = false;
                world.answer(self);
            }
            Move::Answer { answer, again } => {
                if !again {
                    world.answers.remove(&answer);
                }
                world.hear(self, answer);
            }
            Move::AnswerLost(answer) => _ = world.answers.remove(&answer),
            Move::OtherProcess(takes) => {
                world.lock = if takes { Holder::AnotherProcess } else { Holder::Nobody };
            }
            Move::AllCome => world.all_there = true,
            Move::AllHeard => world.here(self, Happened::AllThere),
            // Another session: nothing of this one is heard again. A destination that is not over has another
            // process's machine by then.
            Move::Again => world = World::new(world.attempt + 1, world.lock),
        }
        world.forget();
        (world != *before).then_some(world)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        super::properties()
    }
}
