//! Where a destination waits: whoever connects is looked at until it has said hello as a source, or is turned
//! away. A machine is given to an attempt only then, so that a port scan costs nothing; and all who have
//! connected are waited for at once, so that one who is silent keeps nobody waiting. Who only asks (`check.rs`) is
//! answered here as well, and costs no machine either.

use std::sync::Arc;
use std::time::Duration;

use crate::channel::stream::{Heard, Stream};
use crate::channel::{Acceptor, CONNECT_TIMEOUT, Connection, Route};
use crate::control::Control;
use crate::error::{LinkError, MigrationError, ProtocolError};
use crate::handover::{Answer, Register};
use crate::known::KnownPages;
use crate::stats::Side;
use crate::vm::DestinationVm;
use crate::wire::{FrameType, HEADER_BYTES, Header, MAGIC, Peer, Purpose, Wire, greet};

use super::check;

/// How long a peer may take for its hello: less than the source waits for the answer to it.
pub(super) const HELLO_TIMEOUT: Duration = Duration::from_secs(3);
/// Who is looked at at once; of more, the one that has waited longest goes.
const GUESTS_MAX: usize = 16;
/// A hello that has begun is looked at again after this.
const HELLO_PAUSE: Duration = Duration::from_millis(10);
/// Longest hello, with all in front of it.
const HELLO_BYTES_MAX: usize = MAGIC.len() + HEADER_BYTES + 4096;
/// Texts on strangers that are kept for the report; all are counted.
const TEXTS_KEPT: usize = 8;
const STATE: &str = "waiting for the peer to introduce itself";
const GATHERING: &str = "waiting for the further connections of the migration";

/// A source that has introduced itself.
pub(super) struct Met {
    pub(super) wire: Wire,
    pub(super) route: Route,
    pub(super) peer: Peer,
    pub(super) strangers: Strangers,
}

/// Who was turned away meanwhile.
#[derive(Debug, Default)]
pub(super) struct Strangers {
    pub(super) count: u64,
    pub(super) texts: Vec<String>,
}

/// Somebody who has connected.
struct Guest {
    connection: Connection,
    since_us: u64,
    /// It is looked at again soon, whatever its descriptor tells.
    began: bool,
}

/// Waits for a source, as long as it takes. The attempt's clock starts when it is heard.
pub(super) fn meet<V: DestinationVm>(
    vm: &V,
    acceptor: &dyn Acceptor,
    register: &Register,
    known: Option<&Arc<KnownPages>>,
    control: &Arc<Control>,
) -> Result<Met, MigrationError> {
    let mut lobby = Lobby::new(acceptor, control, None);
    loop {
        let Some(connection) = lobby.next(None)? else { continue };
        control.restart_clock();
        match meet_one(vm, connection, register, known, control) {
            Ok(Some((wire, route, peer))) => {
                return Ok(Met { wire, route, peer, strangers: lobby.strangers });
            }
            Ok(None) => {}
            Err(MigrationError::Cancelled) => return Err(MigrationError::Cancelled),
            Err(error) => lobby.strangers.add(&error, control),
        }
    }
}

/// The connections of a migration but the first.
#[derive(Default)]
pub(super) struct Gathered {
    /// In the order of their numbers.
    pub(super) channels: Vec<Wire>,
    /// For pages that somebody waits for, in post-copy.
    pub(super) urgent: Option<Wire>,
}

/// Waits for the further connections of the migration that `peer` has begun on `first`: so many channels with that one, and
/// one for urgent pages. Who else comes meanwhile is turned away.
pub(super) fn gather(
    acceptor: &dyn Acceptor,
    control: &Arc<Control>,
    first: &mut Wire,
    peer: &Peer,
    (channels, urgent): (u32, bool),
) -> Result<(Gathered, Strangers), MigrationError> {
    let mut lobby = Lobby::new(acceptor, control, None);
    // The one for urgent pages is the last.
    let count = channels.saturating_sub(1) as usize;
    let mut found: Vec<Option<Wire>> = (0..count + usize::from(urgent)).map(|_| None).collect();
    let began_us = control.now_us();
    while found.iter().any(Option::is_none) {
        // The source has nothing to say there before all are open, but that it gives up.
        if first.peer_spoke() {
            let header = first.receive(GATHERING)?;
            return Err(first.unexpected(&header, GATHERING, "nothing"));
        }
        if control.since_us(began_us) > CONNECT_TIMEOUT.as_micros() as u64 {
            let timeout_ms = CONNECT_TIMEOUT.as_millis() as u64;
            return Err(LinkError::Stalled { state: GATHERING, timeout_ms }.into());
        }
        let Some(connection) = lobby.next(Some(first))? else { continue };
        let mut wire = Wire::new(connection, Side::Destination, control);
        match take_in(&mut wire, peer, &found, count) {
            Ok(place) => {
                wire.belong_to(first);
                if let Some(place) = found.get_mut(place) {
                    *place = Some(wire);
                }
            }
            Err(MigrationError::Cancelled) => return Err(MigrationError::Cancelled),
            Err(error) => {
                wire.farewell(&error);
                lobby.strangers.add(&error, control);
            }
        }
    }
    let mut channels: Vec<Wire> = found.into_iter().flatten().collect();
    let urgent = if urgent { channels.pop() } else { None };
    Ok((Gathered { channels, urgent }, lobby.strangers))
}

