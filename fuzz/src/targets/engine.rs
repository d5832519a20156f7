//! What a peer sends: frames, messages and pages, into the whole engine with a machine in memory behind it.
//!
//! Lengths, numbers and checksums are made right before an input is sent, or nothing would get behind them;
//! target `frame` and the mutations of `tests/hostile_engine.rs` leave them wrong.

use std::io::{Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::sync::{Arc, OnceLock};

use tern_migration::channel::{Acceptor, Security, Uri, listen};
use tern_migration::destination::receive_from;
use tern_migration::fake::FakeVm;
use tern_migration::known::KnownPages;
use tern_migration::{Side, fuzzing};

use super::{Target, Verdict};
use crate::recording::{Recording, WAYS, control, options, record, record_way, said, take};
use crate::stream::{self, Frame, HELLO, OFFER, PAGES, ROUND_END};
use crate::{fields, peer};

/// Buffers of a connection, and what a report holds.
const ENGINE: (usize, usize) = (8 << 20, 64);

pub(super) fn targets() -> Vec<Target> {
    vec![
        Target::new(
            "frame",
            "a header and its payload, checksum included",
            (4096, 4),
            |bytes| Verdict::accepted(fuzzing::frame(bytes)),
            || recorded_frames().iter().filter(|f| f.payload.len() < 2000).map(Frame::bytes).collect(),
        ),
        Target::new(
            "message",
            "a byte that says which message, and its record",
            (4096, 64),
            |bytes| Verdict::accepted(fuzzing::message(bytes)),
            message_seeds,
        ),
        Target::new(
            "lobby",
            "the first bytes of a connection to a listening destination: magic and hello",
            ENGINE,
            lobby,
            || vec![stream::write(&recorded_frames()[..1])],
        ),
        Target::new("offer", "the record in an offer frame", ENGINE, offer, || payloads(OFFER)),
        Target::new(
            "pages",
            "a byte, the number of records, and a batch's records and data",
            ENGINE,
            pages,
            pages_seeds,
        ),
        Target::new(
            "source-stream",
            "all that a source sends, to a destination",
            ENGINE,
            source_stream,
            || recorded_ways(false),
        ),
        Target::new(
            "source-stream-known",
            "all that a source sends, to a destination that has pages of its guest in a file",
            ENGINE,
            source_stream_known,
            || recorded_ways(true),
        ),
        Target::new(
            "destination-stream",
            "all that a destination sends, to a source",
            ENGINE,
            destination_stream,
            || recording().map(|r| r.to_source.clone()).into_iter().collect(),
        ),
    ]
}

fn recording() -> Option<&'static Recording> {
    static RECORDING: OnceLock<Option<Recording>> = OnceLock::new();
    RECORDING.get_or_init(|| record(&options()).ok().flatten()).as_ref()
}

/// What sources say in each of the ways.
fn recorded_ways(known: bool) -> Vec<Vec<u8>> {
    let ways = WAYS.into_iter().filter(|way| way.known == known);
    ways.filter_map(|way| Some(record_way(way).ok()??.0.to_destination)).collect()
}

/// The guest of the recordings as it sets out, which writes the same each time.
fn visited() -> Option<&'static Arc<KnownPages>> {
    static KNOWN: OnceLock<Option<Arc<KnownPages>>> = OnceLock::new();
    KNOWN.get_or_init(|| Some(FakeVm::booted(options()).ok()?.visited().0)).as_ref()
}

fn recorded_frames() -> Vec<Frame> {
    recording().map(|recording| stream::parse(&recording.to_destination)).unwrap_or_default()
}

fn payloads(kind: u8) -> Vec<Vec<u8>> {
    recorded_frames().into_iter().filter(|frame| frame.kind == kind).map(|frame| frame.payload).collect()
}

/// The messages of both sides, each behind its number in `fuzzing::message`.
fn message_seeds() -> Vec<Vec<u8>> {
    const ORDER: [u8; 9] = [1, 2, 3, 4, 6, 8, 9, 10, 11];
    let back = recording().map(|recording| stream::parse(&recording.to_source)).unwrap_or_default();
    let numbered = |frame: Frame| {
        let place = ORDER.iter().position(|kind| *kind == frame.kind)?;
        Some([vec![place as u8], frame.payload].concat())
    };
    recorded_frames().into_iter().chain(back).filter_map(numbered).collect()
}

fn pages_seeds() -> Vec<Vec<u8>> {
    let batches = recorded_frames().into_iter().filter(|frame| frame.kind == PAGES);
    let mut seeds: Vec<_> =
        batches.map(|frame| [vec![(frame.covered / 16) as u8], frame.payload].concat()).collect();
    // Two zero pages.
    let zero = |region: u16, page: u64| [&page.to_le_bytes()[..], &region.to_le_bytes(), &[0; 6]].concat();
    seeds.push([vec![2], zero(0, 1), zero(1, 3)].concat());
    seeds
}

/// A destination that hears these frames: did the guest arrive? What it answered is in `answers`.
fn destination(frames: &mut [Frame], answers: &mut Vec<u8>) -> Verdict {
    destination_with(frames, None, answers)
}

