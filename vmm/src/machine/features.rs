//! What a migration of this machine may use: the engine's table, and what this machine can't do.

use serde_json::{Value, json};
use tern_migration::Parameters;
use tern_migration::channel::Uri;
use tern_migration::config::legal::{Lack, Scene, combinations, refusal, to_file, to_peer};
use tern_migration::config::{Kind, Parameter};

use crate::control::CommandError;

use super::Machine;
use super::checking::Check;
use super::migration::parse_uri;

/// The choice that depends on how a machine was made.
const DIRTY_LOG: &str = "dirty-log";

impl Machine {
    /// `query-migrate-features`: with an address, what its destination has answered when it was asked last.
    pub(super) fn features(&self, uri: Option<&str>, parameters: &Parameters) -> Result<Value, CommandError> {
        let uri = uri.map(parse_uri).transpose()?;
        let peer = uri.as_ref().zip(self.check.as_ref()).and_then(|(uri, check)| Check::peer(check, uri));
        let here = self.lacks();
        let scene = Scene { parameters, uri: uri.as_ref(), here: &here, peer: peer.as_ref() };
        Ok(json!({
            "uri": uri.as_ref().map(ToString::to_string),
            "peer": peer,
            "to_peer": to_peer(&scene),
            "to_file": to_file(&scene),
            "combinations": combinations(),
        }))
    }

    /// Refuses what that list says isn't legal.
    pub(super) fn check_legal(&self, parameters: &Parameters, uri: &Uri) -> Result<(), CommandError> {
        let scene = Scene { parameters, uri: Some(uri), here: &self.lacks(), peer: None };
        refusal(&scene, uri).map_err(|error| CommandError::invalid(error.to_string()))
    }

    /// What this machine can't do; not known while a migration has it.
    fn lacks(&self) -> Vec<Lack> {
        let (Some(vm), Ok(row)) = (&self.vm, Parameter::named(DIRTY_LOG)) else { return Vec::new() };
        let names = if let Kind::Choice { names } = row.kind { names } else { &[] };
        let lack = |value: &&'static str| {
            let wanted = Parameters { dirty_log: value, ..Parameters::default() };
            let error = vm.can_log(wanted.dirty_log_mode()).err()?;
            Some(Lack { parameter: DIRTY_LOG, value, reason: error.to_string() })
        };
        names.iter().filter_map(lack).collect()
    }
}
