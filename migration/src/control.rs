//! What others may do with a migration that runs: watch it, read its report, cancel it.

use std::collections::VecDeque;
use std::io;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use crate::cancel::Cancel;
use crate::channel::{Uri, Woken};
use crate::error::{LinkError, MigrationError};
use crate::handover::Resolution;
use crate::pager::PagerError;
use crate::stats::{ErrorReport, Report, Side, Status};
use crate::thread::{self, Clock, Thread};
use crate::vm::Aspect;

/// Is told what happens. The calls come from the migration's own thread, some of them while the guest is
/// stopped: they must return at once.
pub trait Observer: Send + Sync {
    /// The status has changed.
    fn status(&self, status: Status);
    /// Pass number `pass` begins; the first is 1.
    fn pass(&self, pass: u32);
    /// A destination has turned somebody away who did not introduce itself as a source; `text` says why.
    fn turned_away(&self, text: &str) {
        let _ = text;
    }
    /// Post-copy: a page of the guest's, which runs here, can't be placed: whoever waits for it waits until the process ends.
    fn memory_lost(&self, error: PagerError) {
        let _ = error;
    }
    /// A destination has told somebody whether his guest fits (`migrate --check`): these are the aspects that don't.
    fn asked(&self, differing: &[Aspect]) {
        let _ = differing;
    }
}

/// What a person says to the source of a post-copy, which serves pages or looks for its destination.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PostcopyOrder {
    /// Break the connections.
    Pause,
    /// Look for the destination here from now on, at once.
    Recover(Uri),
    /// Give the destination up: run the guest from where it was at the switch, or nowhere.
    Resolve(Resolution),
}

/// Tells nobody.
#[derive(Debug)]
pub struct Unobserved;

impl Observer for Unobserved {
    fn status(&self, _: Status) {}
    fn pass(&self, _: u32) {}
}

/// The handle of one attempt. Made before it starts; good for one attempt only.
pub struct Control {
    pub(crate) cancel: Cancel,
    /// Ends what any thread of the attempt waits for: raised by a cancel, and when a part of it has failed.
    pub(crate) halt: Cancel,
    pub(crate) observer: Box<dyn Observer>,
    clock: Clock,
    /// When the attempt's clock started, after the handle was made.
    started_us: AtomicU64,
    report: Mutex<Arc<Report>>,
    /// The manager has said that the guest may be stopped.
    may_switch: AtomicBool,
    /// Somebody wants post-copy to begin.
    postcopy: AtomicBool,
    /// What the source of a post-copy hasn't heard yet.
    orders: Mutex<VecDeque<PostcopyOrder>>,
    /// Held while a status is told, so that none comes in front of one that was there before it.
    telling: Mutex<()>,
}

impl Control {
    /// A handle for an attempt on this side.
    pub fn new(side: Side, observer: Box<dyn Observer>) -> io::Result<Arc<Self>> {
        Ok(Arc::new(Self {
            cancel: Cancel::new()?,
            halt: Cancel::new()?,
            observer,
            clock: Clock::start(),
            started_us: AtomicU64::new(0),
            report: Mutex::new(Arc::new(Report::new(side))),
            may_switch: AtomicBool::new(false),
            postcopy: AtomicBool::new(false),
            orders: Mutex::default(),
            telling: Mutex::new(()),
        }))
    }

    /// Cancels the attempt: a read or write that waits ends at once. `true`: it will not complete, and the
    /// guest stays on the source. `false`: too late, the guest has been given up or the attempt is over.
    pub fn cancel(&self) -> bool {
        let _telling = self.telling.lock().unwrap_or_else(PoisonError::into_inner);
        let known = self.cancel.is_cancelled();
        let accepted = self.cancel.cancel();
        if accepted {
            self.halt.cancel();
        }
        if accepted && !known {
            self.observer.status(Status::Cancelling);
        }
        accepted
    }

    /// Ends the wait before the switch-over (`pause-before-switchover`). False: it doesn't wait now.
    pub fn go_on(&self) -> bool {
        let waits = self.report().status == Status::PreSwitchover;
        if waits {
            self.may_switch.store(true, Ordering::SeqCst);
        }
        waits
    }

    /// Asks for post-copy to begin (`migrate-start-postcopy`): at once if memory moves, else as soon as it does. Whoever calls it
    /// has made sure that the parameters allow it.
    pub fn start_postcopy(&self) {
        self.postcopy.store(true, Ordering::SeqCst);
    }

    pub(crate) fn wants_postcopy(&self) -> bool {
        self.postcopy.load(Ordering::SeqCst)
    }

    /// Gives an order to a source in post-copy; it is carried out within 100 ms, in the order given.
    pub fn order(&self, order: PostcopyOrder) {
        self.orders.lock().unwrap_or_else(PoisonError::into_inner).push_back(order);
    }

