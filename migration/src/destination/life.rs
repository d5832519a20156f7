//! The connections of an arrival from one break to the next: who asks for pages, and who takes what comes.

use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use super::arrival::Shared;
use crate::control::Control;
use crate::error::{MigrationError, ProtocolError};
use crate::pager::{Cause, PageProvider, Placer, ProviderError, Wanted};
use crate::postcopy::batch::Unpacker;
use crate::postcopy::lines::Lines;
use crate::postcopy::request;
use crate::ram::BATCH_PAGES_MAX;
use crate::ram::pool::Panicked as _;
use crate::thread::Thread;
use crate::wire::{FrameType, HaveAll, RoundEnd, Settled, Sync, Wire};

const STATE: &str = "receiving memory";
/// The first thread looks so often whether the others are done.
const LOOK_EVERY: Duration = Duration::from_millis(50);
/// How long the source may take to say that it knows.
const SETTLED_MAX: Duration = Duration::from_secs(5);
/// The urgent connection's place among the channels: it is none.
const NO_CHANNEL: usize = usize::MAX;

/// Asks for pages that somebody waits for, while there is a connection.
#[derive(Default)]
pub(super) struct Requests {
    now: Mutex<Option<(Wire, Arc<Lines>)>>,
    pub(super) count: AtomicU64,
}

impl fmt::Debug for Requests {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Requests").field("count", &self.count).finish_non_exhaustive()
    }
}

impl Requests {
    fn now(&self) -> MutexGuard<'_, Option<(Wire, Arc<Lines>)>> {
        self.now.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn disconnect(&self) {
        *self.now() = None;
    }

    /// Asks for these pages. Without a connection they are asked for when there is one again.
    pub(super) fn ask(&self, pages: &[(usize, u64)]) {
        let mut now = self.now();
        for pages in pages.chunks(BATCH_PAGES_MAX) {
            let Some((wire, lines)) = &mut *now else { return };
            let fill = |out: &mut Vec<u8>| {
                pages.iter().for_each(|(region, page)| request::fill(*region, *page, out));
            };
            self.count.fetch_add(1, Ordering::Relaxed);
            if let Err(error) = wire.send_with(FrameType::Request, 0, "asking for a page", fill) {
                lines.ended(Err(error));
                *now = None;
            }
        }
    }
}

impl PageProvider for Requests {
    fn wanted(&self, wanted: Wanted, _: &Placer) -> Result<(), ProviderError> {
        self.ask(&[(wanted.region, wanted.page)]);
        Ok(())
    }
}

/// The threads that receive.
#[derive(Debug)]
pub(super) struct Life {
    pub(super) lines: Arc<Lines>,
    common: Arc<Common>,
    threads: Vec<Thread>,
}

/// What the threads count together.
#[derive(Debug, Default)]
struct Common {
    received: AtomicU64,
}

/// What one thread reads.
struct Reading {
    shared: Arc<Shared>,
    lines: Arc<Lines>,
    common: Arc<Common>,
    wire: Wire,
    unpacker: Unpacker,
    channel: usize,
    result: Option<Result<(), MigrationError>>,
}

impl Life {
    /// Takes pages off the urgent connection, and asks for them there.
    pub(super) fn start(
        shared: &Arc<Shared>,
        urgent: Wire,
        control: &Arc<Control>,
    ) -> Result<Self, MigrationError> {
        let failed = |source| MigrationError::Thread { action: "share a connection", source };
        let [asking, receiving] = urgent.split().map_err(failed)?;
        let lines = Lines::new(control);
        let mut life = Self { lines, common: Arc::default(), threads: Vec::new() };
        *shared.requests.now() = Some((asking, Arc::clone(&life.lines)));
        life.read(shared, receiving, NO_CHANNEL)?;
        Ok(life)
    }

    /// Takes pages off all others.
    pub(super) fn go_on(
        &mut self,
        shared: &Arc<Shared>,
        mut first: Wire,
        further: Vec<Wire>,
    ) -> Result<(), MigrationError> {
        first.heed_halt();
        for (channel, wire) in (1..).zip(further) {
            self.read(shared, wire, channel)?;
        }
        self.read(shared, first, 0)
    }

    fn read(&mut self, shared: &Arc<Shared>, wire: Wire, channel: usize) -> Result<(), MigrationError> {
        let Shared { ram, missing, encodings, proof, .. } = &**shared;
        let reading = Reading {
            shared: Arc::clone(shared),
            lines: Arc::clone(&self.lines),
            common: Arc::clone(&self.common),
            wire,
            unpacker: Unpacker::new(ram, missing, *encodings, proof.as_ref()),
            channel,
            result: None,
        };
        let name = if channel == NO_CHANNEL { "urgent".to_owned() } else { format!("receive-{channel}") };
        let others = self.threads.len();
        let thread = self.lines.control.spawn(name, move || reading.run(others));
        let thread = thread.map_err(|source| MigrationError::Thread { action: "be started", source })?;
        self.threads.push(thread);
        Ok(())
    }

