//! The fault thread: hears who waits for which page, and has it brought.

#![allow(unsafe_code, reason = "poll(2) over two descriptors has no safe form in std")]

use std::io;
use std::os::fd::AsRawFd;
use std::time::Instant;

use userfaultfd::EventBuffer;

use super::shared::{Found, Shared};
use super::uffd::Wait;
use super::{PagerError, Placer, Wanted};

/// Waits that are read at once: more vCPUs and workers than most machines have.
const WAITS_AT_ONCE: usize = 64;

/// Serves until it is told to end. After a failure it goes on: who waits for other pages than the bad one may
/// be the one who ends the process in order.
pub(super) fn serve(placer: &Placer) {
    let shared = &*placer.0;
    let mut events = EventBuffer::new(WAITS_AT_ONCE);
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
            if let Err(error) = resolve(placer, one, heard) {
                shared.fail(error);
            }
        }
    }
}

fn resolve(placer: &Placer, wait: Wait, heard: Instant) -> Result<(), PagerError> {
    let shared = &*placer.0;
    let Some(place) = shared.place_of(wait.address) else { return Ok(()) };
    let (region, page) = place;
    match shared.begin_wait(place, &wait, heard) {
        Found::Asked => Ok(()),
        // It came between the wait and now.
        Found::Placed => shared.answer(heard, shared.wake_page(place)),
        Found::Zero => shared.answer(heard, shared.put_zero(place, wait.is_write)),
        Found::Missing => {
            let wanted = Wanted { region, page, is_write: wait.is_write };
            shared.provider.wanted(wanted, placer).map_err(|source| match source.downcast() {
                Ok(error) => *error,
                Err(source) => PagerError::Page { region, page, source },
            })
        }
    }
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
