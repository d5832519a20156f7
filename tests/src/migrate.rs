//! Moves a guest from one process to another.

use std::path::Path;

use serde_json::{Value, json};

use crate::tern::Tern;

/// Both sides' reports of a migration that completed.
#[derive(Debug, Clone)]
pub struct Moved {
    /// `query-migrate` of the source.
    pub source: Value,
    /// `query-migrate` of the destination.
    pub destination: Value,
}

impl Moved {
    /// Downtime as the source saw it.
    pub fn downtime_us(&self) -> u64 {
        self.source["report"]["downtime"]["total_us"].as_u64().unwrap_or(0)
    }

    /// From the start to the end, as the source saw it.
    pub fn total_us(&self) -> u64 {
        self.source["report"]["total_us"].as_u64().unwrap_or(0)
    }
}

/// Moves the guest with the default parameters.
///
/// # Panics
/// The migration does not complete.
pub fn migrate(source: &Tern, destination: &Tern) -> Moved {
    migrate_to(source, destination, &destination.uri(), json!({}))
}

/// Saves the guest into a file; it stays where it is, stopped.
///
/// # Panics
/// The save does not complete.
pub fn save(source: &Tern, file: &Path) -> Value {
    let mut here = source.qmp();
    here.execute("migrate", json!({ "uri": format!("file:{}", file.display()) }));
    here.wait_migrate(&["completed"])
}

/// Moves the guest by way of `uri` (a proxy's, or the destination's own) with these parameters.
///
/// # Panics
/// The migration does not complete.
pub fn migrate_to(source: &Tern, destination: &Tern, uri: &str, parameters: Value) -> Moved {
    let mut here = source.qmp();
    here.execute("migrate", json!({ "uri": uri, "parameters": parameters }));
    let from = here.wait_migrate(&["completed"]);
    let to = destination.qmp().wait_migrate(&["completed"]);
    Moved { source: from, destination: to }
}
