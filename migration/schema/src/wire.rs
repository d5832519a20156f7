//! Fields as bytes: tag, then an integer (LEB128), or a length (32 bits, little endian) and bytes.

use crate::DecodeError;

/// How a field's value is laid out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum WireType {
    /// LEB128, at most ten bytes.
    Integer = 0,
    /// A 32-bit length and so many bytes.
    Bytes = 1,
    /// A 32-bit length and a record of so many bytes.
    Record = 2,
}

const OPTIONAL_BIT: u64 = 0b100;
const WIRE_TYPE_MASK: u64 = 0b011;
const NUMBER_SHIFT: u32 = 3;
const NUMBER_MAX: u64 = 0xffff;

/// Appends fields to a buffer of the caller's, so that no buffer is made while a guest is stopped.
#[derive(Debug)]
pub struct Writer<'a> {
    out: &'a mut Vec<u8>,
}

impl<'a> Writer<'a> {
    /// Writes behind what `out` already holds.
    pub fn new(out: &'a mut Vec<u8>) -> Self {
        Self { out }
    }

    fn tag(&mut self, number: u32, optional: bool, wire_type: WireType) {
        let flag = if optional { OPTIONAL_BIT } else { 0 };
        self.leb128((u64::from(number) << NUMBER_SHIFT) | flag | wire_type as u64);
    }

    fn leb128(&mut self, mut value: u64) {
        loop {
            let [low, ..] = (value & 0x7f).to_le_bytes();
            value >>= 7;
            if value == 0 {
                self.out.push(low);
                return;
            }
            self.out.push(low | 0x80);
        }
    }

    /// Writes an integer field.
    pub fn integer(&mut self, number: u32, optional: bool, value: u64) {
        self.tag(number, optional, WireType::Integer);
        self.leb128(value);
    }

    /// Writes a byte string. Longer than 4 GiB - 1 is cut; no state is, see `SECTION_BODY_MAX_BYTES`.
    pub fn bytes(&mut self, number: u32, optional: bool, value: &[u8]) {
        self.tag(number, optional, WireType::Bytes);
        let length = u32::try_from(value.len()).unwrap_or(u32::MAX);
        self.out.extend_from_slice(&length.to_le_bytes());
        self.out.extend(value.iter().take(length as usize));
    }

    /// Writes a nested record, whose fields `fill` writes.
    pub fn record(&mut self, number: u32, optional: bool, fill: impl FnOnce(&mut Writer<'_>)) {
        self.tag(number, optional, WireType::Record);
        let at = self.out.len();
        self.out.extend_from_slice(&[0; 4]);
        fill(&mut Writer { out: self.out });
        let length = u32::try_from(self.out.len() - at - 4).unwrap_or(u32::MAX);
        if let Some(place) = self.out.get_mut(at..at + 4) {
            place.copy_from_slice(&length.to_le_bytes());
        }
    }
}

/// One field as it stands in the bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RawField<'a> {
    /// Field number, 1 to 65535.
    pub number: u32,
    /// May a reader that doesn't know it pass over it?
    pub optional: bool,
    /// Layout.
    pub wire_type: WireType,
    /// The value, if it is an integer, else 0.
    pub integer: u64,
    /// The value, if it is not an integer, else empty.
    pub bytes: &'a [u8],
}

/// How many optional fields and sections were passed over because this build doesn't know them.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Skipped {
    /// Fields.
    pub fields: u32,
    /// Sections.
    pub sections: u32,
}

/// Walks over the fields of one record.
#[derive(Debug)]
pub struct Reader<'a> {
    left: &'a [u8],
}

impl<'a> Reader<'a> {
    /// Reads the record that is exactly `bytes`.
    pub fn new(bytes: &'a [u8]) -> Self {
        Self { left: bytes }
    }

