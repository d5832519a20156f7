//! Why a profile can't be had, or isn't one.

use std::io;
use std::path::PathBuf;

use thiserror::Error;

/// Why a profile can't be had.
#[derive(Debug, Error)]
pub enum ProfileError {
    /// No such profile.
    #[error(
        "--cpu {name}: there is no such profile; these exist: host, {known}; a file's name has a `/` or ends in .json"
    )]
    Unknown {
        /// The name given.
        name: String,
        /// All names.
        known: String,
    },
    /// A file that can't be read.
    #[error("CPU profile {} can't be read", path.display())]
    Unreadable {
        /// Its path.
        path: PathBuf,
        /// The host's reason.
        #[source]
        source: io::Error,
    },
    /// A file that isn't a profile.
    #[error("CPU profile {}", path.display())]
    File {
        /// Its path.
        path: PathBuf,
        /// What is wrong in it.
        #[source]
        fault: Fault,
    },
    /// The host lacks some of it.
    #[error(
        "CPU profile {name}: the host lacks, or its KVM does not offer: {missing}; choose a lower profile, or make \
         one that all hosts have (tern cpu baseline)"
    )]
    Missing {
        /// Profile's name.
        name: String,
        /// Names of the features.
        missing: String,
    },
    /// Another maker's processor.
    #[error("CPU profile {name} is for {wanted}, the host is {here}; leave \"vendor\" out to allow any")]
    Vendor {
        /// Profile's name.
        name: String,
        /// The profile's.
        wanted: String,
        /// The host's.
        here: String,
    },
    /// Addresses wider than the host's.
    #[error(
        "CPU profile {name} has {kind} addresses of {wanted} bits, the host of {here}; lower \"address-bits\" or \
         leave it out"
    )]
    AddressBits {
        /// Profile's name.
        name: String,
        /// Physical or linear.
        kind: &'static str,
        /// The profile's.
        wanted: u8,
        /// The host's.
        here: u8,
    },
}

/// What is wrong in a profile's file.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum Fault {
    /// Longer than any profile.
    #[error("it has more than {limit_bytes} bytes, which no profile has")]
    TooLong {
        /// The limit.
        limit_bytes: usize,
    },
    /// Not JSON, or not of the right shape; says where.
    #[error("{text}")]
    Shape {
        /// What, and where: line and column.
        text: String,
    },
    /// A profile of another tern.
    #[error("it is of version {found} of the format, and this tern reads version {known}: use a newer tern")]
    Version {
        /// The file's.
        found: u64,
        /// Ours.
        known: u64,
    },
    /// A name or text that would break tables.
    #[error(
        "\"{field}\" has {found} bytes or has control characters: legal are {least} to {limit} bytes without them"
    )]
    Text {
        /// Which field.
        field: &'static str,
        /// Its length.
        found: usize,
        /// Shortest.
        least: usize,
        /// Longest.
        limit: usize,
    },
    /// An impossible width.
    #[error("\"address-bits\": {kind} is {found}, legal is {least} to {limit}")]
    AddressBits {
        /// Physical or linear.
        kind: &'static str,
        /// The file's.
        found: u8,
        /// Smallest.
        least: u8,
        /// Largest.
        limit: u8,
    },
    /// A feature in two lists.
    #[error("{names}: in \"features\" and in \"optional\"; leave them out of one")]
    Twice {
        /// Names.
        names: String,
    },
    /// No 64-bit guest can run with it.
    #[error("\"features\" lacks {names}, which every guest of tern needs")]
    Essential {
        /// Names.
        names: String,
    },
    /// A feature without what it needs.
    #[error("{feature} needs {needs}: add it to \"{list}\", or leave {feature} out")]
    Needs {
        /// The feature.
        feature: &'static str,
        /// What it needs.
        needs: &'static str,
        /// The list in which the feature is.
        list: &'static str,
    },
}
