//! What one migration can be told: a table of parameters and a table of capabilities.
//!
//! The tables are data. The parser, `--help`, `query-migrate-parameters` and PROTOCOL.md all read them, so
//! a parameter is described once. A migration gets a copy of its own ([`LiveParameters`]): nothing that is
//! set for one leaks into the next, and a change while it runs changes that migration alone.

use std::fmt::Write as _;
use std::ops::RangeInclusive;
use std::sync::{Mutex, PoisonError};

use serde::Serialize;
use serde_json::{Map, Value};
use thiserror::Error;

/// The parameters of one migration.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Parameters {
    /// Most bytes a second on the wire while the guest runs; 0: no limit.
    pub max_bandwidth_bytes_per_s: u64,
    /// Longest downtime that is accepted.
    pub downtime_limit_ms: u64,
    /// Longest time from the start to the stop of the guest; 0: no limit.
    pub max_total_time_ms: u64,
    /// What is switched on.
    pub capabilities: Capabilities,
}

/// One row of the table of parameters.
#[derive(Debug)]
pub struct Parameter {
    /// Name in QMP and on the command line.
    pub name: &'static str,
    /// Unit of the value.
    pub unit: &'static str,
    /// Legal values.
    pub range: RangeInclusive<u64>,
    /// What 0 means where it is legal beside `range`.
    pub zero: Option<&'static str>,
    /// Value unless told otherwise.
    pub default: u64,
    /// What it does, in one sentence.
    pub meaning: &'static str,
    get: fn(&Parameters) -> u64,
    set: fn(&mut Parameters, u64),
}

/// All parameters.
pub const PARAMETERS: &[Parameter] = &[
    Parameter {
        name: "max-bandwidth",
        unit: "bytes/s",
        range: 262_144..=1 << 50,
        zero: Some("unlimited"),
        default: 0,
        meaning: "Most bytes a second that are sent while the guest runs; not applied while it is stopped.",
        get: |p| p.max_bandwidth_bytes_per_s,
        set: |p, value| p.max_bandwidth_bytes_per_s = value,
    },
    Parameter {
        name: "downtime-limit",
        unit: "ms",
        range: 0..=2_000_000,
        zero: None,
        default: 300,
        meaning: "Longest stop of the guest that is accepted: it is stopped when the rest fits into this.",
        get: |p| p.downtime_limit_ms,
        set: |p, value| p.downtime_limit_ms = value,
    },
    Parameter {
        name: "max-total-time",
        unit: "ms",
        range: 1..=u32::MAX as u64,
        zero: Some("none"),
        default: 0,
        meaning: "Longest time before the guest is stopped; then the migration fails and the guest runs on.",
        get: |p| p.max_total_time_ms,
        set: |p, value| p.max_total_time_ms = value,
    },
];

/// Which capabilities are on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Capabilities {
    /// Report each change of status and each pass as an event.
    pub events: bool,
    /// A guest that is saved to a file goes on as soon as all of it has been read.
    pub keep_running: bool,
}

/// One row of the table of capabilities.
#[derive(Debug)]
pub struct Capability {
    /// Name in QMP and on the command line.
    pub name: &'static str,
    /// On unless told otherwise?
    pub default: bool,
    /// What it does, in one sentence.
    pub meaning: &'static str,
    get: fn(&Capabilities) -> bool,
    set: fn(&mut Capabilities, bool),
}

/// All capabilities.
pub const CAPABILITIES: &[Capability] = &[
    Capability {
        name: "events",
        default: true,
        meaning: "Emit MIGRATION at each change of status and MIGRATION_PASS at each pass.",
        get: |c| c.events,
        set: |c, value| c.events = value,
    },
    Capability {
        name: "keep-running",
        default: false,
        meaning: "Files: let the guest go on as soon as it is saved; without it, it stays here, stopped.",
        get: |c| c.keep_running,
        set: |c, value| c.keep_running = value,
    },
];

/// A parameter or capability that can't be set so.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum ConfigError {
    /// No such parameter.
    #[error("there is no migration parameter \"{name}\"; these exist: {known}")]
    UnknownParameter {
        /// The name given.
        name: String,
        /// All names.
        known: String,
    },
    /// No such capability.
    #[error("there is no migration capability \"{name}\"; these exist: {known}")]
    UnknownCapability {
        /// The name given.
        name: String,
        /// All names.
        known: String,
    },
    /// A value that isn't a whole number.
    #[error("migration parameter {name}: {found} is not a whole number of {unit}; legal: {legal}")]
    NotANumber {
        /// Parameter.
        name: &'static str,
        /// The value given.
        found: String,
        /// Its unit.
        unit: &'static str,
        /// Legal values.
        legal: String,
    },
    /// A number outside the range.
    #[error("migration parameter {name}: {found} {unit} is out of range; legal: {legal}")]
    OutOfRange {
        /// Parameter.
        name: &'static str,
        /// The value given.
        found: u64,
        /// Its unit.
        unit: &'static str,
        /// Legal values.
        legal: String,
    },
    /// A parameter of the source, given to a destination.
    #[error("migration parameter {name} is the source's: give it to `migrate` there")]
    SourceOnly {
        /// Parameter.
        name: &'static str,
    },
    /// A capability list of another shape.
    #[error("capabilities: {found} is not a list of {{\"capability\": NAME, \"state\": true or false}}")]
    CapabilityShape {
        /// What was given.
        found: String,
    },
}

