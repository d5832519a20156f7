//! The proxy's sockets: TCP or unix, alike.

use std::io::{self, Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::os::unix::net::{UnixListener, UnixStream};

use tempfile::TempDir;

/// A connection.
#[derive(Debug)]
pub(super) enum Link {
    Tcp(TcpStream),
    Unix(UnixStream),
}

/// What waits for connections.
pub(super) enum Listener {
    Tcp(TcpListener),
    Unix(UnixListener, TempDir),
}

impl Listener {
    /// Of the same kind as `target`.
    pub(super) fn like(target: &str) -> io::Result<Self> {
        if target.starts_with("tcp:") {
            return Ok(Self::Tcp(TcpListener::bind("127.0.0.1:0")?));
        }
        let folder = tempfile::tempdir()?;
        Ok(Self::Unix(UnixListener::bind(folder.path().join("proxy"))?, folder))
    }

    pub(super) fn uri(&self) -> String {
        match self {
            Self::Tcp(listener) => {
                listener.local_addr().map_or_else(|error| panic!("proxy: {error}"), |at| format!("tcp:{at}"))
            }
            Self::Unix(_, folder) => format!("unix:{}", folder.path().join("proxy").display()),
        }
    }

    pub(super) fn accept(&self) -> io::Result<Link> {
        match self {
            Self::Tcp(listener) => listener.accept().map(|(stream, _)| Link::Tcp(stream)),
            Self::Unix(listener, _) => listener.accept().map(|(stream, _)| Link::Unix(stream)),
        }
    }
}

impl Link {
    pub(super) fn connect(uri: &str) -> io::Result<Self> {
        match uri.split_once(':') {
            Some(("tcp", address)) => TcpStream::connect(address).map(Self::Tcp),
            Some(("unix", path)) => UnixStream::connect(path).map(Self::Unix),
            _ => panic!("proxy: not an address: {uri}"),
        }
    }

    pub(super) fn try_clone(&self) -> io::Result<Self> {
        match self {
            Self::Tcp(stream) => stream.try_clone().map(Self::Tcp),
            Self::Unix(stream) => stream.try_clone().map(Self::Unix),
        }
    }

    /// The receiving side sees the end of the stream.
    pub(super) fn end_writing(&self) {
        self.shutdown(Shutdown::Write);
    }

    /// Both sides see the end.
    pub(super) fn close(&self) {
        self.shutdown(Shutdown::Both);
    }

    fn shutdown(&self, how: Shutdown) {
        // A connection that is closed already is as good.
        let _ = match self {
            Self::Tcp(stream) => stream.shutdown(how),
            Self::Unix(stream) => stream.shutdown(how),
        };
    }
}

impl Read for &Link {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match self {
            Link::Tcp(stream) => (&mut &*stream).read(buffer),
            Link::Unix(stream) => (&mut &*stream).read(buffer),
        }
    }
}

impl Write for &Link {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self {
            Link::Tcp(stream) => (&mut &*stream).write(bytes),
            Link::Unix(stream) => (&mut &*stream).write(bytes),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
