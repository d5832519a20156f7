//! What the control socket asks of the machine.

use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use event_manager::{EventManager, MutEventSubscriber, SubscriberOps};
use serde_json::{Value, json};
use tern_migration::config::{ConfigError, PARAMETERS, Parameter};
use tern_migration::{Parameters, Report, Side, Status, query_migrate};

use crate::balloon;
use crate::config::SerialConfig;
use crate::control::{
    CommandError, ControlServer, CpuFacts, Event, EventQueue, ListeningSocket, MachineFacts, MigrateRequest,
    MigrationHistory, Operations, ParameterValues, Resolution, RunState, SerialFacts,
};
use crate::run_control::Hold;
use crate::sections;

use super::checking::Check;
use super::{ExitReason, Machine, RunError};

/// The machine, as the control server holds it.
#[derive(Clone)]
pub(super) struct Handle(pub(super) Arc<Mutex<Machine>>);

impl Handle {
    fn lock(&self) -> MutexGuard<'_, Machine> {
        let mut machine = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        machine.settle();
        machine
    }
}

/// The control server in the event loop, and a way to its last words.
pub(super) type Server = Arc<Mutex<ControlServer<Handle>>>;

/// Opens the control socket, if there is to be one, and puts it into the event loop.
pub(super) fn serve(
    manager: &mut EventManager<Box<dyn MutEventSubscriber>>,
    path: Option<&Path>,
    events: EventQueue,
    machine: &Arc<Mutex<Machine>>,
) -> Result<Option<Server>, RunError> {
    let Some(path) = path else { return Ok(None) };
    let socket = ListeningSocket::bind(path, "--control")?;
    let server = Arc::new(Mutex::new(ControlServer::new(socket, Handle(Arc::clone(machine)), events)));
    manager.add_subscriber(Box::new(Arc::clone(&server)));
    Ok(Some(server))
}

impl Machine {
    fn run_state(&self) -> RunState {
        let run = self.core.run();
        if run.holds(Hold::GivenUp) {
            return if self.doubt.is_some() { RunState::InDoubt } else { RunState::PostMigrate };
        }
        // A guest that has just come is this process's as soon as the migration has brought the machine back.
        if run.holds(Hold::Incoming) || self.receiver.is_some() {
            return RunState::InMigrate;
        }
        if run.holds(Hold::Migration) {
            return RunState::FinishMigrate;
        }
        if run.is_running() { RunState::Running } else { RunState::Paused }
    }

    fn facts(&self) -> MachineFacts {
        let threads = self.core.vcpus().thread_ids();
        let cpus = (0u32..).zip(threads).map(|(index, thread_id)| CpuFacts { index, thread_id }).collect();
        let serial = match &self.config.serial {
            SerialConfig::Stdio => SerialFacts::Stdio,
            SerialConfig::File(path) => SerialFacts::File(path.clone()),
            SerialConfig::Unix(path) => {
                let path = std::path::absolute(path).unwrap_or_else(|_| path.clone());
                SerialFacts::Unix { path, connected: self.plugs().serial.has_reader() }
            }
            SerialConfig::Null => SerialFacts::Null,
        };
        let generation_id = self.core.devices().generation_id();
        let (name, uuid) = (self.config.name.clone(), self.config.uuid);
        MachineFacts { name, uuid, generation_id, cpus, serial }
    }

    fn query_migrate(&self) -> Value {
        let current = self.attempt.as_ref().map(|attempt| attempt.control.report()).map(begun);
        let shown = current.filter(|report| report.status != Status::None);
        let shown = shown.or_else(|| self.former.as_ref().map(|control| control.report()));
        let shown = shown.map(|mut report| {
            // Its memory may still come from the file, though the guest runs.
            let from_file = report.side == Side::Destination && report.transport == "file";
            if let (true, Some(pager)) = (from_file, self.core.behind().pager()) {
                report.add_on_demand(pager.report());
            }
            report
        });
        let mut answer = shown.map_or_else(|| json!({}), |report| query_migrate(&report));
        // QMP's name; there only while something forbids it. Not asked while a migration has the machine, whose
        // devices may be busy then.
        let parts = self.vm.as_ref().map(|_| self.core.devices().parts());
        let blocked = parts.map(sections::blocked_reasons).unwrap_or_default();
        if let (false, Some(answer)) = (blocked.is_empty(), answer.as_object_mut()) {
            answer.insert("blocked-reasons".into(), blocked.into());
        }
        if let (Some(doubt), Some(answer)) = (&self.doubt, answer.as_object_mut()) {
            answer.insert("doubt".into(), doubt.to_json());
        }
        answer
    }

