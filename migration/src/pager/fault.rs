//! The fault thread: brings each page that somebody waits for, one at a time.

#![allow(unsafe_code, reason = "poll(2) over two descriptors has no safe form in std")]

use std::io;
use std::os::fd::AsRawFd;
use std::sync::PoisonError;
use std::sync::atomic::Ordering;
use std::time::Instant;

use userfaultfd::EventBuffer;

use super::PagerError;
use super::shared::{Cause, Shared, buffer};
use super::uffd::Wait;

/// Waits that are read at once: more vCPUs and workers than most machines have.
const WAITS_AT_ONCE: usize = 64;

/// Serves until it is told to end. After a failure it goes on: who waits for other pages than the bad one may
/// be the one who ends the process in order.
pub(super) fn serve(shared: &Shared) {
    let (mut events, mut buffer) = (EventBuffer::new(WAITS_AT_ONCE), buffer());
    loop {
        match wait(shared) {
            Ok(true) => {}
            Ok(false) => return,
            Err(source) => return shared.fail(PagerError::Host { what: "poll failed", source }),
        }
        let heard = Instant::now();
        let waits = match shared.uffd.waits(&mut events) {
            Ok(waits) => waits,
            Err(error) => return shared.fail(error),
        };
        for one in waits {
            match resolve(shared, one, &mut buffer) {
                Ok(()) => shared.latency.add(heard.elapsed()),
                Err(error) => shared.fail(error),
            }
        }
    }
}

fn resolve(shared: &Shared, wait: Wait, buffer: &mut [u8]) -> Result<(), PagerError> {
    let Some(place) = shared.place_of(wait.address) else { return Ok(()) };
    shared.faults.fetch_add(1, Ordering::Relaxed);
    let (region, page) = place;
    if shared.placed.get(region, page) {
        // It came between the wait and now.
        return shared.wake_page(place);
    }
    let cause = Cause::Fault { is_write: wait.is_write };
    shared.bring(region, page..page + 1, buffer, cause)?;
    *shared.newest_fault.lock().unwrap_or_else(PoisonError::into_inner) = Some(place);
    Ok(())
}

/// True: somebody waits for a page. False: it is over.
fn wait(shared: &Shared) -> io::Result<bool> {
    let entry = |fd: i32| libc::pollfd { fd, events: libc::POLLIN, revents: 0 };
    let mut entries = [entry(shared.wake().as_raw_fd()), entry(shared.uffd.as_fd().as_raw_fd())];
    loop {
        // SAFETY: two entries, which live over the call.
        let ready = unsafe { libc::poll(entries.as_mut_ptr(), 2, -1) };
        if ready > 0 {
            return Ok(entries[0].revents == 0);
        }
        let error = io::Error::last_os_error();
        if ready < 0 && error.kind() != io::ErrorKind::Interrupted {
            return Err(error);
        }
    }
}
