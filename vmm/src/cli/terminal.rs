//! The terminal in raw mode, and back to what it was however the process goes on.
#![allow(unsafe_code, reason = "termios is a C interface")]

use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};

/// Holds a terminal in raw mode; ends it when dropped.
pub struct RawMode {
    terminal: OwnedFd,
    before: libc::termios,
}

impl RawMode {
    /// Raw mode for the terminal behind `fd`: each key arrives as it is, Ctrl-C too. Output stays as it was.
    ///
    /// # Errors
    /// `fd` is no terminal.
    pub fn enter(fd: &impl AsFd) -> io::Result<Self> {
        let terminal = fd.as_fd().try_clone_to_owned()?;
        // SAFETY: `termios` is plain numbers, for which zero is a value.
        let mut before: libc::termios = unsafe { std::mem::zeroed() };
        // SAFETY: `before` is a `termios` of ours.
        if unsafe { libc::tcgetattr(terminal.as_raw_fd(), &raw mut before) } < 0 {
            return Err(io::Error::last_os_error());
        }
        let mut raw = before;
        raw.c_lflag &= !(libc::ICANON | libc::ECHO | libc::ISIG | libc::IEXTEN);
        raw.c_iflag &= !(libc::ICRNL | libc::IXON | libc::BRKINT | libc::ISTRIP);
        set(&terminal, &raw)?;
        Ok(Self { terminal, before })
    }
}

impl Drop for RawMode {
    fn drop(&mut self) {
        if let Err(error) = set(&self.terminal, &self.before) {
            tracing::warn!(%error, "can't restore the terminal; `reset` does");
        }
    }
}

fn set(terminal: &OwnedFd, mode: &libc::termios) -> io::Result<()> {
    // SAFETY: `mode` is a whole `termios` that lives through the call.
    let result = unsafe { libc::tcsetattr(terminal.as_raw_fd(), libc::TCSADRAIN, mode) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_terminal_is_refused() {
        let file = std::fs::File::open("/dev/null").unwrap();
        assert!(RawMode::enter(&file).is_err());
    }
}
