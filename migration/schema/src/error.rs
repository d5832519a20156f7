//! What can be wrong with bytes that claim to be state.

use thiserror::Error;

use crate::section::{Follows, Section};

/// Why a record could not be read. `record` and `field` are this build's names.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum DecodeError {
    /// The bytes end inside a field.
    #[error("the bytes end inside a field: {needed} more needed, {left} left")]
    Truncated {
        /// Bytes that the field still needs.
        needed: u64,
        /// Bytes that are left.
        left: u64,
    },
    /// An integer is longer than ten bytes or overflows 64 bits.
    #[error("an integer does not fit into 64 bits")]
    IntegerOverflow,
    /// The tag names a wire type that doesn't exist.
    #[error("field {number} has wire type {wire_type}; 0 to 2 exist")]
    WireType {
        /// Field number.
        number: u32,
        /// Wire type found.
        wire_type: u8,
    },
    /// A known field has another wire type than here.
    #[error("{record}.{field}: wire type {found:?}, expected {expected:?}")]
    Mismatch {
        /// Record's name.
        record: &'static str,
        /// Field's name.
        field: &'static str,
        /// Type in the bytes.
        found: crate::WireType,
        /// Type of this build.
        expected: crate::WireType,
    },
    /// A value is outside what its type can hold.
    #[error("{record}.{field}: {found} is out of range, at most {max} is possible")]
    Range {
        /// Record's name.
        record: &'static str,
        /// Field's name.
        field: &'static str,
        /// Value in the bytes.
        found: u64,
        /// Greatest legal value.
        max: u64,
    },
    /// A byte string has the wrong length.
    #[error("{record}.{field}: {found} bytes, expected {expected}")]
    Length {
        /// Record's name.
        record: &'static str,
        /// Field's name.
        field: &'static str,
        /// Length in the bytes.
        found: u64,
        /// What is legal, in words.
        expected: &'static str,
    },
    /// A text is not UTF-8.
    #[error("{record}.{field}: not valid UTF-8")]
    Text {
        /// Record's name.
        record: &'static str,
        /// Field's name.
        field: &'static str,
    },
    /// A field that may occur once occurs again.
    #[error("{record}.{field} occurs twice")]
    Duplicate {
        /// Record's name.
        record: &'static str,
        /// Field's name.
        field: &'static str,
    },
    /// A field without a default is absent.
    #[error("{record}.{field} is missing")]
    Missing {
        /// Record's name.
        record: &'static str,
        /// Field's name.
        field: &'static str,
    },
    /// A field that this build doesn't know, and that its writer says must be understood.
    #[error(
        "{record} has field {number}, which this build does not know and which may not be skipped; \
         a newer tern wrote it"
    )]
    UnknownMandatory {
        /// Record's name.
        record: &'static str,
        /// Field number.
        number: u32,
    },
    /// The record is in a version that can't be read here.
    #[error("{record} is read in {}, not version {found}", range(*oldest, *newest))]
    Version {
        /// Newest record's name.
        record: &'static str,
        /// Version in the bytes.
        found: u16,
        /// Oldest version that this build reads.
        oldest: u16,
        /// Newest version that this build reads.
        newest: u16,
    },
    /// A nested record could not be read.
    #[error("in {record}.{field}: {source}")]
    Nested {
        /// Outer record's name.
        record: &'static str,
        /// Field's name.
        field: &'static str,
        /// What is wrong inside.
        #[source]
        source: Box<DecodeError>,
    },
}

impl DecodeError {
    pub(crate) fn version<S: Section>(found: u16) -> Self {
        Self::Version { record: S::RECORD, found, oldest: S::OLDEST, newest: S::VERSION }
    }
}

/// Why a state can't be written in an older version of its section.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum EncodeError {
    /// The version is not one of those that this build writes.
    #[error("{record} is written in {}, not {wanted}", range(*oldest, *newest))]
    Version {
        /// Record's name.
        record: &'static str,
        /// Version asked for.
        wanted: u16,
        /// Oldest version that this build writes.
        oldest: u16,
        /// Newest version that this build writes.
        newest: u16,
    },
    /// The guest uses something that the older version has no place for.
    #[error(
        "version {version} has no place for {what}, which the guest uses; use a reader of version {needed}"
    )]
    Inexpressible {
        /// The older version.
        version: u16,
        /// What is lost, in words.
        what: &'static str,
        /// The version that has a place for it.
        needed: u16,
    },
}

