//! A record as a tree of fields that can be changed and written again, whatever record it is.

use tern_schema::{Reader, WireType, Writer};

use crate::random::Random;

/// Deeper than any record is.
const DEPTH_MAX: u32 = 8;

/// One field.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Field {
    number: u32,
    optional: bool,
    content: Content,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Content {
    Integer(u64),
    Bytes(Vec<u8>),
    Record(Vec<Field>),
}

/// The fields of a record; `None` if the bytes are no record.
pub fn parse(bytes: &[u8]) -> Option<Vec<Field>> {
    parse_at(bytes, 0)
}

fn parse_at(bytes: &[u8], depth: u32) -> Option<Vec<Field>> {
    let mut reader = Reader::new(bytes);
    let mut fields = Vec::new();
    while let Some(raw) = reader.field().ok()? {
        let content = match raw.wire_type {
            WireType::Integer => Content::Integer(raw.integer),
            WireType::Record if depth < DEPTH_MAX => Content::Record(parse_at(raw.bytes, depth + 1)?),
            WireType::Bytes | WireType::Record => Content::Bytes(raw.bytes.to_vec()),
        };
        fields.push(Field { number: raw.number, optional: raw.optional, content });
    }
    Some(fields)
}

/// The record's bytes.
pub fn write(fields: &[Field]) -> Vec<u8> {
    let mut out = Vec::new();
    put(fields, &mut Writer::new(&mut out));
    out
}

fn put(fields: &[Field], out: &mut Writer<'_>) {
    for Field { number, optional, content } in fields {
        match content {
            Content::Integer(value) => out.integer(*number, *optional, *value),
            Content::Bytes(bytes) => out.bytes(*number, *optional, bytes),
            Content::Record(inner) => out.record(*number, *optional, |out| put(inner, out)),
        }
    }
}

/// Gives an integer field another value.
pub fn set_integer(fields: &mut [Field], number: u32, value: u64) {
    set(fields, number, &Content::Integer(value));
}

/// Gives a byte string another value.
pub fn set_bytes(fields: &mut [Field], number: u32, value: &[u8]) {
    set(fields, number, &Content::Bytes(value.to_vec()));
}

fn set(fields: &mut [Field], number: u32, value: &Content) {
    fields.iter_mut().filter(|f| f.number == number).for_each(|field| field.content.clone_from(value));
}

/// Changes one thing somewhere in a record; says what.
pub fn mutate(fields: &mut Vec<Field>, random: &mut Random) -> String {
    if fields.is_empty() || random.one_in(6) {
        return format!("a field {}", random.rearrange(fields));
    }
    let at = random.below(fields.len());
    let Some(field) = fields.get_mut(at) else { return "nothing".to_owned() };
    let number = field.number;
    let what = match random.below(12) {
        0 => {
            field.number = (random.other_than(number.into()) & 0xffff) as u32;
            format!("became {}", field.number)
        }
        1 => {
            field.optional = !field.optional;
            "changed its optional bit".to_owned()
        }
        2 => {
            field.content = match field.content {
                Content::Integer(value) => Content::Bytes(value.to_le_bytes().to_vec()),
                Content::Bytes(_) | Content::Record(_) => Content::Integer(random.any()),
            };
            "changed its wire type".to_owned()
        }
        _ => change(&mut field.content, random),
    };
    format!("field {number} {what}")
}

fn change(content: &mut Content, random: &mut Random) -> String {
    match content {
        Content::Integer(value) => {
            let was = *value;
            *value = random.other_than(was);
            format!("changed from {was:#x} to {value:#x}")
        }
        Content::Bytes(bytes) if bytes.is_empty() || random.one_in(5) => {
            let length = if random.one_in(2) { random.below(2 * bytes.len() + 9) } else { 0 };
            let was = bytes.len();
            bytes.resize(length, 0xa5);
            format!("has {length} bytes, not {was}")
        }
        Content::Bytes(bytes) if random.one_in(2) => {
            let (at, value) = (random.below(bytes.len()), random.any().to_le_bytes());
            bytes.iter_mut().skip(at).zip(value).for_each(|(byte, new)| *byte = new);
            format!("has {value:x?} at byte {at}")
        }
        Content::Bytes(bytes) => {
            random.flip(bytes);
            "has a flipped bit".to_owned()
        }
        Content::Record(inner) => format!("inside: {}", mutate(inner, random)),
    }
}
