//! A set of sections as it stands in bytes, complete or not: for people who look at a state, and for tools.
//! Never fails; [`StateSet`](crate::StateSet) is how a machine reads.

use std::ops::Range;

use crate::StateError;
use crate::envelope::{Head, summed};
use crate::set::SECTIONS_MAX;

/// What could be made out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Survey<'a> {
    /// The sections in the order of the bytes; the last one may be cut off.
    pub sections: Vec<SurveyedSection<'a>>,
    /// Where reading had to end, and why.
    pub damage: Option<(usize, StateError)>,
}

/// One section.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SurveyedSection<'a> {
    /// Name of the part.
    pub name: String,
    /// Which of several equal parts, from 0.
    pub instance: u32,
    /// Version of the record's layout.
    pub version: u16,
    /// May a machine without this part pass over it?
    pub optional: bool,
    /// All flags.
    pub flags: u16,
    /// The record's bytes, as far as they are there.
    pub body: &'a [u8],
    /// The bytes of the body, as positions in the bytes that were surveyed.
    pub at: Range<usize>,
    /// Bytes of the body that are cut off.
    pub missing_bytes: usize,
    /// What the checksum says.
    pub sum: Sum,
}

/// What a checksum says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sum {
    /// The bytes are as they were written.
    Holds,
    /// They are not.
    Fails {
        /// In the bytes.
        found: u32,
        /// Of the bytes.
        computed: u32,
    },
    /// The section is cut off, so nobody knows.
    Unknown,
}

/// Looks at a set of sections, or the beginning of one.
pub fn survey(bytes: &[u8]) -> Survey<'_> {
    let mut found = Survey { sections: Vec::new(), damage: None };
    let mut left = bytes;
    while !left.is_empty() {
        let start = bytes.len() - left.len();
        let index = found.sections.len();
        if index == SECTIONS_MAX {
            found.damage = Some((start, StateError::TooMany { max: SECTIONS_MAX }));
            break;
        }
        let (head, cursor) = match Head::decode(left, index) {
            Ok(read) => read,
            Err(error) => {
                found.damage = Some((start, error));
                break;
            }
        };
        let body_at = bytes.len() - cursor.left.len();
        let (body, rest) = cursor.left.split_at_checked(head.length).unwrap_or((cursor.left, &[]));
        left = rest;
        let missing_bytes = head.length - body.len();
        if missing_bytes > 0 {
            let (needed, left) = (head.length as u64, body.len() as u64);
            found.damage = Some((bytes.len(), StateError::Truncated { index, needed, left }));
        }
        let optional = head.is_optional();
        let Head { name, instance, version, flags, length: _, checksum, unsummed } = head;
        let sum = match (missing_bytes, summed(unsummed, body)) {
            (0, computed) if computed == checksum => Sum::Holds,
            (0, computed) => Sum::Fails { found: checksum, computed },
            _ => Sum::Unknown,
        };
        let at = body_at..body_at + body.len();
        let section =
            SurveyedSection { name, instance, version, optional, flags, body, at, missing_bytes, sum };
        found.sections.push(section);
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::StateSet;
    use proptest::prelude::*;

    crate::record! {
        /// A part.
        pub struct PartV1 = "part" 1 {
            /// A word.
            [1] word: u64,
        }
    }

    fn state() -> Vec<u8> {
        let mut set = StateSet::default();
        (0..2).for_each(|instance| set.put(instance, &PartV1 { word: 300 }).unwrap());
        let mut bytes = Vec::new();
        set.encode(&mut bytes);
        bytes
    }

    #[test]
    fn whole_cut_and_damaged_sections_are_told_apart() {
        let mut bytes = state();
        let whole = survey(&bytes);
        assert!(whole.damage.is_none() && whole.sections.iter().all(|s| s.sum == Sum::Holds));
        assert_eq!((whole.sections.len(), whole.sections[1].instance), (2, 1));
        assert_eq!(&bytes[whole.sections[1].at.clone()], whole.sections[1].body);
        let cut = survey(&bytes[..bytes.len() - 1]);
        let last = &cut.sections[1];
        assert_eq!((last.missing_bytes, last.sum, last.body.len()), (1, Sum::Unknown, 2));
        assert!(matches!(cut.damage, Some((_, StateError::Truncated { index: 1, .. }))));
        let end = bytes.len() - 1;
        bytes[end] ^= 1;
        assert!(matches!(survey(&bytes).sections[1].sum, Sum::Fails { .. }));
    }

    proptest! {
        #[test]
        fn any_bytes_can_be_surveyed(noise: Vec<u8>, cut in 0usize..100) {
            survey(&noise);
            let bytes = state();
            let found = survey(&bytes[..cut.min(bytes.len())]);
            prop_assert!(found.sections.iter().all(|s| s.at.end <= bytes.len()));
        }
    }
}
