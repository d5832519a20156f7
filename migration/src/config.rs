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

use crate::channel::Uri;

/// The parameters of one migration.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Parameters {
    /// Most bytes a second on the wire while the guest runs; 0: no limit.
    pub max_bandwidth_bytes_per_s: u64,
    /// Longest downtime that is accepted.
    pub downtime_limit_ms: u64,
    /// Longest time from the start to the stop of the guest; 0: no limit.
    pub max_total_time_ms: u64,
    /// Files: threads that write.
    pub file_threads: u64,
    /// Files: write past the host's page cache.
    pub direct_io: bool,
    /// What is switched on.
    pub capabilities: Capabilities,
}

/// One row of the table of parameters.
#[derive(Debug)]
pub struct Parameter {
    /// Name in QMP and on the command line.
    pub name: &'static str,
    /// Unit of the value; [`SWITCH`]: it is on (1) or off (0).
    pub unit: &'static str,
    /// Legal values.
    pub range: RangeInclusive<u64>,
    /// What 0 means where it is legal beside `range`.
    pub zero: Option<&'static str>,
    /// Value unless told otherwise.
    pub default: u64,
    /// What it does, in one sentence.
    pub meaning: &'static str,
    /// Only for a guest that is saved into a file, and fixed once that has begun.
    pub files_only: bool,
    get: fn(&Parameters) -> u64,
    set: fn(&mut Parameters, u64),
}

/// Unit of a parameter that is true or false in QMP, on or off on the command line.
pub const SWITCH: &str = "switch";

/// All parameters.
pub const PARAMETERS: &[Parameter] = &[
    Parameter {
        name: "max-bandwidth",
        unit: "bytes/s",
        range: 262_144..=1 << 50,
        zero: Some("unlimited"),
        default: 0,
        meaning: "Most bytes a second that are sent while the guest runs; not applied while it is stopped.",
        files_only: false,
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
        files_only: false,
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
        files_only: false,
        get: |p| p.max_total_time_ms,
        set: |p, value| p.max_total_time_ms = value,
    },
    Parameter {
        name: "file-threads",
        unit: "threads",
        range: 1..=16,
        zero: None,
        default: 4,
        meaning: "Files: threads that write.",
        files_only: true,
        get: |p| p.file_threads,
        set: |p, value| p.file_threads = value,
    },
    Parameter {
        name: "direct-io",
        unit: SWITCH,
        range: 0..=1,
        zero: None,
        default: 0,
        meaning: "Files: write memory past the host's page cache (O_DIRECT).",
        files_only: true,
        get: |p| p.direct_io.into(),
        set: |p, value| p.direct_io = value != 0,
    },
];

/// Which capabilities are on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Capabilities {
    /// Report each change of status and each pass as an event.
    pub events: bool,
    /// A guest that is saved to a file goes on as soon as all of it has been read.
    pub keep_running: bool,
    /// Prove at the switch that the destination has what the source had.
    pub verify: bool,
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
    /// Only for a guest that is saved into a file.
    pub files_only: bool,
    get: fn(&Capabilities) -> bool,
    set: fn(&mut Capabilities, bool),
}

