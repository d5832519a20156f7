//! A guest from a file, as the main thread sees it.

use std::io::{self, IsTerminal, Write};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use serde_json::json;
use tern_migration::pager::{Ending, OnEnd, PagerError};
use tern_migration::{Control, Parameters, Side, query_migrate};

use crate::cli::{Exit, Progress};
use crate::config::{RestoreConfig, RestoreMode};
use crate::control::{CommandError, Event, chain};
use crate::restore::Opened;

use super::migration::Ended;
use super::notice::{Notice, Notices};
use super::state::Attempt;
use super::{Machine, RunError};

/// How long the main loop may take to end the process in order when memory is lost: it may be waiting for that
/// memory itself.
const LOST_TIMEOUT: Duration = Duration::from_secs(5);
/// A person sees no more.
const SHOWN_EVERY: Duration = Duration::from_millis(100);

impl Machine {
    /// Takes the guest from a file that a command has named, into the machine as it stands.
    pub(super) fn take_from_file(
        &mut self,
        path: PathBuf,
        parameters: Parameters,
    ) -> Result<(), CommandError> {
        if self.vm.is_none() || self.wants_new() {
            return Err(CommandError::illegal("a guest is on its way here: wait for it, or cancel it"));
        }
        let opened = Opened::open(&RestoreConfig::new(path)).map_err(|error| CommandError::failed(&error))?;
        self.restore(opened.for_a_built_machine(), parameters)?;
        // The end of the attempt before must not be taken for this one's.
        self.former = None;
        Ok(())
    }

    /// Starts to take the guest from its file.
    pub(super) fn restore(&mut self, opened: Opened, parameters: Parameters) -> Result<(), CommandError> {
        let path = opened.config().path.clone();
        let attempt = self.new_attempt(Side::Destination, parameters)?;
        tracing::info!(path = %path.display(), "restoring, {}", opened.way());
        if opened.config().mode.is_none() {
            crate::cli::tell(&format!("tern: {}, {}", path.display(), opened.way()));
        }
        let paused = self.config.paused;
        let on_end = on_end(self.notices.clone(), self.generation);
        let mode = opened.mode();
        self.start(attempt, move |vm, Attempt { control, .. }| {
            let shown = show_progress(&control);
            Ended::File(mode, opened.run(vm, paused, &control, shown, on_end))
        })
    }

    /// Says, for programs, that the guest is there, and what it took.
    pub(super) fn tell_restored(&self, mode: RestoreMode, running: bool) {
        let Some(attempt) = &self.attempt else { return };
        let report = attempt.control.report();
        let downtime = report.downtime.unwrap_or_default();
        let line = json!({
            "restored": report.uri,
            "mode": mode,
            "running": running,
            "check_us": report.setup_us,
            "memory_us": report.live_us,
            "load_us": downtime.load_us,
            "start_us": downtime.resume_us,
            "total_us": report.total_us,
            "pages_read": report.pages.raw,
        });
        // A reader that has gone is no error of the guest's.
        let _ = writeln!(io::stdout(), "{line}");
    }

    /// A page of the guest's can't be had: the process ends. Some threads wait for the page and can't be stopped.
    pub(super) fn lose_memory(&mut self, error: PagerError) {
        self.memory_lost = true;
        self.sink.post(Event::Shutdown { guest: false, reason: "host-error" });
        self.end(Err(RunError::MemoryLost { source: error }));
    }
}

/// Shows on a terminal how far memory is, until what this returns is called: then the terminal is the guest's.
fn show_progress(control: &Arc<Control>) -> Box<dyn FnOnce() + Send> {
    if !io::stderr().is_terminal() {
        return Box::new(|| {});
    }
    let (control, ended) = (Arc::clone(control), Arc::new(AtomicBool::new(false)));
    let seen = Arc::clone(&ended);
    let show = move || {
        let mut progress = Progress::new(true, false);
        while !seen.load(Ordering::SeqCst) {
            let report = control.report();
            if report.status.is_final() {
                break;
            }
            progress.show(&query_migrate(&report));
            std::thread::park_timeout(SHOWN_EVERY);
        }
        progress.end();
    };
    let thread = std::thread::Builder::new().name("progress".into()).spawn(show).ok();
    Box::new(move || {
        ended.store(true, Ordering::SeqCst);
        if let Some(thread) = thread {
            thread.thread().unpark();
            // A panic was reported by its own hook.
            let _ = thread.join();
        }
    })
}

/// Hears of the end of a memory that comes on demand.
fn on_end(notices: Notices, generation: u64) -> OnEnd {
    Box::new(move |ending| match ending {
        Ending::Complete => tracing::info!("all memory is there"),
        Ending::Failed(error) => lost(&notices, generation, error),
    })
}

/// A page can't be had: tells the main loop, and ends the process if that waits for the page itself.
pub(super) fn lost(notices: &Notices, generation: u64, error: PagerError) {
    let text = format!("tern: {LOST}: {}", chain(&error));
    notices.post(Notice::MemoryLost { generation, error });
    let watch = std::thread::Builder::new().name("memory-lost".into()).spawn(move || {
        std::thread::sleep(LOST_TIMEOUT);
        crate::cli::tell(&text);
        std::process::exit(Exit::GuestFailed as i32);
    });
    if watch.is_err() {
        std::process::exit(Exit::GuestFailed as i32);
    }
}

/// What the error says first.
pub(super) const LOST: &str = "the guest was stopped: a part of its memory can't be had";
