//! userfaultfd: what it can here, and whether this process may use it for a guest's memory.
#![allow(unsafe_code, reason = "userfaultfd is a bare system call and an ioctl")]

use std::fs::OpenOptions;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

use serde::Serialize;

/// `UFFD_API`.
const API: u64 = 0xaa;
/// `UFFDIO_API`: `_IOWR(0xaa, 0x3f, struct uffdio_api)`.
const UFFDIO_API: libc::c_ulong = 0xc018_aa3f;
/// `USERFAULTFD_IOC_NEW`: `_IO(0xaa, 0)`.
const IOC_NEW: libc::c_ulong = 0xaa00;

/// Names of the bits of `uffdio_api.features`, from `linux/userfaultfd.h`.
const FEATURES: [&str; 17] = [
    "pagefault-flag-wp",
    "event-fork",
    "event-remap",
    "event-remove",
    "missing-hugetlbfs",
    "missing-shmem",
    "event-unmap",
    "sigbus",
    "thread-id",
    "minor-hugetlbfs",
    "minor-shmem",
    "exact-address",
    "wp-hugetlbfs-shmem",
    "wp-unpopulated",
    "poison",
    "wp-async",
    "move",
];

/// What was found.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct UffdFacts {
    /// This process may handle faults of KVM itself, as post-copy needs.
    pub usable: bool,
    /// How it is had: `system-call` or `/dev/userfaultfd`.
    pub by: Option<&'static str>,
    /// Why not, with the remedy.
    pub problem: Option<String>,
    /// Features, by name; a bit without one is `bit-N`.
    pub features: Vec<String>,
}

#[repr(C)]
struct ApiQuestion {
    api: u64,
    features: u64,
    ioctls: u64,
}

impl UffdFacts {
    /// Asks the kernel.
    pub fn probe() -> Self {
        let (fd, by) = match by_system_call() {
            Ok(fd) => (fd, "system-call"),
            Err(call) => match by_device() {
                Ok(fd) => (fd, "/dev/userfaultfd"),
                Err(_) => return Self { problem: Some(remedy(&call)), ..Self::default() },
            },
        };
        match features(&fd) {
            Ok(bits) => Self { usable: true, by: Some(by), problem: None, features: feature_names(bits) },
            Err(error) => Self {
                problem: Some(format!("userfaultfd doesn't agree on its version: {error}")),
                ..Self::default()
            },
        }
    }
}

fn by_system_call() -> io::Result<OwnedFd> {
    // SAFETY: a system call without pointers.
    let fd = unsafe { libc::syscall(libc::SYS_userfaultfd, libc::O_CLOEXEC | libc::O_NONBLOCK) };
    owned(fd)
}

fn by_device() -> io::Result<OwnedFd> {
    let device = OpenOptions::new().read(true).write(true).open("/dev/userfaultfd")?;
    // SAFETY: the ioctl takes a number, no pointer; `device` is open.
    let fd = unsafe { libc::ioctl(device.as_raw_fd(), IOC_NEW, libc::O_CLOEXEC | libc::O_NONBLOCK) };
    owned(fd.into())
}

fn owned(fd: libc::c_long) -> io::Result<OwnedFd> {
    match i32::try_from(fd) {
        // SAFETY: the kernel has just made it for us.
        Ok(fd) if fd >= 0 => Ok(unsafe { OwnedFd::from_raw_fd(fd) }),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Without a wish for features, the kernel answers with all it has.
fn features(fd: &OwnedFd) -> io::Result<u64> {
    let mut question = ApiQuestion { api: API, features: 0, ioctls: 0 };
    // SAFETY: `question` has the layout of `struct uffdio_api`, and is ours through the call.
    let result = unsafe { libc::ioctl(fd.as_raw_fd(), UFFDIO_API, &raw mut question) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(question.features) }
}

fn feature_names(bits: u64) -> Vec<String> {
    let name = |bit: usize| FEATURES.get(bit).map_or_else(|| format!("bit-{bit}"), |name| (*name).to_owned());
    (0..64).filter(|bit| bits >> bit & 1 == 1).map(name).collect()
}

fn remedy(error: &io::Error) -> String {
    match error.raw_os_error() {
        Some(libc::ENOSYS) => "the kernel is built without userfaultfd (CONFIG_USERFAULTFD)".to_owned(),
        Some(libc::EPERM) => "not permitted: run as root, or `sudo setfacl -m u:$USER:rw /dev/userfaultfd`, \
                              or `sudo sysctl vm.unprivileged_userfaultfd=1`"
            .to_owned(),
        _ => format!("userfaultfd can't be had: {error}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn features_have_names() {
        assert_eq!(feature_names(0b1_0000_0000_0000_0001), ["pagefault-flag-wp", "move"]);
        assert_eq!(feature_names(1 << 63), ["bit-63"]);
    }

    #[test]
    fn the_probe_is_consistent() {
        let facts = UffdFacts::probe();
        assert_eq!(facts.usable, facts.problem.is_none());
        assert_eq!(facts.usable, facts.by.is_some());
    }

    #[test]
    fn a_refusal_names_the_remedy() {
        assert!(remedy(&io::Error::from_raw_os_error(libc::EPERM)).contains("setfacl"));
        assert!(remedy(&io::Error::from_raw_os_error(libc::ENOSYS)).contains("CONFIG_USERFAULTFD"));
    }
}