impl Default for Capabilities {
    fn default() -> Self {
        let mut all = Self { events: false, keep_running: false };
        CAPABILITIES.iter().for_each(|row| (row.set)(&mut all, row.default));
        all
    }
}

impl Default for Parameters {
    fn default() -> Self {
        let capabilities = Capabilities::default();
        let mut all =
            Self { max_bandwidth_bytes_per_s: 0, downtime_limit_ms: 0, max_total_time_ms: 0, capabilities };
        PARAMETERS.iter().for_each(|row| (row.set)(&mut all, row.default));
        all
    }
}

impl Parameter {
    /// The row of this name.
    pub fn named(name: &str) -> Result<&'static Self, ConfigError> {
        PARAMETERS.iter().find(|row| row.name == name).ok_or_else(|| ConfigError::UnknownParameter {
            name: name.to_owned(),
            known: PARAMETERS.iter().map(|row| row.name).collect::<Vec<_>>().join(", "),
        })
    }

    /// The legal values, for people: `0 (unlimited) or 262144 to 1125899906842624`.
    pub fn legal(&self) -> String {
        let range = format!("{} to {}", self.range.start(), self.range.end());
        self.zero.map_or(range.clone(), |zero| format!("0 ({zero}) or {range}"))
    }

    fn check(&self, found: u64) -> Result<u64, ConfigError> {
        if self.range.contains(&found) || (found == 0 && self.zero.is_some()) {
            return Ok(found);
        }
        Err(ConfigError::OutOfRange { name: self.name, found, unit: self.unit, legal: self.legal() })
    }
}

impl Capability {
    /// The row of this name.
    pub fn named(name: &str) -> Result<&'static Self, ConfigError> {
        CAPABILITIES.iter().find(|row| row.name == name).ok_or_else(|| ConfigError::UnknownCapability {
            name: name.to_owned(),
            known: CAPABILITIES.iter().map(|row| row.name).collect::<Vec<_>>().join(", "),
        })
    }
}

impl Parameters {
    /// Sets one parameter.
    pub fn set(&mut self, name: &str, value: u64) -> Result<(), ConfigError> {
        let row = Parameter::named(name)?;
        (row.set)(self, row.check(value)?);
        Ok(())
    }

    /// These parameters with the members of `changes` set: names of the table, and `capabilities`, a list
    /// of `{"capability": NAME, "state": BOOL}`. All or nothing.
    pub fn merged(&self, changes: &Map<String, Value>) -> Result<Self, ConfigError> {
        let mut merged = *self;
        for (name, value) in changes {
            if name == "capabilities" {
                merged.capabilities = merged.capabilities.merged(value)?;
                continue;
            }
            let row = Parameter::named(name)?;
            let number = value.as_u64().ok_or_else(|| ConfigError::NotANumber {
                name: row.name,
                found: value.to_string(),
                unit: row.unit,
                legal: row.legal(),
            })?;
            merged.set(name, number)?;
        }
        Ok(merged)
    }

    /// As [`Self::merged`], for a destination: it has capabilities, but all parameters are the source's.
    pub fn merged_at_destination(&self, changes: &Map<String, Value>) -> Result<Self, ConfigError> {
        if let Some(name) = changes.keys().find(|name| *name != "capabilities") {
            return Err(ConfigError::SourceOnly { name: Parameter::named(name)?.name });
        }
        self.merged(changes)
    }

    /// The answer to `query-migrate-parameters`.
    pub fn to_json(&self) -> Map<String, Value> {
        PARAMETERS.iter().map(|row| (row.name.to_owned(), Value::from((row.get)(self)))).collect()
    }
}

impl Capabilities {
    /// These capabilities with those of a QMP list set. All or nothing.
    pub fn merged(&self, list: &Value) -> Result<Self, ConfigError> {
        let shape = || ConfigError::CapabilityShape { found: list.to_string() };
        let mut merged = *self;
        for item in list.as_array().ok_or_else(shape)? {
            let name = item.get("capability").and_then(Value::as_str).ok_or_else(shape)?;
            let state = item.get("state").and_then(Value::as_bool).ok_or_else(shape)?;
            (Capability::named(name)?.set)(&mut merged, state);
        }
        Ok(merged)
    }

