//! The connections of post-copy from one break to the next: what ends one of them ends all, and the first reason is kept.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use crate::control::Control;
use crate::error::{LinkError, MigrationError};
use crate::thread::Signal;

const STATE: &str = "sending or receiving memory in post-copy";

/// Of one side.
#[derive(Debug)]
pub(crate) struct Lines {
    /// Its halt ends whatever a thread waits for.
    pub(crate) control: Arc<Control>,
    now: Mutex<Now>,
    changed: Signal,
}

#[derive(Debug, Default)]
struct Now {
    broken: bool,
    fault: Option<MigrationError>,
    /// Threads that have done their part.
    done: usize,
}

impl Lines {
    /// `control`: the one with which the connections were made.
    pub(crate) fn new(control: &Arc<Control>) -> Arc<Self> {
        let (now, changed) = (Mutex::default(), Signal::default());
        Arc::new(Self { control: Arc::clone(control), now, changed })
    }

    fn now(&self) -> MutexGuard<'_, Now> {
        self.now.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// One of them has ended so.
    pub(crate) fn ended(&self, result: Result<(), MigrationError>) {
        let mut now = self.now();
        match result {
            Ok(()) => now.done += 1,
            Err(error) => {
                // What a break leaves elsewhere explains nothing.
                let trace = matches!(error, MigrationError::Link(LinkError::Halted { .. }));
                if !now.broken || now.fault.is_none() && !trace {
                    now.fault = Some(error).filter(|_| !trace);
                }
                now.broken = true;
                self.control.halt.cancel();
            }
        }
        self.changed.all();
    }

    /// Ends all of them.
    pub(crate) fn part(&self) {
        self.ended(Err(self.control.halted(STATE)));
    }

    pub(crate) fn is_broken(&self) -> bool {
        self.now().broken
    }

    /// Why they have broken, if they have.
    pub(crate) fn check(&self) -> Result<(), MigrationError> {
        let mut now = self.now();
        if !now.broken {
            return Ok(());
        }
        Err(now.fault.take().unwrap_or_else(|| LinkError::Halted { state: STATE }.into()))
    }

    /// Have so many threads done their part? Waits for that, for `most` at the longest.
    pub(crate) fn all_done(&self, threads: usize, most: Duration) -> Result<bool, MigrationError> {
        let mut now = self.now();
        if now.done < threads && !now.broken {
            (now, _) = self.changed.wait_for(&self.now, now, most);
        }
        let done = now.done >= threads;
        drop(now);
        self.check().map(|()| done)
    }
}
