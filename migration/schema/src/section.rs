//! Sections: the envelope around a record, and the set of all sections of a machine.
//!
//! ```text
//! name length u8 | name | instance u32 | version u16 | flags u16 | body length u32 | crc32 u32 | body
//! ```
//!
//! Integers are little endian. The checksum (CRC-32, IEEE) covers everything before it and the body. A
//! section belongs to exactly one part of the machine: missing, doubled and left-over ones are errors.

use crate::wire::{Skipped, Writer};
use crate::{Record, StateError};

/// Most sections in a set.
pub const SECTIONS_MAX: usize = 1024;
/// Longest body: the largest vCPU (XSAVE with AMX is 11 KiB) and device states are far below.
pub const SECTION_BODY_MAX_BYTES: usize = 1 << 20;
const NAME_MAX_BYTES: usize = 32;
const FLAG_OPTIONAL: u16 = 1;

/// A record that is the whole state of one part of the machine, in one version.
pub trait Section: Record {
    /// Name of the part, such as `serial`.
    const NAME: &'static str;
    /// Version of this layout. A shipped version is never edited.
    const VERSION: u16;
}

/// A section whose record hasn't been read yet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RawSection {
    /// Name of the part.
    pub name: String,
    /// Which of several equal parts, from 0.
    pub instance: u32,
    /// Version of the record's layout.
    pub version: u16,
    /// May a machine without this part pass over it?
    pub optional: bool,
    /// The record's bytes.
    pub body: Vec<u8>,
}

/// All sections of a machine, in the order in which they were saved.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct StateSet {
    sections: Vec<RawSection>,
    skipped: Skipped,
}

impl StateSet {
    /// The sections not yet taken.
    pub fn sections(&self) -> &[RawSection] {
        &self.sections
    }

    /// Adds the state of one part. Two with the same name and instance are a fault of the caller's, which
    /// [`Self::decode`] reports on the other side.
    pub fn put<S: Section>(&mut self, instance: u32, state: &S) {
        let mut body = Vec::new();
        state.write(&mut Writer::new(&mut body));
        let name = S::NAME.to_owned();
        self.sections.push(RawSection { name, instance, version: S::VERSION, optional: false, body });
    }

    /// Takes the state of one part out of the set.
    pub fn take<S: Section>(&mut self, instance: u32) -> Result<S, StateError> {
        let found = self.sections.iter().position(|s| s.name == S::NAME && s.instance == instance);
        let Some(index) = found else {
            return Err(StateError::Missing { name: S::NAME, instance });
        };
        let raw = self.sections.remove(index);
        if raw.version != S::VERSION {
            let (found, known) = (raw.version, S::VERSION);
            return Err(StateError::Version { name: S::NAME, instance, found, known });
        }
        S::read(&raw.body, &mut self.skipped).map_err(|source| StateError::Record {
            name: S::NAME,
            instance,
            source,
        })
    }

    /// Is this part in the set?
    pub fn has<S: Section>(&self, instance: u32) -> bool {
        self.sections.iter().any(|s| s.name == S::NAME && s.instance == instance)
    }

    /// Ends the taking: what is left must be optional. Returns how much was passed over.
    pub fn finish(mut self) -> Result<Skipped, StateError> {
        for section in self.sections {
            if !section.optional {
                return Err(StateError::LeftOver { name: section.name, instance: section.instance });
            }
            self.skipped.sections += 1;
        }
        Ok(self.skipped)
    }

    /// Appends the bytes of all sections to `out`.
    pub fn encode(&self, out: &mut Vec<u8>) {
        for section in &self.sections {
            section.encode(out);
        }
    }

    /// Reads a set that is exactly `bytes`.
    pub fn decode(mut bytes: &[u8]) -> Result<Self, StateError> {
        let mut sections: Vec<RawSection> = Vec::new();
        while !bytes.is_empty() {
            if sections.len() == SECTIONS_MAX {
                return Err(StateError::TooMany { max: SECTIONS_MAX });
            }
            let (section, rest) = RawSection::decode(bytes, sections.len())?;
            bytes = rest;
            if sections.iter().any(|s| s.name == section.name && s.instance == section.instance) {
                return Err(StateError::Duplicate { name: section.name, instance: section.instance });
            }
            sections.push(section);
        }
        Ok(Self { sections, skipped: Skipped::default() })
    }
}

impl RawSection {
    fn encode(&self, out: &mut Vec<u8>) {
        let start = out.len();
        out.push(u8::try_from(self.name.len()).unwrap_or(u8::MAX));
        out.extend_from_slice(self.name.as_bytes());
        out.extend_from_slice(&self.instance.to_le_bytes());
        out.extend_from_slice(&self.version.to_le_bytes());
        let flags = if self.optional { FLAG_OPTIONAL } else { 0 };
        out.extend_from_slice(&flags.to_le_bytes());
        let length = u32::try_from(self.body.len()).unwrap_or(u32::MAX);
        out.extend_from_slice(&length.to_le_bytes());
        let mut crc = crc32fast::Hasher::new();
        crc.update(out.get(start..).unwrap_or_default());
        crc.update(&self.body);
        out.extend_from_slice(&crc.finalize().to_le_bytes());
        out.extend_from_slice(&self.body);
    }

