//! The set of all sections of a machine.
//!
//! A section belongs to exactly one part of the machine: missing, doubled and left-over ones are errors.

use crate::StateError;
use crate::envelope::RawSection;
use crate::section::{ChosenVersion, Section};
use crate::wire::{Skipped, Writer};

/// Most sections in a set.
pub const SECTIONS_MAX: usize = 1024;

/// All sections of a machine, in the order in which they were saved.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct StateSet {
    sections: Vec<RawSection>,
    skipped: Skipped,
    chosen: Option<Vec<ChosenVersion>>,
}

impl StateSet {
    /// An empty set for a reader that has chosen a version for each section it knows: a section is written
    /// as chosen, in its newest version if it isn't in the list, and not at all if it isn't and is optional.
    /// The set of [`Self::default`] is written in the newest versions, with all optional sections.
    pub fn choosing(chosen: Vec<ChosenVersion>) -> Self {
        Self { chosen: Some(chosen), ..Self::default() }
    }

    /// The sections not yet taken.
    pub fn sections(&self) -> &[RawSection] {
        &self.sections
    }

    /// The version in which a section is to be written; `None`: not at all.
    fn version_of<S: Section>(&self, instance: u32) -> Option<u16> {
        let Some(chosen) = &self.chosen else { return Some(S::VERSION) };
        let found = chosen.iter().find(|c| c.name == S::NAME && c.instance == instance);
        found.map(|c| c.version).or_else(|| (!S::OPTIONAL).then_some(S::VERSION))
    }

    /// Adds the state of one part, in the version that the reader has chosen. Two with the same name and
    /// instance are a fault of the caller's, which [`Self::decode`] reports on the other side.
    pub fn put<S: Section>(&mut self, instance: u32, state: &S) -> Result<(), StateError> {
        let Some(version) = self.version_of::<S>(instance) else { return Ok(()) };
        let mut body = Vec::new();
        state.write_as(version, &mut Writer::new(&mut body)).map_err(|source| StateError::Unwritable {
            name: S::NAME,
            instance,
            source,
        })?;
        let (name, optional) = (S::NAME.to_owned(), S::OPTIONAL);
        self.sections.push(RawSection { name, instance, version, optional, body });
        Ok(())
    }

    /// Takes the state of one part out of the set.
    pub fn take<S: Section>(&mut self, instance: u32) -> Result<S, StateError> {
        self.take_if_there(instance)?.ok_or(StateError::Missing { name: S::NAME, instance })
    }

