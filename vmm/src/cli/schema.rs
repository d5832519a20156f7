//! `tern schema`: what this build saves, and whether two builds understand each other.

use std::io::{self, Read};
use std::path::Path;

use clap::Subcommand;

use super::{Exit, Failure, print, print_json};
use crate::schema::diff::diff;
use crate::schema::{Dump, show, show_diff};

pub(super) const EXAMPLES: &str = "\
Examples:
  tern schema dump
  tern schema dump --json > schema.json
  tern schema diff schema.json this";

#[derive(Debug, Subcommand)]
pub enum SchemaCommand {
    /// Show all that this build saves: sections, versions, fields, and machine profiles
    #[command(
        after_help = "Examples:\n  tern schema dump\n  tern schema dump --json | jq '.sections[].name'"
    )]
    Dump {
        /// As JSON, for `tern schema diff`
        #[arg(long)]
        json: bool,
    },
    /// Compare two schemas: do guests and files move between the two builds, and if not, why not?
    ///
    /// Exits with 0 if they do in both directions, whatever uses something new apart, and with 7 if they don't.
    #[command(
        after_help = "Examples:\n  tern schema diff old.json this\n  ssh other tern schema dump --json | tern schema diff - this"
    )]
    Diff {
        /// A dump made by `tern schema dump --json`; `-` is stdin, `this` is this build
        old: String,
        /// The same
        new: String,
        /// As JSON
        #[arg(long)]
        json: bool,
    },
}

pub(super) fn run(command: &SchemaCommand) -> Result<Exit, Failure> {
    match command {
        SchemaCommand::Dump { json: true } => print_json(&Dump::of_this_build()),
        SchemaCommand::Dump { json: false } => print(&show(&Dump::of_this_build())),
        SchemaCommand::Diff { old, new, .. } if old == "-" && new == "-" => {
            Err(Failure::text(Exit::Usage, "only one of the two can be stdin; write the other one to a file"))
        }
        SchemaCommand::Diff { old, new, json } => {
            let found = diff(&load(old)?, &load(new)?);
            if *json { print_json(&found) } else { print(&show_diff(&found)) }?;
            Ok(if found.is_compatible() { Exit::Success } else { Exit::SchemasDiffer })
        }
    }
}

fn load(name: &str) -> Result<Dump, Failure> {
    let dump = match name {
        "this" => return Ok(Dump::of_this_build()),
        "-" => {
            let mut text = String::new();
            let read = io::stdin().take(crate::schema::DUMP_MAX_BYTES).read_to_string(&mut text);
            read.map_err(|error| Failure::text(Exit::Failure, format!("stdin can't be read: {error}")))?;
            Dump::parse(Path::new("stdin"), &text)
        }
        path => Dump::read(Path::new(path)),
    };
    dump.map_err(|error| Failure::new(&error))
}
