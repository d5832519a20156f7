//! A stream socket of any family, which sends from guest memory and receives into it without a copy.

#![allow(unsafe_code, reason = "sendmsg(2), recvmsg(2) over guest memory and poll(2) have no safe form")]

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::time::Duration;

use super::span::{InSpan, OutSpan};
use super::stream::{Heard, Stream};
use super::{Direction, Woken};
use crate::cancel::Cancel;

/// Most spans that one call may have (Linux's UIO_MAXIOV).
const SPANS_MAX: usize = 1024;

#[derive(Debug)]
pub(crate) struct Socket {
    fd: OwnedFd,
}

impl Socket {
    pub(crate) fn new(fd: OwnedFd) -> Self {
        Self { fd }
    }
}

impl Stream for Socket {
    fn send(&mut self, spans: &[OutSpan<'_>], more: bool) -> io::Result<usize> {
        let flags = libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL | if more { libc::MSG_MORE } else { 0 };
        let message = message(spans.as_ptr().cast(), spans.len());
        retry(|| {
            // SAFETY: `message` points to `spans`, which are iovecs (`repr(transparent)`) over memory that
            // is mapped while they live; the kernel only reads it.
            unsafe { libc::sendmsg(self.fd.as_raw_fd(), &raw const message, flags) }
        })
    }

    fn receive(&mut self, spans: &[InSpan<'_>]) -> io::Result<usize> {
        let mut message = message(spans.as_ptr().cast(), spans.len());
        retry(|| {
            // SAFETY: as in `send`; each span is exclusively borrowed memory or guest memory, which may be
            // written at any time, and the kernel writes inside their bounds.
            unsafe { libc::recvmsg(self.fd.as_raw_fd(), &raw mut message, libc::MSG_DONTWAIT) }
        })
    }

    fn wait(
        &mut self,
        direction: Direction,
        cancel: Option<&Cancel>,
        timeout: Duration,
    ) -> io::Result<Woken> {
        wait(self.fd.as_fd(), direction, cancel.map(Cancel::as_fd), timeout)
    }

    fn descriptor(&self) -> Option<BorrowedFd<'_>> {
        Some(self.fd.as_fd())
    }

    fn peek(&mut self, first: &mut [u8]) -> io::Result<Heard> {
        // The end before the bytes: all that came before it is then among them.
        let mut entry = libc::pollfd { fd: self.fd.as_raw_fd(), events: libc::POLLRDHUP, revents: 0 };
        // SAFETY: one entry, which lives over the call; it doesn't wait.
        retry(|| unsafe { libc::poll(&raw mut entry, 1, 0) as isize })?;
        let flags = libc::MSG_DONTWAIT | libc::MSG_PEEK;
        let bytes = retry(|| {
            // SAFETY: the kernel writes at most `first.len()` bytes to `first`, which is borrowed exclusively.
            unsafe { libc::recv(self.fd.as_raw_fd(), first.as_mut_ptr().cast(), first.len(), flags) }
        });
        match bytes {
            // What is there stays there, so the descriptor stays readable and tells nothing new.
            Ok(bytes) => Ok(Heard { bytes, ended: bytes == 0 || entry.revents != 0, unfinished: bytes > 0 }),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                Ok(Heard { bytes: 0, ended: false, unfinished: false })
            }
            Err(error) => Err(error),
        }
    }

    fn finish(&mut self) {
        // SAFETY: takes two integers. An error means that the connection is gone already.
        unsafe { libc::shutdown(self.fd.as_raw_fd(), libc::SHUT_WR) };
    }
}

fn message(spans: *const libc::iovec, count: usize) -> libc::msghdr {
    // SAFETY: all-zero is a valid msghdr: no address, no control data, no spans.
    let mut message: libc::msghdr = unsafe { std::mem::zeroed() };
    message.msg_iov = spans.cast_mut();
    message.msg_iovlen = count.min(SPANS_MAX);
    message
}

fn retry(mut call: impl FnMut() -> isize) -> io::Result<usize> {
    loop {
        if let Ok(count) = usize::try_from(call()) {
            return Ok(count);
        }
        let error = io::Error::last_os_error();
        if error.kind() != io::ErrorKind::Interrupted {
            return Err(error);
        }
    }
}

/// Waits for a descriptor, for `wake`, or for `timeout` (rounded up to a millisecond).
pub(crate) fn wait(
    fd: BorrowedFd<'_>,
    direction: Direction,
    wake: Option<BorrowedFd<'_>>,
    timeout: Duration,
) -> io::Result<Woken> {
    let events = match direction {
        Direction::Receive => libc::POLLIN,
        Direction::Send => libc::POLLOUT,
    };
    let entry = |fd: RawFd, events| libc::pollfd { fd, events, revents: 0 };
    // poll(2) passes over an entry whose descriptor is negative.
    let wake = wake.map_or(-1, |wake| wake.as_raw_fd());
    let mut entries = [entry(fd.as_raw_fd(), events), entry(wake, libc::POLLIN)];
    let until = libc::timespec {
        tv_sec: libc::time_t::try_from(timeout.as_secs()).unwrap_or(libc::time_t::MAX),
        tv_nsec: libc::c_long::from(timeout.subsec_nanos()),
    };
    let woken = retry(|| {
        // SAFETY: `entries` has two entries and lives over the call, as does `until`; no signal mask.
        unsafe { libc::ppoll(entries.as_mut_ptr(), 2, &raw const until, std::ptr::null()) as isize }
    })?;
    Ok(match entries {
        [_, wake] if wake.revents != 0 => Woken::Cancelled,
        _ if woken == 0 => Woken::TimedOut,
        _ => Woken::Ready,
    })
}

/// Waits until any of `fds` can be received from, or for `timeout`; without one as long as it takes.
pub(crate) fn wait_any(fds: &[BorrowedFd<'_>], timeout: Option<Duration>) -> io::Result<()> {
    let entry = |fd: &BorrowedFd<'_>| libc::pollfd { fd: fd.as_raw_fd(), events: libc::POLLIN, revents: 0 };
    let mut entries: Vec<libc::pollfd> = fds.iter().map(entry).collect();
    let timeout_ms = timeout.map_or(-1, |timeout| {
        libc::c_int::try_from(timeout.as_micros().div_ceil(1000)).unwrap_or(libc::c_int::MAX)
    });
    // SAFETY: `entries` has as many entries as is said and lives over the call.
    retry(|| unsafe {
        libc::poll(entries.as_mut_ptr(), entries.len() as libc::nfds_t, timeout_ms) as isize
    })?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::net::UnixStream;

    #[test]
    fn a_wait_ends_by_the_socket_the_token_or_the_clock() {
        let (one, other) = UnixStream::pair().unwrap();
        let cancel = Cancel::new().unwrap();
        let (mut one, mut other) = (Socket::new(one.into()), Socket::new(other.into()));
        let mut wait = |ms| one.wait(Direction::Receive, Some(&cancel), Duration::from_millis(ms));
        assert_eq!(wait(1).unwrap(), Woken::TimedOut);
        other.send(&[OutSpan::bytes(b"x")], false).unwrap();
        assert_eq!(wait(10_000).unwrap(), Woken::Ready);
        cancel.cancel();
        assert_eq!(wait(10_000).unwrap(), Woken::Cancelled);
    }
}
