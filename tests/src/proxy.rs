//! A link between source and destination that does one bad thing at one place of the stream, so that each phase of
//! a migration can be hit without a race.
//!
//! ```text
//! source --uri()--> proxy --target--> destination        one fault, once, in one direction
//! ```
//!
//! It knows of the protocol only what PROTOCOL.md says of every frame: eight bytes of introduction each way, then
//! headers of 24 bytes with the type in the first byte and the length of the rest at byte 12.

mod link;

use std::io::{self, Read, Write};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::Duration;

use crate::limit::{limit, wait_for};
use link::{Link, Listener};

/// Bytes of the introduction.
const MAGIC_BYTES: usize = 8;
/// Bytes of a frame's header.
const HEADER_BYTES: usize = 24;

/// Which way bytes go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Direction {
    /// From the source to the destination.
    ToDestination,
    /// From the destination to the source.
    ToSource,
}

/// A type of frame, by its number on the wire.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Frame {
    /// Who is there; both ways.
    Hello = 1,
    /// Source: the machine.
    Offer = 2,
    /// Destination: it fits.
    Agreed = 3,
    /// Source: memory.
    Pages = 5,
    /// Source: a round has ended.
    RoundEnd = 6,
    /// Source: all but memory.
    State = 7,
    /// Destination: everything is loaded.
    Prepared = 8,
    /// Source: the guest is yours.
    Commit = 9,
    /// Destination: it runs.
    Running = 10,
}

/// Where in the stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Place {
    /// Before byte number n, counted from 0.
    Byte(u64),
    /// Before the first frame of this type.
    Before(Frame),
    /// Behind the first frame's header and before what it holds.
    Inside(Frame),
}

/// What happens there, once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// Nothing passes in this direction until [`Proxy::release`].
    Hold,
    /// Both connections are closed.
    Cut,
    /// The receiving side sees the end of the stream; the other direction stays.
    Truncate,
    /// One bit of the next byte is wrong.
    Garble,
    /// From here on each piece comes this much later.
    Delay(Duration),
}

/// A proxy; dropping it cuts what passes through it, and who connects later is turned away.
#[derive(Debug)]
pub struct Proxy {
    uri: String,
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    fault: Option<(Direction, Place, Fault)>,
    happened: AtomicBool,
    /// Nobody gets through any more.
    closed: AtomicBool,
    held: Mutex<bool>,
    released: Condvar,
    links: Mutex<Vec<Link>>,
    bytes: [AtomicU64; 2],
    /// What has gone to the destination, if somebody wants it.
    record: Option<Mutex<Vec<u8>>>,
}

impl Proxy {
    /// A link to `target` (`tcp:..` or `unix:..`) without a fault.
    pub fn new(target: &str) -> Self {
        Self::start(target, None, false)
    }

    /// A link to `target` without a fault, that keeps what goes to the destination.
    pub fn recording(target: &str) -> Self {
        Self::start(target, None, true)
    }

    /// A link to `target` with a fault. It happens on the first connection that gets there.
    pub fn with(target: &str, direction: Direction, place: Place, fault: Fault) -> Self {
        Self::start(target, Some((direction, place, fault)), false)
    }

    fn start(target: &str, fault: Option<(Direction, Place, Fault)>, record: bool) -> Self {
        let listener = Listener::like(target).unwrap_or_else(|error| panic!("proxy: {error}"));
        let uri = listener.uri();
        let shared = Arc::new(Shared {
            fault,
            happened: AtomicBool::new(false),
            closed: AtomicBool::new(false),
            held: Mutex::new(true),
            released: Condvar::new(),
            links: Mutex::new(Vec::new()),
            bytes: [AtomicU64::new(0), AtomicU64::new(0)],
            record: record.then(Mutex::default),
        });
        let (for_thread, target) = (Arc::clone(&shared), target.to_owned());
        std::thread::spawn(move || {
            while let Ok(source) = listener.accept() {
                if for_thread.closed.load(Ordering::SeqCst) {
                    continue;
                }
                // A target that is gone: the source sees a connection that closes.
                let Ok(destination) = Link::connect(&target) else { continue };
                for_thread.join(source, destination);
            }
        });
        Self { uri, shared }
    }