fn destination_with(frames: &mut [Frame], known: Option<&Arc<KnownPages>>, answers: &mut Vec<u8>) -> Verdict {
    stream::seal(frames);
    let (Some((connection, mut peer)), Ok(vm), Ok(control)) =
        (said(&stream::write(frames)).ok(), FakeVm::new(options()), control(Side::Destination))
    else {
        return Verdict::Refused;
    };
    let Ok(ended) = take(vm, connection, known, &control) else { return Verdict::Refused };
    let verdict = match ended {
        Ok(received) => {
            assert_eq!(received.running, received.vm.is_running());
            Verdict::Accepted
        }
        Err(failed) => {
            assert!(!failed.vm.is_running(), "the guest runs after a failure: {}", failed.error.text());
            Verdict::Refused
        }
    };
    let _ = peer.read_to_end(answers);
    verdict
}

/// A stranger's words, and then a source who introduces itself: that one is always met.
fn lobby(bytes: &[u8]) -> Verdict {
    static LISTENER: OnceLock<Option<(Arc<dyn Acceptor>, String)>> = OnceLock::new();
    let listener = LISTENER.get_or_init(|| {
        let path = std::env::temp_dir().join(format!("tern-fuzz-{}.sock", std::process::id()));
        let uri = Uri::Unix { path: path.clone() };
        Some((listen(&uri, &Security::default()).ok()?, path.display().to_string()))
    });
    let Some((listener, path)) = listener else { return Verdict::Refused };
    let hello: Vec<Frame> = recorded_frames().into_iter().filter(|frame| frame.kind == HELLO).collect();
    let mut guests = Vec::new();
    for words in [bytes, &stream::write(&hello)] {
        let Ok(mut guest) = UnixStream::connect(path) else { return Verdict::Refused };
        // A guest that is answered and gone already can't be written to.
        let _ = guest.write_all(words);
        let _ = guest.shutdown(Shutdown::Write);
        guests.push(guest);
    }
    let (Ok(vm), Ok(control)) = (FakeVm::new(options()), control(Side::Destination)) else {
        return Verdict::Refused;
    };
    let ended = receive_from(vm, listener, &control);
    assert!(ended.is_err_and(|failed| !failed.vm.is_running()), "a guest arrived without having been sent");
    let strangers = control.report().strangers;
    assert!(strangers <= 1, "{strangers} strangers");
    Verdict::accepted(strangers == 0)
}

fn offer(bytes: &[u8]) -> Verdict {
    let mut frames = recorded_frames();
    frames.truncate(1);
    frames.push(Frame::new(OFFER, bytes.to_vec()));
    let mut answers = Vec::new();
    let arrived = destination(&mut frames, &mut answers);
    assert_eq!(arrived, Verdict::Refused, "a guest arrived without memory and state");
    // The second answer is "agreed" or "refused".
    const AGREED: u8 = 3;
    Verdict::accepted(stream::parse(&answers).get(1).is_some_and(|frame| frame.kind == AGREED))
}

/// One batch in place of all memory. The fake's state has a checksum of it, so only the right memory is taken;
/// whether the batch was is seen from what the destination complains of.
fn pages(bytes: &[u8]) -> Verdict {
    let Some((records, payload)) = bytes.split_first() else { return Verdict::Refused };
    let mut frames = recorded_frames();
    frames.truncate(2);
    let mut batch = Frame::new(PAGES, payload.to_vec());
    batch.covered = (u32::from(*records) * 16).min(batch.length);
    frames.push(batch);
    // The number of pages is the first thing that is wrong behind a good batch.
    let mut end = recorded_frames().into_iter().find(|frame| frame.kind == ROUND_END);
    if let Some(end) = &mut end {
        let mut told = fields::parse(&end.payload).unwrap_or_default();
        fields::set_integer(&mut told, 1, u64::MAX);
        end.payload = fields::write(&told);
        end.measure();
    }
    frames.extend(end);
    let mut answers = Vec::new();
    assert_eq!(destination(&mut frames, &mut answers), Verdict::Refused, "a guest arrived without state");
    let said = stream::parse(&answers).pop().map(|frame| frame.payload).unwrap_or_default();
    Verdict::accepted(String::from_utf8_lossy(&said).contains("number of pages"))
}

fn source_stream(bytes: &[u8]) -> Verdict {
    let mut frames = stream::parse(bytes);
    frames.iter_mut().for_each(Frame::measure);
    destination(&mut frames, &mut Vec::new())
}

fn source_stream_known(bytes: &[u8]) -> Verdict {
    let mut frames = stream::parse(bytes);
    frames.iter_mut().for_each(Frame::measure);
    destination_with(&mut frames, visited(), &mut Vec::new())
}

fn destination_stream(bytes: &[u8]) -> Verdict {
    let mut frames = stream::parse(bytes);
    frames.iter_mut().for_each(Frame::measure);
    stream::seal_answers(&mut frames);
    Verdict::accepted(peer::answered(frames).is_ok_and(|arrived| arrived))
}