/// The place of a further connection that has introduced itself as one of this migration, with so many channels.
fn take_in(
    wire: &mut Wire,
    first: &Peer,
    found: &[Option<Wire>],
    channels: usize,
) -> Result<usize, MigrationError> {
    let peer = greet(wire, &Register::default())?;
    let is_further = matches!(peer.purpose, Purpose::Channel | Purpose::Urgent);
    if !is_further || peer.session_id != first.session_id {
        let (found, expected) = (peer.session, first.session.clone());
        return Err(ProtocolError::Session { found, expected }.into());
    }
    let place = match peer.purpose {
        Purpose::Urgent => Some(channels),
        _ => (peer.index as usize).checked_sub(1).filter(|place| *place < channels),
    };
    let place = place.filter(|place| matches!(found.get(*place), Some(None)));
    let (frame, field, max) = ("hello", "index, each once,", found.len() as u64);
    place.ok_or_else(|| ProtocolError::Limit { frame, field, found: peer.index.into(), max }.into())
}

/// All who have connected and not introduced themselves yet.
pub(super) struct Lobby<'l> {
    acceptor: &'l dyn Acceptor,
    control: &'l Arc<Control>,
    /// How long to wait at once; none: as long as it takes.
    patience: Option<Duration>,
    guests: Vec<Guest>,
    strangers: Strangers,
}

impl<'l> Lobby<'l> {
    pub(super) fn new(
        acceptor: &'l dyn Acceptor,
        control: &'l Arc<Control>,
        patience: Option<Duration>,
    ) -> Self {
        Self { acceptor, control, patience, guests: Vec::new(), strangers: Strangers::default() }
    }

    /// Somebody whose hello is there, or something that will never be one. `first`: a connection on which something may be
    /// said meanwhile. None: look at what else has changed.
    pub(super) fn next(&mut self, first: Option<&Wire>) -> Result<Option<Connection>, MigrationError> {
        let Self { acceptor, control, guests, strangers, patience } = self;
        while let Some(connection) = accept(*acceptor, guests)? {
            if guests.len() >= GUESTS_MAX {
                strangers.add(&stalled(control, guests.remove(0).since_us), control);
            }
            guests.push(Guest { connection, since_us: control.now_us(), began: false });
        }
        let (mut place, before) = (0, guests.len());
        while let Some(guest) = guests.get_mut(place) {
            match guest.look(control) {
                Ok(false) => place += 1,
                Ok(true) => return Ok(Some(guests.remove(place).connection)),
                Err(error) => {
                    strangers.add(&error, control);
                    guests.remove(place);
                }
            }
        }
        // Who was turned away may have been the only one who could come.
        if guests.len() == before {
            wait(*acceptor, guests, (first, *patience), control)?;
        }
        Ok(None)
    }
}

/// Somebody new. That nobody will come any more is an error when those who have come are gone.
fn accept(acceptor: &dyn Acceptor, guests: &[Guest]) -> Result<Option<Connection>, MigrationError> {
    match acceptor.accept() {
        Err(MigrationError::Link(LinkError::UsedUp { .. })) if !guests.is_empty() => Ok(None),
        accepted => accepted,
    }
}

impl Strangers {
    fn add(&mut self, error: &MigrationError, control: &Control) {
        self.count += 1;
        let text = format!("a peer was turned away: {}", error.text());
        control.observer.turned_away(&text);
        if self.texts.len() >= TEXTS_KEPT {
            self.texts.remove(0);
        }
        self.texts.push(text);
    }
}

fn stalled(control: &Control, since_us: u64) -> MigrationError {
    LinkError::Stalled { state: STATE, timeout_ms: control.since_us(since_us) / 1000 }.into()
}