    fn query_balloon(&self) -> Result<Value, CommandError> {
        let size = self.core.devices().balloon().ok_or_else(no_balloon)?;
        let left = |pages| balloon::left_bytes(self.config.memory_bytes, pages);
        Ok(json!({ "actual": left(size.given_pages), "wanted": left(size.wanted_pages) }))
    }

    /// Not while the guest moves: its devices' state may be on its way already.
    fn balloon(&mut self, left_bytes: u64) -> Result<(), CommandError> {
        if self.vm.is_none() {
            return Err(CommandError::illegal(
                "the guest is on its way: wait for the migration, or cancel it",
            ));
        }
        let pages = balloon::pages_for(self.config.memory_bytes, left_bytes);
        if self.core.devices().set_balloon(pages) { Ok(()) } else { Err(no_balloon()) }
    }

    fn set_parameters(&mut self, changes: &ParameterValues) -> Result<(), CommandError> {
        let invalid = |error: ConfigError| CommandError::invalid(error.to_string());
        let running = self.attempt.as_ref().filter(|attempt| attempt.running);
        if self.receiver.is_some() || self.core.run().holds(Hold::Incoming) {
            // Whoever listens already does so with them.
            let listens = self.receiver.is_some();
            let begun = |row: &&Parameter| row.secures() || row.name == "known";
            let fixed = PARAMETERS.iter().filter(begun).find(|row| changes.contains_key(row.name));
            if let (true, Some(row)) = (listens, fixed) {
                return Err(invalid(ConfigError::Fixed { name: row.name }));
            }
            self.awaited = self.awaited.merged_at_destination(changes).map_err(invalid)?;
            running.inspect(|attempt| attempt.live.set(self.awaited.clone()));
            return Ok(());
        }
        match running {
            Some(attempt) => attempt.live.merge(changes).map(|_| ()).map_err(invalid),
            None => Err(CommandError::illegal(
                "no migration runs: give its parameters to `migrate`, which takes them for that migration alone",
            )),
        }
    }
}

fn no_balloon() -> CommandError {
    CommandError::illegal("this machine has no balloon: start it with --balloon")
}

/// A source's attempt has begun when `migrate` has returned, before its thread says so: a client must not take
/// the end of the attempt before it for the end of this one.
fn begun(mut report: Report) -> Report {
    if (report.side, report.status) == (Side::Source, Status::None) {
        report.status = Status::Setup;
    }
    report
}

/// The state has changed between the check of a command and the command itself.
pub(super) fn not_now(hold: Hold) -> CommandError {
    CommandError::illegal(match hold {
        Hold::Migration => "the guest is on its way: wait for the migration, or cancel it",
        Hold::GivenUp => "the guest was given to the destination",
        _ => "there is no guest here to stop or start now",
    })
}

impl Operations for Handle {
    fn facts(&self) -> MachineFacts {
        self.lock().facts()
    }

    fn run_state(&self) -> RunState {
        self.lock().run_state()
    }

    fn stop(&mut self) -> Result<(), CommandError> {
        let machine = self.lock();
        machine.can_stop()?;
        machine.core.run().stop().map_err(not_now)
    }

    fn cont(&mut self) -> Result<(), CommandError> {
        self.lock().cont()
    }

