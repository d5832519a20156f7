//! The engine's connections, listeners and ways to connect, on the simulated network.

use std::io::{self, ErrorKind};
use std::os::fd::BorrowedFd;
use std::rc::Rc;
use std::time::Duration;

use super::net::End;
use super::turn;
use super::world::World;
use crate::cancel::Cancel;
use crate::channel::span::{InSpan, OutSpan};
use crate::channel::stream::{Heard, Stream};
use crate::channel::{Acceptor, CONNECT_TIMEOUT, Connection, Connector, Direction, Route, Woken};
use crate::control::Control;
use crate::error::{LinkError, MigrationError};
use crate::stats::Side;

const URI: &str = "sim:";

fn world() -> io::Result<Rc<World>> {
    turn::world().ok_or_else(|| ErrorKind::NotConnected.into())
}

/// One end of a simulated connection.
#[derive(Debug)]
struct SimStream {
    end: End,
}

impl SimStream {
    fn connection(end: End) -> Connection {
        Connection::new(Self { end }, Route { transport: "sim", ..Route::default() })
    }

    /// A dead process reaches nobody.
    fn alive(&self) -> io::Result<Rc<World>> {
        let world = world()?;
        if world.is_dead(self.end.side) { Err(ErrorKind::ConnectionReset.into()) } else { Ok(world) }
    }
}

impl Stream for SimStream {
    fn send(&mut self, spans: &[OutSpan<'_>], _: bool) -> io::Result<usize> {
        let world = self.alive()?;
        let most = world.random(|random| world.net.borrow().piece_bytes(self.end, random));
        let mut bytes = Vec::new();
        for span in spans {
            span.append_to(&mut bytes, most);
        }
        let now_us = world.now_us();
        let sent = world.random(|random| world.net.borrow_mut().send(self.end, &bytes, now_us, random));
        if let Ok(count) = sent {
            world.note("sends", [self.end.connection as u64, count as u64]);
            world.progress();
        }
        sent
    }

    fn receive(&mut self, spans: &[InSpan<'_>]) -> io::Result<usize> {
        let world = self.alive()?;
        let most: usize = spans.iter().map(InSpan::len).sum();
        let most = if world.chance(30) {
            world.random(|random| random.spread(most as u64)).max(1) as usize
        } else {
            most
        };
        let mut bytes = Vec::new();
        world.net.borrow_mut().receive(self.end, most, world.now_us(), &mut bytes)?;
        world.note("receives", [self.end.connection as u64, bytes.len() as u64]);
        world.progress();
        let mut rest = bytes.as_slice();
        for span in spans {
            rest = rest.get(span.fill(0, rest)..).unwrap_or_default();
        }
        Ok(bytes.len())
    }

    fn wait(
        &mut self,
        direction: Direction,
        cancel: Option<&Cancel>,
        timeout: Duration,
    ) -> io::Result<Woken> {
        let end = self.end;
        let world = self.alive()?;
        let deadline_us = world.task_now_us().saturating_add(timeout.as_micros() as u64);
        let mut woken = Woken::TimedOut;
        turn::wait(Some(deadline_us), &mut || {
            let (mut net, now_us) = (world.net.borrow_mut(), world.now_us());
            let ready = match direction {
                Direction::Receive => net.can_receive(end, now_us),
                Direction::Send => net.can_send(end, now_us),
            };
            woken = match () {
                () if cancel.is_some_and(Cancel::is_cancelled) => Woken::Cancelled,
                () if ready || world.is_dead(end.side) => Woken::Ready,
                () => Woken::TimedOut,
            };
            woken != Woken::TimedOut
        });
        Ok(woken)
    }

    fn peek(&mut self, first: &mut [u8]) -> io::Result<Heard> {
        let world = self.alive()?;
        let (bytes, ended) = world.net.borrow_mut().peek(self.end, first, world.now_us())?;
        Ok(Heard { bytes, ended, unfinished: bytes > 0 })
    }

    fn finish(&mut self) {
        if let Ok(world) = self.alive() {
            world.net.borrow_mut().finish(self.end, world.now_us());
            world.changed();
        }
    }

    fn descriptor(&self) -> Option<BorrowedFd<'_>> {
        None
    }
}

impl Drop for SimStream {
    fn drop(&mut self) {
        if let Ok(world) = self.alive() {
            world.note("closes", [self.end.connection as u64, 0]);
            world.net.borrow_mut().close(self.end, world.now_us());
            world.changed();
        }
    }
}

/// Both ways to get a connection.
#[derive(Debug)]
pub(super) struct Place;

impl Connector for Place {
    fn connect(&self, control: &Control) -> Result<Connection, MigrationError> {
        let refused = |kind: ErrorKind| LinkError::Connect { uri: URI.to_owned(), source: kind.into() };
        let world = world().map_err(|error| refused(error.kind()))?;
        control.pause(Duration::from_micros(world.random(|random| random.spread(2000))))?;
        if world.is_dead(Side::Source) {
            return Err(refused(ErrorKind::NetworkUnreachable).into());
        }
        let found = world.net.borrow_mut().connect(world.now_us());
        world.changed();
        match found {
            Some(end) => Ok(SimStream::connection(end)),
            None if world.chance(50) => Err(refused(ErrorKind::ConnectionRefused).into()),
            None => {
                control.pause(CONNECT_TIMEOUT)?;
                Err(refused(ErrorKind::TimedOut).into())
            }
        }
    }

    fn only_one(&self) -> Option<&'static str> {
        None
    }

    fn route(&self) -> Route {
        Route { transport: "sim", uri: Some(URI.to_owned()), peer_address: None }
    }
}

impl Acceptor for Place {
    fn accept(&self) -> Result<Option<Connection>, MigrationError> {
        let gone = || LinkError::UsedUp { uri: URI.to_owned() };
        let world = world().map_err(|_| gone())?;
        if world.is_dead(Side::Destination) {
            return Err(gone().into());
        }
        Ok(world.net.borrow_mut().accept(world.now_us()).map(SimStream::connection))
    }

    fn wait(
        &self,
        _: &[&dyn Stream],
        control: &Control,
        timeout: Option<Duration>,
    ) -> Result<(), MigrationError> {
        let Some(world) = turn::world() else { return Ok(()) };
        let deadline_us = timeout.map(|time| world.task_now_us().saturating_add(time.as_micros() as u64));
        let before = world.net.borrow().arrived(world.now_us());
        turn::wait(deadline_us, &mut || {
            let (net, now_us) = (world.net.borrow(), world.now_us());
            control.cancel.is_cancelled()
                || world.is_dead(Side::Destination)
                || net.has_backlog(now_us)
                || net.arrived(now_us) != before
        });
        if control.cancel.is_cancelled() { Err(MigrationError::Cancelled) } else { Ok(()) }
    }

    fn only_one(&self) -> Option<&'static str> {
        None
    }

    fn route(&self) -> Route {
        Route { transport: "sim", uri: Some(URI.to_owned()), peer_address: None }
    }
}