impl Guest {
    /// Is all of a hello there, or something that will never be one? Consumes nothing.
    fn look(&mut self, control: &Control) -> Result<bool, MigrationError> {
        let mut first = [0; HELLO_BYTES_MAX];
        let heard = self.connection.stream.peek(&mut first);
        let Heard { bytes, ended, unfinished } = heard.map_err(|error| LinkError::of(STATE, error))?;
        let first = first.get(..bytes).unwrap_or_default();
        if ended || is_whole(first)? {
            return Ok(true);
        }
        if control.since_us(self.since_us) >= HELLO_TIMEOUT.as_micros() as u64 {
            return Err(stalled(control, self.since_us));
        }
        self.began = unfinished;
        Ok(false)
    }
}

fn is_whole(first: &[u8]) -> Result<bool, ProtocolError> {
    let Some((magic, rest)) = first.split_first_chunk::<{ MAGIC.len() }>() else { return Ok(false) };
    if *magic != MAGIC {
        return Ok(true);
    }
    let Some((header, rest)) = rest.split_first_chunk::<HEADER_BYTES>() else { return Ok(false) };
    let header = Header::read(header)?;
    if header.frame != FrameType::Hello {
        let found = header.frame.info().name;
        return Err(ProtocolError::Unexpected { found, state: STATE, expected: "hello" });
    }
    Ok(rest.len() >= header.length as usize)
}

/// Reads what is there already and answers it. None: somebody only had a question, and has gone.
fn meet_one<V: DestinationVm>(
    vm: &V,
    connection: Connection,
    register: &Register,
    known: Option<&Arc<KnownPages>>,
    control: &Arc<Control>,
) -> Result<Option<(Wire, Route, Peer)>, MigrationError> {
    let route = connection.route.clone();
    let mut wire = Wire::new(connection, Side::Destination, control);
    let met = greet(&mut wire, register).and_then(|peer| match peer.purpose {
        Purpose::Migration => Ok(Some(peer)),
        // Its answer was in the hello.
        Purpose::Inquiry | Purpose::Recover => Ok(None),
        Purpose::Check => {
            let differing = check::answer(vm, known, &mut wire, &peer)?;
            control.observer.asked(&differing);
            Ok(None)
        }
        Purpose::Channel | Purpose::Urgent => Err(ProtocolError::NoSession { found: peer.session }.into()),
    });
    match met {
        Ok(peer) => Ok(peer.map(|peer| (wire, route, peer))),
        Err(error) => {
            wire.farewell(&error);
            Err(error)
        }
    }
}

/// Goes on answering sources in doubt at `acceptor` when the guest has come, until one has heard what became of
/// `session`, or it is cancelled. Everybody else is told that nobody is awaited here any more.
pub fn attend(
    acceptor: &dyn Acceptor,
    register: &Register,
    session: &str,
    control: &Arc<Control>,
) -> Result<(), MigrationError> {
    loop {
        let Some(connection) = acceptor.accept()? else {
            acceptor.wait(&[], control, None)?;
            continue;
        };
        let mut wire = Wire::new(connection.with_timeout(HELLO_TIMEOUT), Side::Destination, control);
        match greet(&mut wire, register) {
            Ok(peer) if peer.purpose == Purpose::Inquiry => {
                if peer.session == session && register.answer(session) == Answer::Running {
                    return Ok(());
                }
            }
            Ok(_) => wire.farewell(&MigrationError::NotWaiting),
            Err(MigrationError::Cancelled) => return Err(MigrationError::Cancelled),
            Err(error) => wire.farewell(&error),
        }
    }
}

/// Until somebody connects, speaks or has had its time, or it is cancelled.
fn wait(
    acceptor: &dyn Acceptor,
    guests: &[Guest],
    (first, patience): (Option<&Wire>, Option<Duration>),
    control: &Control,
) -> Result<(), MigrationError> {
    let silent = guests.iter().filter(|guest| !guest.began).map(|guest| &*guest.connection.stream);
    let streams: Vec<&dyn Stream> = silent.chain(first.map(Wire::stream)).collect();
    let left = guests
        .iter()
        .map(|guest| HELLO_TIMEOUT.saturating_sub(Duration::from_micros(control.since_us(guest.since_us))))
        .min();
    let pause = guests.iter().any(|guest| guest.began).then_some(HELLO_PAUSE);
    let patience = patience.or(first.map(|_| CONNECT_TIMEOUT));
    acceptor.wait(&streams, control, left.into_iter().chain(pause).chain(patience).min())
}
