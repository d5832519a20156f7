//! One direction of a migration's connection as it stands in bytes, whole or cut short: for people who look at a
//! recorded stream, and for tools. Never fails; what is damaged is said where it is.

use std::fmt::Debug;
use std::io::{self, Read};

use tern_schema::{FieldInfo, Record, Rewrite};

use crate::ram::{Encoding, PageRecord, RECORD_BYTES};
use crate::wire::{self, FLAG_RUNNING, FrameType, HEADER_BYTES, Header};

/// The first bytes of a stream.
pub const MAGIC: [u8; 8] = wire::MAGIC;

/// Content that is kept: the longest state, and the messages around it. More is passed over.
const KEPT_MAX_BYTES: usize = 80 << 20;
/// Entries that are kept: a migration of a day has fewer rounds.
const ENTRIES_MAX: usize = 1 << 20;

/// What could be made out.
#[derive(Debug, Default)]
pub struct Stream {
    /// What follows the first eight bytes, in order.
    pub entries: Vec<Entry>,
    /// Where reading had to end, and why.
    pub damage: Option<(u64, String)>,
    /// Bytes that were read.
    pub bytes: u64,
}

/// One frame, or several with pages behind each other.
#[derive(Debug)]
pub struct Entry {
    /// Where it begins.
    pub offset: u64,
    /// Name of the frame.
    pub name: &'static str,
    /// Round that stands in it.
    pub round: u32,
    /// What it holds.
    pub content: Content,
    /// Why a peer would refuse it.
    pub problem: Option<String>,
}

/// What a frame holds.
#[derive(Debug)]
pub enum Content {
    /// A message.
    Message {
        /// Name of its record.
        record: &'static str,
        /// Its description.
        fields: &'static [FieldInfo],
        /// Its bytes.
        bytes: Vec<u8>,
    },
    /// Pages.
    Pages(PageCount),
    /// The machine's sections.
    State {
        /// The guest was running when it was stopped.
        running: bool,
        /// The sections.
        bytes: Vec<u8>,
    },
    /// Bytes that were passed over.
    Passed {
        /// How many.
        bytes: u64,
    },
}

/// Pages of consecutive frames.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct PageCount {
    /// Frames.
    pub frames: u64,
    /// Pages that are all zero.
    pub zero: u64,
    /// Pages with data.
    pub with_data: u64,
    /// Bytes of their data.
    pub data_bytes: u64,
}

/// Reads a stream to its end.
pub fn survey(source: impl Read) -> Stream {
    let mut reading = Reading { source, stream: Stream::default(), kept_bytes: 0, numbers: 0 };
    if let Err(damage) = reading.run() {
        reading.stream.damage = Some((reading.stream.bytes, damage));
    }
    reading.stream
}

struct Reading<R> {
    source: R,
    stream: Stream,
    kept_bytes: usize,
    /// Frames so far: the number that the next one must have.
    numbers: u32,
}

impl<R: Read> Reading<R> {
    fn run(&mut self) -> Result<(), String> {
        let mut magic = [0; MAGIC.len()];
        self.exact(&mut magic, "the first eight bytes")?;
        if magic != MAGIC {
            self.stream.bytes = 0;
            return Err(format!("it begins with \"{}\", not with TERN-MIG", magic.escape_ascii()));
        }
        while let Some(bytes) = self.header()? {
            if self.stream.entries.len() >= ENTRIES_MAX {
                return Err(format!("there are more than {ENTRIES_MAX} frames; the rest is not shown"));
            }
            self.frame(&bytes)?;
        }
        Ok(())
    }

    fn frame(&mut self, bytes: &[u8; HEADER_BYTES]) -> Result<(), String> {
        let offset = self.stream.bytes.saturating_sub(HEADER_BYTES as u64);
        let header = Header::read(bytes).map_err(|error| {
            self.stream.bytes = offset;
            error.to_string()
        })?;
        let name = header.frame.info().name;
        let head = self.kept(header.head, name)?;
        let checked = header.check(bytes, &head).err().map(|error| error.to_string());
        let due = self.numbers;
        self.numbers = due.wrapping_add(1);
        let misplaced = || {
            let found = header.sequence;
            (found != due).then(|| format!("it has number {found}, and {due} would be next"))
        };
        let problem = checked.or_else(misplaced);
        let content = self.content(&header, head)?;
        let entry = Entry { offset, name, round: header.epoch, content, problem };
        self.add(entry);
        Ok(())
    }

