//! How a source gets its connections: all of one attempt go to the same place.

use std::fmt;

use super::{Connection, Route, Uri, listener};
use crate::control::Control;
use crate::error::{LinkError, MigrationError};

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
        listener::connect(&self.uri, control)
    }

    fn only_one(&self) -> Option<&'static str> {
        None
    }

    fn route(&self) -> Route {
        Route::new(&self.uri)
    }
}

/// There is no connection to be had.
pub(super) fn used_up(route: &Route) -> MigrationError {
    LinkError::UsedUp { uri: route.place().to_owned() }.into()
}
