//! `tern inspect`: what is in a snapshot or in a recorded stream of a migration.

use std::path::PathBuf;

use clap::Args;
use indicatif::{ProgressBar, ProgressStyle};

use super::{Exit, Failure, print, print_json};
use crate::inspect::{Wanted, inspect, show};

pub(super) const EXAMPLES: &str = "\
Examples:
  tern inspect guest.tern
  tern inspect guest.tern --section vcpu
  tern inspect guest.tern --verify --json | jq .problem";

#[derive(Debug, Args)]
pub struct InspectArgs {
    /// A file made by `tern save`, or one direction of a migration's connection, whole or cut short
    file: PathBuf,
    /// Of the machine's state, only sections of this name, such as vcpu or virtio-blk; and not the description
    #[arg(long, value_name = "NAME")]
    section: Option<String>,
    /// Compare every page of a snapshot with its hash, too; without it only the tables of pages are read
    #[arg(long)]
    verify: bool,
    /// As JSON: nodes of name, value, unit, about, problem and children
    #[arg(long)]
    json: bool,
}

pub(super) fn run(args: &InspectArgs) -> Result<Exit, Failure> {
    let InspectArgs { file, section, verify, json } = args;
    let wanted = Wanted { section: section.clone(), verify: *verify };
    let bar = bar();
    let mut progress = |done, all| {
        bar.set_length(all);
        bar.set_position(done);
    };
    let tree = inspect(file, &wanted, &mut progress).map_err(|error| Failure::new(&error))?;
    bar.finish_and_clear();
    if *json { print_json(&tree) } else { print(&show(&tree)) }?;
    Ok(if tree.is_sound() { Exit::Success } else { Exit::Failure })
}

/// Hidden unless stderr is a terminal.
fn bar() -> ProgressBar {
    let style = ProgressStyle::with_template("verifying {percent:>3} % {wide_bar} {eta}");
    ProgressBar::new(0).with_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()))
}
