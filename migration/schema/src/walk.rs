//! A record as it stands in bytes, field by field, with what this build knows of each: for people who look
//! at a state, and for tools. Never fails: what is damaged, cut off or unknown is said where it is.

use std::ops::Range;

use crate::DecodeError;
use crate::record::FieldInfo;
use crate::value::{Kind, Place, Presence};
use crate::wire::{RawField, Reader, WireType};

/// Deepest nesting of records that this build doesn't know; deeper ones are shown as bytes.
const UNKNOWN_DEPTH_MAX: usize = 8;

/// One record.
#[derive(Debug, Clone, PartialEq)]
pub struct Walked<'a> {
    /// Its fields, in the order of the bytes.
    pub items: Vec<Item<'a>>,
    /// Names of the fields that must be there and aren't. Empty if the record is damaged or unknown.
    pub missing: Vec<&'static str>,
    /// Where reading had to end, and why; a position in the bytes that were walked.
    pub damage: Option<(usize, DecodeError)>,
}

/// One occurrence of a field.
#[derive(Debug, Clone)]
pub struct Item<'a> {
    /// Number on the wire.
    pub number: u32,
    /// May a reader that doesn't know it pass over it?
    pub optional: bool,
    /// What this build knows of it; nothing, if a newer one wrote it.
    pub info: Option<&'static FieldInfo>,
    /// Which of several, from 0, if it may occur more than once.
    pub index: Option<usize>,
    /// The bytes that it takes with its tag, as positions in the bytes that were walked.
    pub at: Range<usize>,
    /// What it holds, as far as it is there.
    pub value: Seen<'a>,
    /// Why this build would refuse it.
    pub problem: Option<DecodeError>,
}

impl PartialEq for Item<'_> {
    fn eq(&self, other: &Self) -> bool {
        (self.number, &self.at, &self.value, &self.problem)
            == (other.number, &other.at, &other.value, &other.problem)
    }
}

/// What a field holds. A value that doesn't fit its description is shown by its layout alone.
#[derive(Debug, Clone, PartialEq)]
pub enum Seen<'a> {
    /// An unsigned integer, or one of unknown meaning.
    Unsigned(u64),
    /// A signed integer.
    Signed(i64),
    /// True or false.
    Bool(bool),
    /// A byte string, or one of unknown meaning.
    Bytes(&'a [u8]),
    /// UTF-8.
    Text(&'a str),
    /// 64-bit integers.
    Words(Vec<u64>),
    /// A nested record.
    Record(Walked<'a>),
}

/// Walks over the record that is `bytes`, or the beginning of it. `record` and `fields` are its description
/// ([`Record::RECORD`](crate::Record::RECORD), [`Record::fields`](crate::Record::fields)); of a record that
/// this build doesn't know, `fields` is empty.
pub fn walk<'a>(record: &'static str, fields: &'static [FieldInfo], bytes: &'a [u8]) -> Walked<'a> {
    Walk { record, fields, known: true, base: 0, depth: 0 }.run(bytes)
}

impl Walked<'_> {
    /// Shows each field to `visit`, nested ones behind the record that they are in, with the names and
    /// positions that lead there: `regs.rip`, `msrs[3].value`, `#7` for one without a name.
    pub fn visit(&self, visit: &mut impl FnMut(&str, &Item<'_>)) {
        self.visit_below("", visit);
    }

    fn visit_below(&self, prefix: &str, visit: &mut impl FnMut(&str, &Item<'_>)) {
        for item in &self.items {
            let path = format!("{prefix}{}", item.label());
            visit(&path, item);
            if let Seen::Record(inner) = &item.value {
                inner.visit_below(&format!("{path}."), visit);
            }
        }
    }
}

impl Item<'_> {
    /// Its name, or its number, and its position among several.
    pub fn label(&self) -> String {
        let name = self.info.map_or_else(|| format!("#{}", self.number), |info| info.name.to_owned());
        self.index.map_or_else(|| name.clone(), |index| format!("{name}[{index}]"))
    }
}

#[derive(Clone, Copy)]
struct Walk {
    record: &'static str,
    fields: &'static [FieldInfo],
    known: bool,
    base: usize,
    depth: usize,
}

