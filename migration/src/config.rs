//! What one migration can be told: a table of parameters and a table of capabilities.
//!
//! The tables are data. The parser, `--help`, `query-migrate-parameters` and PROTOCOL.md all read them, so
//! a parameter is described once: it is one field of [`Parameters`] and one row of [`PARAMETERS`]. A migration
//! gets a copy of its own ([`LiveParameters`]): nothing that is set for one leaks into the next, and a change
//! while it runs changes that migration alone.

mod capability;
mod error;
pub mod legal;
mod live;
mod parameter;
mod table;

use std::path::PathBuf;
use std::sync::Arc;

use serde_json::{Map, Value};

use crate::channel::Uri;
use crate::dirty::DirtyLogMode;
use crate::policy::postcopy::PostcopyMode;

use self::capability::POSTCOPY_RAM;
pub use self::capability::{CAPABILITIES, Capabilities, Capability};
pub use self::error::ConfigError;
pub use self::live::LiveParameters;
pub use self::parameter::{Kind, Parameter, Scope, Setting};
use self::table::POSTCOPY_MANUAL;
pub use self::table::{FILES, ON_TIMEOUT_STOP, PARAMETERS, POSTCOPY_OFF, tables_markdown};

/// The parameters of one migration. A copy is cheap: it allocates nothing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Parameters {
    /// Most bytes a second on the wire while the guest runs; 0: no limit.
    pub max_bandwidth_bytes_per_s: u64,
    /// Longest downtime that is accepted.
    pub downtime_limit_ms: u64,
    /// Longest time from the start to the stop of the guest; 0: no limit.
    pub max_total_time_ms: u64,
    /// Connections that memory takes.
    pub channels: u64,
    /// How pages are compressed; `none`, or the name of a method.
    pub compress: &'static str,
    /// Level of that method; 0: its default.
    pub compress_level: u64,
    /// Threads that compress; 0: one for each CPU, at most 8.
    pub compress_threads: u64,
    /// Destination: threads that decompress; 0: likewise.
    pub decompress_threads: u64,
    /// Destination: snapshot files whose pages needn't be sent, with commas between them; see [`Self::known_files`].
    pub known: Option<Arc<str>>,
    /// Memory for what the destination has, so that only changes are sent.
    pub xbzrle_cache_bytes: u64,
    /// What happens when that time is over.
    pub on_timeout: &'static str,
    /// Longest wait for the manager before the guest is stopped; 0: no limit.
    pub switchover_limit_ms: u64,
    /// Files: threads that write.
    pub file_threads: u64,
    /// Files: write past the host's page cache.
    pub direct_io: bool,
    /// How the pages that the guest writes are found; see [`Self::dirty_log_mode`].
    pub dirty_log: &'static str,
    /// When connections use TLS.
    pub tls: &'static str,
    /// Folder of certificates.
    pub tls_creds: Option<Arc<str>>,
    /// File of a shared secret.
    pub tls_psk: Option<Arc<str>>,
    /// Name that the destination's certificate must have.
    pub tls_hostname: Option<Arc<str>>,
    /// Names of the sources that a destination accepts.
    pub tls_allow: Option<Arc<str>>,
    /// When the guest goes on at the destination while part of its memory is still here; see [`Self::may_postcopy`].
    pub postcopy: &'static str,
    /// Post-copy: most bytes a second of pages that nobody waits for; 0: no limit.
    pub max_postcopy_bandwidth_bytes_per_s: u64,
    /// Post-copy: how long the source keeps its memory after the destination has all of it.
    pub postcopy_hold_ms: u64,
    /// Plain connections over a network are allowed.
    pub insecure: bool,
    /// What is switched on.
    pub capabilities: Capabilities,
}

