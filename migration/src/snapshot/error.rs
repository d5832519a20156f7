//! What can be wrong with a snapshot file. Each text names what was found, what was expected, and what to do.

use std::io;
use std::path::PathBuf;

use tern_schema::{DecodeError, StateError};
use thiserror::Error;

/// Why a snapshot can't be read.
#[derive(Debug, Error)]
pub enum SnapshotError {
    /// One of the errors below, in this file.
    #[error("snapshot {path}")]
    In {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        #[source]
        source: Box<SnapshotError>,
    },
    /// The file can't be opened.
    #[error("it can not be opened for reading")]
    Open {
        /// The system's words.
        #[source]
        source: io::Error,
    },
    /// A folder, a pipe, a device.
    #[error("it is {kind}, not a regular file; give the file that `tern save` wrote")]
    NotRegular {
        /// Such as `a folder`.
        kind: &'static str,
    },
    /// Reading failed.
    #[error("reading {bytes} bytes of the {part} at byte {offset} failed")]
    Read {
        /// Part of the file.
        part: &'static str,
        /// Where.
        offset: u64,
        /// How many were wanted.
        bytes: usize,
        /// The system's words.
        #[source]
        source: io::Error,
    },
    /// The file ends early.
    #[error(
        "it is truncated: its {part} should go on to byte {expected}, and the file ends at byte {found}; copy it again \
         from where it was saved"
    )]
    Truncated {
        /// Part of the file.
        part: &'static str,
        /// Behind the last byte needed.
        expected: u64,
        /// The file's length.
        found: u64,
    },
    /// The file is longer than its writer made it.
    #[error("it has {found} bytes, and its head says {expected}: something was appended; copy it again")]
    TooLong {
        /// Length in the head.
        expected: u64,
        /// The file's length.
        found: u64,
    },
    /// Other bytes.
    #[error("it is no snapshot: it begins with {first_bytes}, expected \"TERNSNAP\"")]
    Magic {
        /// The first eight bytes, readable.
        first_bytes: String,
    },
    /// Another version of the format.
    #[error(
        "it has format version {found}, and this build reads version {known}; restore it with the tern that saved it, \
         or with a newer one"
    )]
    Version {
        /// In the file.
        found: u32,
        /// This build's.
        known: u32,
    },
    /// The process that wrote it did not come to the end.
    #[error("it is unfinished: the save that wrote it did not come to its end; save again")]
    Unfinished,
    /// A checksum does not hold.
    #[error(
        "{part}: checksum {found:#010x}, computed {computed:#010x}; the file was damaged: copy it again from where it \
         was saved"
    )]
    Checksum {
        /// Part of the file.
        part: &'static str,
        /// In the file.
        found: u32,
        /// Of the bytes.
        computed: u32,
    },
    /// A record can't be read.
    #[error("its {part} can not be read")]
    Record {
        /// Part of the file.
        part: &'static str,
        /// Why.
        #[source]
        source: DecodeError,
    },
    /// The machine's state can't be read.
    #[error("the machine's state in it can not be read")]
    State(#[from] StateError),
    /// A number above what the format allows.
    #[error(
        "{part}: {field} is {found}, at most {max} is legal; the file was damaged or made by something else"
    )]
    Limit {
        /// Part of the file.
        part: &'static str,
        /// What is out of range.
        field: &'static str,
        /// Value found.
        found: u64,
        /// Greatest legal value.
        max: u64,
    },
    /// Two numbers that must be equal.
    #[error(
        "{part}: {field} is {found}, expected {expected}; the file was damaged or made by something else"
    )]
    Mismatch {
        /// Part of the file.
        part: &'static str,
        /// What differs.
        field: &'static str,
        /// Value found.
        found: u64,
        /// Value due.
        expected: u64,
    },
    /// Memory that the saved guest doesn't have.
    #[error("the saved guest has no page {page} in memory region {region}: that has {pages} pages")]
    NoSuchPage {
        /// Region.
        region: usize,
        /// Page in the region.
        page: u64,
        /// Pages of the region; 0 if there is no such region.
        pages: u64,
    },
    /// Compressed pages that are not what a compressor makes.
    #[error(
        "the compressed pages at guest-physical {gpa:#x} (region {region}) can not be decompressed: {reason}; the file was \
         damaged: copy it again from where it was saved"
    )]
    Undecodable {
        /// Region.
        region: usize,
        /// Guest-physical address of the first of them.
        gpa: u64,
        /// Why.
        reason: String,
    },
    /// A page isn't what was saved.
    #[error(
        "the page at guest-physical {gpa:#x} (region {region}, page {page}) has hash {computed:#018x}, saved was \
         {found:#018x}; the file was damaged: copy it again from where it was saved"
    )]
    PageHash {
        /// Region.
        region: usize,
        /// Page in the region.
        page: u64,
        /// Guest-physical address.
        gpa: u64,
        /// In the page table.
        found: u64,
        /// Of the bytes.
        computed: u64,
    },
    /// The sum over all pages, or the state's hash, isn't what was saved.
    #[error(
        "the hash of the {part} is {computed:#018x}, saved was {found:#018x}; the file was damaged: copy it again from \
         where it was saved"
    )]
    Proof {
        /// `guest's memory` or `machine's state`.
        part: &'static str,
        /// In the index.
        found: u64,
        /// Of the bytes.
        computed: u64,
    },
}

impl SnapshotError {
    /// A short code for programs; it doesn't change between releases.
    pub fn code(&self) -> &'static str {
        match self {
            Self::In { source, .. } => source.code(),
            Self::Open { .. } => "snapshot-open",
            Self::NotRegular { .. } => "not-regular",
            Self::Read { .. } => "snapshot-read",
            Self::Truncated { .. } => "truncated",
            Self::Magic { .. } => "not-a-snapshot",
            Self::Version { .. } => "snapshot-version",
            Self::Unfinished => "unfinished",
            Self::Checksum { .. } => "checksum",
            Self::Record { .. } | Self::State(_) => "undecodable",
            Self::TooLong { .. } | Self::Limit { .. } | Self::Mismatch { .. } | Self::NoSuchPage { .. } => {
                "out-of-bounds"
            }
            Self::Undecodable { .. } => "undecodable",
            Self::PageHash { .. } | Self::Proof { .. } => "hash",
        }
    }
}
