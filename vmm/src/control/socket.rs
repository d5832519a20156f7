//! Listening unix sockets at a path: for their owner only, a stale file replaced, a living one left alone, and
//! the file removed at the end.
#![allow(
    unsafe_code,
    reason = "std can't set a socket's mode before it is bound, and afterwards is too late"
)]

use std::fs;
use std::io;
use std::os::fd::{FromRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};

use thiserror::Error;

/// Longest path that fits `sockaddr_un` with its final NUL.
const PATH_LIMIT_BYTES: usize = 107;
/// Connections that may wait to be accepted.
const BACKLOG: libc::c_int = 16;

/// Why a socket can't be made.
#[derive(Debug, Error)]
pub enum SocketError {
    /// Someone listens there.
    #[error("{flag} {}: a running process listens there already; choose another path, or stop it", path.display())]
    InUse {
        /// The flag that names the path.
        flag: &'static str,
        /// The path.
        path: PathBuf,
    },
    /// Something else is there.
    #[error("{flag} {}: exists and is not a socket; choose another path, or remove the file", path.display())]
    NotASocket {
        /// The flag that names the path.
        flag: &'static str,
        /// The path.
        path: PathBuf,
    },
    /// The path doesn't fit.
    #[error("{flag} {}: {bytes} bytes, and a socket's path has at most {PATH_LIMIT_BYTES}; choose a shorter one, or a relative one", path.display())]
    TooLong {
        /// The flag that names the path.
        flag: &'static str,
        /// The path.
        path: PathBuf,
        /// Its length.
        bytes: usize,
    },
    /// The kernel refused.
    #[error("{flag} {}: can't listen there; does the directory exist, and may you write it?", path.display())]
    Listen {
        /// The flag that names the path.
        flag: &'static str,
        /// The path.
        path: PathBuf,
        /// The kernel's answer.
        source: io::Error,
    },
}

/// A listening socket whose file goes away with it.
#[derive(Debug)]
pub struct ListeningSocket {
    listener: UnixListener,
    path: PathBuf,
    /// Device and inode of the file: what someone else has put in its place since is not ours to remove.
    identity: (u64, u64),
}

impl ListeningSocket {
    /// Listens at `path`, mode 0600. `flag` is what errors call it, such as `--control`.
    ///
    /// # Errors
    /// A [`SocketError`] that says what is in the way.
    pub fn bind(path: &Path, flag: &'static str) -> Result<Self, SocketError> {
        let bytes = path.as_os_str().len();
        if bytes > PATH_LIMIT_BYTES {
            return Err(SocketError::TooLong { flag, path: path.to_owned(), bytes });
        }
        make_room(path, flag)?;
        let bound = bind_private(path).and_then(|listener| {
            let metadata = fs::symlink_metadata(path)?;
            Ok((listener, (metadata.dev(), metadata.ino())))
        });
        match bound {
            // Between the look and the bind another process may have come first.
            Err(error) if error.kind() == io::ErrorKind::AddrInUse => {
                Err(SocketError::InUse { flag, path: path.to_owned() })
            }
            Err(source) => Err(SocketError::Listen { flag, path: path.to_owned(), source }),
            Ok((listener, identity)) => Ok(Self { listener, path: path.to_owned(), identity }),
        }
    }

    /// The socket itself: non-blocking.
    pub fn listener(&self) -> &UnixListener {
        &self.listener
    }

    /// Where it is, as it was given.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for ListeningSocket {
    fn drop(&mut self) {
        let ours = |metadata: fs::Metadata| (metadata.dev(), metadata.ino()) == self.identity;
        if fs::symlink_metadata(&self.path).is_ok_and(ours)
            && let Err(error) = fs::remove_file(&self.path)
        {
            tracing::warn!(%error, path = %self.path.display(), "can't remove the socket's file");
        }
    }
}

