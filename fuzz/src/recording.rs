//! A valid migration of a small guest, with what each side said: the stream that mutations begin from, always in
//! the protocol of this build.

use std::fs;
use std::io::{self, Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread::{self, JoinHandle};

use tern_migration::channel::{Acceptor, Connection, Ready, Uri};
use tern_migration::destination::{ReceiveError, Received, receive, receive_with};
use tern_migration::fake::{FakeVm, Options};
use tern_migration::known::KnownPages;
use tern_migration::source::{Outcome, migrate, migrate_to};
use tern_migration::{
    Control, DestinationVm, LiveParameters, Observer, Parameters, Side, SourceVm, Status, Unobserved,
};

use crate::sparse::Sparse;

/// What was said, and whose guest it was.
#[derive(Debug)]
pub struct Recording<V = FakeVm> {
    /// All bytes that the source sent.
    pub to_destination: Vec<u8>,
    /// All bytes that the destination sent.
    pub to_source: Vec<u8>,
    /// The source as it was when it had given the guest up.
    pub source: V,
}

/// The machine of the recordings: few pages, some of them never touched.
pub fn options() -> Options {
    Options {
        region_pages: vec![2, 4],
        writes_per_call: 0,
        touched_every: 2,
        working_set_pages: 2,
        ..Options::default()
    }
}

/// How a recorded guest is sent.
#[derive(Debug, Clone, Copy)]
pub struct Way {
    /// The method of compression.
    pub compress: &'static str,
    /// Changes of pages that came before.
    pub xbzrle: bool,
    /// The destination has the guest as it was when it set out.
    pub known: bool,
}

/// Every encoding, alone and beside others.
pub const WAYS: [Way; 5] = [
    Way { compress: "none", xbzrle: false, known: false },
    Way { compress: "lz4", xbzrle: true, known: false },
    Way { compress: "zstd", xbzrle: false, known: false },
    Way { compress: "zlib", xbzrle: true, known: true },
    Way { compress: "none", xbzrle: false, known: true },
];

/// Lets the guest be stopped in the third round, so that pages come again.
struct Rounds(LiveParameters);

impl Observer for Rounds {
    fn status(&self, _: Status) {}

    fn pass(&self, pass: u32) {
        let limit_ms = if pass < 3 { 0 } else { 10_000 };
        let changes = serde_json::json!({ "downtime-limit": limit_ms });
        // A parameter of the table, within its range.
        let _ = changes.as_object().map(|changes| self.0.merge(changes));
    }
}

/// A guest that writes a little while it moves, recorded on its way; and what a destination must know to hear it again.
///
/// # Errors
/// The host has no sockets or memory left.
pub fn record_way(way: Way) -> io::Result<Option<(Recording, Option<Arc<KnownPages>>)>> {
    let options = Options { writes_per_call: u32::from(way.xbzrle) * 2, ..options() };
    let (Ok(source), Ok(destination)) = (FakeVm::booted(options.clone()), FakeVm::new(options)) else {
        return Ok(None);
    };
    let known = way.known.then(|| source.visited().0);
    let capabilities = serde_json::json!([{ "capability": "xbzrle", "state": way.xbzrle }]);
    let changes = serde_json::json!({ "compress": way.compress, "capabilities": capabilities });
    let merged = changes.as_object().map(|changes| Parameters::default().merged(changes));
    let Some(Ok(parameters)) = merged else { return Ok(None) };
    let live = LiveParameters::new(parameters);
    let near = Control::new(Side::Source, Box::new(Rounds(live.clone())))?;
    let recorded = record_moving(source, destination, &live, known.as_ref(), &near)?;
    Ok(recorded.map(|recording| (recording, known)))
}

/// A destination of this one connection.
///
/// # Errors
/// The host has no sockets left.
pub fn take<V: DestinationVm>(
    vm: V,
    connection: Connection,
    known: Option<&Arc<KnownPages>>,
    control: &Arc<Control>,
) -> io::Result<Result<Received<V>, Box<ReceiveError<V>>>> {
    if known.is_none() {
        return Ok(receive(vm, connection, control));
    }
    let acceptor: Arc<dyn Acceptor> = Arc::new(Ready::only(connection, "it is a recorded one")?);
    Ok(receive_with(vm, &acceptor, &LiveParameters::default(), &Arc::default(), known, control))
}

/// A control whose migration nobody watches.
pub fn control(side: Side) -> io::Result<Arc<Control>> {
    Control::new(side, Box::new(Unobserved))
}

/// Migrates a guest of few pages and listens in. `None`: it did not arrive.
pub fn record(options: &Options) -> io::Result<Option<Recording>> {
    let (Ok(source), Ok(destination)) = (FakeVm::booted(options.clone()), FakeVm::new(options.clone()))
    else {
        return Ok(None);
    };
    record_between(source, destination)
}

/// Migrates the guest of `source` to `destination` and listens in. `None`: it did not arrive.
pub fn record_between<S: SourceVm, D: DestinationVm>(
    source: S,
    destination: D,
) -> io::Result<Option<Recording<S>>> {
    record_moving(source, destination, &LiveParameters::default(), None, &control(Side::Source)?)
}

fn record_moving<S: SourceVm, D: DestinationVm>(
    source: S,
    destination: D,
    live: &LiveParameters,
    known: Option<&Arc<KnownPages>>,
    near_control: &Arc<Control>,
) -> io::Result<Option<Recording<S>>> {
    let (near, near_inner) = UnixStream::pair()?;
    let (far, far_inner) = UnixStream::pair()?;
    let there = listen_in(near_inner.try_clone()?, far_inner.try_clone()?);
    let back = listen_in(far_inner, near_inner);
    let far_control = control(Side::Destination)?;
    let (source, arrived) = thread::scope(|scope| {
        let far = Connection::from_stream(far);
        let receiving =
            scope.spawn(|| take(destination, far, known, &far_control).is_ok_and(|end| end.is_ok()));
        let source = migrate(source, Connection::from_stream(near), live, near_control);
        (source, receiving.join().unwrap_or(false))
    });
    let said = |listener: JoinHandle<Vec<u8>>| listener.join().unwrap_or_default();
    let (to_destination, to_source) = (said(there), said(back));
    let completed = arrived && matches!(source.outcome, Outcome::Completed);
    Ok(completed.then_some(Recording { to_destination, to_source, source: source.vm }))
}

/// Saves such a guest to a file: the file, and the guest as it was. `None`: it was not saved.
///
/// # Errors
/// There is no room for a temporary file.
pub fn save(options: &Options, compress: &'static str) -> io::Result<Option<(Sparse, FakeVm)>> {
    // A name that no other thread of no other process has.
    static NUMBER: AtomicU32 = AtomicU32::new(0);
    let number = NUMBER.fetch_add(1, Ordering::SeqCst);
    let path = std::env::temp_dir().join(format!("tern-fuzz-{}-{number}.snapshot", std::process::id()));
    let Ok(vm) = FakeVm::booted(options.clone()) else { return Ok(None) };
    let live = LiveParameters::new(Parameters { compress, ..Parameters::default() });
    let uri = Uri::File { path: path.clone() };
    let ended = migrate_to(vm, &uri, &live, &control(Side::Source)?);
    let bytes = fs::read(&path);
    let _ = fs::remove_file(&path);
    let saved = matches!(ended.outcome, Outcome::Saved { .. });
    Ok(if saved { Some((Sparse::of(&bytes?), ended.vm)) } else { None })
}

/// Passes on and keeps what comes, until either end is closed.
fn listen_in(mut from: UnixStream, mut to: UnixStream) -> JoinHandle<Vec<u8>> {
    thread::spawn(move || {
        let (mut kept, mut piece) = (Vec::new(), [0; 4096]);
        while let Ok(count @ 1..) = from.read(&mut piece) {
            let part = piece.get(..count).unwrap_or_default();
            kept.extend_from_slice(part);
            if to.write_all(part).is_err() {
                break;
            }
        }
        // The end of one side is the end for the other.
        let _ = to.shutdown(Shutdown::Write);
        kept
    })
}

/// A connection over which a peer has said `bytes` and ended, and the peer's end. What a socket doesn't hold is cut
/// off, as by a broken link.
pub fn said(bytes: &[u8]) -> io::Result<(Connection, UnixStream)> {
    let (mut peer, here) = UnixStream::pair()?;
    peer.set_nonblocking(true)?;
    match peer.write_all(bytes) {
        Err(error) if error.kind() != io::ErrorKind::WouldBlock => return Err(error),
        _ => peer.shutdown(Shutdown::Write)?,
    }
    Ok((Connection::from_stream(here), peer))
}

/// A connection over which a peer says all of `bytes`, however many, as they are taken, and ends; and the peer.
///
/// # Errors
/// The host has no sockets left.
pub fn told(bytes: Vec<u8>) -> io::Result<(Connection, JoinHandle<()>)> {
    let (mut peer, here) = UnixStream::pair()?;
    let speaker = thread::spawn(move || {
        // Who is refused is not heard to the end.
        let _ = peer.write_all(&bytes);
        let _ = peer.shutdown(Shutdown::Write);
        // What the other side answers is taken until it ends.
        let _ = io::copy(&mut peer, &mut io::sink());
    });
    Ok((Connection::from_stream(here), speaker))
}
