//! What the threads of an attempt need of the system: a clock, more threads, and ways to wait for each other. All of the
//! engine waits here, in a connection (`channel/`) or in `Control::pause`, so a simulator can put itself in their place.

use std::io;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{Builder, JoinHandle};
use std::time::{Duration, Instant};

/// Time since it was made.
#[derive(Debug)]
pub(crate) struct Clock {
    made: Instant,
}

impl Clock {
    pub(crate) fn start() -> Self {
        Self { made: Instant::now() }
    }

    pub(crate) fn us(&self) -> u64 {
        self.made.elapsed().as_micros() as u64
    }
}

/// A thread that was started.
#[derive(Debug)]
pub(crate) struct Thread {
    handle: JoinHandle<()>,
}

impl Thread {
    pub(crate) fn spawn(name: String, run: impl FnOnce() + Send + 'static) -> io::Result<Self> {
        Ok(Self { handle: Builder::new().name(name).spawn(run)? })
    }

    /// Waits until it has ended, by a panic or without one.
    pub(crate) fn join(self) {
        // Whoever cares for a panic has been told before the thread ended.
        let _ = self.handle.join();
    }
}

/// Locks what its holder keeps while it waits for something else. A lock that is only held for a moment needs
/// nothing but [`Mutex::lock`].
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Tells threads that what they wait for may have changed. It may wake them for no reason.
#[derive(Debug, Default)]
pub(crate) struct Signal {
    changed: Condvar,
}

impl Signal {
    /// Wakes one of those who wait.
    pub(crate) fn one(&self) {
        self.changed.notify_one();
    }

    /// Wakes all who wait.
    pub(crate) fn all(&self) {
        self.changed.notify_all();
    }

    /// Lets go of `guard`, which is `mutex`'s, until it is woken.
    pub(crate) fn wait<'m, T>(&self, mutex: &'m Mutex<T>, guard: MutexGuard<'m, T>) -> MutexGuard<'m, T> {
        let _ = mutex;
        self.changed.wait(guard).unwrap_or_else(PoisonError::into_inner)
    }

    /// The same, for `most` at the longest; false: that is over.
    pub(crate) fn wait_for<'m, T>(
        &self,
        mutex: &'m Mutex<T>,
        guard: MutexGuard<'m, T>,
        most: Duration,
    ) -> (MutexGuard<'m, T>, bool) {
        let _ = mutex;
        let waited = self.changed.wait_timeout(guard, most);
        let (guard, timeout) = waited.unwrap_or_else(PoisonError::into_inner);
        (guard, !timeout.timed_out())
    }
}
