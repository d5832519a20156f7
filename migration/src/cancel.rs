//! The cancel token: a flag, and a descriptor that wakes whoever waits for the network.
//!
//! ```text
//! open --cancel()--> cancelled        the attempt ends as cancelled
//!   '----close()---> closed           the guest is given up, or the attempt is over: too late to cancel
//! ```

#![allow(unsafe_code, reason = "eventfd(2) and its read and write have no safe wrapper in std")]

use std::fs::File;
use std::io::{self, Write};
use std::os::fd::{AsFd, BorrowedFd, FromRawFd};
use std::sync::atomic::{AtomicU8, Ordering};

const OPEN: u8 = 0;
const CANCELLED: u8 = 1;
const CLOSED: u8 = 2;

/// One attempt's token.
#[derive(Debug)]
pub struct Cancel {
    state: AtomicU8,
    wake: File,
}

impl Cancel {
    pub(crate) fn new() -> io::Result<Self> {
        // SAFETY: eventfd takes two integers and touches no memory of ours.
        let fd = unsafe { libc::eventfd(0, libc::EFD_CLOEXEC | libc::EFD_NONBLOCK) };
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: the descriptor was just made, and nobody else knows it.
        let wake = unsafe { File::from_raw_fd(fd) };
        Ok(Self { state: AtomicU8::new(OPEN), wake })
    }

    /// True if the attempt will not complete.
    pub(crate) fn cancel(&self) -> bool {
        let before = self.state.compare_exchange(OPEN, CANCELLED, Ordering::SeqCst, Ordering::SeqCst);
        if before.is_ok() {
            // An eventfd refuses a write only when its counter is full, and then it is readable anyway.
            let _ = (&self.wake).write_all(&1u64.to_ne_bytes());
        }
        before != Err(CLOSED)
    }

    /// From here on nobody can cancel. False if somebody already has.
    pub(crate) fn close(&self) -> bool {
        let before = self.state.compare_exchange(OPEN, CLOSED, Ordering::SeqCst, Ordering::SeqCst);
        before != Err(CANCELLED)
    }

    pub(crate) fn is_cancelled(&self) -> bool {
        self.state.load(Ordering::SeqCst) == CANCELLED
    }

    /// Readable once it is cancelled.
    pub(crate) fn as_fd(&self) -> BorrowedFd<'_> {
        self.wake.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn either_the_cancel_or_the_commit_wins() {
        let first = Cancel::new().unwrap();
        assert!(first.cancel() && first.cancel());
        assert!(!first.close());
        let second = Cancel::new().unwrap();
        assert!(second.close());
        assert!(!second.cancel() && !second.is_cancelled());
    }
}
