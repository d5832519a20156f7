//! `migrate-check`: would the guest fit at a destination? A thread of its own asks; it has a copy of what the
//! machine says of itself, and not the machine: the guest runs, stops and moves as if nobody asked.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use serde::Serialize;
use serde_json::{Value, json};
use tern_migration::channel::Uri;
use tern_migration::config::legal::Peer;
use tern_migration::error::MigrationError;
use tern_migration::source::{self, CheckReport};
use tern_migration::{Aspect, Control, Parameters, Side, SourceVm, Unobserved, VmFacts};

use crate::control::{CommandError, Event, EventSink, MigrateRequest, chain};
use crate::sections;

use super::Machine;
use super::migration::parse_uri;

/// A check that runs or ran, shared with its thread.
#[derive(Clone)]
pub(super) struct Check {
    state: Arc<Mutex<State>>,
    control: Arc<Control>,
}

enum State {
    Active,
    Completed(Box<Report>),
    Failed { uri: String, text: String },
    Cancelled { uri: String },
}

/// What a check has found, and what follows from it for the guest as it is now.
#[derive(Serialize)]
struct Report {
    #[serde(flatten)]
    found: CheckReport,
    /// Guest memory.
    memory_bytes: u64,
    /// What of it this process holds: the guest has touched it.
    resident_bytes: u64,
    /// Time for that much memory over this link, if the guest changed nothing meanwhile.
    expected_total_ms: u64,
}

impl Report {
    fn new(mut found: CheckReport, blocked: Vec<String>, memory_bytes: u64, limit_bytes_per_s: u64) -> Self {
        found.aspects.extend(blocked.into_iter().map(|reason| {
            Aspect::differs("blocked", "can move now", reason, "any", "free the guest of what holds it here")
        }));
        found.fits = found.aspects.iter().all(Aspect::is_ok);
        let resident_bytes = resident_bytes().unwrap_or(memory_bytes).min(memory_bytes);
        let limit = if limit_bytes_per_s == 0 { u64::MAX } else { limit_bytes_per_s };
        let rate = found.link_bytes_per_s.min(limit).max(1);
        let expected_total_ms = u64::try_from(u128::from(resident_bytes) * 1000 / u128::from(rate));
        let expected_total_ms = expected_total_ms.unwrap_or(u64::MAX);
        Self { found, memory_bytes, resident_bytes, expected_total_ms }
    }
}

/// Memory that this process has (proc_pid_statm(5), second field): nearly all of it is the guest's.
fn resident_bytes() -> Option<u64> {
    let statm = std::fs::read_to_string("/proc/self/statm").ok()?;
    statm.split(' ').nth(1)?.parse::<u64>().ok()?.checked_mul(crate::layout::PAGE_BYTES)
}

impl Check {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn is_active(&self) -> bool {
        matches!(*self.state(), State::Active)
    }

    pub(super) fn cancel(&self) {
        self.control.cancel();
    }

    /// `query-migrate-check`.
    pub(super) fn to_json(&self) -> Value {
        match &*self.state() {
            State::Active => json!({ "status": "active" }),
            State::Completed(report) => json!({ "status": "completed", "report": report }),
            State::Failed { uri, text } => json!({ "status": "failed", "uri": uri, "error-desc": text }),
            State::Cancelled { uri } => json!({ "status": "cancelled", "uri": uri }),
        }
    }

    /// What the destination at `uri` could do, if it was asked last.
    pub(super) fn peer(&self, uri: &Uri) -> Option<Peer> {
        match &*self.state() {
            State::Completed(report) if report.found.uri == uri.to_string() => {
                Some(report.found.peer.clone())
            }
            _ => None,
        }
    }

    /// The thread: asks, keeps the answer, and tells. `blocked`: why the machine can't move now, wherever to.
    fn run(
        &self,
        facts: VmFacts,
        blocked: Vec<String>,
        uri: &Uri,
        parameters: &Parameters,
        sink: &EventSink,
    ) {
        let memory_bytes = facts.memory.iter().map(|region| region.length_bytes).sum();
        let (state, status) = match source::check(facts, uri, parameters, &self.control) {
            Ok(found) => {
                let report = Report::new(found, blocked, memory_bytes, parameters.max_bandwidth_bytes_per_s);
                (State::Completed(Box::new(report)), "completed")
            }
            Err(MigrationError::Cancelled) => (State::Cancelled { uri: uri.to_string() }, "cancelled"),
            Err(error) => (State::Failed { uri: uri.to_string(), text: chain(&error) }, "failed"),
        };
        *self.state() = state;
        sink.post(Event::MigrationCheck { status });
    }
}

impl Machine {
    /// Starts to ask a destination.
    pub(super) fn check(&mut self, request: &MigrateRequest) -> Result<(), CommandError> {
        let uri = parse_uri(&request.uri)?;
        if matches!(uri, Uri::File { .. }) {
            return Err(CommandError::invalid("a file can't be asked: `uri` is tcp:HOST:PORT or unix:PATH"));
        }
        if self.check.as_ref().is_some_and(Check::is_active) {
            return Err(CommandError::illegal("a check runs already: query-migrate-check shows its end"));
        }
        let Some(vm) = &self.vm else {
            return Err(CommandError::illegal("a migration runs: wait for it, or cancel it"));
        };
        let failed = |error: std::io::Error| CommandError::failed(&error);
        let control = Control::new(Side::Source, Box::new(Unobserved)).map_err(failed)?;
        let facts = SourceVm::facts(vm);
        let blocked = sections::blocked_reasons(self.core.devices().parts());
        let check = Check { state: Arc::new(Mutex::new(State::Active)), control };
        let (shared, sink, parameters) = (check.clone(), self.sink.clone(), request.parameters.clone());
        std::thread::Builder::new()
            .name("check".to_owned())
            .spawn(move || shared.run(facts, blocked, &uri, &parameters, &sink))
            .map_err(failed)?;
        self.check = Some(check);
        Ok(())
    }
}
