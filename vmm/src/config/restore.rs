//! How a guest is taken from a file.

use std::fmt;
use std::path::PathBuf;

use clap::ValueEnum;
use serde::Serialize;

use super::MacAddress;

/// A file, and how its guest's memory comes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct RestoreConfig {
    /// What `tern save` wrote.
    pub path: PathBuf,
    /// How memory comes; none: as this host can.
    pub mode: Option<RestoreMode>,
    /// Compare mapped memory with what was saved before the guest starts.
    pub verify: bool,
    /// Interfaces, by number, that get another address than the guest had.
    #[serde(skip)]
    pub macs: Vec<(usize, MacAddress)>,
    /// Print a line of JSON when the guest is there.
    #[serde(skip)]
    pub json: bool,
}

impl RestoreConfig {
    /// As a plain restore has it.
    pub fn new(path: PathBuf) -> Self {
        Self { path, mode: None, verify: true, macs: Vec::new(), json: false }
    }
}

/// How memory gets out of a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum RestoreMode {
    /// All is read and verified before the guest starts
    Eager,
    /// Memory is the file, mapped and copied on write; verified before the guest starts
    Mapped,
    /// Each page is read and verified when the guest touches it, the rest in the background (userfaultfd)
    OnDemand,
}

impl fmt::Display for RestoreMode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Eager => "eager",
            Self::Mapped => "mapped",
            Self::OnDemand => "on-demand",
        })
    }
}
