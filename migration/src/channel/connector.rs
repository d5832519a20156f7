//! How a source gets its connections: all of one attempt go to the same place.

use std::fmt;
use std::io;

use super::exec::Exec;
use super::{Connection, Route, Uri, descriptor, sockets};
use crate::control::Control;
use crate::error::{LinkError, MigrationError};

/// Why an inherited descriptor has no second channel.
const ONE_FD: &str = "an inherited descriptor is one connection";

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
}

impl Address {
    /// Connects to `uri`.
    pub fn new(uri: &Uri) -> Self {
        Self { uri: uri.clone() }
    }
}

impl Connector for Address {
    fn connect(&self, control: &Control) -> Result<Connection, MigrationError> {
        match &self.uri {
            Uri::Exec { .. } | Uri::Fd { .. } => {
                let failed = |source| LinkError::Connect { uri: self.uri.to_string(), source };
                Ok(own(&self.uri).map_err(failed)?.0)
            }
            _ => sockets::connect(&self.uri, control),
        }
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
