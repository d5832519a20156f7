//! Who goes on: every thread of the engine is a coroutine here, and all of them are on one thread of the system. One
//! runs until it waits; then the seed says which of the others looks whether it can go on. If none can, the clock
//! jumps to the next moment at which something happens.
//!
//! This is the side that the engine calls (`thread.rs`, `control.rs` and the streams of `net`); without a world on this
//! thread it says so, and the engine does what it does outside.

#![allow(
    unsafe_code,
    reason = "a coroutine is suspended from deep inside its calls, which only a pointer reaches"
)]

use std::any::Any;
use std::cell::{Cell, RefCell};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::ptr;
use std::rc::Rc;
use std::sync::{Mutex, MutexGuard, PoisonError, TryLockError};
use std::time::Duration;

use corosensei::stack::DefaultStack;
use corosensei::{Coroutine, Yielder};

use super::world::World;
use crate::cancel::Cancel;
use crate::channel::Woken;
use crate::stats::Side;

/// Room for the deepest calls of the engine, in builds without optimisation too.
const STACK_BYTES: usize = 1 << 20;

thread_local! {
    static WORLD: RefCell<Option<Rc<World>>> = const { RefCell::new(None) };
    static YIELDER: Cell<*const Yielder<(), ()>> = const { Cell::new(ptr::null()) };
    static STACKS: RefCell<Vec<DefaultStack>> = const { RefCell::new(Vec::new()) };
}

/// Makes it this thread's world, or none.
pub(super) fn enter(world: Option<Rc<World>>) {
    WORLD.set(world);
}

/// The world of this thread.
pub(super) fn world() -> Option<Rc<World>> {
    WORLD.with_borrow(Clone::clone)
}

/// A thread of the engine that begins its life.
pub(super) struct Start {
    pub(super) name: String,
    pub(super) side: Side,
    pub(super) run: Box<dyn FnOnce()>,
}

/// What a thread ended with, if it was a panic.
pub(super) type Panicked = Option<Box<dyn Any + Send>>;

/// A thread of the engine as it stands.
pub(super) struct Task {
    coroutine: Option<Coroutine<(), (), Panicked>>,
    yielder: Rc<Cell<*const Yielder<(), ()>>>,
}

impl Task {
    pub(super) fn new(start: Start) -> std::io::Result<Self> {
        let stack = match STACKS.with_borrow_mut(Vec::pop) {
            Some(stack) => stack,
            None => DefaultStack::new(STACK_BYTES)?,
        };
        let yielder = Rc::new(Cell::new(ptr::null()));
        let (run, known) = (start.run, Rc::clone(&yielder));
        let body = move |yielder: &Yielder<(), ()>, ()| {
            known.set(ptr::from_ref(yielder));
            YIELDER.set(ptr::from_ref(yielder));
            catch_unwind(AssertUnwindSafe(run)).err()
        };
        Ok(Self { coroutine: Some(Coroutine::with_stack(stack, body)), yielder })
    }

    /// Lets it run until it waits. True: it has ended; with what, if it was a panic.
    pub(super) fn resume(&mut self) -> (bool, Panicked) {
        let Some(coroutine) = &mut self.coroutine else { return (true, None) };
        YIELDER.set(self.yielder.get());
        match coroutine.resume(()) {
            corosensei::CoroutineResult::Yield(()) => (false, None),
            corosensei::CoroutineResult::Return(panic) => {
                if let Some(done) = self.coroutine.take() {
                    STACKS.with_borrow_mut(|stacks| stacks.push(done.into_stack()));
                }
                (true, panic)
            }
        }
    }
}

impl Drop for Task {
    fn drop(&mut self) {
        // A world that has failed is left where it stands: what its threads would do at their end means nothing.
        std::mem::forget(self.coroutine.take());
    }
}

/// Gives the turn away; the scheduler gives it back.
fn suspend() {
    let yielder = YIELDER.get();
    if !yielder.is_null() {
        // SAFETY: `resume` has set it to the yielder of the coroutine that runs now, which is this one: a yielder lives
        // as long as its coroutine's body does, and that is where we are.
        unsafe { &*yielder }.suspend(());
    }
}

/// The time, if it is simulated.
pub(crate) fn now_us() -> Option<u64> {
    Some(world()?.task_now_us())
}

/// Waits until `ready`, or until `deadline_us`: then it is false. None: nothing is simulated here.
pub(crate) fn wait(deadline_us: Option<u64>, ready: &mut dyn FnMut() -> bool) -> Option<bool> {
    let world = world()?;
    if world.current().is_none() {
        return Some(ready());
    }
    if world.chance(20) {
        world.rest(None, true);
        suspend();
    }
    loop {
        if ready() {
            world.progress();
            return Some(true);
        }
        if deadline_us.is_some_and(|deadline| world.is_over(deadline)) {
            world.progress();
            return Some(false);
        }
        world.rest(deadline_us, false);
        suspend();
    }
}

/// Lets others go on, and takes some of the clock's time.
pub(crate) fn spend(time_us: u64) {
    if let Some(now_us) = now_us() {
        wait(Some(now_us + time_us), &mut || false);
    }
}

/// Waits for `time`, or until it is cancelled.
pub(crate) fn pause(time: Duration, halt: &Cancel) -> Option<Woken> {
    let deadline_us = now_us()?.saturating_add(time.as_micros() as u64);
    let halted = wait(Some(deadline_us), &mut || halt.is_cancelled())?;
    Some(if halted { Woken::Cancelled } else { Woken::TimedOut })
}

/// A lock whose holder may be waiting.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> Option<MutexGuard<'_, T>> {
    let mut guard = None;
    wait(None, &mut || {
        guard = match mutex.try_lock() {
            Ok(guard) => Some(guard),
            Err(TryLockError::Poisoned(poisoned)) => Some(PoisonError::into_inner(poisoned)),
            Err(TryLockError::WouldBlock) => None,
        };
        guard.is_some()
    })?;
    guard
}

/// Starts a thread on the side of the one that runs; its number. None: nothing is simulated here.
pub(crate) fn spawn<F: FnOnce() + Send + 'static>(name: String, run: F) -> Result<usize, F> {
    match world().and_then(|world| Some((world.current_side()?, world))) {
        Some((side, world)) => Ok(world.start(Start { name, side, run: Box::new(run) })),
        None => Err(run),
    }
}

/// Waits until that one has ended.
pub(crate) fn join(task: usize) {
    if let Some(world) = world() {
        wait(None, &mut || world.has_ended(task));
    }
}
