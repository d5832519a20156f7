//! The flags of a process that waits for a guest: the rows of the engine's table of parameters that a destination has.

use clap::{ArgMatches, Args, FromArgMatches};
use serde_json::{Map, Value};
use tern_migration::config::PARAMETERS;

use super::migrate::{flag, given};

/// What a destination was told.
#[derive(Debug, Default)]
pub(super) struct IncomingArgs {
    pub(super) parameters: Map<String, Value>,
}

impl Args for IncomingArgs {
    fn augment_args(command: clap::Command) -> clap::Command {
        let rows = PARAMETERS.iter().filter(|row| row.scope.is_destinations());
        let heading = "With --incoming, as `tern migrate` has them at the source";
        command.args(rows.map(|row| flag(row).requires("incoming").help_heading(heading)))
    }

    fn augment_args_for_update(command: clap::Command) -> clap::Command {
        Self::augment_args(command)
    }
}

impl FromArgMatches for IncomingArgs {
    fn from_arg_matches(matches: &ArgMatches) -> Result<Self, clap::Error> {
        Ok(Self { parameters: given(matches) })
    }

    fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), clap::Error> {
        *self = Self::from_arg_matches(matches)?;
        Ok(())
    }
}