    fn content(&mut self, header: &Header, head: Vec<u8>) -> Result<Content, String> {
        if header.frame == FrameType::Pages {
            let data_bytes = u64::from(header.length.saturating_sub(header.head));
            self.pass(data_bytes, "page data")?;
            return Ok(Content::Pages(count(&head, data_bytes)));
        }
        let no_message = described(header.frame).is_none() && header.frame != FrameType::State;
        if head.len() < header.length as usize || no_message {
            return Ok(Content::Passed { bytes: header.length.into() });
        }
        if header.frame == FrameType::State {
            return Ok(Content::State { running: header.flags & FLAG_RUNNING != 0, bytes: head });
        }
        let (record, fields) =
            described(header.frame).map_or(("", &[][..]), |known| (known.record, known.fields));
        Ok(Content::Message { record, fields, bytes: head })
    }

    /// Pages behind pages of the same round are one entry.
    fn add(&mut self, entry: Entry) {
        let last = self.stream.entries.last_mut();
        if let (Some(Entry { content: Content::Pages(sum), round, problem: None, .. }), Content::Pages(more)) =
            (last, &entry.content)
            && *round == entry.round
            && entry.problem.is_none()
        {
            let PageCount { frames, zero, with_data, data_bytes } = *more;
            sum.frames = sum.frames.saturating_add(frames);
            sum.zero = sum.zero.saturating_add(zero);
            sum.with_data = sum.with_data.saturating_add(with_data);
            sum.data_bytes = sum.data_bytes.saturating_add(data_bytes);
            return;
        }
        self.stream.entries.push(entry);
    }

    /// The next header; none at the end.
    fn header(&mut self) -> Result<Option<[u8; HEADER_BYTES]>, String> {
        let mut bytes = [0; HEADER_BYTES];
        let found = self.some(&mut bytes)?;
        match found {
            0 => Ok(None),
            HEADER_BYTES => Ok(Some(bytes)),
            _ => Err(format!("it ends inside a frame's header, after {found} of {HEADER_BYTES} bytes")),
        }
    }

    /// The next bytes, or, when enough was kept, none of them.
    fn kept(&mut self, length: u32, name: &'static str) -> Result<Vec<u8>, String> {
        let length = length as usize;
        if self.kept_bytes.saturating_add(length) > KEPT_MAX_BYTES {
            self.pass(length as u64, name)?;
            return Ok(Vec::new());
        }
        let mut bytes = Vec::new();
        let read = self.source.by_ref().take(length as u64).read_to_end(&mut bytes).map_err(unreadable)?;
        self.stream.bytes += read as u64;
        if read < length {
            return Err(format!("it ends inside {name}, after {read} of {length} bytes"));
        }
        // Pages are counted and forgotten.
        if name != FrameType::Pages.info().name {
            self.kept_bytes += length;
        }
        Ok(bytes)
    }

    fn pass(&mut self, length: u64, what: &str) -> Result<(), String> {
        let passed = io::copy(&mut self.source.by_ref().take(length), &mut io::sink()).map_err(unreadable)?;
        self.stream.bytes += passed;
        if passed < length {
            return Err(format!("it ends inside {what}, after {passed} of {length} bytes"));
        }
        Ok(())
    }

    fn exact(&mut self, out: &mut [u8], what: &str) -> Result<(), String> {
        let found = self.some(out)?;
        let wanted = out.len();
        if found == wanted {
            Ok(())
        } else {
            Err(format!("it ends inside {what}, after {found} of {wanted}"))
        }
    }

    /// Fills `out` as far as there is something.
    fn some(&mut self, out: &mut [u8]) -> Result<usize, String> {
        let mut found = 0;
        while let Some(left) = out.get_mut(found..).filter(|left| !left.is_empty()) {
            match self.source.read(left) {
                Ok(0) => break,
                Ok(read) => found += read,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(unreadable(error)),
            }
        }
        self.stream.bytes += found as u64;
        Ok(found)
    }
}

fn unreadable(error: io::Error) -> String {
    format!("it can't be read on: {error}")
}

fn count(records: &[u8], data_bytes: u64) -> PageCount {
    let mut pages = PageCount { frames: 1, data_bytes, ..PageCount::default() };
    for record in records.as_chunks::<RECORD_BYTES>().0 {
        match PageRecord::get(record).map(|record| record.encoding) {
            Ok(Encoding::Zero) => pages.zero += 1,
            Ok(_) => pages.with_data += 1,
            Err(_) => {}
        }
    }
    pages
}

/// What a message's frame holds.
#[doc(hidden)]
#[derive(Debug, Clone, Copy)]
pub struct Message {
    /// Name of the frame.
    pub frame: &'static str,
    /// Name of its record.
    pub record: &'static str,
    /// Its description.
    pub fields: &'static [FieldInfo],
    /// Reads one and writes it again.
    pub rewrite: Rewrite,
}

/// All messages, in the order of their frames' numbers.
#[doc(hidden)]
pub fn messages() -> Vec<Message> {
    wire::FRAMES.iter().filter_map(|row| described(row.frame)).collect()
}

