//! userfaultfd(2) as the pager uses it: missing pages, placed by copies or as zero. Pages that are there
//! already are left alone, and who waits for them is woken.

#![allow(unsafe_code, reason = "the kernel writes at addresses that it is given; the device may be closed")]

use std::io::{self, ErrorKind};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd};

use userfaultfd::{Error, Event, EventBuffer, FeatureFlags, ReadWrite, UffdBuilder};

use super::PagerError;
use crate::vm::PAGE_BYTES;

/// `UFFD_API`, and `UFFDIO_API`: `_IOWR(0xaa, 0x3f, struct uffdio_api)` (`linux/userfaultfd.h`).
const API: u64 = 0xaa;
const UFFDIO_API: libc::c_ulong = 0xc018_aa3f;

/// A descriptor that handles faults of the kernel too, since KVM touches guest memory from there.
#[derive(Debug)]
pub(super) struct Uffd(userfaultfd::Uffd);

/// Somebody waits for a page.
#[derive(Debug, Clone, Copy)]
pub(super) struct Wait {
    pub(super) address: u64,
    pub(super) is_write: bool,
    /// Who: gettid(2).
    pub(super) thread: u64,
}

/// A range of registered memory. Only [`super::shared`] makes one, from regions that stay mapped.
#[derive(Debug, Clone, Copy)]
pub(super) struct Span {
    pub(super) address: u64,
    pub(super) pages: u64,
}

impl Span {
    fn bytes(self) -> usize {
        // A span lies within a mapping.
        (self.pages * PAGE_BYTES) as usize
    }

    fn start(self) -> *mut libc::c_void {
        std::ptr::with_exposed_provenance_mut(self.address as usize)
    }

    fn failed(self, operation: &'static str) -> impl Fn(io::Error) -> PagerError {
        move |source| PagerError::Kernel {
            operation,
            address: self.address,
            length_bytes: self.pages.saturating_mul(PAGE_BYTES),
            source,
        }
    }
}

impl Uffd {
    pub(super) fn open() -> Result<Self, PagerError> {
        let mut builder = UffdBuilder::new();
        builder.close_on_exec(true).non_blocking(true).user_mode_only(false);
        match builder.require_features(FeatureFlags::THREAD_ID).create() {
            Ok(uffd) => Ok(Self(uffd)),
            // The device is there and closed to this user; the system call may be open to it (the sysctl).
            Err(Error::OpenDevUserfaultfd(_)) => by_system_call().map(Self).map_err(unavailable),
            Err(error) => Err(unavailable(io_error(error))),
        }
    }

    /// Drops what memory holds. KVM looks through a whole range of its memory for it, whatever that holds: 1 ms
    /// for 1 GiB with shadow page tables.
    /// `shared`: a mapping of a file in memory, which would keep what only the mapping forgets.
    pub(super) fn drop_pages(&self, span: Span, shared: bool) -> Result<(), PagerError> {
        let (advice, name) = match shared {
            true => (libc::MADV_REMOVE, "MADV_REMOVE"),
            false => (libc::MADV_DONTNEED, "MADV_DONTNEED"),
        };
        // SAFETY: the span is guest memory, which nobody has a Rust reference to; what it held is dropped.
        let dropped = unsafe { libc::madvise(span.start(), span.bytes(), advice) };
        if dropped < 0 {
            return Err(span.failed(name)(io::Error::last_os_error()));
        }
        Ok(())
    }

    /// Makes the pages that aren't there missing.
    pub(super) fn register(&self, span: Span) -> Result<(), PagerError> {
        let registered = self.0.register(span.start(), span.bytes());
        registered.map(drop).map_err(io_error).map_err(span.failed("REGISTER"))
    }

    /// Makes it ordinary memory, and wakes who waits there: a page that was not placed is zero from now on.
    pub(super) fn unregister(&self, span: Span) -> Result<(), PagerError> {
        self.0.unregister(span.start(), span.bytes()).map_err(io_error).map_err(span.failed("UNREGISTER"))
    }

    pub(super) fn wake(&self, span: Span) -> Result<(), PagerError> {
        self.0.wake(span.start(), span.bytes()).map_err(io_error).map_err(span.failed("WAKE"))
    }

    /// Places content; `bytes` is as long as the span.
    pub(super) fn copy(&self, span: Span, bytes: &[u8]) -> Result<(), PagerError> {
        self.step_through(span, |part| {
            let from = (part.address - span.address) as usize;
            let bytes = bytes.get(from..).and_then(|bytes| bytes.get(..part.bytes())).unwrap_or_default();
            // SAFETY: the kernel reads `bytes`, and writes only pages of the registered range that are
            // missing: nobody has seen them yet.
            unsafe { self.0.copy(bytes.as_ptr().cast(), part.start(), bytes.len(), true) }
        })
    }

    /// Places zero pages without memory of their own.
    pub(super) fn zero(&self, span: Span) -> Result<(), PagerError> {
        // SAFETY: as in `copy`.
        self.step_through(span, |part| unsafe { self.0.zeropage(part.start(), part.bytes(), true) })
    }