impl Walk {
    fn run<'a>(self, bytes: &'a [u8]) -> Walked<'a> {
        let mut reader = Reader::new(bytes);
        let mut walked = Walked { items: Vec::new(), missing: Vec::new(), damage: None };
        let mut counts = vec![0; self.fields.len()];
        loop {
            let start = self.base + bytes.len() - reader.rest().len();
            match reader.field_or_part() {
                Ok(None) => break,
                Ok(Some((raw, cut))) => {
                    let end = self.base + bytes.len() - reader.rest().len();
                    walked.items.push(self.item(&raw, cut.clone(), start..end, &mut counts));
                    walked.damage = cut.map(|error| (end, error));
                }
                Err(error) => {
                    walked.damage = Some((start, error));
                    break;
                }
            }
        }
        if walked.damage.is_none() {
            let absent = self.fields.iter().zip(&counts);
            let absent = absent.filter(|(field, count)| field.presence == Presence::Required && **count == 0);
            walked.missing = absent.map(|(field, _)| field.name).collect();
        }
        walked
    }

    fn item<'a>(
        self,
        raw: &RawField<'a>,
        cut: Option<DecodeError>,
        at: Range<usize>,
        counts: &mut [usize],
    ) -> Item<'a> {
        let RawField { number, optional, .. } = *raw;
        let known = self.fields.iter().zip(counts).find(|(field, _)| field.number == number);
        let Some((info, count)) = known else {
            let value = self.unknown(raw, at.end);
            let refused = self.known && !optional;
            let unknown = refused.then_some(DecodeError::UnknownMandatory { record: self.record, number });
            return Item { number, optional, info: None, index: None, at, value, problem: cut.or(unknown) };
        };
        let repeated = info.presence == Presence::Repeated;
        let index = repeated.then_some(*count);
        let again = *count > 0 && !repeated;
        *count += 1;
        let (record, field) = (self.record, info.name);
        let twice = again.then_some(DecodeError::Duplicate { record, field });
        let (value, wrong) = match self.value(info, raw, at.end) {
            Ok(value) => (value, None),
            Err(error) => (self.unknown(raw, at.end), Some(error)),
        };
        Item { number, optional, info: Some(info), index, at, value, problem: cut.or(twice).or(wrong) }
    }

    /// By its layout alone. `end` is where the field ends.
    fn unknown<'a>(self, raw: &RawField<'a>, end: usize) -> Seen<'a> {
        match raw.wire_type {
            WireType::Integer => Seen::Unsigned(raw.integer),
            WireType::Record if self.depth < UNKNOWN_DEPTH_MAX => {
                let (base, depth) = (end - raw.bytes.len(), self.depth + 1);
                let inner = Walk { record: "unknown record", fields: &[], known: false, base, depth };
                Seen::Record(inner.run(raw.bytes))
            }
            WireType::Bytes | WireType::Record => Seen::Bytes(raw.bytes),
        }
    }

    /// By its description.
    fn value<'a>(
        self,
        info: &'static FieldInfo,
        raw: &RawField<'a>,
        end: usize,
    ) -> Result<Seen<'a>, DecodeError> {
        let (record, field, bytes) = (self.record, info.name, raw.bytes);
        let expected = info.kind.wire_type();
        if raw.wire_type != expected {
            return Err(DecodeError::Mismatch { record, field, found: raw.wire_type, expected });
        }
        let range = |max| DecodeError::Range { record, field, found: raw.integer, max };
        let place = Place { record, field };
        Ok(match info.kind {
            Kind::Unsigned(bits) => {
                let max = u64::MAX >> (64 - u32::from(bits.clamp(1, 64)));
                Seen::Unsigned(if raw.integer > max { return Err(range(max)) } else { raw.integer })
            }
            Kind::Signed => Seen::Signed(crate::value::unzigzag(raw.integer)),
            Kind::Bool => Seen::Bool(if raw.integer > 1 { return Err(range(1)) } else { raw.integer == 1 }),
            Kind::Bytes => Seen::Bytes(bytes),
            Kind::Fixed(length) if bytes.len() == length => Seen::Bytes(bytes),
            Kind::Fixed(_) => return Err(crate::value::length(raw, place, crate::value::FIXED)),
            Kind::Text => Seen::Text(str::from_utf8(bytes).map_err(|_| DecodeError::Text { record, field })?),
            Kind::Words => Seen::Words(crate::value::words(raw, place)?),
            Kind::Record(record, fields) => {
                let base = end - bytes.len();
                let inner = Self { record, fields: fields(), known: true, base, depth: self.depth };
                Seen::Record(inner.run(bytes))
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Record, encode_record};
    use proptest::prelude::*;

    crate::record! {
        /// Inner.
        pub struct PointV1 {
            /// A word.
            [1] word: u64,
        }
    }
    crate::record! {
        /// Outer.
        pub struct ShapeV1 {
            /// How long.
            [1] length_bytes: u16,
            /// Where.
            [2] points: Vec<PointV1>,
            /// Its name.
            [3] name: String,
        }
    }
    crate::record! {
        /// What a newer tern would write.
        pub struct ShapeV1Newer {
            /// As before.
            [1] length_bytes: u16,
            /// As before.
            [3] name: String,
            /// News.
            [4 optional] extra: PointV1,
        }
    }

    fn shape() -> Vec<u8> {
        let points = vec![PointV1 { word: 5 }, PointV1 { word: 6 }];
        encode_record(&ShapeV1 { length_bytes: 300, points, name: "a shape".into() })
    }

    fn seen(bytes: &[u8]) -> Walked<'_> {
        walk(ShapeV1::RECORD, ShapeV1::fields(), bytes)
    }

    fn paths(walked: &Walked<'_>) -> Vec<(String, Range<usize>)> {
        let mut paths = Vec::new();
        walked.visit(&mut |path, item| paths.push((path.to_owned(), item.at.clone())));
        paths
    }

    #[test]
    fn every_field_is_found_with_its_name_value_and_place() {
        let bytes = shape();
        let walked = seen(&bytes);
        let expected = [
            ("length_bytes", 0..3),
            ("points[0]", 3..10),
            ("points[0].word", 8..10),
            ("points[1]", 10..17),
            ("points[1].word", 15..17),
            ("name", 17..29),
        ];
        assert_eq!(paths(&walked), expected.map(|(path, at)| (path.to_owned(), at)));
        assert_eq!(walked.items[0].info.and_then(FieldInfo::unit), Some("bytes"));
        assert_eq!(
            (&walked.items[0].value, &walked.items[3].value),
            (&Seen::Unsigned(300), &Seen::Text("a shape"))
        );
        assert!(walked.damage.is_none() && walked.missing.is_empty());
    }

    #[test]
    fn a_cut_record_is_shown_as_far_as_it_goes() {
        let bytes = shape();
        let walked = seen(&bytes[..20]);
        let name = walked.items.last().unwrap();
        assert_eq!(name.value, Seen::Text(""), "the length itself is cut off");
        assert!(matches!(name.problem, Some(DecodeError::Truncated { .. })) && walked.damage.is_some());
        let walked = seen(&bytes[..25]);
        assert_eq!(walked.items.last().unwrap().value, Seen::Text("a s"));
        let walked = seen(&bytes[..16]);
        let Seen::Record(point) = &walked.items[2].value else { panic!("{walked:?}") };
        assert!(point.damage.is_some());
    }

    #[test]
    fn unknown_and_wrong_fields_are_shown_and_named() {
        let extra = PointV1 { word: 1 };
        let bytes = encode_record(&ShapeV1Newer { length_bytes: 1, name: "n".into(), extra });
        let walked = seen(&bytes);
        assert_eq!(walked.items[2].label(), "#4");
        assert!(walked.items[2].problem.is_none(), "it may be passed over");
        assert_eq!(paths(&walked)[3].0, "#4.#1");
        let walked = walk(PointV1::RECORD, PointV1::fields(), &bytes);
        let unknown = walked.items[1].problem.clone();
        assert_eq!(unknown, Some(DecodeError::UnknownMandatory { record: "PointV1", number: 3 }));
        let wrong = encode_record(&PointV1 { word: 1 << 20 });
        let walked = seen(&wrong);
        assert_eq!(walked.items[0].value, Seen::Unsigned(1 << 20));
        assert!(matches!(walked.items[0].problem, Some(DecodeError::Range { max: 0xffff, .. })));
        assert_eq!(walked.missing, ["name"]);
    }

    proptest! {
        #[test]
        fn any_bytes_can_be_walked(bytes: Vec<u8>) {
            let walked = seen(&bytes);
            let mut count = 0;
            walked.visit(&mut |_, item| {
                assert!(item.at.end <= bytes.len());
                count += 1;
            });
            prop_assert!(count <= bytes.len());
        }

        #[test]
        fn a_walk_refuses_what_reading_refuses(flip in 0usize..29 * 8) {
            let mut bytes = shape();
            bytes[flip / 8] ^= 1 << (flip % 8);
            let walked = seen(&bytes);
            let mut bad = walked.damage.is_some() || !walked.missing.is_empty();
            walked.visit(&mut |_, item| {
                bad |= item.problem.is_some();
                if let Seen::Record(inner) = &item.value {
                    bad |= item.info.is_some() && (inner.damage.is_some() || !inner.missing.is_empty());
                }
            });
            prop_assert_eq!(bad, crate::decode_record::<ShapeV1>(&bytes).is_err());
        }
    }
}