impl Default for Parameters {
    fn default() -> Self {
        let mut all = Self {
            max_bandwidth_bytes_per_s: 0,
            downtime_limit_ms: 0,
            max_total_time_ms: 0,
            on_timeout: "",
            channels: 0,
            compress: "",
            compress_level: 0,
            compress_threads: 0,
            decompress_threads: 0,
            known: None,
            xbzrle_cache_bytes: 0,
            switchover_limit_ms: 0,
            file_threads: 0,
            direct_io: false,
            dirty_log: "",
            tls: "",
            tls_creds: None,
            tls_psk: None,
            tls_hostname: None,
            tls_allow: None,
            postcopy: "",
            max_postcopy_bandwidth_bytes_per_s: 0,
            postcopy_hold_ms: 0,
            insecure: false,
            capabilities: Capabilities::default(),
        };
        PARAMETERS.iter().for_each(|row| row.put(&mut all, row.default()));
        all
    }
}

impl Parameters {
    /// How the pages that the guest writes are found; none: as the machine can do it best.
    pub fn dirty_log_mode(&self) -> Option<DirtyLogMode> {
        DirtyLogMode::named(self.dirty_log)
    }

    /// May the guest be handed over before all of its memory is there?
    pub fn may_postcopy(&self) -> bool {
        self.postcopy != POSTCOPY_OFF
    }

    /// When post-copy begins; none: never.
    pub fn postcopy_mode(&self) -> Option<PostcopyMode> {
        PostcopyMode::named(self.postcopy)
    }

    /// Snapshot files that a destination knows.
    pub fn known_files(&self) -> Vec<PathBuf> {
        let files = self.known.as_deref().unwrap_or_default().split(',');
        files.filter(|file| !file.is_empty()).map(PathBuf::from).collect()
    }

    /// Sets one parameter.
    pub fn set(&mut self, name: &str, value: Setting) -> Result<(), ConfigError> {
        let row = Parameter::named(name)?;
        let value = row.checked(value)?;
        row.put(self, value);
        Ok(())
    }

    /// These parameters with the members of `changes` set: names of the table, and `capabilities`, a list
    /// of `{"capability": NAME, "state": BOOL}`. All or nothing.
    pub fn merged(&self, changes: &Map<String, Value>) -> Result<Self, ConfigError> {
        let mut merged = self.clone();
        for (name, value) in changes {
            if name == "capabilities" {
                let (value, postcopy) = capability::without_postcopy(value);
                merged.capabilities = merged.capabilities.merged(&value)?;
                postcopy.inspect(|on| merged.allow_postcopy(*on));
                continue;
            }
            let row = Parameter::named(name)?;
            row.put(&mut merged, row.read(value)?);
        }
        Ok(merged)
    }

    /// QMP's capability `postcopy-ram`: post-copy begins when it is asked to.
    fn allow_postcopy(&mut self, on: bool) {
        match (on, self.may_postcopy()) {
            (true, false) => self.postcopy = POSTCOPY_MANUAL,
            (false, true) => self.postcopy = POSTCOPY_OFF,
            _ => {}
        }
    }

    /// The answer to `query-migrate-capabilities`: the table, and QMP's name for what is a parameter here.
    pub fn capabilities_json(&self) -> Value {
        let mut all = self.capabilities.to_json();
        if let Some(list) = all.as_array_mut() {
            list.push(serde_json::json!({"capability": POSTCOPY_RAM, "state": self.may_postcopy()}));
        }
        all
    }

    /// As [`Self::merged`], for a destination: it has capabilities and what is each side's own; the other
    /// parameters are the source's.
    pub fn merged_at_destination(&self, changes: &Map<String, Value>) -> Result<Self, ConfigError> {
        for name in changes.keys().filter(|name| *name != "capabilities") {
            let row = Parameter::named(name)?;
            if !row.scope.is_destinations() {
                return Err(ConfigError::SourceOnly { name: row.name });
            }
        }
        self.merged(changes)
    }

    /// Refuses what isn't legal for a guest that goes there; see [`legal`].
    pub fn check_for(&self, uri: &Uri) -> Result<(), ConfigError> {
        legal::refusal(&legal::Scene { parameters: self, uri: Some(uri), here: &[], peer: None }, uri)
    }

    /// The answer to `query-migrate-parameters`.
    pub fn to_json(&self) -> Map<String, Value> {
        PARAMETERS.iter().map(|row| (row.name.to_owned(), row.json(&row.get(self)))).collect()
    }
}

#[cfg(test)]
pub(crate) mod tests;
