//! Descriptors that others have opened for this process: inherited when it was started, or passed to it since.
//!
//! Only those can be named as `fd:N` or `fd:NAME`. A number alone could be anything that this process has opened, and
//! each can be taken once: whoever takes it owns it.

#![allow(unsafe_code, reason = "a descriptor that was inherited is a number until somebody owns it")]

use std::collections::BTreeMap;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::sync::{Mutex, PoisonError};

use socket2::{Socket, Type};

/// They belong to the process, and so does this table.
static GIVEN: Mutex<BTreeMap<String, OwnedFd>> = Mutex::new(BTreeMap::new());
/// Most that can be passed and not used.
const GIVEN_MAX: usize = 64;
/// Standard input, output and error are no connections.
const FIRST: RawFd = 3;

/// Takes note of the descriptors that this process was started with.
///
/// # Safety
///
/// Nothing in this process has opened a descriptor yet that it still uses, but the three standard ones.
pub unsafe fn note_inherited() {
    let Ok(folder) = std::fs::read_dir("/proc/self/fd") else { return };
    let names = folder.filter_map(|entry| entry.ok()?.file_name().into_string().ok());
    let numbers: Vec<RawFd> = names.filter_map(|name| name.parse().ok()).collect();
    let mut given = GIVEN.lock().unwrap_or_else(PoisonError::into_inner);
    for number in numbers.into_iter().filter(|number| *number >= FIRST) {
        // The folder itself was among them, and is closed. Commands that we start don't inherit the others.
        // SAFETY: takes integers.
        if unsafe { libc::fcntl(number, libc::F_SETFD, libc::FD_CLOEXEC) } == 0 {
            // SAFETY: it is open, and by the condition above nobody here uses it.
            given.insert(number.to_string(), unsafe { OwnedFd::from_raw_fd(number) });
        }
    }
}

/// Keeps a descriptor under a name, until somebody takes it. One of the same name is closed.
pub fn give(name: &str, fd: OwnedFd) -> io::Result<()> {
    let mut given = GIVEN.lock().unwrap_or_else(PoisonError::into_inner);
    if given.len() >= GIVEN_MAX && !given.contains_key(name) {
        let text = format!("{GIVEN_MAX} descriptors are kept already: use or close some");
        return Err(io::Error::other(text));
    }
    // Commands that we start don't inherit it.
    // SAFETY: takes integers, and the descriptor is ours.
    unsafe { libc::fcntl(fd.as_raw_fd(), libc::F_SETFD, libc::FD_CLOEXEC) };
    given.insert(name.to_owned(), fd);
    Ok(())
}

/// Closes a descriptor that nobody has taken.
pub fn close(name: &str) -> io::Result<()> {
    let removed = GIVEN.lock().unwrap_or_else(PoisonError::into_inner).remove(name);
    removed.map(drop).ok_or_else(|| missing(name, &names()))
}

/// Takes the stream socket of this name.
pub(super) fn take(name: &str) -> io::Result<Socket> {
    let mut given = GIVEN.lock().unwrap_or_else(PoisonError::into_inner);
    let Some(fd) = given.remove(name) else {
        let names = given.keys().cloned().collect::<Vec<_>>();
        return Err(missing(name, &names));
    };
    match check(&fd) {
        Ok(()) => Ok(fd.into()),
        Err(text) => {
            given.insert(name.to_owned(), fd);
            Err(io::Error::new(io::ErrorKind::InvalidInput, text))
        }
    }
}

fn names() -> Vec<String> {
    GIVEN.lock().unwrap_or_else(PoisonError::into_inner).keys().cloned().collect()
}

fn missing(name: &str, names: &[String]) -> io::Error {
    let there = if names.is_empty() { "none".to_owned() } else { names.join(", ") };
    let text = format!(
        "descriptor {name} was neither inherited when this process started nor passed with `getfd`, or it has been \
         used already; there are: {there}"
    );
    io::Error::new(io::ErrorKind::NotFound, text)
}

/// A connected stream socket?
fn check(fd: &OwnedFd) -> Result<(), String> {
    // Only to ask; the copy is closed again.
    let Ok(socket) = fd.try_clone().map(Socket::from) else { return Err("it can't be used".to_owned()) };
    match socket.r#type() {
        Err(error) if error.raw_os_error() == Some(libc::ENOTSOCK) => {
            Err(format!("descriptor {} is no socket: pass a connected stream socket", fd.as_raw_fd()))
        }
        Err(error) => Err(format!("descriptor {} can't be used: {error}", fd.as_raw_fd())),
        Ok(kind) if kind != Type::STREAM => {
            Err(format!("descriptor {} is no stream socket: pass a connected stream socket", fd.as_raw_fd()))
        }
        Ok(_) if socket.is_listener().unwrap_or(false) => Err(format!(
            "descriptor {} is a socket that listens: accept a connection on it, and pass that",
            fd.as_raw_fd()
        )),
        Ok(_) => Ok(()),
    }
}

/// For tests: a connection whose other end is a descriptor of this name.
#[cfg(any(test, feature = "fake"))]
pub fn give_pair(name: &str) -> io::Result<std::os::unix::net::UnixStream> {
    let (one, other) = std::os::unix::net::UnixStream::pair()?;
    give(name, other.into())?;
    Ok(one)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_stream_socket_that_was_given_can_be_taken_and_only_once() {
        let _other = give_pair("a pair").unwrap();
        take("a pair").unwrap();
        let error = take("a pair").unwrap_err().to_string();
        assert!(error.contains("descriptor a pair was neither inherited"), "{error}");
        let file = std::fs::File::open("/dev/null").unwrap();
        give("no socket", file.into()).unwrap();
        assert!(take("no socket").unwrap_err().to_string().contains("is no socket"));
        close("no socket").unwrap();
        close("no socket").unwrap_err();
        let datagrams = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
        give("datagrams", datagrams.into()).unwrap();
        assert!(take("datagrams").unwrap_err().to_string().contains("no stream socket"));
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        give("listener", listener.into()).unwrap();
        assert!(take("listener").unwrap_err().to_string().contains("accept a connection on it"));
    }

    #[test]
    fn more_than_enough_are_refused() {
        let give_one =
            |n: usize| give(&format!("many {n}"), std::fs::File::open("/dev/null").unwrap().into());
        let refused = (0..=GIVEN_MAX).find_map(|n| give_one(n).err());
        for n in 0..=GIVEN_MAX {
            let _ = close(&format!("many {n}"));
        }
        assert!(refused.unwrap().to_string().contains("are kept already"));
    }
}
