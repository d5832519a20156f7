//! What the threads of an attempt need of the system: a clock, more threads, and ways to wait for each other. All of the
//! engine waits here, in a connection (`channel/`) or in `Control::pause`, so the simulator (`sim/`, feature `sim`) can put itself in
//! their place: where it is compiled in, each of these first asks whether this thread is in a simulated world.

use std::io;
#[cfg(feature = "sim")]
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{Builder, JoinHandle};
use std::time::{Duration, Instant};

use crate::cancel::Cancel;
use crate::channel::socket::wait;
use crate::channel::{Direction, Woken};
#[cfg(feature = "sim")]
use crate::sim::turn;

/// Time since it was made.
#[derive(Debug)]
pub(crate) struct Clock {
    made: Instant,
    #[cfg(feature = "sim")]
    simulated_us: Option<u64>,
}

impl Clock {
    pub(crate) fn start() -> Self {
        Self {
            made: Instant::now(),
            #[cfg(feature = "sim")]
            simulated_us: turn::now_us(),
        }
    }

    pub(crate) fn us(&self) -> u64 {
        #[cfg(feature = "sim")]
        if let (Some(made_us), Some(now_us)) = (self.simulated_us, turn::now_us()) {
            return now_us.saturating_sub(made_us);
        }
        self.made.elapsed().as_micros() as u64
    }
}

/// A thread that was started.
#[derive(Debug)]
pub(crate) struct Thread {
    handle: Handle,
}

#[derive(Debug)]
enum Handle {
    System(JoinHandle<()>),
    #[cfg(feature = "sim")]
    Simulated(usize),
}

impl Thread {
    pub(crate) fn spawn(name: String, run: impl FnOnce() + Send + 'static) -> io::Result<Self> {
        #[cfg(feature = "sim")]
        let run = match turn::spawn(name.clone(), run) {
            Ok(task) => return Ok(Self { handle: Handle::Simulated(task) }),
            Err(run) => run,
        };
        Ok(Self { handle: Handle::System(Builder::new().name(name).spawn(run)?) })
    }

    /// Waits until it has ended, by a panic or without one.
    pub(crate) fn join(self) {
        match self.handle {
            // Whoever cares for a panic has been told before the thread ended.
            Handle::System(handle) => drop(handle.join()),
            #[cfg(feature = "sim")]
            Handle::Simulated(task) => turn::join(task),
        }
    }
}

/// Waits for `time`, or until it is halted.
pub(crate) fn pause(halt: &Cancel, time: Duration) -> io::Result<Woken> {
    #[cfg(feature = "sim")]
    if let Some(woken) = turn::pause(time, halt) {
        return Ok(woken);
    }
    let woken = wait(halt.as_fd(), Direction::Receive, None, time)?;
    // The descriptor is the halt's own.
    Ok(if woken == Woken::Ready { Woken::Cancelled } else { woken })
}

/// Locks what its holder keeps while it waits for something else. A lock that is only held for a moment needs
/// nothing but [`Mutex::lock`].
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    #[cfg(feature = "sim")]
    if let Some(guard) = turn::lock(mutex) {
        return guard;
    }
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Tells threads that what they wait for may have changed. It may wake them for no reason.
#[derive(Debug, Default)]
pub(crate) struct Signal {
    changed: Condvar,
    #[cfg(feature = "sim")]
    changes: AtomicU64,
}

impl Signal {
    /// Wakes one of those who wait.
    pub(crate) fn one(&self) {
        self.simulate();
        self.changed.notify_one();
    }

    /// Wakes all who wait.
    pub(crate) fn all(&self) {
        self.simulate();
        self.changed.notify_all();
    }

    /// Lets go of `guard`, which is `mutex`'s, until it is woken.
    pub(crate) fn wait<'m, T>(&self, mutex: &'m Mutex<T>, guard: MutexGuard<'m, T>) -> MutexGuard<'m, T> {
        let guard = match self.simulated(mutex, guard, None) {
            Ok((guard, _)) => return guard,
            Err(guard) => guard,
        };
        self.changed.wait(guard).unwrap_or_else(PoisonError::into_inner)
    }

    /// The same, for `most` at the longest; false: that is over.
    pub(crate) fn wait_for<'m, T>(
        &self,
        mutex: &'m Mutex<T>,
        guard: MutexGuard<'m, T>,
        most: Duration,
    ) -> (MutexGuard<'m, T>, bool) {
        let guard = match self.simulated(mutex, guard, Some(most)) {
            Ok(waited) => return waited,
            Err(guard) => guard,
        };
        let waited = self.changed.wait_timeout(guard, most);
        let (guard, timeout) = waited.unwrap_or_else(PoisonError::into_inner);
        (guard, !timeout.timed_out())
    }

    fn simulate(&self) {
        #[cfg(feature = "sim")]
        self.changes.fetch_add(1, Relaxed);
    }

    /// Waits in the simulated world; without one the guard comes back.
    fn simulated<'m, T>(
        &self,
        mutex: &'m Mutex<T>,
        guard: MutexGuard<'m, T>,
        most: Option<Duration>,
    ) -> Result<(MutexGuard<'m, T>, bool), MutexGuard<'m, T>> {
        #[cfg(feature = "sim")]
        if let Some(now_us) = turn::now_us() {
            let deadline_us = most.map(|most| now_us.saturating_add(most.as_micros() as u64));
            let before = self.changes.load(Relaxed);
            drop(guard);
            let in_time = turn::wait(deadline_us, &mut || self.changes.load(Relaxed) != before);
            return Ok((lock(mutex), in_time == Some(true)));
        }
        let _ = (mutex, most);
        Err(guard)
    }
}
