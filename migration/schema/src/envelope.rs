//! The envelope around a section's record.
//!
//! ```text
//! name length u8 | name | instance u32 | version u16 | flags u16 | body length u32 | crc32 u32 | body
//! ```
//!
//! Integers are little endian. The checksum (CRC-32, IEEE) covers everything before it and the body.

use crate::StateError;

/// Longest body: the largest vCPU (XSAVE with AMX is 11 KiB) and device states are far below.
pub const SECTION_BODY_MAX_BYTES: usize = 1 << 20;
const NAME_MAX_BYTES: usize = 32;
/// The section may be passed over. All other flags are unknown, and what they'd mean too: they are refused.
const FLAG_OPTIONAL: u16 = 1;

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

impl RawSection {
    pub(crate) fn encode(&self, out: &mut Vec<u8>) {
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

    pub(crate) fn decode(bytes: &[u8], index: usize) -> Result<(Self, &[u8]), StateError> {
        let (head, mut cursor) = Head::decode(bytes, index)?;
        let body = cursor.take(head.length)?;
        let Head { name, instance, version, flags, length: _, checksum: found, unsummed } = head;
        let computed = summed(unsummed, body);
        if found != computed {
            return Err(StateError::Checksum { name, instance, found, computed });
        }
        if flags & !FLAG_OPTIONAL != 0 {
            return Err(StateError::Flags { name, instance, found: flags });
        }
        let optional = flags & FLAG_OPTIONAL != 0;
        Ok((Self { name, instance, version, optional, body: body.to_vec() }, cursor.left))
    }
}

/// CRC-32 of a head and its body.
pub(crate) fn summed(mut crc: crc32fast::Hasher, body: &[u8]) -> u32 {
    crc.update(body);
    crc.finalize()
}

/// What is before a section's body.
pub(crate) struct Head {
    pub(crate) name: String,
    pub(crate) instance: u32,
    pub(crate) version: u16,
    pub(crate) flags: u16,
    pub(crate) length: usize,
    pub(crate) checksum: u32,
    /// The checksum of what is before it.
    pub(crate) unsummed: crc32fast::Hasher,
}

impl Head {
    /// Reads the head that `bytes` begin with; the cursor is at the body then. `index` is for errors.
    pub(crate) fn decode(bytes: &[u8], index: usize) -> Result<(Self, Cursor<'_>), StateError> {
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
        let flags = u16::from_le_bytes(cursor.array()?);
        let length = u32::from_le_bytes(cursor.array()?) as usize;
        if length > SECTION_BODY_MAX_BYTES {
            let (found, max) = (length as u64, SECTION_BODY_MAX_BYTES as u64);
            return Err(StateError::TooLong { name, instance, found, max });
        }
        let mut unsummed = crc32fast::Hasher::new();
        unsummed.update(bytes.get(..bytes.len() - cursor.left.len()).unwrap_or_default());
        let checksum = u32::from_le_bytes(cursor.array()?);
        Ok((Self { name, instance, version, flags, length, checksum, unsummed }, cursor))
    }

    /// May a machine without this part pass over it?
    pub(crate) fn is_optional(&self) -> bool {
        self.flags & FLAG_OPTIONAL != 0
    }
}

/// Where reading stands.
pub(crate) struct Cursor<'a> {
    pub(crate) left: &'a [u8],
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
