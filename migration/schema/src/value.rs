//! The types that a field may have, and how each is laid out.

use std::fmt;

use crate::wire::{RawField, Skipped, WireType, Writer};
use crate::{DecodeError, FieldInfo, Record};

/// What a field holds, for a dump of the schema.
#[derive(Debug, Clone, Copy)]
pub enum Kind {
    /// Unsigned integer of so many bits.
    Unsigned(u8),
    /// Signed integer of 64 bits, zigzag.
    Signed,
    /// True or false.
    Bool,
    /// Byte string of any length.
    Bytes,
    /// Byte string of a fixed length.
    Fixed(usize),
    /// UTF-8.
    Text,
    /// 64-bit integers, eight bytes each, little endian, one behind the other.
    Words,
    /// Another record.
    Record(&'static str, fn() -> &'static [FieldInfo]),
}

impl Kind {
    /// How a value of this kind is laid out.
    pub fn wire_type(self) -> WireType {
        match self {
            Self::Unsigned(_) | Self::Signed | Self::Bool => WireType::Integer,
            Self::Bytes | Self::Fixed(_) | Self::Text | Self::Words => WireType::Bytes,
            Self::Record(..) => WireType::Record,
        }
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unsigned(bits) => write!(f, "u{bits}"),
            Self::Signed => f.write_str("i64"),
            Self::Bool => f.write_str("bool"),
            Self::Bytes => f.write_str("bytes"),
            Self::Fixed(length) => write!(f, "bytes[{length}]"),
            Self::Text => f.write_str("text"),
            Self::Words => f.write_str("u64 list"),
            Self::Record(name, _) => f.write_str(name),
        }
    }
}

/// How often a field may occur.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Presence {
    /// Exactly once.
    Required,
    /// At most once; absent when the state is its default (a subsection, if it is a record).
    Optional,
    /// Any number of times.
    Repeated,
}

/// Names for error texts.
#[derive(Debug, Clone, Copy)]
pub struct Place {
    /// Record's name.
    pub record: &'static str,
    /// Field's name.
    pub field: &'static str,
}

/// A type that a field may have.
pub trait Value: Sized {
    /// Description for a dump.
    const KIND: Kind;
    /// How often it may occur.
    const PRESENCE: Presence = Presence::Required;

