//! The further connections of a migration: a thread reads each of them, and a barrier holds them together.
//!
//! ```text
//! first connection (the attempt's thread)   pages ... round-end(n) --wait: all here?--> count, compare --release--> round n+1
//! connection k (a thread of its own)        pages ... sync(n) ----- here ----------------- waits ------- released -> round n+1
//! ```
//!
//! Nothing of a round is taken before all of the one before it has come, so the newest content of a page wins
//! whatever connection it came by.

use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use crate::control::Control;
use crate::error::{LinkError, MigrationError, ProtocolError};
use crate::ram::PageReceiver;
use crate::ram::pool::Panicked as _;
use crate::thread::{Signal, Thread, lock};
use crate::wire::{FrameType, Sync, Wire};

const STATE: &str = "receiving memory";

/// The threads of all further connections.
pub(super) struct Channels {
    barrier: Arc<Barrier>,
    threads: Vec<Thread>,
    control: Arc<Control>,
}

struct Barrier {
    now: Mutex<Now>,
    turn: Signal,
    channels: usize,
}

#[derive(Default)]
struct Now {
    /// Rounds that are over.
    rounds: u32,
    /// Channels that are at the end of the round.
    here: usize,
    /// No round follows.
    last: bool,
    /// The connections are needed behind it.
    keep: bool,
    kept: Vec<(usize, Wire)>,
    failed: bool,
    fault: Option<MigrationError>,
}

impl Barrier {
    fn now(&self) -> MutexGuard<'_, Now> {
        lock(&self.now)
    }

    fn fail(&self, fault: Option<MigrationError>) {
        let mut now = self.now();
        if !now.failed {
            (now.failed, now.fault) = (true, fault);
        }
        self.turn.all();
    }

    /// A channel is at the end of its round. Returns when the next one begins; `false`: there is none.
    fn arrive(&self) -> bool {
        let mut now = self.now();
        now.here += 1;
        let round = now.rounds;
        self.turn.all();
        while now.rounds == round && !now.failed {
            now = self.turn.wait(&self.now, now);
        }
        !now.last && !now.failed
    }
}

impl Channels {
    /// Starts a thread for each of them.
    pub(super) fn start(
        channels: Vec<(Wire, PageReceiver)>,
        control: &Arc<Control>,
    ) -> Result<Self, MigrationError> {
        let barrier =
            Arc::new(Barrier { now: Mutex::default(), turn: Signal::default(), channels: channels.len() });
        let mut all = Self { barrier, threads: Vec::new(), control: Arc::clone(control) };
        for (number, (wire, pages)) in (1..).zip(channels) {
            let reading = Reading {
                number,
                wire,
                pages,
                end: End { barrier: Arc::clone(&all.barrier), control: Arc::clone(control), result: None },
            };
            let thread = control.spawn(format!("receive-{number}"), move || reading.run());
            let failed = |source| MigrationError::Thread { action: "be started", source };
            all.threads.push(thread.map_err(failed)?);
        }
        Ok(all)
    }

    /// Have all come to the end of the round? Waits for that, for `most` at the longest.
    pub(super) fn all_here(&self, most: Duration) -> Result<bool, MigrationError> {
        let mut now = self.barrier.now();
        if now.here < self.barrier.channels && !now.failed {
            (now, _) = self.barrier.turn.wait_for(&self.barrier.now, now, most);
        }
        if now.failed {
            return Err(now.fault.take().unwrap_or_else(|| self.control.halted(STATE)));
        }
        Ok(now.here == self.barrier.channels)
    }

    /// The next round may begin. Behind the last one, are the connections still needed?
    pub(super) fn release(&self, last: bool, keep: bool) {
        let mut now = self.barrier.now();
        (now.here, now.last, now.keep) = (0, last, keep);
        now.rounds = now.rounds.wrapping_add(1);
        self.barrier.turn.all();
    }

    /// Waits for the threads behind the last round, and returns the connections that were kept, in order.
    pub(super) fn into_wires(mut self) -> Vec<Wire> {
        self.threads.drain(..).for_each(Thread::join);
        let mut kept = std::mem::take(&mut self.barrier.now().kept);
        kept.sort_by_key(|(number, _)| *number);
        kept.into_iter().map(|(_, wire)| wire).collect()
    }

    /// How many there are.
    pub(super) fn count(&self) -> u32 {
        u32::try_from(self.threads.len()).unwrap_or(u32::MAX)
    }

    /// Why a channel has failed, if one has.
    pub(super) fn fault(&self) -> Option<MigrationError> {
        self.barrier.now().fault.take()
    }
}

impl Drop for Channels {
    fn drop(&mut self) {
        let over = self.barrier.now().last;
        if !over && !self.threads.is_empty() {
            self.barrier.fail(None);
            self.control.halt.cancel();
        }
        for thread in self.threads.drain(..) {
            thread.join();
        }
    }
}

/// What one thread does.
struct Reading {
    number: usize,
    wire: Wire,
    pages: PageReceiver,
    end: End,
}

/// Tells the barrier how a thread has ended, even if it panics.
struct End {
    barrier: Arc<Barrier>,
    control: Arc<Control>,
    result: Option<Result<(), MigrationError>>,
}

impl Drop for End {
    fn drop(&mut self) {
        if let Err(fault) = self.result.take().unwrap_or_else(|| Err(MigrationError::panicked())) {
            // First why, then the end of all that others wait for.
            self.barrier.fail(Some(fault));
            self.control.halt.cancel();
        }
    }
}

impl Reading {
    fn run(mut self) {
        let result = self.rounds();
        self.end.result = Some(result);
        let Self { number, mut wire, end, .. } = self;
        if matches!(end.result, Some(Ok(()))) {
            let mut now = end.barrier.now();
            if now.keep {
                now.kept.push((number, wire));
            } else {
                wire.finish();
            }
        }
    }

    fn rounds(&mut self) -> Result<(), MigrationError> {
        let mut received = 0;
        loop {
            let header = self.wire.receive(STATE)?;
            match header.frame {
                FrameType::Pages => received += self.pages.receive(&header, &mut self.wire)?,
                FrameType::Sync => {
                    let Sync { pages } = self.wire.message(FrameType::Sync)?;
                    if pages != received {
                        let (frame, field) = ("sync", "number of pages");
                        return Err(ProtocolError::Mismatch {
                            frame,
                            field,
                            found: pages,
                            expected: received,
                        }
                        .into());
                    }
                    received = 0;
                    self.wire.epoch = self.wire.epoch.wrapping_add(1);
                    if !self.end.barrier.arrive() {
                        return Ok(());
                    }
                }
                _ => return Err(self.wire.unexpected(&header, STATE, "pages or sync")),
            }
        }
    }
}

/// Is this the trace that another part's failure leaves?
pub(super) fn is_halted(error: &MigrationError) -> bool {
    matches!(error, MigrationError::Link(LinkError::Halted { .. }))
}
