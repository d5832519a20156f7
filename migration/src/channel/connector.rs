//! How a source gets its connections: all of one attempt go to the same place.

use std::fmt;
use std::io;
use std::time::Duration;

use super::exec::Exec;
use super::stream::Stream;
use super::tls::{Identity, Secure, Security};
use super::{CONNECT_TIMEOUT, Connection, Direction, Route, Uri, Woken, descriptor, sockets};
use crate::control::Control;
use crate::error::{LinkError, MigrationError};
use crate::stats::Side;

/// Why an inherited descriptor has no second channel.
const ONE_FD: &str = "an inherited descriptor is one connection";

const HANDSHAKE: &str = "the two sides were proving who they are";

/// Opens connections to one place.
pub trait Connector: Send + Sync + fmt::Debug {
    /// One more connection. Ends early by a cancel, and after [`super::CONNECT_TIMEOUT`].
    fn connect(&self, control: &Control) -> Result<Connection, MigrationError>;

    /// Why there can't be a second connection; none if there can.
    fn only_one(&self) -> Option<&'static str>;

    /// Which way they go, before the first of them is there.
    fn route(&self) -> Route;
}

/// An address, where each connection is made anew.
#[derive(Debug, Clone)]
pub struct Address {
    uri: Uri,
    security: Security,
}

impl Address {
    /// Connects to `uri`.
    pub fn new(uri: &Uri, security: Security) -> Self {
        Self { uri: uri.clone(), security }
    }

    fn plain(&self, control: &Control) -> Result<Connection, MigrationError> {
        match &self.uri {
            Uri::Exec { .. } | Uri::Fd { .. } => {
                let failed = |source| LinkError::Connect { uri: self.uri.to_string(), source };
                Ok(own(&self.uri).map_err(failed)?.0)
            }
            _ => sockets::connect(&self.uri, control),
        }
    }

    /// The connection as it may be used: before it is, nothing of ours goes over it.
    fn secured(&self, mut connection: Connection, control: &Control) -> Result<Connection, MigrationError> {
        let place = self.uri.to_string();
        if !self.security.decide(Side::Source, connection.local, &place).map_err(LinkError::Tls)? {
            return Ok(connection);
        }
        let host = if let Uri::Tcp { host, .. } = &self.uri { Some(host.as_str()) } else { None };
        let identity = Identity::client(&self.security, host, &place).map_err(LinkError::Tls)?;
        let mut secure = Secure::new(connection.stream, &identity).map_err(LinkError::Tls)?;
        let began_us = control.now_us();
        while let Err(error) = secure.flush() {
            if error.kind() != io::ErrorKind::WouldBlock {
                return Err(LinkError::of(HANDSHAKE, error).into());
            }
            let left = CONNECT_TIMEOUT.saturating_sub(Duration::from_micros(control.since_us(began_us)));
            match secure.wait(Direction::Send, Some(&control.cancel), left) {
                Ok(Woken::Ready) => {}
                Ok(Woken::Cancelled) => return Err(MigrationError::Cancelled),
                Ok(Woken::TimedOut) => {
                    let timeout_ms = CONNECT_TIMEOUT.as_millis() as u64;
                    return Err(LinkError::Stalled { state: HANDSHAKE, timeout_ms }.into());
                }
                Err(error) => return Err(LinkError::of(HANDSHAKE, error).into()),
            }
        }
        connection.stream = Box::new(secure);
        Ok(connection)
    }
}

impl Connector for Address {
    fn connect(&self, control: &Control) -> Result<Connection, MigrationError> {
        self.secured(self.plain(control)?, control)
    }

    /// A command is run once more for each connection.
    fn only_one(&self) -> Option<&'static str> {
        matches!(self.uri, Uri::Fd { .. }).then_some(ONE_FD)
    }

    fn route(&self) -> Route {
        Route::new(&self.uri)
    }
}

/// The connection that a command or a descriptor is, and why it is the only one for a destination.
pub(super) fn own(uri: &Uri) -> io::Result<(Connection, &'static str)> {
    match uri {
        Uri::Exec { command } => {
            let connection = Connection::new(Exec::run(command)?, Route::new(uri));
            Ok((connection, "a command that a destination runs is one connection"))
        }
        Uri::Fd { name } => {
            let connection = sockets::connection(descriptor::take(name)?, Route::new(uri))?;
            Ok((connection, ONE_FD))
        }
        _ => Err(sockets::not_a_peer()),
    }
}

/// There is no connection to be had.
pub(super) fn used_up(route: &Route) -> MigrationError {
    LinkError::UsedUp { uri: route.place().to_owned() }.into()
}