    /// Takes the state of an optional part out of the set: `None` if its writer hasn't that part.
    pub fn take_if_there<S: Section>(&mut self, instance: u32) -> Result<Option<S>, StateError> {
        let found = self.sections.iter().position(|s| s.name == S::NAME && s.instance == instance);
        let Some(index) = found else { return Ok(None) };
        let raw = self.sections.remove(index);
        if !(S::OLDEST..=S::VERSION).contains(&raw.version) {
            let (found, oldest, newest) = (raw.version, S::OLDEST, S::VERSION);
            return Err(StateError::Version { name: S::NAME, instance, found, oldest, newest });
        }
        let read = S::read_as(raw.version, &raw.body, &mut self.skipped);
        read.map(Some).map_err(|source| StateError::Record { name: S::NAME, instance, source })
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
        Ok(Self { sections, ..Self::default() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{EncodeError, Follows, SectionVersion};
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
        pub struct PartV2 = "part" 2 after PartV1 {
            /// A word, all its bits turned over.
            [1] inverted: u64,
            /// What no older part can do.
            [2] extra: u32,
        }
    }
    crate::record! {
        /// What a machine may do without.
        pub struct HintsV1 = "hints" optional 1 {
            /// A word.
            [1] word: u64,
        }
    }

    impl Follows for PartV2 {
        type Before = PartV1;

        fn upgrade(before: PartV1) -> Self {
            let PartV1 { word } = before;
            Self { inverted: !word, extra: 0 }
        }

        fn downgrade(&self) -> Result<PartV1, EncodeError> {
            let Self { inverted, extra } = self;
            if *extra != 0 {
                return Err(EncodeError::inexpressible::<Self>("the extra"));
            }
            Ok(PartV1 { word: !inverted })
        }
    }

    fn set() -> StateSet {
        let mut set = StateSet::default();
        set.put(0, &PartV1 { word: 11 }).unwrap();
        set.put(1, &PartV1 { word: 22 }).unwrap();
        set
    }

    fn bytes(set: &StateSet) -> Vec<u8> {
        let mut out = Vec::new();
        set.encode(&mut out);
        out
    }

    fn chosen(name: &str, instance: u32, version: u16) -> ChosenVersion {
        ChosenVersion { name: name.into(), instance, version }
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
        let mut newer = StateSet::default();
        newer.put(0, &PartV2 { inverted: 1, extra: 3 }).unwrap();
        let text = newer.take::<PartV1>(0).unwrap_err().to_string();
        assert_eq!(
            text,
            "section part/0 has version 2, this tern reads version 1; take a tern that reads both"
        );
        let mut future = set();
        future.sections.iter_mut().for_each(|s| s.version = 9);
        assert_eq!(
            future.take::<PartV2>(0),
            Err(StateError::Version { name: "part", instance: 0, found: 9, oldest: 1, newest: 2 })
        );
    }

    #[test]
    fn an_unknown_flag_is_refused() {
        let mut bytes = bytes(&set());
        // Behind the name's length, "part", the instance and the version.
        bytes[1 + 4 + 4 + 2] = 3;
        let mut crc = crc32fast::Hasher::new();
        let body = 1 + 4 + 4 + 2 + 2 + 4;
        crc.update(&bytes[..body]);
        crc.update(&bytes[body + 4..bytes.len() / 2]);
        bytes[body..body + 4].copy_from_slice(&crc.finalize().to_le_bytes());
        let error = StateSet::decode(&bytes).unwrap_err();
        assert_eq!(error, StateError::Flags { name: "part".into(), instance: 0, found: 3 });
    }

    #[test]
    fn an_optional_section_may_be_left_over_and_absent() {
        let mut set = StateSet::default();
        set.put(0, &HintsV1 { word: 1 }).unwrap();
        let mut read = StateSet::decode(&bytes(&set)).unwrap();
        assert_eq!(read.clone().finish(), Ok(Skipped { fields: 0, sections: 1 }));
        assert_eq!(read.take_if_there(0), Ok(Some(HintsV1 { word: 1 })));
        assert_eq!(read.take_if_there::<HintsV1>(0), Ok(None));
    }

    #[test]
    fn a_set_is_written_as_its_reader_chose() {
        let mut set = StateSet::choosing(vec![chosen("part", 1, 1)]);
        let new = PartV2 { inverted: 1, extra: 0 };
        for instance in 0..2 {
            set.put(instance, &new).unwrap();
        }
        set.put(0, &HintsV1 { word: 1 }).unwrap();
        let versions: Vec<_> = set.sections().iter().map(|s| (s.name.as_str(), s.version)).collect();
        assert_eq!(
            versions,
            [("part", 2), ("part", 1)],
            "not chosen: the newest, and nothing that is optional"
        );
        assert_eq!(set.clone().take(1), Ok(PartV1 { word: !1 }));
        assert_eq!(set.take(1), Ok(new));
        let mut set = StateSet::choosing(vec![chosen("hints", 0, 1)]);
        set.put(0, &HintsV1 { word: 1 }).unwrap();
        assert_eq!(set.sections().len(), 1);
    }

    #[test]
    fn what_an_older_version_has_no_place_for_is_an_error_that_names_it() {
        let mut set = StateSet::choosing(vec![chosen("part", 0, 1)]);
        let text = set.put(0, &PartV2 { inverted: 1, extra: 3 }).unwrap_err().to_string();
        assert!(text.contains("part/0") && text.contains("version 1 has no place for the extra"), "{text}");
        let mut set = StateSet::choosing(vec![chosen("part", 0, 9)]);
        let text = set.put(0, &PartV2 { inverted: 1, extra: 0 }).unwrap_err().to_string();
        assert!(text.contains("not 9"), "{text}");
        assert!(set.sections().is_empty());
    }

    #[test]
    fn a_section_knows_all_its_versions() {
        let all = SectionVersion::all::<PartV2>();
        assert_eq!(all.iter().map(|v| (v.name, v.version)).collect::<Vec<_>>(), [("part", 1), ("part", 2)]);
        let old = crate::encode_record(&PartV1 { word: 300 });
        let (again, text) = (all[0].rewrite)(&old).unwrap();
        assert!(again == old && text.contains("word: 300"), "{text}");
    }

    proptest! {
        #[test]
        fn any_version_comes_back(word: u64, version in 1u16..=2) {
            let new = PartV2::upgrade(PartV1 { word });
            let mut set = StateSet::choosing(vec![chosen("part", 0, version)]);
            set.put(0, &new).unwrap();
            let mut read = StateSet::decode(&bytes(&set)).unwrap();
            prop_assert_eq!(read.sections()[0].version, version);
            prop_assert_eq!(read.take(0), Ok(new));
        }

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
