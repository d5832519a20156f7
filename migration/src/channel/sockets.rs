//! Sockets that reach a peer by an address (TCP, unix, vsock), and what all sockets of a migration are set to.

use std::io;
use std::net::{SocketAddr, ToSocketAddrs};
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use socket2::{Domain, SockAddr, TcpKeepalive, Type};

use super::socket::{Socket, wait};
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
/// Both directions; enough to keep the peer busy while this side looks for zero pages.
const SOCKET_BUFFER_BYTES: usize = 4 << 20;

/// What TCP may hold back unsent. It would grow to megabytes: a third of a second of a slow link, in which a last round
/// waits behind older pages, a cancel is not prompt, and nobody notices that the link is slow. What is under way isn't
/// counted, so long lines fill all the same.
const UNSENT_BYTES: u32 = 512 << 10;

/// Connects to a peer that listens.
pub(super) fn connect(uri: &Uri, control: &Control) -> Result<Connection, MigrationError> {
    let failed = |source| LinkError::Connect { uri: uri.to_string(), source };
    let mut last = no_address();
    for (domain, address) in addresses(uri).map_err(failed)? {
        match connect_to(domain, &address, control) {
            Ok(Some(socket)) => return connection(socket, Route::new(uri)).map_err(|e| failed(e).into()),
            Ok(None) => return Err(MigrationError::Cancelled),
            Err(error) => last = explained(uri, error),
        }
    }
    Err(failed(last).into())
}

/// All addresses that a name has, in the system's order.
pub(super) fn addresses(uri: &Uri) -> io::Result<Vec<(Domain, SockAddr)>> {
    match uri {
        Uri::Unix { path } => Ok(vec![(Domain::UNIX, SockAddr::unix(path)?)]),
        Uri::Vsock { cid, port } => Ok(vec![(Domain::VSOCK, SockAddr::vsock(*cid, *port))]),
        Uri::File { .. } | Uri::Fd { .. } | Uri::Exec { .. } => Err(not_a_peer()),
        Uri::Tcp { host, port } => {
            let host = if host.is_empty() { "0.0.0.0" } else { host };
            let found = (host, *port).to_socket_addrs()?;
            Ok(found.map(|address: SocketAddr| (Domain::for_address(address), address.into())).collect())
        }
    }
}

pub(super) fn no_address() -> io::Error {
    io::Error::new(io::ErrorKind::NotFound, "the host has no address")
}

/// What a refusal means where the kernel's word alone doesn't say it.
pub(super) fn explained(uri: &Uri, error: io::Error) -> io::Error {
    let remedy = match (uri, error.raw_os_error()) {
        (Uri::Vsock { .. }, Some(libc::EAFNOSUPPORT | libc::EADDRNOTAVAIL)) => {
            "this kernel has no such vsock address: for CID 1 load vsock_loopback, for a host's guests vhost_vsock"
        }
        (Uri::Vsock { .. }, Some(libc::ENODEV | libc::ECONNRESET | libc::ENETUNREACH)) => {
            "nobody has this CID, or nobody listens on its port"
        }
        _ => return error,
    };
    io::Error::new(error.kind(), format!("{remedy} ({error})"))
}

pub(super) fn not_a_peer() -> io::Error {
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

/// Makes it ready for a migration, whatever made it.
pub(super) fn connection(socket: socket2::Socket, mut route: Route) -> io::Result<Connection> {
    let family = socket.domain()?;
    let local = is_local(&socket, &route);
    if family == Domain::IPV4 || family == Domain::IPV6 {
        // A peer that is gone already has no address; that shows when it is read from.
        let address = socket.peer_addr().ok().and_then(|address| address.as_socket());
        route.peer_address = address.map(|address| address.to_string());
        socket.set_tcp_nodelay(true)?;
        let keepalive = TcpKeepalive::new().with_time(KEEPALIVE_IDLE).with_interval(KEEPALIVE_INTERVAL);
        socket.set_tcp_keepalive(&keepalive.with_retries(KEEPALIVE_RETRIES))?;
        socket.set_tcp_user_timeout(Some(USER_TIMEOUT))?;
        socket.set_tcp_notsent_lowat(UNSENT_BYTES)?;
    } else {
        // The kernel may grant less than asked; that is only slower.
        let _ = socket.set_send_buffer_size(SOCKET_BUFFER_BYTES);
    }
    Ok(Connection { local, ..Connection::new(Socket::new(socket.into()), route) })
}

/// Does a connection stay on this host? Who inherits a descriptor has been given its peer too.
fn is_local(socket: &socket2::Socket, route: &Route) -> bool {
    route.transport == "fd" || socket.peer_addr().is_ok_and(|address| is_local_address(&address))
}

/// Is it one that only this host reaches?
pub(super) fn is_local_address(address: &SockAddr) -> bool {
    match (address.as_socket(), address.as_vsock_address()) {
        (Some(address), _) => address.ip().to_canonical().is_loopback(),
        (None, Some((cid, _))) => cid == libc::VMADDR_CID_LOCAL,
        (None, None) => address.is_unix(),
    }
}