    /// The oldest order that wasn't carried out.
    pub(crate) fn next_order(&self) -> Option<PostcopyOrder> {
        self.orders.lock().unwrap_or_else(PoisonError::into_inner).pop_front()
    }

    pub(crate) fn may_switch(&self) -> bool {
        self.may_switch.load(Ordering::SeqCst)
    }

    /// Tells the observer. Between `cancelling` and the end nothing else is news.
    pub(crate) fn tell(&self, status: Status) {
        let _telling = self.telling.lock().unwrap_or_else(PoisonError::into_inner);
        if status.is_final() || !self.cancel.is_cancelled() {
            self.observer.status(status);
        }
    }

    /// Tells the observer that a pass begins.
    pub(crate) fn tell_pass(&self, pass: u32) {
        let _telling = self.telling.lock().unwrap_or_else(PoisonError::into_inner);
        if !self.cancel.is_cancelled() {
            self.observer.pass(pass);
        }
    }

    /// The report as last published: at most 100 ms old while the guest runs. Never waits for the migration.
    pub fn report(&self) -> Report {
        let published = Arc::clone(&self.report.lock().unwrap_or_else(PoisonError::into_inner));
        let mut report = Report::clone(&published);
        if !matches!(report.status, Status::None) && !report.status.is_final() {
            report.total_us = self.elapsed_us();
            if self.cancel.is_cancelled() {
                report.status = Status::Cancelling;
            }
        }
        report
    }

    /// Adds a warning to an attempt's report that is over.
    pub fn warn(&self, text: String) {
        let mut report = self.report.lock().unwrap_or_else(PoisonError::into_inner);
        Arc::make_mut(&mut report).warnings.push(text);
    }

    /// What became of an attempt that was in doubt.
    pub fn settle(&self, status: Status, text: String) {
        let mut report = self.report.lock().unwrap_or_else(PoisonError::into_inner);
        let report_now = Arc::make_mut(&mut report);
        report_now.status = status;
        report_now.warnings.push(text);
        drop(report);
        self.tell(status);
    }

    /// The attempt's clock since its handle was made: never goes back. All of the engine's times come from here.
    pub(crate) fn now_us(&self) -> u64 {
        self.clock.us()
    }

    /// From then until now.
    pub(crate) fn since_us(&self, then_us: u64) -> u64 {
        self.now_us().saturating_sub(then_us)
    }

    /// Since the attempt began.
    pub(crate) fn elapsed_us(&self) -> u64 {
        self.since_us(self.started_us.load(Ordering::Relaxed))
    }

    /// Starts a thread of this attempt.
    pub(crate) fn spawn(&self, name: String, run: impl FnOnce() + Send + 'static) -> io::Result<Thread> {
        Thread::spawn(name, run)
    }

    /// An error if the attempt was cancelled, or a part of it has failed.
    pub(crate) fn check(&self, state: &'static str) -> Result<(), MigrationError> {
        if self.halt.is_cancelled() { Err(self.halted(state)) } else { Ok(()) }
    }

    /// Why it was halted.
    pub(crate) fn halted(&self, state: &'static str) -> MigrationError {
        if self.cancel.is_cancelled() {
            MigrationError::Cancelled
        } else {
            LinkError::Halted { state }.into()
        }
    }

    /// Waits for `time`, or until it is cancelled or halted.
    pub(crate) fn pause(&self, time: Duration) -> Result<(), MigrationError> {
        match thread::pause(&self.halt, time) {
            Ok(Woken::TimedOut) => Ok(()),
            Ok(_) => Err(self.halted("waiting")),
            Err(source) => Err(LinkError::Io { state: "waiting", source }.into()),
        }
    }

    /// The attempt starts now: what was before was only waiting for a peer.
    pub(crate) fn restart_clock(&self) {
        self.started_us.store(self.now_us(), Ordering::Relaxed);
    }

    /// Publishes a report with this status: where there is no connection.
    pub(crate) fn announce(&self, mut report: Report, status: Status, error: Option<&MigrationError>) {
        (report.status, report.total_us) = (status, self.elapsed_us());
        report.error = error.map(ErrorReport::from);
        self.publish(report);
        self.tell(status);
    }

    pub(crate) fn publish(&self, mut report: Report) {
        let mut published = self.report.lock().unwrap_or_else(PoisonError::into_inner);
        report.foresee(Some(&published));
        if report.status.is_final() {
            let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
            report.ended_at_unix_ms = Some(u64::try_from(now.as_millis()).unwrap_or(u64::MAX));
        }
        let old = std::mem::replace(&mut *published, Arc::new(report));
        drop(published);
        drop(old);
    }
}

impl std::fmt::Debug for Control {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Control").field("report", &self.report).finish_non_exhaustive()
    }
}
