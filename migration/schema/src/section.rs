//! Sections: the whole saved state of one part of a machine, in numbered versions.
//!
//! A section has one saved struct per shipped version, and that struct is never edited. The newest one is
//! what the running program saves and takes; each knows how to become the one before it and how to follow
//! from it ([`Follows`]), so that any version between [`Section::OLDEST`] and [`Section::VERSION`] can be
//! read and written. `COMPATIBILITY.md` beside this crate is the law.

use std::fmt::Debug;

use crate::error::EncodeError;
use crate::record::FieldInfo;
use crate::wire::{Skipped, Writer};
use crate::{DecodeError, Record};

/// A record that is the whole state of one part of the machine, in one version. Made by
/// [`record!`](crate::record).
pub trait Section: Record + Debug {
    /// Name of the part, such as `serial`.
    const NAME: &'static str;
    /// Version of this layout. A shipped version is never edited.
    const VERSION: u16;
    /// Oldest version that this build reads and writes.
    const OLDEST: u16 = Self::VERSION;
    /// May a machine without this part pass over it? Only where the guest can't tell the difference.
    const OPTIONAL: bool = false;

    /// Writes the record as `version` has it.
    fn write_as(&self, version: u16, out: &mut Writer<'_>) -> Result<(), EncodeError> {
        if version != Self::VERSION {
            return Err(EncodeError::version::<Self>(version));
        }
        self.write(out);
        Ok(())
    }

    /// Reads a record that is in `version`.
    fn read_as(version: u16, bytes: &[u8], skipped: &mut Skipped) -> Result<Self, DecodeError> {
        if version != Self::VERSION {
            return Err(DecodeError::version::<Self>(version));
        }
        Self::read(bytes, skipped)
    }

    /// Adds the description of every version that this build knows to `out`, the oldest first.
    fn versions(out: &mut Vec<SectionVersion>) {
        out.push(SectionVersion::of::<Self>());
    }
}

/// How a version of a section follows from the one before it: `= "serial" 2 after SerialV1` in
/// [`record!`](crate::record) asks for it.
pub trait Follows: Section {
    /// The version before.
    type Before: Section;
    /// The same state in this version's terms.
    fn upgrade(before: Self::Before) -> Self;
    /// The same state in the older version's terms, for a peer that reads no newer one. The error names
    /// what that version has no place for; a value that it doesn't need is dropped silently.
    fn downgrade(&self) -> Result<Self::Before, EncodeError>;
}

/// One shipped version of a section, for descriptions and golden bytes.
#[derive(Debug, Clone, Copy)]
pub struct SectionVersion {
    /// Section's name.
    pub name: &'static str,
    /// Its number.
    pub version: u16,
    /// May a machine without this part pass over it?
    pub optional: bool,
    /// The saved struct's name.
    pub record: &'static str,
    /// Its fields in order of declaration.
    pub fields: &'static [FieldInfo],
    /// Reads a record of exactly this version and writes it again.
    pub rewrite: Rewrite,
}

impl SectionVersion {
    /// The version that `S` itself is.
    pub fn of<S: Section>() -> Self {
        let (name, version, optional) = (S::NAME, S::VERSION, S::OPTIONAL);
        Self { name, version, optional, record: S::RECORD, fields: S::fields(), rewrite: rewrite::<S> }
    }

    /// All versions of the section whose newest one is `S`, the oldest first.
    pub fn all<S: Section>() -> Vec<Self> {
        let mut all = Vec::new();
        S::versions(&mut all);
        all
    }
}

/// Reads a record and writes it again: its bytes, and its values as text.
pub type Rewrite = fn(&[u8]) -> Result<(Vec<u8>, String), DecodeError>;

/// The [`Rewrite`] of one record type.
pub fn rewrite<R: Record + Debug>(bytes: &[u8]) -> Result<(Vec<u8>, String), DecodeError> {
    let record: R = crate::decode_record(bytes)?;
    Ok((crate::encode_record(&record), format!("{record:#?}")))
}

/// What a part of a machine can be saved as and read from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SectionRange {
    /// Section's name.
    pub name: &'static str,
    /// Which of several equal parts, from 0.
    pub instance: u32,
    /// Oldest version that this build reads and writes.
    pub oldest: u16,
    /// Newest version that this build reads and writes.
    pub newest: u16,
    /// May a machine without this part pass over it?
    pub optional: bool,
}

impl SectionRange {
    /// That of the section whose newest version is `S`.
    pub fn of<S: Section>(instance: u32) -> Self {
        let (name, oldest, newest, optional) = (S::NAME, S::OLDEST, S::VERSION, S::OPTIONAL);
        Self { name, instance, oldest, newest, optional }
    }
}

crate::record! {
    /// The version of one section that the reader has chosen.
    pub struct ChosenVersion {
        /// Section's name.
        [1] name: String,
        /// Which of several equal parts, from 0.
        [2] instance: u32,
        /// Version in which the writer shall write it.
        [3] version: u16,
    }
}
