//! The parameters of a migration that runs.

use std::sync::{Arc, Mutex, PoisonError};

use serde_json::{Map, Value};

use super::{ConfigError, PARAMETERS, Parameters};

/// The parameters of a migration that runs: others may change them, the migration reads them.
/// A copy is a handle on the same.
#[derive(Debug, Clone, Default)]
pub struct LiveParameters {
    now: Arc<Mutex<Parameters>>,
}

impl LiveParameters {
    /// Starts with a copy.
    pub fn new(parameters: Parameters) -> Self {
        Self { now: Arc::new(Mutex::new(parameters)) }
    }

    /// As they are now.
    pub fn get(&self) -> Parameters {
        self.now.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Replaces all.
    pub fn set(&self, parameters: Parameters) {
        *self.now.lock().unwrap_or_else(PoisonError::into_inner) = parameters;
    }

    /// Sets the members of `changes`, as [`Parameters::merged`]; the migration obeys within 100 ms.
    pub fn merge(&self, changes: &Map<String, Value>) -> Result<Parameters, ConfigError> {
        let fixed = PARAMETERS.iter().find(|row| row.fixed && changes.contains_key(row.name));
        if let Some(row) = fixed {
            return Err(ConfigError::Fixed { name: row.name });
        }
        let mut now = self.now.lock().unwrap_or_else(PoisonError::into_inner);
        *now = now.merged(changes)?;
        Ok(now.clone())
    }
}