    /// Writes the field.
    fn put(&self, number: u32, optional: bool, out: &mut Writer<'_>);
    /// Reads one occurrence.
    fn get(field: &RawField<'_>, place: Place, skipped: &mut Skipped) -> Result<Self, DecodeError>;
    /// Adds an occurrence to what was read before.
    fn merge(
        slot: &mut Option<Self>,
        field: &RawField<'_>,
        place: Place,
        skipped: &mut Skipped,
    ) -> Result<(), DecodeError> {
        if slot.is_some() {
            return Err(DecodeError::Duplicate { record: place.record, field: place.field });
        }
        *slot = Some(Self::get(field, place, skipped)?);
        Ok(())
    }
    /// What an absent field means.
    fn absent(place: Place) -> Result<Self, DecodeError> {
        Err(DecodeError::Missing { record: place.record, field: place.field })
    }
}

fn expect(field: &RawField<'_>, expected: WireType, place: Place) -> Result<(), DecodeError> {
    if field.wire_type == expected {
        return Ok(());
    }
    let Place { record, field: name } = place;
    Err(DecodeError::Mismatch { record, field: name, found: field.wire_type, expected })
}

pub(crate) fn length(field: &RawField<'_>, place: Place, expected: &'static str) -> DecodeError {
    let found = field.bytes.len() as u64;
    DecodeError::Length { record: place.record, field: place.field, found, expected }
}

/// What a byte string of fixed length expects, in words.
pub(crate) const FIXED: &str = "the fixed length of this field";

pub(crate) fn unzigzag(value: u64) -> i64 {
    (value >> 1).cast_signed() ^ -(value & 1).cast_signed()
}

pub(crate) fn words(field: &RawField<'_>, place: Place) -> Result<Vec<u64>, DecodeError> {
    let (words, []) = field.bytes.as_chunks::<8>() else {
        return Err(length(field, place, "a multiple of 8"));
    };
    Ok(words.iter().map(|word| u64::from_le_bytes(*word)).collect())
}

macro_rules! unsigned {
    ($($ty:ty),*) => {$(
        impl Value for $ty {
            const KIND: Kind = Kind::Unsigned(<$ty>::BITS.to_le_bytes()[0]);
            fn put(&self, number: u32, optional: bool, out: &mut Writer<'_>) {
                out.integer(number, optional, u64::from(*self));
            }
            fn get(field: &RawField<'_>, place: Place, _: &mut Skipped) -> Result<Self, DecodeError> {
                expect(field, WireType::Integer, place)?;
                Self::try_from(field.integer).map_err(|_| DecodeError::Range {
                    record: place.record,
                    field: place.field,
                    found: field.integer,
                    max: u64::from(<$ty>::MAX),
                })
            }
        }
    )*};
}
unsigned!(u8, u16, u32, u64);

impl Value for i64 {
    const KIND: Kind = Kind::Signed;
    fn put(&self, number: u32, optional: bool, out: &mut Writer<'_>) {
        out.integer(number, optional, ((self << 1) ^ (self >> 63)).cast_unsigned());
    }
    fn get(field: &RawField<'_>, place: Place, _: &mut Skipped) -> Result<Self, DecodeError> {
        expect(field, WireType::Integer, place)?;
        Ok(unzigzag(field.integer))
    }
}

impl Value for bool {
    const KIND: Kind = Kind::Bool;
    fn put(&self, number: u32, optional: bool, out: &mut Writer<'_>) {
        out.integer(number, optional, u64::from(*self));
    }
    fn get(field: &RawField<'_>, place: Place, _: &mut Skipped) -> Result<Self, DecodeError> {
        expect(field, WireType::Integer, place)?;
        match field.integer {
            0 => Ok(false),
            1 => Ok(true),
            found => Err(DecodeError::Range { record: place.record, field: place.field, found, max: 1 }),
        }
    }
}

impl Value for Vec<u8> {
    const KIND: Kind = Kind::Bytes;
    fn put(&self, number: u32, optional: bool, out: &mut Writer<'_>) {
        out.bytes(number, optional, self);
    }
    fn get(field: &RawField<'_>, place: Place, _: &mut Skipped) -> Result<Self, DecodeError> {
        expect(field, WireType::Bytes, place)?;
        Ok(field.bytes.to_vec())
    }
}

impl<const N: usize> Value for [u8; N] {
    const KIND: Kind = Kind::Fixed(N);
    fn put(&self, number: u32, optional: bool, out: &mut Writer<'_>) {
        out.bytes(number, optional, self);
    }
    fn get(field: &RawField<'_>, place: Place, _: &mut Skipped) -> Result<Self, DecodeError> {
        expect(field, WireType::Bytes, place)?;
        field.bytes.try_into().map_err(|_| length(field, place, FIXED))
    }
}

impl Value for String {
    const KIND: Kind = Kind::Text;
    fn put(&self, number: u32, optional: bool, out: &mut Writer<'_>) {
        out.bytes(number, optional, self.as_bytes());
    }
    fn get(field: &RawField<'_>, place: Place, _: &mut Skipped) -> Result<Self, DecodeError> {
        expect(field, WireType::Bytes, place)?;
        let text = str::from_utf8(field.bytes);
        text.map(str::to_owned).map_err(|_| DecodeError::Text { record: place.record, field: place.field })
    }
}

impl Value for Vec<u64> {
    const KIND: Kind = Kind::Words;
    fn put(&self, number: u32, optional: bool, out: &mut Writer<'_>) {
        let bytes: Vec<u8> = self.iter().flat_map(|word| word.to_le_bytes()).collect();
        out.bytes(number, optional, &bytes);
    }
    fn get(field: &RawField<'_>, place: Place, _: &mut Skipped) -> Result<Self, DecodeError> {
        expect(field, WireType::Bytes, place)?;
        words(field, place)
    }
}

/// A nested record.
impl<R: Record> Value for R {
    const KIND: Kind = Kind::Record(R::RECORD, R::fields);
    fn put(&self, number: u32, optional: bool, out: &mut Writer<'_>) {
        out.record(number, optional, |out| self.write(out));
    }
    fn get(field: &RawField<'_>, place: Place, skipped: &mut Skipped) -> Result<Self, DecodeError> {
        expect(field, WireType::Record, place)?;
        R::read(field.bytes, skipped).map_err(|source| DecodeError::Nested {
            record: place.record,
            field: place.field,
            source: Box::new(source),
        })
    }
}

/// A list of records, one field each.
impl<R: Record> Value for Vec<R> {
    const KIND: Kind = R::KIND;
    const PRESENCE: Presence = Presence::Repeated;
    fn put(&self, number: u32, optional: bool, out: &mut Writer<'_>) {
        for item in self {
            item.put(number, optional, out);
        }
    }
    fn get(field: &RawField<'_>, place: Place, skipped: &mut Skipped) -> Result<Self, DecodeError> {
        Ok(vec![R::get(field, place, skipped)?])
    }
    fn merge(
        slot: &mut Option<Self>,
        field: &RawField<'_>,
        place: Place,
        skipped: &mut Skipped,
    ) -> Result<(), DecodeError> {
        slot.get_or_insert_default().push(R::get(field, place, skipped)?);
        Ok(())
    }
    fn absent(_: Place) -> Result<Self, DecodeError> {
        Ok(Self::new())
    }
}

/// A field that is absent when it has nothing to say.
impl<V: Value> Value for Option<V> {
    const KIND: Kind = V::KIND;
    const PRESENCE: Presence = Presence::Optional;
    fn put(&self, number: u32, optional: bool, out: &mut Writer<'_>) {
        if let Some(value) = self {
            value.put(number, optional, out);
        }
    }
    fn get(field: &RawField<'_>, place: Place, skipped: &mut Skipped) -> Result<Self, DecodeError> {
        V::get(field, place, skipped).map(Some)
    }
    fn absent(_: Place) -> Result<Self, DecodeError> {
        Ok(None)
    }
}