    /// Bytes not read yet.
    pub(crate) fn rest(&self) -> &'a [u8] {
        self.left
    }

    /// The next field; `None` at the end.
    pub fn field(&mut self) -> Result<Option<RawField<'a>>, DecodeError> {
        if self.left.is_empty() {
            return Ok(None);
        }
        let mut field = self.head()?;
        match field.wire_type {
            WireType::Integer => field.integer = self.leb128()?,
            WireType::Bytes | WireType::Record => field.bytes = self.sized()?,
        }
        Ok(Some(field))
    }

    /// As [`Self::field`], but a value that is cut off comes as far as it goes, with the reason why it ends there.
    pub(crate) fn field_or_part(
        &mut self,
    ) -> Result<Option<(RawField<'a>, Option<DecodeError>)>, DecodeError> {
        if self.left.is_empty() {
            return Ok(None);
        }
        let mut field = self.head()?;
        let mut cut = None;
        if field.wire_type == WireType::Integer {
            field.integer = self.leb128()?;
        } else {
            let behind_length = self.left.get(4..).unwrap_or_default();
            match self.sized() {
                Ok(bytes) => field.bytes = bytes,
                Err(error) => {
                    (field.bytes, self.left) = (behind_length, &[]);
                    cut = Some(error);
                }
            }
        }
        Ok(Some((field, cut)))
    }

    fn head(&mut self) -> Result<RawField<'a>, DecodeError> {
        let tag = self.leb128()?;
        let number = u32::try_from((tag >> NUMBER_SHIFT).min(NUMBER_MAX + 1)).unwrap_or(0);
        let optional = tag & OPTIONAL_BIT != 0;
        let wire_type = match tag & WIRE_TYPE_MASK {
            0 => WireType::Integer,
            1 => WireType::Bytes,
            2 => WireType::Record,
            _ => return Err(DecodeError::WireType { number, wire_type: 3 }),
        };
        Ok(RawField { number, optional, wire_type, integer: 0, bytes: &[] })
    }

    fn leb128(&mut self) -> Result<u64, DecodeError> {
        let mut value = 0u64;
        for shift in (0..64).step_by(7) {
            let (&byte, rest) =
                self.left.split_first().ok_or(DecodeError::Truncated { needed: 1, left: 0 })?;
            self.left = rest;
            let low = u64::from(byte & 0x7f);
            if shift == 63 && low > 1 {
                return Err(DecodeError::IntegerOverflow);
            }
            value |= low << shift;
            if byte & 0x80 == 0 {
                return Ok(value);
            }
        }
        Err(DecodeError::IntegerOverflow)
    }

    fn sized(&mut self) -> Result<&'a [u8], DecodeError> {
        let length = u32::from_le_bytes(*self.take(4)?.first_chunk::<4>().unwrap_or(&[0; 4]));
        self.take(length as usize)
    }

    fn take(&mut self, count: usize) -> Result<&'a [u8], DecodeError> {
        let left = self.left.len();
        let (taken, rest) = self
            .left
            .split_at_checked(count)
            .ok_or(DecodeError::Truncated { needed: count as u64, left: left as u64 })?;
        self.left = rest;
        Ok(taken)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn an_integer_of_eleven_bytes_is_refused() {
        let mut bytes = vec![8];
        bytes.extend([0xff; 10]);
        bytes.push(1);
        assert_eq!(Reader::new(&bytes).field(), Err(DecodeError::IntegerOverflow));
    }

    #[test]
    fn a_length_beyond_the_end_is_refused_without_allocating() {
        let bytes = [8 | 1, 0xff, 0xff, 0xff, 0xff, 1, 2];
        let error = Reader::new(&bytes).field().unwrap_err();
        assert_eq!(error, DecodeError::Truncated { needed: u64::from(u32::MAX), left: 2 });
    }

    proptest! {
        #[test]
        fn integers_come_back(number in 1u32..=0xffff, optional: bool, value: u64) {
            let mut out = Vec::new();
            Writer::new(&mut out).integer(number, optional, value);
            let field = Reader::new(&out).field().unwrap().unwrap();
            prop_assert_eq!((field.number, field.optional, field.integer), (number, optional, value));
        }

        #[test]
        fn any_bytes_end_in_fields_or_an_error(bytes: Vec<u8>) {
            let mut reader = Reader::new(&bytes);
            let mut count = 0;
            while let Ok(Some(_)) = reader.field() {
                count += 1;
            }
            prop_assert!(count <= bytes.len());
        }
    }
}
