//! The destination in post-copy: the guest runs here while a part of its memory still comes.
//!
//! ```text
//! pager's fault thread   request ---> urgent connection
//! urgent                 page-in <--- urgent connection        from the state on
//! receive-0, -1, ..      page-in <--- all others               once the guest runs; the first one sees to the end
//! arrival                waits for a source whose connections have broken (`attending.rs`)
//! ```
//!
//! A break ends all connections and nothing else: the guest goes on until it needs a page that is missing.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::attending::{self, Watch};
use super::life::{Life, Requests};
use super::lobby::Gathered;
use crate::channel::Acceptor;
use crate::control::{Control, Unobserved};
use crate::dirty::DirtyBitmap;
use crate::error::{MigrationError, ProtocolError};
use crate::handover::Register;
use crate::pager::{Ending, OnEnd, Placer};
use crate::ram::RamView;
use crate::ram::job::Tally;
use crate::ram::proof::MemoryProof;
use crate::stats::{Report, Side, Status};
use crate::thread::Thread;
use crate::wire::{Settled, Wire};

/// What comes of the guest's memory, and who may use it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fate {
    /// The state is being loaded; no guest has run here.
    Loading,
    /// It was given up before a guest ran here.
    Released,
    /// The guest is this side's.
    Committed,
}

/// A guest whose memory still comes. Dropped before all is there, the connections end, and who waits for a page goes on
/// waiting.
#[derive(Debug)]
pub struct Arrival {
    pub(super) shared: Arc<Shared>,
    thread: Option<Thread>,
    /// Those that wait at further places.
    more: Mutex<Vec<Thread>>,
}

/// What all threads of an arrival have.
pub(super) struct Shared {
    pub(super) ram: Arc<RamView>,
    pub(super) missing: Arc<DirtyBitmap>,
    pub(super) placer: Placer,
    pub(super) encodings: u64,
    pub(super) proof: Option<Arc<MemoryProof>>,
    pub(super) requests: Arc<Requests>,
    /// Of the attempt: its clock, its report, its observer.
    pub(super) control: Arc<Control>,
    /// Ends the wait for a source.
    pub(super) attending: Arc<Control>,
    pub(super) register: Arc<Register>,
    pub(super) session: String,
    /// The first one included.
    pub(super) channels: u32,
    pub(super) tally: Tally,
    fate: Mutex<Fate>,
    /// The attempt's, when that is over.
    report: Mutex<Option<Report>>,
    /// Present connections.
    pub(super) life: Mutex<Option<Life>>,
    pub(super) progress: Progress,
    pub(super) watch: Mutex<Watch>,
}

/// How far it is.
#[derive(Debug, Default)]
pub(super) struct Progress {
    /// All pages are here.
    pub(super) all_there: AtomicBool,
    /// The source knows it.
    pub(super) settled: AtomicBool,
}

/// What an attempt gives to its arrival.
pub(super) struct Terms {
    pub(super) ram: Arc<RamView>,
    pub(super) missing: DirtyBitmap,
    pub(super) encodings: u64,
    pub(super) proof: Option<Arc<MemoryProof>>,
    pub(super) register: Arc<Register>,
    pub(super) session: String,
    pub(super) channels: u32,
}

