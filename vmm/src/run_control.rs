//! Who holds the guest still, and who may let it run.
//!
//! The guest runs when nobody holds it. Each hold is taken and let go by its own name, so that a person's
//! `stop` and a migration's last stage don't undo each other. `GivenUp` is the commit token spent: from then
//! on only a person's decision lets the guest run here.

use std::sync::atomic::{AtomicU8, Ordering};
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

/// Why a person may not stop or start the guest now.
pub type Forbidden = Hold;

/// The holds on one guest.
pub struct RunControl<M> {
    /// Locked while the machinery halts or starts, which may take as long as a disk takes.
    changing: Mutex<()>,
    /// Changed only with `changing` locked; read without it, so that nobody who only asks has to wait.
    held: AtomicU8,
    machinery: M,
    events: EventSink,
}

/// Those who may not be overtaken by a person's `stop` or `cont`: a guest in its last stage arrives as it was.
const NOT_A_PERSONS: [Hold; 4] = [Hold::Migration, Hold::GivenUp, Hold::Incoming, Hold::Ended];

impl<M: Machinery> RunControl<M> {
    /// A guest that was never started, held by `hold`.
    pub fn new(machinery: M, hold: Hold, events: EventSink) -> Self {
        Self { changing: Mutex::new(()), held: AtomicU8::new(hold as u8), machinery, events }
    }

    /// What is stopped and started.
    pub fn machinery(&self) -> &M {
        &self.machinery
    }

    /// Is the guest held for this reason?
    pub fn holds(&self, hold: Hold) -> bool {
        self.held.load(Ordering::SeqCst) & hold as u8 != 0
    }

    /// Does the guest run?
    pub fn is_running(&self) -> bool {
        self.held.load(Ordering::SeqCst) == 0
    }

    /// Holds the guest; returns when it stands still.
    pub fn hold(&self, hold: Hold) {
        let _changing = self.lock();
        self.add(hold);
    }

    /// Lets go. The guest runs if nobody else holds it.
    pub fn release(&self, hold: Hold) {
        let _changing = self.lock();
        self.remove(hold);
    }

    /// Takes one hold and lets go of another in one step, so that the guest can't run in between.
    pub fn exchange(&self, from: Hold, to: Hold) {
        let _changing = self.lock();
        let held = self.held.load(Ordering::SeqCst);
        self.held.store((held & !(from as u8)) | to as u8, Ordering::SeqCst);
    }

    /// A person's `stop`: refused if the guest is not a person's to stop now.
    pub fn stop(&self) -> Result<(), Forbidden> {
        let _changing = self.lock();
        self.persons()?;
        self.add(Hold::User);
        Ok(())
    }

    /// A person's `cont`: refused if the guest is not a person's to start now. `first` is done before that, and only if it
    /// is; the guest starts if that succeeds.
    pub fn cont_after<E>(&self, first: impl FnOnce() -> Result<(), E>) -> Result<Result<(), E>, Forbidden> {
        let _changing = self.lock();
        self.persons()?;
        let done = first();
        if done.is_ok() {
            self.remove(Hold::User);
        }
        Ok(done)
    }

    fn persons(&self) -> Result<(), Forbidden> {
        NOT_A_PERSONS.into_iter().find(|hold| self.holds(*hold)).map_or(Ok(()), Err)
    }

    fn add(&self, hold: Hold) {
        let before = self.held.fetch_or(hold as u8, Ordering::SeqCst);
        if before == 0 {
            self.machinery.halt();
            self.events.post(Event::Stop);
        }
    }

    fn remove(&self, hold: Hold) {
        let before = self.held.fetch_and(!(hold as u8), Ordering::SeqCst);
        if before != 0 && before & !(hold as u8) == 0 {
            self.machinery.go();
            self.events.post(Event::Resume);
        }
    }

    fn lock(&self) -> MutexGuard<'_, ()> {
        self.changing.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Barrier;
    use std::sync::atomic::AtomicU32;

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
        control.exchange(Hold::Migration, Hold::GivenUp);
        control.release(Hold::Migration);
        assert!(!control.is_running() && control.holds(Hold::GivenUp));
        control.release(Hold::GivenUp);
        assert_eq!(counts(&control), (1, 2));
        control.release(Hold::GivenUp);
        assert_eq!(counts(&control), (1, 2), "letting go of nothing starts nothing");
    }

    #[test]
    fn a_person_cannot_overtake_a_migration_and_its_hold_is_known_at_the_switch() {
        let (events, _queue) = event_queue().unwrap();
        let control = RunControl::new(Counter::default(), Hold::Building, events);
        control.release(Hold::Building);
        assert_eq!(control.stop(), Ok(()));
        control.hold(Hold::Migration);
        assert_eq!(control.cont_after(|| Ok::<(), ()>(())), Err(Hold::Migration));
        assert!(control.holds(Hold::User), "the guest arrives paused");
        control.release(Hold::Migration);
        assert_eq!(control.cont_after(|| Ok::<(), ()>(())), Ok(Ok(())));
        assert_eq!(control.stop(), Ok(()));
        assert_eq!(control.cont_after(|| Err("no disk")), Ok(Err("no disk")));
        assert!(control.holds(Hold::User));
        control.release(Hold::User);
        control.hold(Hold::Migration);
        assert_eq!(control.stop(), Err(Hold::Migration));
        control.exchange(Hold::Migration, Hold::GivenUp);
        assert_eq!(control.cont_after(|| Ok::<(), ()>(())), Err(Hold::GivenUp));
    }

    struct Stuck(Barrier);

    impl Machinery for Stuck {
        fn halt(&self) {
            self.0.wait();
            self.0.wait();
        }

        fn go(&self) {}
    }

    #[test]
    fn who_only_asks_does_not_wait_for_a_disk() {
        let (events, _queue) = event_queue().unwrap();
        let control = RunControl::new(Stuck(Barrier::new(2)), Hold::Building, events);
        control.release(Hold::Building);
        std::thread::scope(|scope| {
            scope.spawn(|| control.hold(Hold::Migration));
            control.machinery().0.wait();
            assert!(control.holds(Hold::Migration) && !control.is_running());
            control.machinery().0.wait();
        });
    }
}
