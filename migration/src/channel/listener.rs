//! A socket on which a destination waits: TCP, unix or vsock.

use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use socket2::{Domain, SockAddr, Type};

use super::acceptor::{Acceptor, wait_for_any};
use super::sockets::{addresses, connection, explained, is_local_address, no_address, not_a_peer};
use super::stream::Stream;
use super::{Connection, Route, Uri};
use crate::control::Control;
use crate::error::{LinkError, MigrationError};

/// As many as come at once when a migration opens all of its channels.
const LISTEN_BACKLOG: i32 = 128;

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
        let mut last = no_address();
        for (domain, address) in addresses(uri).map_err(failed)? {
            match listen(uri, domain, &address) {
                Ok(listener) => return Ok(listener),
                Err(error) => last = explained(uri, error),
            }
        }
        Err(failed(last).into())
    }

    /// Where it really listens: with the port that was free if the one asked for was 0.
    pub fn uri(&self) -> &Uri {
        &self.uri
    }

    /// Can only this host reach it?
    pub(super) fn is_local(&self) -> bool {
        self.socket.local_addr().is_ok_and(|address| is_local_address(&address))
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
                    let connection = connection(socket, Route::new(&self.uri)).map_err(failed)?;
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
        Uri::Vsock { port, .. } => {
            listener.socket.bind(address)?;
            *port = listener.socket.local_addr()?.as_vsock_address().map_or(*port, |(_, port)| port);
        }
        Uri::File { .. } | Uri::Fd { .. } | Uri::Exec { .. } => return Err(not_a_peer()),
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
    use super::super::sockets::connect;
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
