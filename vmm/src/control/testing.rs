//! A machine without a machine, for the control socket's tests.

use serde_json::{Value, json};
use tern_migration::config::Parameters;

use super::{
    CommandError, CpuFacts, Event, EventSink, MachineFacts, MigrateRequest, MigrationHistory, Operations,
    ParameterValues, Resolution, RunState, SerialFacts,
};

/// Remembers what it was asked for.
#[derive(Debug)]
pub struct FakeMachine {
    pub state: RunState,
    pub calls: Vec<String>,
    pub events: Option<EventSink>,
    pub migration: Value,
}

impl Default for FakeMachine {
    fn default() -> Self {
        Self { state: RunState::Running, calls: Vec::new(), events: None, migration: json!({}) }
    }
}

impl FakeMachine {
    fn post(&self, event: Event) {
        if let Some(events) = &self.events {
            events.post(event);
        }
    }

    fn note(&mut self, call: impl Into<String>) -> Result<(), CommandError> {
        self.calls.push(call.into());
        Ok(())
    }
}

impl Operations for FakeMachine {
    fn facts(&self) -> MachineFacts {
        MachineFacts {
            name: "fake".into(),
            uuid: uuid::Uuid::nil(),
            generation_id: Some(uuid::Uuid::max()),
            cpus: vec![CpuFacts { index: 0, thread_id: 7 }],
            serial: SerialFacts::Unix { path: "/run/serial".into(), connected: false },
        }
    }

    fn run_state(&self) -> RunState {
        self.state
    }

    fn stop(&mut self) -> Result<(), CommandError> {
        self.state = RunState::Paused;
        self.post(Event::Stop);
        Ok(())
    }

    fn cont(&mut self) -> Result<(), CommandError> {
        self.state = RunState::Running;
        self.post(Event::Resume);
        Ok(())
    }

    fn quit(&mut self) -> Result<(), CommandError> {
        self.note("quit")
    }

    fn reset(&mut self) -> Result<(), CommandError> {
        self.note("reset")
    }

    fn query_balloon(&self) -> Result<Value, CommandError> {
        Ok(json!({ "actual": 1 << 30 }))
    }

    fn balloon(&mut self, left_bytes: u64) -> Result<(), CommandError> {
        self.note(format!("balloon {left_bytes}"))
    }

    fn powerdown(&mut self) -> Result<(), CommandError> {
        self.note("powerdown")
    }

    fn migrate(&mut self, request: MigrateRequest) -> Result<(), CommandError> {
        let (limit, events) = (request.parameters.downtime_limit_ms, request.parameters.capabilities.events);
        self.note(format!("migrate {} {limit} ms events {events}", request.uri))
    }

    fn check(&mut self, request: MigrateRequest) -> Result<(), CommandError> {
        self.note(format!("check {}", request.uri))
    }

    fn query_check(&self) -> Value {
        json!({})
    }

    fn migrate_incoming(&mut self, uri: &str, _: &ParameterValues) -> Result<(), CommandError> {
        self.note(format!("incoming {uri}"))
    }

    fn query_migrate(&self) -> Value {
        self.migration.clone()
    }

    fn cancel(&mut self) -> Result<(), CommandError> {
        self.note("cancel")
    }

    fn set_parameters(&mut self, changes: &ParameterValues) -> Result<(), CommandError> {
        let text = Value::Object(changes.clone()).to_string();
        self.note(format!("set {text}"))
    }

    fn features(&self, uri: Option<&str>) -> Result<Value, CommandError> {
        let verdict =
            json!([{ "feature": "xbzrle", "kind": "capability", "legal": false, "reason": "none" }]);
        Ok(json!({ "uri": uri, "to_peer": verdict, "to_file": [] }))
    }

    fn parameters(&self) -> Parameters {
        Parameters::default()
    }

    fn history(&self) -> MigrationHistory {
        MigrationHistory::default()
    }

    fn go_on(&mut self) -> Result<(), CommandError> {
        self.note("go on")
    }

    fn start_postcopy(&mut self) -> Result<(), CommandError> {
        self.note("post-copy")
    }

    fn pause_postcopy(&mut self) -> Result<(), CommandError> {
        self.note("pause")
    }

    fn recover_postcopy(&mut self, uri: &str) -> Result<(), CommandError> {
        self.note(format!("recover {uri}"))
    }

    fn resolve(&mut self, resolution: Resolution) -> Result<(), CommandError> {
        self.note(format!("resolve {resolution:?}"))
    }
}