    fn quit(&mut self) -> Result<(), CommandError> {
        let mut machine = self.lock();
        machine.is_needed_by_destination()?;
        machine.sink.post(Event::Shutdown { guest: false, reason: "host-qmp-quit" });
        machine.end(Ok(ExitReason::Quit));
        Ok(())
    }

    fn reset(&mut self) -> Result<(), CommandError> {
        let mut machine = self.lock();
        if machine.vm.is_none() {
            return Err(CommandError::illegal("a migration runs: cancel it before a reset"));
        }
        machine.has_all_memory()?;
        if machine.config.boot.is_none() {
            return Err(CommandError::illegal(
                "this process was started with --incoming and without --kernel or --image: it has nothing to boot anew",
            ));
        }
        machine.sink.post(Event::Reset { guest: false });
        machine.start_anew();
        Ok(())
    }

    fn query_balloon(&self) -> Result<Value, CommandError> {
        self.lock().query_balloon()
    }

    fn balloon(&mut self, left_bytes: u64) -> Result<(), CommandError> {
        self.lock().balloon(left_bytes)
    }

    fn powerdown(&mut self) -> Result<(), CommandError> {
        let machine = self.lock();
        if machine.core.devices().press_power_button() {
            machine.sink.post(Event::Powerdown);
            return Ok(());
        }
        Err(CommandError::illegal(
            "the guest does not listen to the power button: it needs a kernel with ACPI",
        ))
    }

    fn check(&mut self, request: MigrateRequest) -> Result<(), CommandError> {
        self.lock().check(&request)
    }

    fn query_check(&self) -> Value {
        self.lock().check.as_ref().map_or_else(|| json!({}), Check::to_json)
    }

    fn migrate(&mut self, request: MigrateRequest) -> Result<(), CommandError> {
        self.lock().migrate(&request)
    }

    fn migrate_incoming(&mut self, uri: &str, changes: &ParameterValues) -> Result<(), CommandError> {
        let mut machine = self.lock();
        let parameters = machine.awaited.merged_at_destination(changes);
        let parameters = parameters.map_err(|error| CommandError::invalid(error.to_string()))?;
        machine.listen(uri, parameters)
    }

    fn query_migrate(&self) -> Value {
        self.lock().query_migrate()
    }

    fn cancel(&mut self) -> Result<(), CommandError> {
        let mut machine = self.lock();
        machine.cancel()
    }

    fn set_parameters(&mut self, changes: &ParameterValues) -> Result<(), CommandError> {
        self.lock().set_parameters(changes)
    }

    fn features(&self, uri: Option<&str>) -> Result<Value, CommandError> {
        let parameters = self.parameters();
        self.lock().features(uri, &parameters)
    }

    fn parameters(&self) -> Parameters {
        let machine = self.lock();
        let running =
            machine.attempt.as_ref().filter(|attempt| attempt.running && machine.receiver.is_none());
        running.map_or(machine.awaited.clone(), |attempt| attempt.live.get())
    }

    fn history(&self) -> MigrationHistory {
        let machine = self.lock();
        machine.history.with(machine.attempt.as_ref().map(|attempt| attempt.control.report()))
    }

    fn go_on(&mut self) -> Result<(), CommandError> {
        let machine = self.lock();
        let running = machine.attempt.as_ref().filter(|attempt| attempt.running);
        if running.is_some_and(|attempt| attempt.control.go_on()) {
            return Ok(());
        }
        Err(CommandError::illegal(
            "no migration waits for it: that is what capability pause-before-switchover does in status pre-switchover",
        ))
    }

    fn start_postcopy(&mut self) -> Result<(), CommandError> {
        self.lock().start_postcopy()
    }

    fn pause_postcopy(&mut self) -> Result<(), CommandError> {
        self.lock().pause_postcopy()
    }

    fn recover_postcopy(&mut self, uri: &str) -> Result<(), CommandError> {
        self.lock().recover_postcopy(uri)
    }

    fn resolve(&mut self, resolution: Resolution) -> Result<(), CommandError> {
        self.lock().resolve(resolution)
    }
}
