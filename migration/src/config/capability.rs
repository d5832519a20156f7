//! What is switched on or off: the table of capabilities.

use serde::Serialize;
use serde_json::Value;

use super::ConfigError;

/// Which capabilities are on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Capabilities {
    /// Report each change of status and each pass as an event.
    pub events: bool,
    /// A guest that is saved to a file goes on as soon as all of it has been read.
    pub keep_running: bool,
    /// The guest stands still from the start.
    pub stop_first: bool,
    /// The guest arrives paused, whatever it was.
    pub arrive_paused: bool,
    /// The manager is waited for before the guest is stopped.
    pub pause_before_switchover: bool,
    /// Prove at the switch that the destination has what the source had.
    pub verify: bool,
    /// Send only what has changed in a page that was sent before.
    pub xbzrle: bool,
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
        name: "stop-first",
        default: false,
        meaning: "Source: stop the guest before its memory moves; it goes on at the destination.",
        files_only: false,
        get: |c| c.stop_first,
        set: |c, value| c.stop_first = value,
    },
    Capability {
        name: "arrive-paused",
        default: false,
        meaning: "Source: the guest arrives paused; `cont` there lets it go on.",
        files_only: false,
        get: |c| c.arrive_paused,
        set: |c, value| c.arrive_paused = value,
    },
    Capability {
        name: "pause-before-switchover",
        default: false,
        meaning: "Source: when little is left, wait for migrate-continue; the guest runs meanwhile.",
        files_only: false,
        get: |c| c.pause_before_switchover,
        set: |c, value| c.pause_before_switchover = value,
    },
    Capability {
        name: "verify",
        default: true,
        meaning: "Source: hash all memory and state on both sides, and compare before the guest is handed over.",
        files_only: false,
        get: |c| c.verify,
        set: |c, value| c.verify = value,
    },
    Capability {
        name: "xbzrle",
        default: false,
        meaning: "Source: of a page that was sent before, send what has changed if that is known and shorter.",
        files_only: false,
        get: |c| c.xbzrle,
        set: |c, value| c.xbzrle = value,
    },
];

/// QMP's capability for what is the parameter `postcopy` here.
pub(super) const POSTCOPY_RAM: &str = "postcopy-ram";

/// A list of capabilities without that one, and the state that it was given.
pub(super) fn without_postcopy(list: &Value) -> (Value, Option<bool>) {
    let Some(items) = list.as_array() else { return (list.clone(), None) };
    let state = |item: &Value| {
        let named = item.get("capability").and_then(Value::as_str) == Some(POSTCOPY_RAM);
        item.get("state").and_then(Value::as_bool).filter(|_| named)
    };
    let rest = items.iter().filter(|item| state(item).is_none()).cloned().collect();
    (rest, items.iter().filter_map(state).next_back())
}

impl Default for Capabilities {
    fn default() -> Self {
        let mut all = Self {
            events: false,
            keep_running: false,
            stop_first: false,
            arrive_paused: false,
            pause_before_switchover: false,
            verify: false,
            xbzrle: false,
        };
        CAPABILITIES.iter().for_each(|row| (row.set)(&mut all, row.default));
        all
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

    /// Is it on?
    pub fn get(&self, all: &Capabilities) -> bool {
        (self.get)(all)
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