impl std::fmt::Debug for Shared {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Shared").field("session", &self.session).finish_non_exhaustive()
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Arrival {
    /// Has the machine miss these pages, by `page_in`, and asks for those that somebody waits for over `urgent`.
    pub(super) fn new(
        terms: Terms,
        urgent: Wire,
        control: &Arc<Control>,
        page_in: impl FnOnce(&DirtyBitmap, Arc<Requests>, OnEnd) -> Result<Placer, MigrationError>,
    ) -> Result<Self, MigrationError> {
        let Terms { ram, missing, encodings, proof, register, session, channels } = terms;
        let requests = Arc::new(Requests::default());
        let placer = page_in(&missing, Arc::clone(&requests), on_end(control))?;
        let attending = Control::new(Side::Destination, Box::new(Unobserved));
        let attending =
            attending.map_err(|source| MigrationError::Thread { action: "be called off", source })?;
        let shared = Arc::new(Shared {
            ram,
            missing: Arc::new(missing),
            placer,
            encodings,
            proof,
            requests,
            control: Arc::clone(control),
            attending,
            register,
            session,
            channels,
            tally: Tally::new(channels as usize, control),
            fate: Mutex::new(Fate::Loading),
            report: Mutex::default(),
            life: Mutex::default(),
            progress: Progress::default(),
            watch: Mutex::default(),
        });
        let arrival = Self { shared, thread: None, more: Mutex::default() };
        let life = Life::start(&arrival.shared, urgent, control)?;
        *lock(&arrival.shared.life) = Some(life);
        Ok(arrival)
    }

    /// Why what is loaded can't be relied on, if that is so.
    pub(super) fn check(&self) -> Result<(), MigrationError> {
        lock(&self.shared.life).as_ref().map_or(Ok(()), Life::check)
    }

    /// COMMIT has come. False: the memory was given up already, and nothing may run in it.
    pub(super) fn commit(&mut self, acceptor: &Arc<dyn Acceptor>) -> Result<bool, MigrationError> {
        let mut fate = lock(&self.shared.fate);
        if *fate == Fate::Released {
            return Ok(false);
        }
        *fate = Fate::Committed;
        drop(fate);
        self.thread = Some(self.attend(acceptor)?);
        Ok(true)
    }

    fn attend(&self, acceptor: &Arc<dyn Acceptor>) -> Result<Thread, MigrationError> {
        let (shared, acceptor) = (Arc::clone(&self.shared), Arc::clone(acceptor));
        let run = move || attending::attend(&shared, &acceptor);
        let thread = self.shared.attending.spawn("arrival".to_owned(), run);
        thread.map_err(|source| MigrationError::Thread { action: "be started", source })
    }

    /// Waits for the source there as well (`migrate-recover`), until all is here.
    ///
    /// # Errors
    /// Only one connection can be made there, or no thread can be had.
    pub fn listen_at(&self, acceptor: &Arc<dyn Acceptor>) -> Result<(), MigrationError> {
        if let Some(reason) = acceptor.only_one() {
            return Err(MigrationError::NoPostcopy { reason });
        }
        lock(&self.more).push(self.attend(acceptor)?);
        Ok(())
    }

    /// The attempt is over and the guest is here: the rest comes over these connections, if they are whole.
    pub(super) fn go_on(self, report: Report, first: Option<Wire>, further: Vec<Wire>) -> Self {
        let status = report.status;
        *lock(&self.shared.report) = Some(report);
        let mut life = lock(&self.shared.life);
        let begun = match (&mut *life, first) {
            (Some(life), Some(first)) => life.go_on(&self.shared, first, further),
            (_, None) => Err(ProtocolError::NoSession { found: self.shared.session.clone() }.into()),
            (None, _) => Ok(()),
        };
        if let (Err(error), Some(life)) = (begun, &*life) {
            life.lines.ended(Err(error));
        }
        drop(life);
        self.shared.set_status(status, None);
        self
    }

    /// Breaks the connections on purpose (`migrate-pause`): the source makes new ones. False: there are none.
    pub fn pause(&self) -> bool {
        let life = lock(&self.shared.life);
        let there = life.as_ref().filter(|life| !life.lines.is_broken());
        there.inspect(|life| life.lines.ended(Err(MigrationError::Paused))).is_some()
    }

    /// Pages that somebody waits for now.
    pub fn waiting(&self) -> usize {
        self.shared.placer.waiting().len()
    }

    /// Pages that are not here yet.
    pub fn pages_left(&self) -> u64 {
        self.shared.placer.left()
    }
}

impl Drop for Arrival {
    fn drop(&mut self) {
        self.shared.attending.cancel();
        let fate = *lock(&self.shared.fate);
        if fate != Fate::Committed {
            self.shared.release();
        }
        let more = std::mem::take(&mut *lock(&self.more));
        self.thread.take().into_iter().chain(more).for_each(Thread::join);
        // Why they end is known.
        let _ = self.shared.part();
    }
}

/// Tells the machine if a page can't be placed: the guest can't go on.
fn on_end(control: &Arc<Control>) -> OnEnd {
    let control = Arc::clone(control);
    Box::new(move |ending| {
        if let Ending::Failed(error) = ending {
            control.observer.memory_lost(error);
        }
    })
}

impl Shared {
    /// The attempt has failed: if no guest has run here, whoever waits for a page goes on.
    pub(super) fn release(&self) {
        let mut fate = lock(&self.fate);
        if *fate == Fate::Loading {
            *fate = Fate::Released;
            self.placer.release();
        }
    }

