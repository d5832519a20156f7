//! Structure-aware mutation: from a valid stream and a seed, a stream that is wrong in one place or a few, with
//! checksums, numbers and lengths that are right again or not.

use crate::random::Random;
use crate::sections;
use crate::stream::{self, Frame, PAGES, STATE};

const RECORD_BYTES: usize = 16;
const PAGE_BYTES: usize = 4096;

/// A stream made from a seed.
#[derive(Debug, Clone)]
pub struct Mutation {
    /// What was changed, for people.
    pub what: String,
    /// The stream.
    pub bytes: Vec<u8>,
}

/// The mutation of a valid `stream` that belongs to `seed`.
pub fn of(stream: &[u8], seed: u64) -> Mutation {
    let mut random = Random::new(seed);
    let mut frames = stream::parse(stream);
    let mut what: Vec<String> = Vec::new();
    let damage = random.below(10);
    if damage > 1 {
        for _ in 0..=random.below(6) / 4 {
            what.push(change(&mut frames, &mut random));
        }
        if damage > 3 {
            stream::seal(&mut frames);
            what.push("numbers and checksums made anew".to_owned());
        }
    }
    let mut bytes = stream::write(&frames);
    match damage {
        0 => {
            bytes.truncate(random.below(bytes.len()));
            what.push(format!("cut to {} bytes", bytes.len()));
        }
        1 => {
            random.flip(&mut bytes);
            what.push("a flipped bit".to_owned());
        }
        _ => {}
    }
    Mutation { what: what.join("; "), bytes }
}

/// Changes one thing in the frames; says what.
fn change(frames: &mut Vec<Frame>, random: &mut Random) -> String {
    if random.one_in(6) {
        return format!("a frame {}", random.rearrange(frames));
    }
    let at = random.below(frames.len());
    let Some(frame) = frames.get_mut(at) else { return "nothing".to_owned() };
    let kind = frame.kind;
    let what = if random.one_in(4) { change_header(frame, random) } else { change_payload(frame, random) };
    format!("frame {at} of type {kind}: {what}")
}

/// The header alone: what it says need not be true any more.
fn change_header(frame: &mut Frame, random: &mut Random) -> String {
    let Frame { kind, flags, reserved, round, number, length, covered, crc32: _, payload: _ } = frame;
    let (name, field) = match random.below(7) {
        0 => {
            *kind = random.other_than((*kind).into()) as u8;
            return format!("became type {kind}");
        }
        1 => {
            *flags ^= 1 << random.below(8);
            return format!("has flags {flags:#x}");
        }
        2 => {
            *reserved ^= 1 << random.below(16);
            return format!("has {reserved:#x} where 0 should be");
        }
        3 => ("round", round),
        4 => ("number", number),
        5 => ("length", length),
        _ => ("covered", covered),
    };
    *field = random.other_than((*field).into()) as u32;
    format!("{name} is {field:#x}")
}

/// The payload, with lengths that fit it.
fn change_payload(frame: &mut Frame, random: &mut Random) -> String {
    let what = match frame.kind {
        _ if random.one_in(8) => {
            random.flip(&mut frame.payload);
            "a flipped bit".to_owned()
        }
        _ if random.one_in(8) => {
            frame.payload.truncate(random.below(frame.payload.len()));
            format!("cut to {} bytes", frame.payload.len())
        }
        PAGES => change_pages(frame, random),
        STATE => {
            let mut found = sections::parse(&frame.payload);
            let what = sections::mutate(&mut found, random);
            frame.payload = sections::write(&found);
            what
        }
        _ => sections::mutate_record(&mut frame.payload, random),
    };
    frame.measure();
    what
}

fn change_pages(frame: &mut Frame, random: &mut Random) -> String {
    let covered = (frame.covered as usize).min(frame.payload.len());
    let (records, data) = frame.payload.split_at(covered);
    let mut records: Vec<[u8; RECORD_BYTES]> = records.as_chunks().0.to_vec();
    let mut data = data.to_vec();
    let at = random.below(records.len());
    let what = match random.below(5) {
        0 => {
            random.flip(&mut data);
            "a bit of a page".to_owned()
        }
        1 => format!("a page record {}", random.rearrange(&mut records)),
        2 => {
            // A page with its data.
            let pages = data.len() / PAGE_BYTES;
            let zero = random.below(pages) * PAGE_BYTES;
            data.iter_mut().skip(zero).take(PAGE_BYTES).for_each(|byte| *byte = 0);
            "a page without content".to_owned()
        }
        _ => match records.get_mut(at) {
            Some(record) => change_record(record, random),
            None => "nothing".to_owned(),
        },
    };
    frame.payload = records.concat();
    frame.covered = frame.payload.len() as u32;
    frame.payload.extend_from_slice(&data);
    what
}

/// `page u64 | region u16 | encoding u8 | reserved u8 | data length u32`.
fn change_record(record: &mut [u8; RECORD_BYTES], random: &mut Random) -> String {
    const FIELDS: [(&str, usize, usize); 5] =
        [("page", 0, 8), ("region", 8, 2), ("encoding", 10, 1), ("reserved", 11, 1), ("length", 12, 4)];
    let (name, start, bytes) = FIELDS.get(random.below(FIELDS.len())).copied().unwrap_or_default();
    let mut value = [0; 8];
    let place = record.iter_mut().skip(start).take(bytes);
    value.iter_mut().zip(place).for_each(|(to, from)| *to = *from);
    let was = u64::from_le_bytes(value);
    let new = random.other_than(was);
    let place = record.iter_mut().skip(start).take(bytes);
    place.zip(new.to_le_bytes()).for_each(|(to, from)| *to = from);
    format!("page record: {name} {was:#x} became the low {bytes} bytes of {new:#x}")
}
