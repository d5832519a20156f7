//! How a connection comes about: connecting and listening, both of which a cancel ends at once.

use std::io;
use std::net::{SocketAddr, ToSocketAddrs};
use std::os::fd::AsFd;
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use socket2::{Domain, SockAddr, TcpKeepalive, Type};

use super::acceptor::{Acceptor, wait_for_any};
use super::socket::{Socket, wait};
use super::stream::Stream;
use super::{CONNECT_TIMEOUT, Connection, Direction, Route, Uri, Woken};
use crate::control::Control;
use crate::error::{LinkError, MigrationError};

/// A dead peer of an idle connection is found within 10 + 3 x 5 s.
const KEEPALIVE_IDLE: Duration = Duration::from_secs(10);
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(5);
const KEEPALIVE_RETRIES: u32 = 3;
/// How long sent bytes may stay without an answer of the peer's kernel.
const USER_TIMEOUT: Duration = Duration::from_secs(25);
/// A unix socket whose queue is full is tried again after this.
const FULL_QUEUE_PAUSE: Duration = Duration::from_millis(10);
const LISTEN_BACKLOG: i32 = 16;
/// Both directions; enough to keep the peer busy while this side looks for zero pages.
const SOCKET_BUFFER_BYTES: usize = 4 << 20;

/// Connects to a peer that listens.
pub fn connect(uri: &Uri, control: &Control) -> Result<Connection, MigrationError> {
    let failed = |source| LinkError::Connect { uri: uri.to_string(), source };
    let mut last = io::Error::new(io::ErrorKind::NotFound, "the host has no address");
    for (domain, address) in addresses(uri).map_err(failed)? {
        match connect_to(domain, &address, control) {
            Ok(Some(socket)) => return connection(socket, uri).map_err(|e| failed(e).into()),
            Ok(None) => return Err(MigrationError::Cancelled),
            Err(error) => last = error,
        }
    }
    Err(failed(last).into())
}

fn addresses(uri: &Uri) -> io::Result<Vec<(Domain, SockAddr)>> {
    match uri {
        Uri::Unix { path } => Ok(vec![(Domain::UNIX, SockAddr::unix(path)?)]),
        Uri::File { .. } => Err(not_a_peer()),
        Uri::Tcp { host, port } => {
            let host = if host.is_empty() { "0.0.0.0" } else { host };
            let found = (host, *port).to_socket_addrs()?;
            Ok(found.map(|address: SocketAddr| (Domain::for_address(address), address.into())).collect())
        }
    }
}

fn not_a_peer() -> io::Error {
    let text = "nobody waits in a file; start a guest from one with `tern restore`";
    io::Error::new(io::ErrorKind::InvalidInput, text)
}

fn connect_to(domain: Domain, address: &SockAddr, control: &Control) -> io::Result<Option<socket2::Socket>> {
    let socket = socket2::Socket::new(domain, Type::STREAM, None)?;
    socket.set_nonblocking(true)?;
    let deadline = Instant::now() + CONNECT_TIMEOUT;
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        let (direction, pause) = match socket.connect(address) {
            Ok(()) => return Ok(Some(socket)),
            Err(_) if left.is_zero() => return Err(io::ErrorKind::TimedOut.into()),
            Err(error) if error.raw_os_error() == Some(libc::EINPROGRESS) => (Direction::Send, left),
            // A unix socket with a full queue: nothing to wait for but time.
            Err(error) if error.raw_os_error() == Some(libc::EAGAIN) => {
                (Direction::Receive, FULL_QUEUE_PAUSE.min(left))
            }
            Err(error) => return Err(error),
        };
        let full = direction == Direction::Receive;
        let woken = if full {
            wait(control.cancel.as_fd(), Direction::Receive, None, pause)?
        } else {
            wait(socket.as_fd(), direction, Some(control.cancel.as_fd()), pause)?
        };
        match woken {
            Woken::Cancelled => return Ok(None),
            Woken::Ready if full => return Ok(None),
            Woken::TimedOut => {}
            Woken::Ready => return socket.take_error()?.map_or(Ok(Some(socket)), Err),
        }
    }
}

fn connection(socket: socket2::Socket, uri: &Uri) -> io::Result<Connection> {
    let mut route = Route::new(uri);
    if let Uri::Tcp { .. } = uri {
        // A peer that is gone already has no address; that shows when it is read from.
        let address = socket.peer_addr().ok().and_then(|address| address.as_socket());
        route.peer_address = address.map(|address| address.to_string());
        socket.set_tcp_nodelay(true)?;
        let keepalive = TcpKeepalive::new().with_time(KEEPALIVE_IDLE).with_interval(KEEPALIVE_INTERVAL);
        socket.set_tcp_keepalive(&keepalive.with_retries(KEEPALIVE_RETRIES))?;
        socket.set_tcp_user_timeout(Some(USER_TIMEOUT))?;
    } else {
        // TCP's buffers grow by themselves. The kernel may grant less than asked; that is only slower.
        let _ = socket.set_send_buffer_size(SOCKET_BUFFER_BYTES);
    }
    Ok(Connection::new(Socket::new(socket.into()), route))
}

/// A socket on which a destination waits.
#[derive(Debug)]
pub struct Listener {
    socket: socket2::Socket,
    uri: Uri,
    unlink: Option<PathBuf>,
}

