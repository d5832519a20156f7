//! The signals that end a machine, as a descriptor for the event loop.

#![allow(unsafe_code, reason = "signalfd(2) has no safe wrapper in the crates used here")]

use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{FromRawFd, OwnedFd};

use vmm_sys_util::signal::{block_signal, create_sigset};

/// End of the terminal, interrupt, and the polite request to end.
const SIGNALS: [libc::c_int; 3] = [libc::SIGHUP, libc::SIGINT, libc::SIGTERM];
/// A file that may not be larger (`ulimit -f`) is an error of the write, not the end of the guest.
const BLOCKED: libc::c_int = libc::SIGXFSZ;

/// Readable when one of the signals has come.
pub(super) struct Signals(pub(super) File);

impl Signals {
    /// Takes the signals from here on. Before other threads start, which inherit the mask.
    pub(super) fn new() -> io::Result<Self> {
        for signal in SIGNALS.into_iter().chain([BLOCKED]) {
            block_signal(signal).map_err(|error| io::Error::other(error.to_string()))?;
        }
        let set = create_sigset(&SIGNALS).map_err(|error| io::Error::from_raw_os_error(error.errno()))?;
        // SAFETY: the set is initialised, and lives through the call.
        let fd = unsafe { libc::signalfd(-1, &raw const set, libc::SFD_CLOEXEC | libc::SFD_NONBLOCK) };
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: the descriptor was just made, and nobody else knows it.
        Ok(Self(unsafe { OwnedFd::from_raw_fd(fd) }.into()))
    }

    /// The signal that has come, if any.
    pub(super) fn take(&mut self) -> Option<i32> {
        let mut info = [0u8; size_of::<libc::signalfd_siginfo>()];
        self.0.read_exact(&mut info).ok()?;
        // `ssi_signo` is the first member of struct signalfd_siginfo (signalfd(2)).
        let number = u32::from_ne_bytes(*info.first_chunk()?);
        i32::try_from(number).ok()
    }
}