    fn decode(bytes: &[u8], index: usize) -> Result<(Self, &[u8]), StateError> {
        let mut cursor = Cursor { left: bytes, index };
        let [name_length] = cursor.array()?;
        let name = cursor.take(usize::from(name_length))?;
        let plain = |b: &u8| b.is_ascii_lowercase() || b.is_ascii_digit() || *b == b'-';
        let name = match str::from_utf8(name) {
            Ok(text) if (1..=NAME_MAX_BYTES).contains(&name.len()) && name.iter().all(plain) => {
                text.to_owned()
            }
            _ => return Err(StateError::BadName { index }),
        };
        let instance = u32::from_le_bytes(cursor.array()?);
        let version = u16::from_le_bytes(cursor.array()?);
        let optional = u16::from_le_bytes(cursor.array()?) & FLAG_OPTIONAL != 0;
        let length = u32::from_le_bytes(cursor.array()?) as usize;
        if length > SECTION_BODY_MAX_BYTES {
            let (found, max) = (length as u64, SECTION_BODY_MAX_BYTES as u64);
            return Err(StateError::TooLong { name, instance, found, max });
        }
        let mut crc = crc32fast::Hasher::new();
        crc.update(bytes.get(..bytes.len() - cursor.left.len()).unwrap_or_default());
        let found = u32::from_le_bytes(cursor.array()?);
        let body = cursor.take(length)?.to_vec();
        crc.update(&body);
        let computed = crc.finalize();
        if found != computed {
            return Err(StateError::Checksum { name, instance, found, computed });
        }
        Ok((Self { name, instance, version, optional, body }, cursor.left))
    }
}

struct Cursor<'a> {
    left: &'a [u8],
    index: usize,
}

impl<'a> Cursor<'a> {
    fn take(&mut self, count: usize) -> Result<&'a [u8], StateError> {
        let left = self.left.len() as u64;
        let (taken, rest) = self.left.split_at_checked(count).ok_or(StateError::Truncated {
            index: self.index,
            needed: count as u64,
            left,
        })?;
        self.left = rest;
        Ok(taken)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], StateError> {
        let bytes = self.take(N)?;
        let left = bytes.len() as u64;
        bytes.try_into().map_err(|_| StateError::Truncated { index: self.index, needed: N as u64, left })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    crate::record! {
        /// A part.
        pub struct PartV1 = "part" 1 {
            /// A word.
            [1] word: u64,
        }
    }
    crate::record! {
        /// The same part, later.
        pub struct PartV2 = "part" 2 {
            /// A word.
            [1] word: u64,
        }
    }

    fn set() -> StateSet {
        let mut set = StateSet::default();
        set.put(0, &PartV1 { word: 11 });
        set.put(1, &PartV1 { word: 22 });
        set
    }

    fn bytes(set: &StateSet) -> Vec<u8> {
        let mut out = Vec::new();
        set.encode(&mut out);
        out
    }

    #[test]
    fn what_is_put_is_taken_and_nothing_is_left() {
        let mut read = StateSet::decode(&bytes(&set())).unwrap();
        assert_eq!(read.take::<PartV1>(1), Ok(PartV1 { word: 22 }));
        assert_eq!(read.take::<PartV1>(0), Ok(PartV1 { word: 11 }));
        assert_eq!(read.take::<PartV1>(0), Err(StateError::Missing { name: "part", instance: 0 }));
        assert_eq!(read.finish(), Ok(Skipped::default()));
    }

    #[test]
    fn left_over_doubled_and_newer_sections_are_refused() {
        assert!(matches!(set().finish(), Err(StateError::LeftOver { .. })));
        let doubled = bytes(&set()).repeat(2);
        assert!(matches!(StateSet::decode(&doubled), Err(StateError::Duplicate { .. })));
        assert!(matches!(set().take::<PartV2>(0), Err(StateError::Version { found: 1, known: 2, .. })));
    }

    #[test]
    fn an_optional_section_may_be_left_over() {
        let mut set = set();
        set.sections.iter_mut().for_each(|s| s.optional = true);
        let read = StateSet::decode(&bytes(&set)).unwrap();
        assert_eq!(read.finish(), Ok(Skipped { fields: 0, sections: 2 }));
    }

    proptest! {
        #[test]
        fn any_flipped_bit_is_found(bit in 0usize..1000) {
            let mut damaged = bytes(&set());
            let bit = bit % (damaged.len() * 8);
            damaged[bit / 8] ^= 1 << (bit % 8);
            prop_assert!(StateSet::decode(&damaged).is_err());
        }

        #[test]
        fn any_cut_is_found_or_on_a_boundary(cut in 0usize..100) {
            let whole = bytes(&set());
            let cut = &whole[..cut % whole.len()];
            let read = StateSet::decode(cut);
            prop_assert!(read.is_err() || cut.is_empty() || cut.len() == whole.len() / 2);
        }

        #[test]
        fn any_bytes_are_a_set_or_an_error(noise: Vec<u8>) {
            let _ = StateSet::decode(&noise);
        }
    }
}