impl Listener {
    /// Listens. The path of a unix socket that nobody listens on any more is taken over.
    pub fn bind(uri: &Uri) -> Result<Self, MigrationError> {
        let failed = |source| LinkError::Listen { uri: uri.to_string(), source };
        let mut last = io::Error::new(io::ErrorKind::NotFound, "the host has no address");
        for (domain, address) in addresses(uri).map_err(failed)? {
            match listen(uri, domain, &address) {
                Ok(listener) => return Ok(listener),
                Err(error) => last = error,
            }
        }
        Err(failed(last).into())
    }

    /// Where it really listens: with the port that was free if the one asked for was 0.
    pub fn uri(&self) -> &Uri {
        &self.uri
    }

    /// Waits for a peer, as long as it takes.
    pub fn accept(&self, control: &Control) -> Result<Connection, MigrationError> {
        loop {
            if let Some(connection) = Acceptor::accept(self)? {
                return Ok(connection);
            }
            self.wait(&[], control, None)?;
        }
    }
}

impl Acceptor for Listener {
    fn accept(&self) -> Result<Option<Connection>, MigrationError> {
        let failed = |source| LinkError::Listen { uri: self.uri.to_string(), source };
        loop {
            match self.socket.accept() {
                Ok((socket, _)) => {
                    let connection = connection(socket, &self.uri).map_err(failed)?;
                    return Ok(Some(connection));
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(None),
                // The peer was gone before it was accepted.
                Err(error) if error.kind() == io::ErrorKind::ConnectionAborted => {}
                Err(error) => return Err(failed(error).into()),
            }
        }
    }

    fn wait(
        &self,
        streams: &[&dyn Stream],
        control: &Control,
        timeout: Option<Duration>,
    ) -> Result<(), MigrationError> {
        wait_for_any(self.socket.as_fd(), streams, control, timeout)
    }

    fn only_one(&self) -> Option<&'static str> {
        None
    }

    fn route(&self) -> Route {
        Route::new(&self.uri)
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        if let Some(path) = &self.unlink {
            // Gone already is as good.
            let _ = std::fs::remove_file(path);
        }
    }
}

fn listen(uri: &Uri, domain: Domain, address: &SockAddr) -> io::Result<Listener> {
    let socket = socket2::Socket::new(domain, Type::STREAM, None)?;
    socket.set_nonblocking(true)?;
    let mut listener = Listener { socket, uri: uri.clone(), unlink: None };
    match &mut listener.uri {
        Uri::Tcp { port, .. } => {
            listener.socket.set_reuse_address(true)?;
            listener.socket.bind(address)?;
            let bound = listener.socket.local_addr()?;
            *port = bound.as_socket().map_or(*port, |bound| bound.port());
        }
        Uri::Unix { path } => {
            remove_stale(path, address)?;
            listener.socket.bind(address)?;
            listener.unlink = Some(path.clone());
        }
        Uri::File { .. } => return Err(not_a_peer()),
    }
    listener.socket.listen(LISTEN_BACKLOG)?;
    Ok(listener)
}

/// Removes the path if it is a socket on which nobody listens.
fn remove_stale(path: &Path, address: &SockAddr) -> io::Result<()> {
    if !std::fs::symlink_metadata(path).is_ok_and(|found| found.file_type().is_socket()) {
        return Ok(());
    }
    let probe = socket2::Socket::new(Domain::UNIX, Type::STREAM, None)?;
    probe.set_nonblocking(true)?;
    match probe.connect(address) {
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => std::fs::remove_file(path),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::Unobserved;
    use crate::stats::Side;
    use std::sync::Arc;

    fn control() -> Arc<Control> {
        Control::new(Side::Source, Box::new(Unobserved)).unwrap()
    }

    #[test]
    fn an_accept_that_waits_ends_by_a_cancel() {
        let listener = Listener::bind(&"tcp:127.0.0.1:0".parse().unwrap()).unwrap();
        let control = control();
        let accept = std::thread::scope(|scope| {
            let waiting = scope.spawn(|| listener.accept(&control));
            assert!(control.cancel());
            waiting.join().unwrap()
        });
        assert!(matches!(accept, Err(MigrationError::Cancelled)));
    }

    #[test]
    fn a_path_in_use_is_refused_and_a_stale_one_taken_over() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("socket");
        let uri = Uri::Unix { path: path.clone() };
        let first = Listener::bind(&uri).unwrap();
        let error = Listener::bind(&uri).unwrap_err();
        assert!(error.text().contains("can not listen on unix:"), "{}", error.text());
        drop(first);
        assert!(!path.exists());
        drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
        assert!(path.exists());
        Listener::bind(&uri).unwrap();
        std::fs::write(&path, "a file").unwrap();
        Listener::bind(&uri).unwrap_err();
        assert!(path.exists());
    }

    #[test]
    fn nobody_there_is_an_error_that_says_where() {
        let free = Listener::bind(&"tcp:[::1]:0".parse().unwrap())
            .or_else(|_| Listener::bind(&"tcp:127.0.0.1:0".parse().unwrap()))
            .unwrap();
        let uri = free.uri().clone();
        drop(free);
        let error = connect(&uri, &control()).unwrap_err();
        assert_eq!((error.code(), error.chain().len()), ("connect", 2));
        assert!(error.text().contains(&uri.to_string()));
    }
}
