//! How often a file is opened (inotify(7)).
#![allow(unsafe_code, reason = "inotify has no safe form in the standard library")]

use std::ffi::CString;
use std::fs::File;
use std::io::{Error, Read};
use std::os::fd::FromRawFd;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

/// `struct inotify_event` of a file that is watched itself: `wd i32 | mask u32 | cookie u32 | len u32`, and no name.
const EVENT_BYTES: usize = 16;

/// A file that is watched.
#[derive(Debug)]
pub struct Opens(File);

impl Opens {
    /// Watches from here on. What is done between two opens is watched, too: equal events behind each other would be
    /// one.
    ///
    /// # Panics
    /// The file is not there, or the host watches too many.
    pub fn of(file: &Path) -> Self {
        let path = CString::new(file.as_os_str().as_bytes()).unwrap_or_default();
        // SAFETY: inotify_init1(2) takes a number and touches no memory of ours.
        let watching = unsafe { libc::inotify_init1(libc::IN_CLOEXEC | libc::IN_NONBLOCK) };
        assert!(watching >= 0, "inotify: {}", Error::last_os_error());
        // SAFETY: the descriptor was just made, and is nobody else's.
        let events = unsafe { File::from_raw_fd(watching) };
        let what = libc::IN_OPEN | libc::IN_ACCESS | libc::IN_CLOSE;
        // SAFETY: `path` ends with a NUL and lives over the call, which only reads it.
        let watch = unsafe { libc::inotify_add_watch(watching, path.as_ptr(), what) };
        assert!(watch >= 0, "{}: {}", file.display(), Error::last_os_error());
        Self(events)
    }

    /// How often it was opened since.
    pub fn count(&self) -> usize {
        let (mut count, mut bytes) = (0, [0; 256 * EVENT_BYTES]);
        while let Ok(length @ 1..) = (&self.0).read(&mut bytes) {
            let events = bytes.get(..length).unwrap_or_default().as_chunks::<EVENT_BYTES>().0;
            let opened = |event: &&[u8; EVENT_BYTES]| {
                let mask = event.get(4..8).and_then(|mask| mask.first_chunk());
                mask.is_some_and(|mask| u32::from_ne_bytes(*mask) & libc::IN_OPEN != 0)
            };
            count += events.iter().filter(opened).count();
        }
        count
    }
}
