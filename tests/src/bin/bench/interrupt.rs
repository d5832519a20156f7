//! Ctrl-C: the bench ends with the run that is under way, and its folders go with it. A second one ends it at once.
#![allow(unsafe_code, reason = "sigaction(2) has no safe form in the standard library")]

use std::io;
use std::sync::atomic::{AtomicBool, Ordering};

static ASKED: AtomicBool = AtomicBool::new(false);

extern "C" fn ask(_: libc::c_int) {
    ASKED.store(true, Ordering::SeqCst);
}

/// From now on the first SIGINT or SIGTERM is only noted.
pub fn listen() -> io::Result<()> {
    for signal in [libc::SIGINT, libc::SIGTERM] {
        // SAFETY: all zeroes are an action without flags and with an empty mask; the handler only stores to an atomic.
        let done = unsafe {
            let mut action: libc::sigaction = std::mem::zeroed();
            action.sa_sigaction = ask as *const () as usize;
            action.sa_flags = libc::SA_RESETHAND | libc::SA_RESTART;
            libc::sigaction(signal, &raw const action, std::ptr::null_mut())
        };
        if done != 0 {
            return Err(io::Error::last_os_error());
        }
    }
    Ok(())
}

/// Called before each run.
pub fn check() -> io::Result<()> {
    if ASKED.load(Ordering::SeqCst) { Err(io::Error::other("interrupted")) } else { Ok(()) }
}