    /// Does `place` until all pages of the span are dealt with: as many at once as it does, one by one where it
    /// refuses.
    fn step_through(
        &self,
        span: Span,
        place: impl Fn(Span) -> Result<usize, Error>,
    ) -> Result<(), PagerError> {
        let (mut rest, mut most) = (span, span.pages);
        while rest.pages > 0 {
            let part = Span { pages: rest.pages.min(most), ..rest };
            let Some(pages) = self.step(part, place(part))? else {
                most = 1;
                continue;
            };
            most = most.saturating_mul(2).min(span.pages);
            rest = Span { address: rest.address + pages * PAGE_BYTES, pages: rest.pages - pages };
        }
        Ok(())
    }

    /// How many pages of `part` are dealt with after one call. None: they differ, and must be asked for one by one.
    fn step(&self, part: Span, done: Result<usize, Error>) -> Result<Option<u64>, PagerError> {
        match done.map_err(|error| (code_of(&error), error)) {
            Ok(bytes) => Ok(Some(part.pages.min(bytes as u64 / PAGE_BYTES))),
            // A negative count is an errno: nothing was copied.
            Err((_, Error::PartiallyCopied(bytes))) if bytes <= part.bytes() => {
                Ok(Some(bytes as u64 / PAGE_BYTES))
            }
            Err((_, Error::PartiallyCopied(_)) | (libc::EAGAIN, _)) => Ok(Some(0)),
            // One of them was placed by another thread, or is not registered any more: it was found zero.
            Err((libc::EEXIST | libc::ENOENT, _)) if part.pages > 1 => Ok(None),
            Err((libc::EEXIST, _)) => self.wake(part).map(|()| Some(1)),
            Err((libc::ENOENT, _)) => Ok(Some(1)),
            Err((code, _)) => Err(part.failed("placing pages")(io::Error::from_raw_os_error(code))),
        }
    }

    /// Who waits now. Doesn't block.
    pub(super) fn waits(&self, buffer: &mut EventBuffer) -> Result<Vec<Wait>, PagerError> {
        let failed = |error| PagerError::Host { what: "userfaultfd can't be read", source: io_error(error) };
        let mut waits = Vec::new();
        for event in self.0.read_events(buffer).map_err(failed)? {
            if let Event::Pagefault { rw, addr, thread_id, .. } = event.map_err(failed)? {
                let thread = u64::try_from(thread_id.as_raw()).unwrap_or(0);
                waits.push(Wait { address: addr.addr() as u64, is_write: rw == ReadWrite::Write, thread });
            }
        }
        Ok(waits)
    }

    pub(super) fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

#[repr(C)]
struct ApiQuestion {
    api: u64,
    features: u64,
    ioctls: u64,
}

fn by_system_call() -> io::Result<userfaultfd::Uffd> {
    // SAFETY: a system call without pointers.
    let fd = unsafe { libc::syscall(libc::SYS_userfaultfd, libc::O_CLOEXEC | libc::O_NONBLOCK) };
    let fd = i32::try_from(fd).ok().filter(|fd| *fd >= 0).ok_or_else(io::Error::last_os_error)?;
    // SAFETY: the kernel has just made it for us.
    let uffd = unsafe { userfaultfd::Uffd::from_raw_fd(fd) };
    let mut question = ApiQuestion { api: API, features: FeatureFlags::THREAD_ID.bits(), ioctls: 0 };
    // SAFETY: `question` has the layout of `struct uffdio_api`, and is ours through the call.
    let answer = unsafe { libc::ioctl(uffd.as_raw_fd(), UFFDIO_API, &raw mut question) };
    if answer < 0 { Err(io::Error::last_os_error()) } else { Ok(uffd) }
}

fn unavailable(error: io::Error) -> PagerError {
    let remedy = match (error.kind(), error.raw_os_error()) {
        (_, Some(libc::ENOSYS)) => "which this kernel is built without (CONFIG_USERFAULTFD)".to_owned(),
        (ErrorKind::PermissionDenied, _) => {
            "which this user may not use for KVM's memory: run as root, or `sudo \
                                             setfacl -m u:$USER:rw /dev/userfaultfd`, or `sudo sysctl \
                                             vm.unprivileged_userfaultfd=1`"
                .to_owned()
        }
        _ => format!("which can't be had: {error}"),
    };
    PagerError::Unavailable { remedy }
}

fn code_of(error: &Error) -> i32 {
    match error {
        Error::CopyFailed(errno) | Error::ZeropageFailed(errno) | Error::SystemError(errno) => *errno as i32,
        Error::OpenDevUserfaultfd(error) => error.raw_os_error().unwrap_or(libc::EIO),
        _ => libc::EIO,
    }
}

fn io_error(error: Error) -> io::Error {
    match error {
        Error::OpenDevUserfaultfd(error) => error,
        Error::CopyFailed(_) | Error::ZeropageFailed(_) | Error::SystemError(_) => {
            io::Error::from_raw_os_error(code_of(&error))
        }
        other => io::Error::other(other),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refusal_names_the_remedy() {
        for code in [libc::EPERM, libc::EACCES] {
            let text = unavailable(io::Error::from_raw_os_error(code)).to_string();
            assert!(text.contains("setfacl") && text.contains("sysctl"), "{text}");
        }
        let text = unavailable(io::Error::from_raw_os_error(libc::ENOSYS)).to_string();
        assert!(text.contains("CONFIG_USERFAULTFD"), "{text}");
    }
}