    /// The answer to `query-migrate-capabilities`.
    pub fn to_json(&self) -> Value {
        let row = |row: &Capability| serde_json::json!({"capability": row.name, "state": (row.get)(self)});
        CAPABILITIES.iter().map(row).collect()
    }
}

/// The parameters of a migration that runs: others may change them, the migration reads them.
#[derive(Debug, Default)]
pub struct LiveParameters {
    now: Mutex<Parameters>,
}

impl LiveParameters {
    /// Starts with a copy.
    pub fn new(parameters: Parameters) -> Self {
        Self { now: Mutex::new(parameters) }
    }

    /// As they are now.
    pub fn get(&self) -> Parameters {
        *self.now.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Replaces all.
    pub fn set(&self, parameters: Parameters) {
        *self.now.lock().unwrap_or_else(PoisonError::into_inner) = parameters;
    }

    /// Sets the members of `changes`, as [`Parameters::merged`]; the migration obeys within 100 ms.
    pub fn merge(&self, changes: &Map<String, Value>) -> Result<Parameters, ConfigError> {
        let mut now = self.now.lock().unwrap_or_else(PoisonError::into_inner);
        *now = now.merged(changes)?;
        Ok(*now)
    }
}

/// Both tables in markdown, as they stand in PROTOCOL.md.
pub fn tables_markdown() -> String {
    let mut out = String::from("| parameter | unit | legal | default | meaning |\n|---|---|---|---|---|\n");
    for row in PARAMETERS {
        let Parameter { name, unit, default, meaning, .. } = row;
        let _ = writeln!(out, "| `{name}` | {unit} | {} | {default} | {meaning} |", row.legal());
    }
    out.push_str("\n| capability | default | meaning |\n|---|---|---|\n");
    for Capability { name, default, meaning, .. } in CAPABILITIES {
        let _ = writeln!(out, "| `{name}` | {} | {meaning} |", if *default { "on" } else { "off" });
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn object(text: &str) -> Map<String, Value> {
        serde_json::from_str(text).unwrap()
    }

    #[test]
    fn every_default_is_legal_and_every_row_sets_its_own_field() {
        for row in PARAMETERS {
            row.check(row.default).unwrap();
            let mut changed = Parameters::default();
            changed.set(row.name, 300_000).unwrap();
            assert_eq!((row.get)(&changed), 300_000);
            let others = PARAMETERS.iter().filter(|other| (other.get)(&changed) != other.default);
            assert_eq!(others.count(), 1, "{} changes more than itself", row.name);
        }
    }

    #[test]
    fn errors_name_parameter_value_and_range() {
        let defaults = Parameters::default();
        let error = |text| defaults.merged(&object(text)).unwrap_err().to_string();
        assert_eq!(
            error(r#"{"downtime-limit": 2000001}"#),
            "migration parameter downtime-limit: 2000001 ms is out of range; legal: 0 to 2000000"
        );
        assert!(error(r#"{"max-bandwidth": "1G"}"#).contains("\"1G\" is not a whole number of bytes/s"));
        assert!(error(r#"{"max-bandwith": 1}"#).contains("these exist: max-bandwidth,"));
        assert!(error(r#"{"capabilities": [{"capability": "multifd", "state": true}]}"#).contains("multifd"));
        assert!(error(r#"{"capabilities": {"events": true}}"#).contains("not a list"));
    }

    #[test]
    fn a_merge_with_an_error_changes_nothing() {
        let live = LiveParameters::default();
        live.merge(&object(r#"{"downtime-limit": 7, "max-total-time": 9, "nonsense": 1}"#)).unwrap_err();
        assert_eq!(live.get(), Parameters::default());
        live.merge(&object(r#"{"downtime-limit": 7}"#)).unwrap();
        assert_eq!(live.get().downtime_limit_ms, 7);
    }

    #[test]
    fn a_destination_refuses_what_only_a_source_uses() {
        let defaults = Parameters::default();
        for row in PARAMETERS {
            let changes = object(&format!(r#"{{"{}": {}}}"#, row.name, row.default));
            let error = defaults.merged_at_destination(&changes).unwrap_err().to_string();
            assert_eq!(
                error,
                format!("migration parameter {} is the source's: give it to `migrate` there", row.name)
            );
        }
        let unknown = defaults.merged_at_destination(&object(r#"{"max-bandwith": 1}"#)).unwrap_err();
        assert!(matches!(unknown, ConfigError::UnknownParameter { .. }));
        let quiet = object(r#"{"capabilities": [{"capability": "events", "state": false}]}"#);
        assert!(!defaults.merged_at_destination(&quiet).unwrap().capabilities.events);
    }

    #[test]
    fn capabilities_are_queried_as_they_are_set() {
        let list = serde_json::json!([{"capability": "events", "state": false}]);
        let answer = Capabilities::default().merged(&list).unwrap().to_json();
        assert_eq!((&answer[0], answer.as_array().unwrap().len()), (&list[0], CAPABILITIES.len()));
    }
}
