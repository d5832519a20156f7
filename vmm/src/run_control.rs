//! Who holds the guest still, and who may let it run.
//!
//! The guest runs when nobody holds it. Each hold is taken and let go by its own name, so that a person's
//! `stop` and a migration's last stage don't undo each other. `GivenUp` is the commit token spent: from then
//! on only a person's decision lets the guest run here.

use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::control::{Event, EventSink};

/// A reason to stand still.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Hold {
    /// A person said `stop`.
    User = 1,
    /// A migration is in its last stage.
    Migration = 2,
    /// A destination that hasn't got its guest yet.
    Incoming = 4,
    /// The right to run this guest was given to a destination.
    GivenUp = 8,
    /// The machine is being taken down.
    Ended = 16,
    /// The machine is built, and nothing is loaded yet.
    Building = 32,
}

/// What is stopped and started: all vCPUs, and the devices with them.
pub trait Machinery: Send + Sync {
    /// Stops; returns when nothing writes guest memory any more.
    fn halt(&self);
    /// Starts again.
    fn go(&self);
}

/// The holds on one guest.
pub struct RunControl<M> {
    held: Mutex<u8>,
    machinery: M,
    events: EventSink,
}

impl<M: Machinery> RunControl<M> {
    /// A guest that was never started, held by `hold`.
    pub fn new(machinery: M, hold: Hold, events: EventSink) -> Self {
        Self { held: Mutex::new(hold as u8), machinery, events }
    }

    /// What is stopped and started.
    pub fn machinery(&self) -> &M {
        &self.machinery
    }

    /// Is the guest held for this reason?
    pub fn holds(&self, hold: Hold) -> bool {
        *self.lock() & hold as u8 != 0
    }

    /// Does the guest run?
    pub fn is_running(&self) -> bool {
        *self.lock() == 0
    }

    /// Holds the guest; returns when it stands still.
    pub fn hold(&self, hold: Hold) {
        let mut held = self.lock();
        let wanted = *held | hold as u8;
        self.become_held(&mut held, wanted);
    }

    /// Lets go. The guest runs if nobody else holds it.
    pub fn release(&self, hold: Hold) {
        let mut held = self.lock();
        let wanted = *held & !(hold as u8);
        self.become_held(&mut held, wanted);
    }

    /// A person says `stop` (or `cont`, if not `stop`). False, and nothing done, in a migration's last stage
    /// and after it: whether the guest runs has been told to the destination then, and is decided there.
    pub fn order(&self, stop: bool) -> bool {
        const NOT_OURS: u8 = Hold::Migration as u8 | Hold::GivenUp as u8;
        let mut held = self.lock();
        let user = Hold::User as u8;
        let wanted = if stop { *held | user } else { *held & !user };
        let ours = *held & NOT_OURS == 0;
        if ours {
            self.become_held(&mut held, wanted);
        }
        ours
    }

    fn become_held(&self, held: &mut u8, wanted: u8) {
        let before = std::mem::replace(held, wanted);
        if before == 0 && wanted != 0 {
            self.machinery.halt();
            self.events.post(Event::Stop);
        } else if before != 0 && wanted == 0 {
            self.machinery.go();
            self.events.post(Event::Resume);
        }
    }

    /// Takes one hold and lets go of another in one step, so that the guest can't run in between.
    pub fn exchange(&self, from: Hold, to: Hold) {
        let mut held = self.lock();
        *held = (*held & !(from as u8)) | to as u8;
    }

    fn lock(&self) -> MutexGuard<'_, u8> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU32, Ordering};

    use super::*;
    use crate::control::event_queue;

    #[derive(Default)]
    struct Counter {
        halts: AtomicU32,
        goes: AtomicU32,
    }

    impl Machinery for Counter {
        fn halt(&self) {
            self.halts.fetch_add(1, Ordering::SeqCst);
        }

        fn go(&self) {
            self.goes.fetch_add(1, Ordering::SeqCst);
        }
    }

    fn counts(control: &RunControl<Counter>) -> (u32, u32) {
        let counter = control.machinery();
        (counter.halts.load(Ordering::SeqCst), counter.goes.load(Ordering::SeqCst))
    }

    #[test]
    fn holds_do_not_undo_each_other() {
        let (events, _queue) = event_queue().unwrap();
        let control = RunControl::new(Counter::default(), Hold::Incoming, events);
        control.release(Hold::Incoming);
        assert_eq!(counts(&control), (0, 1));
        control.hold(Hold::User);
        control.hold(Hold::Migration);
        control.release(Hold::User);
        assert_eq!(counts(&control), (1, 1));
        assert!(!control.order(true) && !control.order(false) && !control.holds(Hold::User));
        control.exchange(Hold::Migration, Hold::GivenUp);
        assert!(!control.order(true) && !control.holds(Hold::User), "it is decided at the destination");
        control.release(Hold::Migration);
        assert!(!control.is_running() && control.holds(Hold::GivenUp));
        control.release(Hold::GivenUp);
        assert_eq!(counts(&control), (1, 2));
        control.release(Hold::GivenUp);
        assert_eq!(counts(&control), (1, 2), "letting go of nothing starts nothing");
        assert!(control.order(true) && control.holds(Hold::User) && control.order(false));
        assert_eq!(counts(&control), (2, 3));
    }
}