impl EncodeError {
    pub(crate) fn version<S: Section>(wanted: u16) -> Self {
        Self::Version { record: S::RECORD, wanted, oldest: S::OLDEST, newest: S::VERSION }
    }

    /// `S` is the newer version, and `what` in it is in use.
    pub fn inexpressible<S: Follows>(what: &'static str) -> Self {
        Self::Inexpressible { version: S::Before::VERSION, what, needed: S::VERSION }
    }
}

/// A range of versions, in words.
fn range(oldest: u16, newest: u16) -> String {
    if oldest == newest { format!("version {newest}") } else { format!("versions {oldest} to {newest}") }
}

/// Why a set of sections could not be read or used.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum StateError {
    /// The bytes end inside a section.
    #[error("the state ends inside section number {index}: {needed} more bytes needed, {left} left")]
    Truncated {
        /// Position in the set, from 0.
        index: usize,
        /// Bytes needed.
        needed: u64,
        /// Bytes left.
        left: u64,
    },
    /// More sections than any machine has.
    #[error("more than {max} sections")]
    TooMany {
        /// The limit.
        max: usize,
    },
    /// A section is longer than allowed.
    #[error("section {name}/{instance} claims {found} bytes, at most {max} are allowed")]
    TooLong {
        /// Section's name.
        name: String,
        /// Instance.
        instance: u32,
        /// Length claimed.
        found: u64,
        /// The limit.
        max: u64,
    },
    /// A name is empty, too long or not plain.
    #[error("section number {index} has no proper name (lower-case letters, digits, '-', 1 to 32 bytes)")]
    BadName {
        /// Position in the set, from 0.
        index: usize,
    },
    /// A checksum does not hold.
    #[error(
        "section {name}/{instance}: checksum {found:#010x}, computed {computed:#010x}; the bytes were damaged"
    )]
    Checksum {
        /// Section's name.
        name: String,
        /// Instance.
        instance: u32,
        /// Checksum in the bytes.
        found: u32,
        /// Checksum of the bytes.
        computed: u32,
    },
    /// A section occurs twice.
    #[error("section {name}/{instance} occurs twice")]
    Duplicate {
        /// Section's name.
        name: String,
        /// Instance.
        instance: u32,
    },
    /// A section that this machine needs is absent.
    #[error("section {name}/{instance} is missing")]
    Missing {
        /// Section's name.
        name: &'static str,
        /// Instance.
        instance: u32,
    },
    /// A section's version can't be read here.
    #[error(
        "section {name}/{instance} has version {found}, this tern reads {}; take a tern that reads both",
        range(*oldest, *newest)
    )]
    Version {
        /// Section's name.
        name: &'static str,
        /// Instance.
        instance: u32,
        /// Version in the bytes.
        found: u16,
        /// Oldest version that this build reads.
        oldest: u16,
        /// Newest version that this build reads.
        newest: u16,
    },
    /// A section has flags that this build doesn't know.
    #[error("section {name}/{instance} has flags {found:#06x}, of which this tern knows 0x0001 only")]
    Flags {
        /// Section's name.
        name: String,
        /// Instance.
        instance: u32,
        /// Flags in the bytes.
        found: u16,
    },
    /// A section can't be written in the version that its reader has chosen.
    #[error("section {name}/{instance} can't be written as its reader needs it: {source}")]
    Unwritable {
        /// Section's name.
        name: &'static str,
        /// Instance.
        instance: u32,
        /// Why.
        #[source]
        source: EncodeError,
    },
    /// A section was left over that its writer says must be understood.
    #[error("section {name}/{instance} belongs to no part of this machine and may not be skipped")]
    LeftOver {
        /// Section's name.
        name: String,
        /// Instance.
        instance: u32,
    },
    /// A section's record could not be read.
    #[error("section {name}/{instance}: {source}")]
    Record {
        /// Section's name.
        name: &'static str,
        /// Instance.
        instance: u32,
        /// What is wrong.
        #[source]
        source: DecodeError,
    },
}
