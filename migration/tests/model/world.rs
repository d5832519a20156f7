//! The two sides and all that lies between them, as one state.

use std::collections::{BTreeSet, VecDeque};

use tern_migration::handover::Answer;
use tern_migration::handover::destination::{self, Action as There, Event as Arrived};
use tern_migration::handover::source::{self, Action as Here, Event as Happened};

/// Are the disks the same files on both sides?
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Disks {
    /// Yes: one lock. A person may decide without looking.
    Shared,
    /// No: a lock proves nothing. A person lets the guest run here only after the destination's process has ended.
    Own,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Side {
    Source,
    Destination,
}

/// One process.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Process<S, A> {
    pub state: S,
    pub alive: bool,
    pub runs: bool,
    /// What the table has asked for and is not done yet.
    pub todo: VecDeque<A>,
}

/// A message on the migration's own connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Message {
    Offer,
    Agreed,
    All,
    Prepared,
    Commit,
    Running,
    Failed,
}

/// Who has the lock of a disk that both share.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Holder {
    Nobody,
    Side(Side),
    AnotherProcess,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct World {
    pub source: Process<source::State, Here>,
    pub destination: Process<destination::State, There>,
    pub to_destination: VecDeque<Message>,
    pub to_source: VecDeque<Message>,
    /// Nothing that is sent now arrives: by direction.
    pub cut: [bool; 2],
    pub lock: Holder,
    pub given_up: bool,
    /// Questions and answers are each on a connection of their own, so they overtake each other.
    pub asked: bool,
    pub answers: BTreeSet<u8>,
    pub attempt: u8,
    /// What has happened so far.
    pub committed: bool,
    pub was_committed: bool,
    /// Post-copy: the destination has all of the guest's memory.
    pub all_there: bool,
    pub said_never: bool,
    pub said_running: bool,
    pub doubted: bool,
}