    /// Ends the present connections, and waits for their threads. Returns why they have broken.
    pub(super) fn part(&self) -> Result<(), MigrationError> {
        let life = lock(&self.life).take();
        self.requests.disconnect();
        life.map_or(Ok(()), Life::end)
    }

    /// Does nothing come any more?
    pub(super) fn is_broken(&self) -> bool {
        lock(&self.life).as_ref().is_none_or(|life| life.lines.is_broken())
    }

    /// The source knows that all is here: nobody will come any more.
    pub(super) fn settled(&self, settled: Settled) {
        let Settled { total_us, commit_us } = settled;
        if let Some(downtime) = lock(&self.report).as_mut().and_then(|report| report.downtime.as_mut()) {
            (downtime.total_us, downtime.commit_us) = (Some(total_us), Some(commit_us));
        }
        self.progress.settled.store(true, Ordering::SeqCst);
        self.attending.cancel();
    }

    pub(super) fn set_status(&self, status: Status, why: Option<&MigrationError>) {
        let mut report = lock(&self.report);
        let Some(now) = &mut *report else { return };
        now.status = status;
        if let Some(postcopy) = &mut now.postcopy {
            postcopy.paused_by = why.map(MigrationError::text);
            postcopy.pauses += u64::from(status == Status::PostcopyPaused);
        }
        drop(report);
        self.publish();
        self.control.tell(status);
    }

    /// A break is over that began so long ago.
    pub(super) fn note_healed(&self, us: u64) {
        if let Some(postcopy) = lock(&self.report).as_mut().and_then(|report| report.postcopy.as_mut()) {
            postcopy.healing_us.push(us);
        }
    }

    pub(super) fn warn(&self, text: String) {
        if let Some(report) = &mut *lock(&self.report) {
            report.warnings.push(text);
        }
    }

    pub(super) fn publish(&self) {
        let mut report = lock(&self.report);
        let Some(report) = &mut *report else { return };
        report.add_moved(&self.tally.take());
        report.total_us = self.control.elapsed_us();
        let (pager, left) = (self.placer.report(), self.placer.left());
        report.remaining_bytes = Some(left * crate::vm::PAGE_BYTES);
        if let Some(postcopy) = &mut report.postcopy {
            postcopy.requests = self.requests.count.load(Ordering::Relaxed);
            postcopy.note_pager(pager);
        }
        if let (Some(proof), Some(noted), true) =
            (&self.proof, &mut report.proof, self.progress.all_there.load(Ordering::SeqCst))
        {
            (noted.memory, noted.hash_us) = (Some(proof.sum()), proof.spent_us());
        }
        self.control.publish(report.clone());
    }

    /// Connections that were opened anew.
    pub(super) fn reconnect(
        self: &Arc<Self>,
        first: Wire,
        Gathered { channels, urgent }: Gathered,
        control: &Arc<Control>,
    ) -> Result<(), MigrationError> {
        let Some(urgent) = urgent else { return Err(control.halted("going on")) };
        let mut life = Life::start(self, urgent, control)?;
        life.go_on(self, first, channels)?;
        *lock(&self.life) = Some(life);
        let waiting = self.placer.waiting();
        self.requests.ask(&waiting);
        Ok(())
    }
}