    /// Why they have broken, if they have.
    pub(super) fn check(&self) -> Result<(), MigrationError> {
        self.lines.check()
    }

    /// Ends all of them. Returns why they had broken, if they had.
    pub(super) fn end(mut self) -> Result<(), MigrationError> {
        let fault = self.lines.check();
        self.stop();
        fault
    }

    fn stop(&mut self) {
        self.lines.part();
        self.threads.drain(..).for_each(Thread::join);
    }
}

impl Drop for Life {
    fn drop(&mut self) {
        self.stop();
    }
}

/// Says how the thread has ended, even if it panics.
impl Drop for Reading {
    fn drop(&mut self) {
        let result = self.result.take().unwrap_or_else(|| Err(MigrationError::panicked()));
        if result.is_err() {
            // Who loads the state may be waiting for a page.
            self.shared.release();
        }
        self.lines.ended(result);
    }
}

impl Reading {
    fn run(mut self, others: usize) {
        let result = if self.channel == 0 { self.first(others) } else { self.further() };
        self.result = Some(result);
    }

    fn further(&mut self) -> Result<(), MigrationError> {
        let mut received = 0;
        loop {
            let header = self.wire.receive(STATE)?;
            match header.frame {
                FrameType::PageIn => received += self.take()?,
                FrameType::Sync => {
                    let Sync { pages } = self.wire.message(FrameType::Sync)?;
                    return equal("sync", "number of pages", pages, received);
                }
                _ => return Err(self.wire.unexpected(&header, STATE, "page-in or sync")),
            }
        }
    }

    /// The first connection: its end is the end of all.
    fn first(&mut self, others: usize) -> Result<(), MigrationError> {
        loop {
            let header = self.wire.receive(STATE)?;
            match header.frame {
                FrameType::PageIn => _ = self.take()?,
                FrameType::RoundEnd => break,
                _ => return Err(self.wire.unexpected(&header, STATE, "page-in or round-end")),
            }
        }
        let told: RoundEnd = self.wire.message(FrameType::RoundEnd)?;
        while !self.lines.all_done(others, LOOK_EVERY)? {}
        equal("round-end", "number of pages", told.pages, self.common.received.load(Ordering::SeqCst))?;
        equal("round-end", "number of missing pages", 0, self.shared.placer.left())?;
        self.compare(&told);
        self.shared.progress.all_there.store(true, Ordering::SeqCst);
        let pager = self.shared.placer.report();
        let (pages_by_request, pages_twice) = (pager.pages_by_fault, pager.pages_duplicate);
        let all = HaveAll { pages_by_request, pages_twice };
        self.wire.send(FrameType::HaveAll, &all, "saying that all memory is here")?;
        let _ = self.wire.limit_silence(SETTLED_MAX);
        let settled: Settled = self.wire.expect(FrameType::Settled, "waiting for the source's thanks")?;
        self.shared.settled(settled);
        Ok(())
    }

    /// Places what has come. Returns how many pages.
    fn take(&mut self) -> Result<u64, MigrationError> {
        let runs = self.unpacker.unpack(self.wire.payload())?;
        let cause = if self.channel == NO_CHANNEL { Cause::Wanted } else { Cause::Ahead };
        for run in runs {
            let content = self.unpacker.content(self.wire.payload(), &run);
            let placed = self.shared.placer.place(run.region, run.pages.clone(), content, cause);
            if let Err(error) = placed {
                let source = crate::vm::VmError::plain(error.to_string());
                self.shared.placer.fail(error);
                return Err(MigrationError::Vm { action: "placing a page", source });
            }
        }
        let records = self.unpacker.records();
        self.shared.tally.add(self.channel, records);
        let pages = records.len() as u64;
        self.common.received.fetch_add(pages, Ordering::SeqCst);
        Ok(pages)
    }

    /// Every batch was compared before it was placed; this says that there is nothing else.
    fn compare(&self, told: &RoundEnd) {
        if let (Some(proof), Some(source)) = (&self.shared.proof, told.memory_proof)
            && proof.sum() != source
        {
            let here = proof.sum();
            self.shared.warn(format!(
                "all pages of post-copy were verified, but the proof of all memory is {here:#018x} here and \
                 {source:#018x} at the source"
            ));
        }
    }
}

fn equal(frame: &'static str, field: &'static str, found: u64, expected: u64) -> Result<(), MigrationError> {
    if found == expected {
        return Ok(());
    }
    Err(ProtocolError::Mismatch { frame, field, found, expected }.into())
}