/// The tables that are checked, and their surroundings.
#[derive(Clone)]
pub struct Handover {
    pub disks: Disks,
    /// Part of the guest's memory comes after it.
    pub postcopy: bool,
    pub attempts: u8,
    pub source: fn(source::State, Happened) -> (source::State, &'static [Here]),
    pub destination: fn(destination::State, Arrived) -> (destination::State, &'static [There]),
    pub answer: fn(destination::State) -> Answer,
}

impl Handover {
    pub fn new(disks: Disks, attempts: u8) -> Self {
        let (source, destination) = (source::step, destination::step);
        let (postcopy, answer) = (false, destination::State::answer);
        Self { disks, postcopy, attempts, source, destination, answer }
    }

    /// The same in post-copy.
    pub fn in_postcopy(self) -> Self {
        Self { postcopy: true, ..self }
    }
}

impl World {
    pub fn new(attempt: u8, lock: Holder) -> Self {
        let (source, destination) = (source::State::Setup, destination::State::Setup);
        Self {
            source: Process { state: source, alive: true, runs: true, todo: VecDeque::new() },
            destination: Process { state: destination, alive: true, runs: false, todo: VecDeque::new() },
            to_destination: VecDeque::from([Message::Offer]),
            to_source: VecDeque::new(),
            cut: [false; 2],
            lock,
            given_up: false,
            asked: false,
            answers: BTreeSet::new(),
            attempt,
            committed: false,
            was_committed: false,
            all_there: false,
            said_never: false,
            said_running: false,
            doubted: false,
        }
    }

    pub fn runner_has_lock(&self) -> bool {
        (!self.source.runs || self.lock == Holder::Side(Side::Source))
            && (!self.destination.runs || self.lock == Holder::Side(Side::Destination))
    }

    /// The guest is this side's, unless COMMIT is the next thing that it does.
    pub fn source_can_go_on(&self) -> bool {
        use source::State::{Claiming, Discarded, Done, HeldThere, InDoubt, Serving};
        let gone = matches!(self.source.state, Serving | InDoubt | HeldThere | Claiming | Done | Discarded);
        !gone && (!self.given_up || self.source.todo.contains(&Here::Commit))
    }

    pub fn queue(&mut self, to: Side) -> &mut VecDeque<Message> {
        match to {
            Side::Source => &mut self.to_source,
            Side::Destination => &mut self.to_destination,
        }
    }

    fn send(&mut self, to: Side, message: Message) {
        if !self.cut[to as usize] {
            self.queue(to).push_back(message);
        }
    }

    pub fn here(&mut self, model: &Handover, event: Happened) {
        let (state, actions) = (model.source)(self.source.state, event);
        self.doubted |= state == source::State::InDoubt;
        let before = std::mem::replace(&mut self.source.state, state);
        self.source.todo.extend(actions);
        if event == Happened::Sent && before == source::State::Stopped {
            self.send(Side::Destination, Message::All);
        }
    }

    pub fn there(&mut self, model: &Handover, event: Arrived) {
        let (state, actions) = (model.destination)(self.destination.state, event);
        self.destination.state = state;
        self.was_committed |= state.is_committed();
        self.destination.todo.extend(actions);
    }

    /// False: it can't be had.
    fn take(&mut self, model: &Handover, side: Side) -> bool {
        let free = self.lock == Holder::Nobody || self.lock == Holder::Side(side);
        if model.disks == Disks::Shared && free {
            self.lock = Holder::Side(side);
        }
        model.disks == Disks::Own || free
    }

    fn release(&mut self, side: Side) {
        if self.lock == Holder::Side(side) {
            self.lock = Holder::Nobody;
        }
    }

    /// Does what the source's table asked for; `well` is false if the host lets it fail.
    pub fn do_here(&mut self, model: &Handover, well: bool) {
        let Some(action) = self.source.todo.pop_front() else { return };
        match action {
            Here::Stop => {
                self.source.runs = false;
                if !well {
                    self.here(model, Happened::Failed);
                }
            }
            Here::Release => {
                if well {
                    self.release(Side::Source);
                }
                self.here(model, if well { Happened::Released } else { Happened::Refused });
            }
            Here::Take => {
                let taken = well && self.take(model, Side::Source);
                self.here(model, if taken { Happened::Taken } else { Happened::Refused });
            }
            Here::GiveUp => self.given_up = true,
            Here::Commit => {
                self.committed = true;
                self.send(Side::Destination, Message::Commit);
                if !well {
                    self.here(model, Happened::Failed);
                }
            }
            Here::TakeBack => self.given_up = false,
            Here::Resume => self.source.runs = !self.given_up,
            Here::Tell => self.send(Side::Destination, Message::Failed),
            Here::Ask => {}
        }
    }

    /// Likewise for the destination.
    pub fn do_there(&mut self, model: &Handover, well: bool) {
        let Some(action) = self.destination.todo.pop_front() else { return };
        match action {
            There::Prepared => self.send(Side::Source, Message::Prepared),
            There::Take => {
                let taken = well && self.take(model, Side::Destination);
                self.there(model, if taken { Arrived::Taken } else { Arrived::Refused });
            }
            There::Start => {
                self.destination.runs = well;
                self.there(model, if well { Arrived::Started } else { Arrived::Failed });
            }
            There::Running => self.send(Side::Source, Message::Running),
            There::Tell => self.send(Side::Source, Message::Failed),
        }
    }

    /// The next message of the connection arrives.
    pub fn deliver(&mut self, model: &Handover, to: Side) {
        let Some(message) = self.queue(to).pop_front() else { return };
        match (to, message) {
            (Side::Source, Message::Agreed) => self.here(model, Happened::Agreed),
            (Side::Source, Message::Prepared) => self.here(model, Happened::Prepared),
            (Side::Source, Message::Running) if model.postcopy => self.here(model, Happened::RunsInPart),
            (Side::Source, Message::Running) => self.here(model, Happened::Running),
            (Side::Source, _) => self.here(model, Happened::Failed),
            (Side::Destination, Message::Offer) => {
                self.there(model, Arrived::Agreed);
                self.send(Side::Source, Message::Agreed);
            }
            (Side::Destination, Message::All) => self.there(model, Arrived::Loaded),
            (Side::Destination, Message::Commit) => self.there(model, Arrived::Commit),
            (Side::Destination, _) => self.there(model, Arrived::Failed),
        }
    }

    /// The destination answers a question, or whoever listens there now.
    pub fn answer(&mut self, model: &Handover) {
        let answer =
            if self.destination.alive { (model.answer)(self.destination.state) } else { Answer::Unknown };
        self.said_never |= answer == Answer::Never;
        self.said_running |= answer == Answer::Running;
        let number = Answer::ALL.iter().position(|known| *known == answer).unwrap();
        self.answers.insert(number as u8);
    }

    pub fn hear(&mut self, model: &Handover, answer: u8) {
        let answer = Answer::ALL[usize::from(answer)];
        let has_guest = matches!(answer, Answer::Running | Answer::Held);
        // The engine goes on with what is missing, on the connection that has brought this answer.
        let event =
            if model.postcopy && has_guest { Happened::RunsInPart } else { Happened::Answered(answer) };
        self.here(model, event);
    }

    /// Can pages go from one side to the other?
    pub fn pages_can_come(&self, model: &Handover) -> bool {
        let there = self.destination.alive && self.destination.state.is_committed();
        model.postcopy && there && self.source.alive && self.source.state == source::State::Serving
    }

    pub fn crash(&mut self, side: Side) {
        self.release(side);
        self.queue(side).clear();
        match side {
            Side::Source => {
                (self.source.alive, self.source.runs) = (false, false);
                self.source.todo.clear();
                (self.asked, self.answers) = (false, BTreeSet::new());
            }
            Side::Destination => {
                (self.destination.alive, self.destination.runs) = (false, false);
                self.destination.todo.clear();
            }
        }
    }

    /// Drops what nobody will ever look at, so that states that differ in nothing else are one.
    pub fn forget(&mut self) {
        use source::State::{HeldThere, InDoubt, Serving};
        if !self.source.alive || self.source_has_left() {
            self.to_source.clear();
            self.cut[Side::Source as usize] = true;
        }
        // Who has left sends nothing more on the migration's own connection.
        if self.source_has_left() && self.source.todo.is_empty() {
            self.cut[Side::Destination as usize] = true;
        }
        if self.destination.state.is_over() && self.destination.todo.is_empty() {
            self.cut[Side::Source as usize] = true;
        }
        if !self.destination.alive {
            self.to_destination.clear();
            self.cut[Side::Destination as usize] = true;
        }
        if !matches!(self.source.state, InDoubt | HeldThere | Serving) && self.source.todo.is_empty() {
            self.answers.clear();
            self.asked = false;
        }
    }

    /// Is it waiting, and not doing something?
    pub fn waits(&self, side: Side) -> bool {
        match side {
            Side::Source => self.source.alive && self.source.todo.is_empty(),
            Side::Destination => self.destination.alive && self.destination.todo.is_empty(),
        }
    }

    /// The source's part of the connection is closed.
    pub fn source_has_left(&self) -> bool {
        use source::State::{Claiming, HeldThere, InDoubt, Reclaiming, Serving};
        self.source.state.is_over()
            || matches!(self.source.state, Serving | InDoubt | HeldThere | Claiming | Reclaiming)
    }
}