/// Removes what a process that has died left behind; refuses everything else.
fn make_room(path: &Path, flag: &'static str) -> Result<(), SocketError> {
    // Errors but "not there" come again, with their cause, when the socket is bound.
    let Ok(metadata) = fs::symlink_metadata(path) else { return Ok(()) };
    if !metadata.file_type().is_socket() {
        return Err(SocketError::NotASocket { flag, path: path.to_owned() });
    }
    match UnixStream::connect(path) {
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => fs::remove_file(path)
            .map_err(|source| SocketError::Listen { flag, path: path.to_owned(), source }),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
            Err(SocketError::Listen { flag, path: path.to_owned(), source: error })
        }
        _ => Err(SocketError::InUse { flag, path: path.to_owned() }),
    }
}

/// The socket's file gets the mode that the socket's own inode had when it was bound (less the umask): so it is
/// never open to others, and the umask, which all threads share, stays as it is.
fn bind_private(path: &Path) -> io::Result<UnixListener> {
    let kind = libc::SOCK_STREAM | libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK;
    // SAFETY: no pointers; the result is checked.
    let fd = check(unsafe { libc::socket(libc::AF_UNIX, kind, 0) })?;
    // SAFETY: `fd` is new, open, and owned by nobody else.
    let socket = unsafe { OwnedFd::from_raw_fd(fd) };
    let file = fs::File::from(socket);
    file.set_permissions(fs::Permissions::from_mode(0o600))?;

    // SAFETY: `sockaddr_un` is plain numbers, for which zero is a value.
    let mut address: libc::sockaddr_un = unsafe { std::mem::zeroed() };
    address.sun_family = libc::AF_UNIX as libc::sa_family_t;
    let bytes = path.as_os_str().as_bytes();
    if bytes.is_empty() || bytes.contains(&0) || bytes.len() >= address.sun_path.len() {
        return Err(io::Error::from(io::ErrorKind::InvalidInput));
    }
    for (to, from) in address.sun_path.iter_mut().zip(bytes) {
        *to = from.cast_signed();
    }
    let length = size_of::<libc::sockaddr_un>() as libc::socklen_t;
    // SAFETY: `address` is a `sockaddr_un` of `length` bytes, NUL-terminated, and lives through the call.
    check(unsafe { libc::bind(fd, (&raw const address).cast(), length) })?;
    // SAFETY: no pointers.
    check(unsafe { libc::listen(fd, BACKLOG) })?;
    Ok(UnixListener::from(OwnedFd::from(file)))
}

fn check(result: libc::c_int) -> io::Result<libc::c_int> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bind(path: &Path) -> Result<ListeningSocket, SocketError> {
        ListeningSocket::bind(path, "--control")
    }

    #[test]
    fn the_file_is_private_and_goes_away() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("c");
        let socket = bind(&path).unwrap();
        let mode = fs::metadata(&path).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        UnixStream::connect(&path).unwrap();
        drop(socket);
        assert!(!path.exists());
    }

    #[test]
    fn a_living_socket_is_left_alone() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("c");
        let _socket = bind(&path).unwrap();
        let error = bind(&path).unwrap_err();
        assert!(matches!(error, SocketError::InUse { .. }), "{error}");
        assert!(error.to_string().contains("--control") && UnixStream::connect(&path).is_ok());
    }

    #[test]
    fn a_stale_socket_is_replaced() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("c");
        drop(UnixListener::bind(&path).unwrap());
        assert!(path.exists());
        let _socket = bind(&path).unwrap();
        UnixStream::connect(&path).unwrap();
    }

    #[test]
    fn other_files_are_left_alone() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("precious");
        fs::write(&path, "data").unwrap();
        assert!(matches!(bind(&path), Err(SocketError::NotASocket { .. })));
        assert_eq!(fs::read(&path).unwrap(), b"data");
    }

    #[test]
    fn bad_paths_are_explained() {
        let folder = tempfile::tempdir().unwrap();
        assert!(matches!(bind(&folder.path().join("no/c")), Err(SocketError::Listen { .. })));
        let long = folder.path().join("x".repeat(120));
        let text = bind(&long).unwrap_err().to_string();
        assert!(text.contains("at most 107"), "{text}");
        assert!(matches!(bind(Path::new("")), Err(SocketError::Listen { .. })));
    }

    #[test]
    fn another_ones_file_is_not_removed() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("c");
        let socket = bind(&path).unwrap();
        fs::remove_file(&path).unwrap();
        fs::write(&path, "new").unwrap();
        drop(socket);
        assert!(path.exists());
    }
}