    /// Where the source is to connect to.
    pub fn uri(&self) -> String {
        self.uri.clone()
    }

    /// Waits until the fault has happened.
    pub fn wait_fault(&self) {
        wait_for(&format!("the fault {:?}", self.shared.fault), || {
            self.shared.happened.load(Ordering::Acquire).then_some(())
        });
    }

    /// Lets pass what is held.
    pub fn release(&self) {
        *self.shared.held.lock().unwrap_or_else(PoisonError::into_inner) = false;
        self.shared.released.notify_all();
    }

    /// Closes all connections.
    pub fn cut(&self) {
        self.shared.cut();
        self.release();
    }

    /// What has gone to the destination so far; empty unless it is [`Self::recording`].
    pub fn recorded(&self) -> Vec<u8> {
        let record = self.shared.record.as_ref();
        record.map(|bytes| bytes.lock().unwrap_or_else(PoisonError::into_inner).clone()).unwrap_or_default()
    }

    /// Bytes that have passed.
    pub fn bytes(&self, direction: Direction) -> u64 {
        self.shared.bytes[direction as usize].load(Ordering::Relaxed)
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.shared.closed.store(true, Ordering::SeqCst);
        self.cut();
    }
}

impl Shared {
    fn join(self: &Arc<Self>, source: Link, destination: Link) {
        let clones =
            (source.try_clone(), destination.try_clone(), source.try_clone(), destination.try_clone());
        let (Ok(from), Ok(to), Ok(kept_source), Ok(kept_destination)) = clones else { return };
        self.links.lock().unwrap_or_else(PoisonError::into_inner).extend([kept_source, kept_destination]);
        let pairs = [(Direction::ToDestination, from, destination), (Direction::ToSource, to, source)];
        for (direction, from, to) in pairs {
            let shared = Arc::clone(self);
            std::thread::spawn(move || {
                // However the stream ends, the receiving side sees it end.
                let _ = Pipe { shared, direction, to: &to, passed: 0, garble: false, delay: None }.run(&from);
                to.end_writing();
            });
        }
    }

    fn cut(&self) {
        self.links.lock().unwrap_or_else(PoisonError::into_inner).drain(..).for_each(|link| link.close());
    }
}

/// One direction of one connection.
struct Pipe<'a> {
    shared: Arc<Shared>,
    direction: Direction,
    to: &'a Link,
    passed: u64,
    garble: bool,
    delay: Option<Duration>,
}