/// The record that a frame holds; none: no message.
fn described(frame: FrameType) -> Option<Message> {
    fn of<R: Record + Debug>(frame: FrameType) -> Option<Message> {
        let (record, fields) = (R::RECORD, R::fields());
        Some(Message { frame: frame.info().name, record, fields, rewrite: tern_schema::rewrite::<R> })
    }
    match frame {
        FrameType::Hello => of::<wire::Hello>(frame),
        FrameType::Offer => of::<wire::Offer>(frame),
        FrameType::Agreed => of::<wire::Agreed>(frame),
        FrameType::Refused => of::<wire::Refused>(frame),
        FrameType::RoundEnd => of::<wire::RoundEnd>(frame),
        FrameType::Sync => of::<wire::Sync>(frame),
        FrameType::Prepared => of::<wire::Prepared>(frame),
        FrameType::Commit => of::<wire::Commit>(frame),
        FrameType::Running => of::<wire::Running>(frame),
        FrameType::Failed => of::<wire::Failed>(frame),
        FrameType::Answer => of::<wire::Answer>(frame),
        FrameType::Echo => of::<wire::Echo>(frame),
        FrameType::Settled => of::<wire::Settled>(frame),
        FrameType::HaveAll => of::<wire::HaveAll>(frame),
        FrameType::Pages
        | FrameType::State
        | FrameType::Probe
        | FrameType::Missing
        | FrameType::PageIn
        | FrameType::Request
        | FrameType::Known => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use tern_schema::encode_record;

    fn frame(frame: FrameType, sequence: u32, head: &[u8], data_bytes: usize, out: &mut Vec<u8>) {
        let mut bytes = vec![0; HEADER_BYTES];
        bytes.extend_from_slice(head);
        let (length, head) = ((head.len() + data_bytes) as u32, head.len() as u32);
        Header { frame, flags: 0, epoch: 0, sequence, length, head, checksum: 0 }.seal(&mut bytes);
        out.extend(bytes);
        out.resize(out.len() + data_bytes, 7);
    }

    fn stream() -> Vec<u8> {
        let mut out = MAGIC.to_vec();
        let (session, tern_version) = ([1; 16], "1".to_owned());
        let hello = wire::Hello {
            protocol_min: 1,
            protocol_max: 1,
            tern_version,
            session,
            role: 1,
            index: 0,
            answer: None,
        };
        frame(FrameType::Hello, 0, &encode_record(&hello), 0, &mut out);
        for sequence in [1, 2] {
            let mut records = Vec::new();
            for (encoding, data_bytes) in [(Encoding::Zero, 0), (Encoding::Raw, 4096)] {
                PageRecord { region: 0, page: data_bytes.into(), encoding, data_bytes }.put(&mut records);
            }
            frame(FrameType::Pages, sequence, &records, 4096, &mut out);
        }
        frame(FrameType::State, 3, b"sections", 0, &mut out);
        out
    }

    #[test]
    fn a_whole_stream_is_told_frame_by_frame() {
        let bytes = stream();
        let found = survey(bytes.as_slice());
        assert!(found.damage.is_none() && found.bytes == bytes.len() as u64);
        let names: Vec<_> = found.entries.iter().map(|entry| entry.name).collect();
        assert_eq!(names, ["hello", "pages", "state"]);
        assert!(found.entries.iter().all(|entry| entry.problem.is_none()));
        let two = PageCount { frames: 2, zero: 2, with_data: 2, data_bytes: 8192 };
        assert!(matches!(found.entries[1].content, Content::Pages(pages) if pages == two));
    }

    #[test]
    fn damage_is_told_where_it_is() {
        let mut bytes = stream();
        let hello = MAGIC.len() + HEADER_BYTES;
        bytes[hello] ^= 1;
        assert!(survey(bytes.as_slice()).entries[0].problem.as_ref().unwrap().contains("checksum"));
        bytes[MAGIC.len()] = 99;
        let found = survey(bytes.as_slice());
        assert_eq!(found.damage.unwrap().0, MAGIC.len() as u64);
        assert!(survey(&b"GET / HTTP/1.1"[..]).damage.unwrap().1.contains("GET / HT"));
    }

    proptest! {
        #[test]
        fn a_cut_stream_is_told_as_far_as_it_goes(cut in 0usize..9000) {
            let bytes = stream();
            let cut = cut.min(bytes.len() - 1);
            let found = survey(&bytes[..cut]);
            prop_assert!(found.bytes <= cut as u64 && found.entries.len() <= 3);
        }

        #[test]
        fn any_bytes_can_be_surveyed(noise: Vec<u8>) {
            survey([&MAGIC, noise.as_slice()].concat().as_slice());
        }
    }
}
