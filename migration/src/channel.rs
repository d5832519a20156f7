//! Connections: where to, how to get one, and how bytes move over it.
//!
//! ```text
//! source:      Connector --connect--> Connection { Stream, Route }
//! destination: Acceptor  --accept---> Connection { Stream, Route }
//! ```
//!
//! The engine knows those traits and no transport. Nothing blocks: an operation that can't go on waits for the
//! connection, the cancel token and its time limit at once, so a cancel ends it at once and a stalled peer ends it
//! as an error.

mod acceptor;
mod connector;
pub mod descriptor;
mod exec;
pub(crate) mod halves;
mod listener;
pub(crate) mod pacer;
pub(crate) mod socket;
mod sockets;
pub(crate) mod span;
pub(crate) mod stream;
pub(crate) mod throttle;
pub(crate) mod tls;
mod uri;

use std::io;
use std::os::unix::net::UnixStream;
use std::time::Duration;

pub use acceptor::{Acceptor, Ready, listen};
pub use connector::{Address, Connector};
pub use listener::Listener;
pub use tls::{Security, TlsError};
pub use uri::{CID_ANY, FORMS, Uri, UriError};

use self::socket::Socket;
use self::stream::Stream;
use crate::control::Control;
use crate::error::MigrationError;

/// How long a connection may take to come about.
pub const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// How long nothing may move while something should.
pub const IO_TIMEOUT: Duration = Duration::from_secs(30);

/// What to wait for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Direction {
    /// Until bytes can be received.
    Receive,
    /// Until bytes can be sent.
    Send,
}

/// What a wait ended with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Woken {
    /// The socket can go on.
    Ready,
    /// The token was cancelled.
    Cancelled,
    /// The time is over.
    TimedOut,
}

/// Connects to a peer on this host.
pub fn connect(uri: &Uri, control: &Control) -> Result<Connection, MigrationError> {
    Address::new(uri, Security::default()).connect(control)
}

/// Which way a connection goes.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Route {
    pub(crate) transport: &'static str,
    pub(crate) uri: Option<String>,
    pub(crate) peer_address: Option<String>,
}

impl Route {
    /// To or at `uri`, with nobody at the other end yet.
    pub(crate) fn new(uri: &Uri) -> Self {
        let transport = match uri {
            Uri::Tcp { .. } => "tcp",
            Uri::Unix { .. } => "unix",
            Uri::Vsock { .. } => "vsock",
            Uri::Fd { .. } => "fd",
            Uri::Exec { .. } => "exec",
            Uri::File { .. } => "file",
        };
        Self { transport, uri: Some(uri.to_string()), peer_address: None }
    }

    /// Where it leads, for people.
    pub fn place(&self) -> &str {
        self.uri.as_deref().unwrap_or(self.transport)
    }
}

/// A connection to a peer that hasn't been heard yet.
#[derive(Debug)]
pub struct Connection {
    pub(crate) stream: Box<dyn Stream>,
    pub(crate) route: Route,
    pub(crate) timeout: Duration,
    /// Nobody on a network can see or reach it.
    pub(crate) local: bool,
}

impl Connection {
    pub(crate) fn new(stream: impl Stream + 'static, route: Route) -> Self {
        Self { stream: Box::new(stream), route, timeout: IO_TIMEOUT, local: true }
    }

    /// A unix stream that is connected already.
    pub fn from_stream(stream: UnixStream) -> Self {
        Self::new(Socket::new(stream.into()), Route { transport: "unix", ..Route::default() })
    }

    /// Two ends of one connection inside this process.
    pub fn pair() -> io::Result<(Self, Self)> {
        let (one, other) = UnixStream::pair()?;
        Ok((Self::from_stream(one), Self::from_stream(other)))
    }

    /// Another time limit than [`IO_TIMEOUT`].
    pub fn with_timeout(mut self, timeout: Duration) -> Self {
        self.timeout = timeout;
        self
    }
}