/// All capabilities.
pub const CAPABILITIES: &[Capability] = &[
    Capability {
        name: "events",
        default: true,
        meaning: "Emit MIGRATION at each change of status and MIGRATION_PASS at each pass.",
        files_only: false,
        get: |c| c.events,
        set: |c, value| c.events = value,
    },
    Capability {
        name: "keep-running",
        default: false,
        meaning: "Files: let the guest go on as soon as it is saved; without it, it stays here, stopped.",
        files_only: true,
        get: |c| c.keep_running,
        set: |c, value| c.keep_running = value,
    },
    Capability {
        name: "verify",
        default: true,
        meaning: "Source: hash all memory and state on both sides, and compare before the guest is handed over.",
        files_only: false,
        get: |c| c.verify,
        set: |c, value| c.verify = value,
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
    /// A parameter or capability of a save, given to a migration to a peer.
    #[error("{name} is for saving into a file (file:PATH), and this guest goes to {uri}: leave it out")]
    FilesOnly {
        /// Parameter or capability.
        name: &'static str,
        /// Where the guest is to go.
        uri: String,
    },
    /// A parameter that can't change any more.
    #[error("migration parameter {name} is fixed once a save has begun: give it to `migrate`")]
    Fixed {
        /// Parameter.
        name: &'static str,
    },
    /// A value that is neither true nor false.
    #[error("migration parameter {name}: {found} is neither true nor false")]
    NotASwitch {
        /// Parameter.
        name: &'static str,
        /// The value given.
        found: String,
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
        let mut all = Self { events: false, keep_running: false, verify: false };
        CAPABILITIES.iter().for_each(|row| (row.set)(&mut all, row.default));
        all
    }
}

impl Default for Parameters {
    fn default() -> Self {
        let capabilities = Capabilities::default();
        let mut all = Self {
            max_bandwidth_bytes_per_s: 0,
            downtime_limit_ms: 0,
            max_total_time_ms: 0,
            file_threads: 0,
            direct_io: false,
            capabilities,
        };
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
        if self.unit == SWITCH {
            return "on or off".to_owned();
        }
        let range = format!("{} to {}", self.range.start(), self.range.end());
        self.zero.map_or(range.clone(), |zero| format!("0 ({zero}) or {range}"))
    }

    /// The number that a value of QMP means.
    fn number(&self, value: &Value) -> Result<u64, ConfigError> {
        let (name, found) = (self.name, value.to_string());
        if self.unit == SWITCH {
            return value.as_bool().map(u64::from).ok_or(ConfigError::NotASwitch { name, found });
        }
        let (unit, legal) = (self.unit, self.legal());
        value.as_u64().ok_or(ConfigError::NotANumber { name, found, unit, legal })
    }

    /// A value, for people.
    pub fn shown(&self, value: u64) -> String {
        match (self.unit, value) {
            (SWITCH, 0) => "off".to_owned(),
            (SWITCH, _) => "on".to_owned(),
            _ => value.to_string(),
        }
    }

    fn value(&self, of: &Parameters) -> Value {
        let number = (self.get)(of);
        if self.unit == SWITCH { (number != 0).into() } else { number.into() }
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
            merged.set(name, row.number(value)?)?;
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

    /// Refuses what only a save into a file has, for a guest that goes to a peer.
    pub fn check_for(&self, uri: &Uri) -> Result<(), ConfigError> {
        if let Uri::File { .. } = uri {
            return Ok(());
        }
        let changed = PARAMETERS.iter().filter(|row| row.files_only && (row.get)(self) != row.default);
        let on =
            CAPABILITIES.iter().filter(|row| row.files_only && (row.get)(&self.capabilities) != row.default);
        let name = changed.map(|row| row.name).chain(on.map(|row| row.name)).next();
        name.map_or(Ok(()), |name| Err(ConfigError::FilesOnly { name, uri: uri.to_string() }))
    }

    /// The answer to `query-migrate-parameters`.
    pub fn to_json(&self) -> Map<String, Value> {
        PARAMETERS.iter().map(|row| (row.name.to_owned(), row.value(self))).collect()
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
        let fixed = PARAMETERS.iter().find(|row| row.files_only && changes.contains_key(row.name));
        if let Some(row) = fixed {
            return Err(ConfigError::Fixed { name: row.name });
        }
        let mut now = self.now.lock().unwrap_or_else(PoisonError::into_inner);
        *now = now.merged(changes)?;
        Ok(*now)
    }
}

/// Both tables in markdown, as they stand in PROTOCOL.md.
pub fn tables_markdown() -> String {
    let mut out = String::from("| parameter | unit | legal | default | meaning |\n|---|---|---|---|---|\n");
    for row in PARAMETERS {
        let Parameter { name, unit, meaning, .. } = row;
        let _ =
            writeln!(out, "| `{name}` | {unit} | {} | {} | {meaning} |", row.legal(), row.shown(row.default));
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
            let other = if row.range.contains(&300_000) { 300_000 } else { 1 };
            changed.set(row.name, other).unwrap();
            assert_eq!((row.get)(&changed), other);
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
            let changes = object(&format!(r#"{{"{}": {}}}"#, row.name, row.value(&defaults)));
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
    fn what_a_file_has_is_refused_for_a_peer_and_while_it_is_made() {
        let (peer, file): (Uri, Uri) = ("tcp:b:1".parse().unwrap(), "file:/b".parse().unwrap());
        for changes in [
            r#"{"file-threads": 7}"#,
            r#"{"direct-io": true}"#,
            r#"{"capabilities": [{"capability": "keep-running", "state": true}]}"#,
        ] {
            let changed = Parameters::default().merged(&object(changes)).unwrap();
            let error = changed.check_for(&peer).unwrap_err().to_string();
            assert!(error.contains("(file:PATH), and this guest goes to tcp:b:1"), "{error}");
            changed.check_for(&file).unwrap();
        }
        Parameters::default().check_for(&peer).unwrap();
        let error = LiveParameters::default().merge(&object(r#"{"file-threads": 1}"#)).unwrap_err();
        assert_eq!(error, ConfigError::Fixed { name: "file-threads" });
        let wrong = Parameters::default().merged(&object(r#"{"direct-io": 1}"#)).unwrap_err().to_string();
        assert!(wrong.contains("direct-io: 1 is neither true nor false"), "{wrong}");
        assert_eq!(Parameters::default().to_json()["direct-io"], false);
    }

    #[test]
    fn capabilities_are_queried_as_they_are_set() {
        let list = serde_json::json!([{"capability": "events", "state": false}]);
        let answer = Capabilities::default().merged(&list).unwrap().to_json();
        assert_eq!((&answer[0], answer.as_array().unwrap().len()), (&list[0], CAPABILITIES.len()));
    }
}