impl Pipe<'_> {
    fn run(mut self, mut from: &Link) -> io::Result<()> {
        let mut magic = [0; MAGIC_BYTES];
        from.read_exact(&mut magic)?;
        self.pass(&mut magic)?;
        let mut header = [0; HEADER_BYTES];
        let mut piece = vec![0; 64 << 10];
        loop {
            from.read_exact(&mut header)?;
            let [kind, _, _, _, _, _, _, _, _, _, _, _, l0, l1, l2, l3, ..] = header;
            self.at(|place| matches!(place, Place::Before(frame) if frame as u8 == kind))?;
            self.pass(&mut header)?;
            self.at(|place| matches!(place, Place::Inside(frame) if frame as u8 == kind))?;
            let mut left = u32::from_le_bytes([l0, l1, l2, l3]) as usize;
            while left > 0 {
                let room = left.min(piece.len());
                let read = from.read(&mut piece[..room])?;
                if read == 0 {
                    return Ok(());
                }
                self.pass(&mut piece[..read])?;
                left -= read;
            }
        }
    }

    /// Passes bytes on, with the fault if its byte is among them.
    fn pass(&mut self, mut bytes: &mut [u8]) -> io::Result<()> {
        if let Some((direction, Place::Byte(number), _)) = self.shared.fault
            && direction == self.direction
            && let Some(ahead) = number.checked_sub(self.passed)
            && (ahead as usize) < bytes.len()
            && !self.shared.happened.load(Ordering::Acquire)
        {
            let (before, behind) = bytes.split_at_mut(ahead as usize);
            self.send(before)?;
            self.at(|_| true)?;
            bytes = behind;
        }
        self.send(bytes)
    }

    fn send(&mut self, bytes: &mut [u8]) -> io::Result<()> {
        if let (true, Some(first)) = (self.garble, bytes.first_mut()) {
            *first ^= 0x20;
            self.garble = false;
        }
        if let Some(delay) = self.delay {
            std::thread::sleep(delay);
        }
        let mut to = self.to;
        to.write_all(bytes)?;
        if let (Some(record), Direction::ToDestination) = (&self.shared.record, self.direction) {
            record.lock().unwrap_or_else(PoisonError::into_inner).extend_from_slice(bytes);
        }
        self.passed += bytes.len() as u64;
        self.shared.bytes[self.direction as usize].fetch_add(bytes.len() as u64, Ordering::Relaxed);
        Ok(())
    }

    /// The fault, if this is its place. An error ends this direction.
    fn at(&mut self, is_here: impl Fn(Place) -> bool) -> io::Result<()> {
        let Some((direction, place, fault)) = self.shared.fault else { return Ok(()) };
        let mine = direction == self.direction && is_here(place);
        if !mine || self.shared.happened.swap(true, Ordering::AcqRel) {
            return Ok(());
        }
        match fault {
            Fault::Hold => self.wait_release(),
            Fault::Cut => self.shared.cut(),
            Fault::Truncate => return Err(io::ErrorKind::UnexpectedEof.into()),
            Fault::Garble => self.garble = true,
            Fault::Delay(delay) => self.delay = Some(delay),
        }
        Ok(())
    }

    fn wait_release(&self) {
        let held = self.shared.held.lock().unwrap_or_else(PoisonError::into_inner);
        // A holder that never releases has failed already; this thread only must not stay for ever.
        let _ = self.shared.released.wait_timeout_while(held, limit(), |held| *held);
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::{UnixListener, UnixStream};

    use super::*;

    /// What a destination receives of `magic, one frame of type 5 with 4 bytes`, with this fault.
    fn received(place: Place, fault: Fault) -> Vec<u8> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("d");
        let listener = UnixListener::bind(&path).unwrap();
        let uri = format!("unix:{}", path.display());
        let proxy = Proxy::with(&uri, Direction::ToDestination, place, fault);
        let mut source = UnixStream::connect(proxy.uri().strip_prefix("unix:").unwrap()).unwrap();
        let mut header = [0; HEADER_BYTES];
        (header[0], header[12]) = (5, 4);
        let sent = [&b"TERN-MIG"[..], &header, b"data"].concat();
        // A link that was cut may refuse the rest.
        let _ = source.write_all(&sent);
        let _ = source.shutdown(std::net::Shutdown::Write);
        let (mut destination, _) = listener.accept().unwrap();
        let mut found = Vec::new();
        let _ = destination.read_to_end(&mut found);
        proxy.wait_fault();
        found
    }

    #[test]
    fn faults_happen_at_their_place() {
        assert_eq!(received(Place::Byte(3), Fault::Truncate), b"TER");
        assert_eq!(received(Place::Before(Frame::Pages), Fault::Truncate), b"TERN-MIG");
        assert_eq!(received(Place::Inside(Frame::Pages), Fault::Truncate).len(), MAGIC_BYTES + HEADER_BYTES);
        assert!(received(Place::Before(Frame::Pages), Fault::Cut).len() <= MAGIC_BYTES);
        let garbled = received(Place::Inside(Frame::Pages), Fault::Garble);
        assert_eq!(garbled[MAGIC_BYTES + HEADER_BYTES..], *b"Data");
        let delayed = received(Place::Byte(0), Fault::Delay(Duration::from_millis(1)));
        assert_eq!(delayed.len(), MAGIC_BYTES + HEADER_BYTES + 4);
    }
}
