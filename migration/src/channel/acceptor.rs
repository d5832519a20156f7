//! How a destination gets its connections: from whoever comes.

use std::collections::VecDeque;
use std::fmt;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use super::connector::{Connector, own, used_up};
use super::socket::wait_any;
use super::stream::Stream;
use super::tls::{Identity, Secure, Security};
use super::{Connection, Listener, Route, Uri};
use crate::control::Control;
use crate::error::{LinkError, MigrationError};
use crate::stats::Side;

/// Where connections come from.
pub trait Acceptor: Send + Sync + fmt::Debug {
    /// Somebody who has connected, if there is one. Doesn't wait. An error: nobody will come any more.
    fn accept(&self) -> Result<Option<Connection>, MigrationError>;

    /// Waits until somebody connects, until [`Stream::peek`] of one of `streams` has something new, for a cancel, or for
    /// `timeout`; without one as long as it takes. It may end for no reason.
    fn wait(
        &self,
        streams: &[&dyn Stream],
        control: &Control,
        timeout: Option<Duration>,
    ) -> Result<(), MigrationError>;

    /// Why there can't be a second connection; none if there can.
    fn only_one(&self) -> Option<&'static str>;

    /// Where it waits.
    fn route(&self) -> Route;
}

/// Waits at `uri`, whatever that is.
pub fn listen(uri: &Uri, security: &Security) -> Result<Arc<dyn Acceptor>, MigrationError> {
    let place = uri.to_string();
    let failed = |source| LinkError::Listen { uri: place.clone(), source };
    let secret = |local| security.decide(Side::Destination, local, &place).map_err(LinkError::Tls);
    let (plain, secret): (Arc<dyn Acceptor>, bool) = match uri {
        Uri::Exec { .. } | Uri::Fd { .. } => {
            let secret = secret(true)?;
            let (connection, reason) = own(uri).map_err(failed)?;
            (Arc::new(Ready::only(connection, reason).map_err(failed)?), secret)
        }
        _ => {
            let listener = Listener::bind(uri)?;
            let secret = secret(listener.is_local())?;
            (Arc::new(listener), secret)
        }
    };
    if !secret {
        return Ok(plain);
    }
    let identity = Identity::server(security).map_err(LinkError::Tls)?;
    Ok(Arc::new(SecureAcceptor { plain, identity }))
}

/// Whoever comes has to prove who he is. That is gone on with as his connection is looked at, so nobody waits for him.
#[derive(Debug)]
struct SecureAcceptor {
    plain: Arc<dyn Acceptor>,
    identity: Identity,
}

impl Acceptor for SecureAcceptor {
    fn accept(&self) -> Result<Option<Connection>, MigrationError> {
        let Some(mut connection) = self.plain.accept()? else { return Ok(None) };
        connection.stream = Box::new(Secure::new(connection.stream, &self.identity).map_err(LinkError::Tls)?);
        Ok(Some(connection))
    }

    fn wait(
        &self,
        streams: &[&dyn Stream],
        control: &Control,
        timeout: Option<Duration>,
    ) -> Result<(), MigrationError> {
        self.plain.wait(streams, control, timeout)
    }

    fn only_one(&self) -> Option<&'static str> {
        self.plain.only_one()
    }

    fn route(&self) -> Route {
        self.plain.route()
    }
}

/// [`Acceptor::wait`] for those who have a descriptor that becomes readable when somebody connects.
pub(super) fn wait_for_any(
    own: BorrowedFd<'_>,
    streams: &[&dyn Stream],
    control: &Control,
    timeout: Option<Duration>,
) -> Result<(), MigrationError> {
    let fds: Vec<BorrowedFd<'_>> = [control.cancel.as_fd(), own]
        .into_iter()
        .chain(streams.iter().filter_map(|stream| stream.descriptor()))
        .collect();
    wait_any(&fds, timeout).map_err(|source| LinkError::Io { state: "waiting for a peer", source })?;
    if control.cancel.is_cancelled() { Err(MigrationError::Cancelled) } else { Ok(()) }
}

/// Connections that are there already, or are put here: the only one that an inherited descriptor is, and those of tests.
#[derive(Debug)]
pub struct Ready {
    route: Route,
    only_one: Option<&'static str>,
    queue: Mutex<Queue>,
    /// Readable by as many bytes as connections are in the queue.
    bell: UnixStream,
}

#[derive(Debug)]
struct Queue {
    connections: VecDeque<Connection>,
    ring: UnixStream,
    /// Nobody will come any more.
    closed: bool,
}

impl Ready {
    /// An empty queue, which [`Self::push`] fills.
    pub fn new() -> io::Result<Self> {
        let (ring, bell) = UnixStream::pair()?;
        ring.set_nonblocking(true)?;
        bell.set_nonblocking(true)?;
        let queue = Mutex::new(Queue { connections: VecDeque::new(), ring, closed: false });
        Ok(Self { route: Route::default(), only_one: None, queue, bell })
    }

    /// Only this connection; `reason` says why.
    pub fn only(connection: Connection, reason: &'static str) -> io::Result<Self> {
        let ready = Self { route: connection.route.clone(), only_one: Some(reason), ..Self::new()? };
        ready.push(connection)?;
        ready.close();
        Ok(ready)
    }

    /// Somebody connects.
    pub fn push(&self, connection: Connection) -> io::Result<()> {
        let mut queue = self.queue.lock().unwrap_or_else(PoisonError::into_inner);
        (&queue.ring).write_all(&[0])?;
        queue.connections.push_back(connection);
        Ok(())
    }

    /// Nobody will come any more.
    pub fn close(&self) {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner).closed = true;
    }

    fn take(&self) -> Result<Option<Connection>, MigrationError> {
        let mut queue = self.queue.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(connection) = queue.connections.pop_front() else {
            return if queue.closed { Err(used_up(&self.route)) } else { Ok(None) };
        };
        let heard = (&self.bell).read_exact(&mut [0]);
        heard.map_err(|source| LinkError::Io { state: "waiting for a peer", source })?;
        Ok(Some(connection))
    }
}

impl Acceptor for Ready {
    fn accept(&self) -> Result<Option<Connection>, MigrationError> {
        self.take()
    }

    fn wait(
        &self,
        streams: &[&dyn Stream],
        control: &Control,
        timeout: Option<Duration>,
    ) -> Result<(), MigrationError> {
        wait_for_any(self.bell.as_fd(), streams, control, timeout)
    }

    fn only_one(&self) -> Option<&'static str> {
        self.only_one
    }

    fn route(&self) -> Route {
        self.route.clone()
    }
}

/// A source takes them in their order.
impl Connector for Ready {
    fn connect(&self, _: &Control) -> Result<Connection, MigrationError> {
        self.take()?.ok_or_else(|| used_up(&self.route))
    }

    fn only_one(&self) -> Option<&'static str> {
        self.only_one
    }

    fn route(&self) -> Route {
        self.route.clone()
    }
}
