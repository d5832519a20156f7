//! A destination that says what it is told to, each frame when it is due: what comes earlier ends a migration by
//! itself.

use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use tern_migration::channel::Connection;
use tern_migration::fake::FakeVm;
use tern_migration::source::{Outcome, migrate};
use tern_migration::{LiveParameters, Side};
use tern_schema::Reader;

use crate::fields;
use crate::recording::{control, options};
use crate::stream::{self, COMMIT, Frame, HEADER_BYTES, MAGIC, OFFER, STATE};

/// A peer that has claimed more than it sends is waited for so long.
const PATIENCE: Duration = Duration::from_millis(100);
/// Field of a hello: the number that the source has drawn.
const SESSION: u32 = 4;

/// A source whose destination answers with `frames` as they are, but for the session number, which any peer can
/// repeat. Did it hand its guest over? Panics unless the guest goes on here, or is given up and stands still.
///
/// # Errors
/// The host has no sockets or memory left.
pub fn answered(frames: Vec<Frame>) -> io::Result<bool> {
    let (near, far) = UnixStream::pair()?;
    let vm = FakeVm::booted(options()).map_err(io::Error::other)?;
    let control = control(Side::Source)?;
    let ended = std::thread::scope(|scope| {
        scope.spawn(move || answer(far, frames));
        migrate(
            vm,
            Connection::from_stream(near).with_timeout(PATIENCE),
            &LiveParameters::default(),
            &control,
        )
    });
    let runs = ended.vm.is_running();
    match ended.outcome {
        Outcome::Completed => assert!(!runs, "the guest runs on both sides"),
        Outcome::InDoubt(_) => assert!(!runs, "the guest runs on the source, which has given it up"),
        Outcome::Discarded => panic!("nobody has given it up"),
        Outcome::Saved { .. } => panic!("a connection was taken for a file"),
        Outcome::Failed(_) | Outcome::Cancelled => assert!(runs, "the guest does not go on after a failure"),
    }
    Ok(matches!(ended.outcome, Outcome::Completed))
}

/// Frames that are too many come at the end; then the connection does.
fn answer(mut far: UnixStream, mut frames: Vec<Frame>) -> Option<()> {
    let mut magic = [0; MAGIC.len()];
    far.read_exact(&mut magic).ok()?;
    let hello = hear(&mut far)?;
    if let Some(first) = frames.first_mut() {
        give_back(first, &hello);
    }
    far.write_all(&MAGIC).ok()?;
    let mut frames = frames.iter();
    far.write_all(&frames.next()?.bytes()).ok()?;
    loop {
        match hear(&mut far)?.kind {
            OFFER | STATE => far.write_all(&frames.next()?.bytes()).ok()?,
            COMMIT => break,
            _ => {}
        }
    }
    frames.try_for_each(|frame| far.write_all(&frame.bytes()).ok())
}

/// Puts the source's session number into an answer that has one; a checksum that was right stays right.
fn give_back(answer: &mut Frame, hello: &Frame) {
    let (mut reader, mut session) = (Reader::new(&hello.payload), &[][..]);
    while let Ok(Some(field)) = reader.field() {
        session = if field.number == SESSION { field.bytes } else { session };
    }
    let mut sealed = answer.clone();
    sealed.seal();
    let Some(mut record) = fields::parse(&answer.payload) else { return };
    fields::set_bytes(&mut record, SESSION, session);
    answer.payload = fields::write(&record);
    if sealed.crc32 == answer.crc32 {
        answer.seal();
    }
}

/// The next frame of a source, which is always whole.
fn hear(far: &mut UnixStream) -> Option<Frame> {
    let mut bytes = vec![0; MAGIC.len() + HEADER_BYTES];
    far.read_exact(bytes.get_mut(MAGIC.len()..)?).ok()?;
    let mut frame = stream::parse(&bytes).pop()?;
    frame.payload = vec![0; frame.length as usize];
    far.read_exact(&mut frame.payload).ok()?;
    Some(frame)
}
