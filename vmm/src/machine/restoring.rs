//! A guest from a file, as the main thread sees it.

use std::io::{self, Write};
use std::time::Duration;

use serde_json::json;
use tern_migration::pager::{Ending, OnEnd, PagerError};
use tern_migration::{Parameters, Side};

use crate::cli::Exit;
use crate::control::{Event, chain};
use crate::restore::Opened;

use super::migration::Ended;
use super::notice::{Notice, Notices};
use super::state::Attempt;
use super::{Machine, RunError};

/// How long the main loop may take to end the process in order when memory is lost: it may be waiting for that
/// memory itself.
const LOST_TIMEOUT: Duration = Duration::from_secs(5);

impl Machine {
    /// Starts to take the guest from its file.
    pub(super) fn restore(&mut self, opened: Opened) -> Result<(), RunError> {
        let path = opened.config().path.clone();
        let failed = |source| RunError::Host { what: "the restore can't begin", source };
        let attempt = self.new_attempt(Side::Destination, Parameters::default());
        let Attempt { control, .. } = attempt.map_err(|error| failed(io::Error::other(error.to_string())))?;
        let Some(vm) = self.vm.take() else { return Ok(()) };
        tracing::info!(path = %path.display(), "restoring, {}", opened.way());
        if opened.config().mode.is_none() {
            eprintln!("tern: {}, {}", path.display(), opened.way());
        }
        let (notices, paused) = (self.notices.clone(), self.config.paused);
        let on_end = on_end(self.notices.clone(), self.generation);
        self.spawn(move || {
            let end = opened.run(vm, paused, &control, on_end);
            notices.post(Notice::Migration(Box::new(Ended::File(end))));
        });
        Ok(())
    }

    /// Says, for programs, that the guest is there, and what it took.
    pub(super) fn tell_restored(&self, running: bool) {
        let Some(attempt) = &self.attempt else { return };
        let report = attempt.control.report();
        let downtime = report.downtime.unwrap_or_default();
        let line = json!({
            "restored": report.uri,
            "running": running,
            "check-us": report.setup_us,
            "memory-us": report.live_us,
            "load-us": downtime.load_us,
            "start-us": downtime.resume_us,
            "total-us": report.total_us,
            "pages-read": report.pages.raw,
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

/// Hears of the end of a memory that comes on demand.
fn on_end(notices: Notices, generation: u64) -> OnEnd {
    Box::new(move |ending| match ending {
        Ending::Complete => tracing::info!("all memory is there"),
        Ending::Failed(error) => {
            let text = format!("tern: {LOST}: {}", chain(&error));
            notices.post(Notice::MemoryLost { generation, error });
            let watch = std::thread::Builder::new().name("memory-lost".into()).spawn(move || {
                std::thread::sleep(LOST_TIMEOUT);
                eprintln!("{text}");
                std::process::exit(Exit::GuestFailed as i32);
            });
            if watch.is_err() {
                std::process::exit(Exit::GuestFailed as i32);
            }
        }
    })
}

/// What the error says first.
pub(super) const LOST: &str = "the guest was stopped: a part of its memory can't be had";
