//! TAP interfaces (Documentation/networking/tuntap.rst of the kernel).

#![allow(unsafe_code, reason = "ioctl(2), fcntl(2) and if_nametoindex(3) with checked arguments")]

use std::ffi::CString;
use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::OpenOptionsExt;

use thiserror::Error;

const DEVICE: &str = "/dev/net/tun";
// <linux/if_tun.h>
const TUNSETIFF: libc::c_ulong = 0x4004_54ca;
const TUNSETOFFLOAD: libc::c_ulong = 0x4004_54d0;
const TUNSETVNETHDRSZ: libc::c_ulong = 0x4004_54d8;
const IFF_TAP: libc::c_short = 0x0002;
const IFF_NO_PI: libc::c_short = 0x1000;
const IFF_VNET_HDR: libc::c_short = 0x4000;
/// Checksums may be left to the receiver.
pub(super) const OFFLOAD_CSUM: u32 = 1;
/// IPv4 TCP segments may be large.
pub(super) const OFFLOAD_TSO4: u32 = 2;
/// IPv6 TCP segments may be large.
pub(super) const OFFLOAD_TSO6: u32 = 4;

/// Why a TAP interface could not be used.
#[derive(Debug, Error)]
pub enum TapError {
    /// The name can't be an interface's.
    #[error("{name:?} is no name for a network interface: 1 to 15 bytes, without '/' and white space")]
    Name {
        /// The name.
        name: String,
    },
    /// The host has no TUN driver, or the process may not use it.
    #[error(
        "{DEVICE} could not be opened: {source}; `modprobe tun` loads the driver, and its users need read and write permission"
    )]
    Device {
        /// Why.
        #[source]
        source: io::Error,
    },
    /// No such interface.
    #[error(
        "there is no network interface {name}; make one with `ip tuntap add {name} mode tap` and `ip link set {name} up`"
    )]
    Missing {
        /// Its name.
        name: String,
    },
    /// Another process has it.
    #[error("the TAP interface {name} is in use by another process; stop that one, or make another TAP")]
    Busy {
        /// Its name.
        name: String,
    },
    /// It belongs to somebody else.
    #[error(
        "no permission to use the TAP interface {name}; make it with `ip tuntap add {name} mode tap user USER`, or run as root"
    )]
    Permission {
        /// Its name.
        name: String,
    },
    /// Not a TAP, or one with several queues.
    #[error(
        "the network interface {name} is no TAP with a single queue; make one with `ip tuntap add NAME mode tap`"
    )]
    Kind {
        /// Its name.
        name: String,
    },
    /// Anything else.
    #[error("the TAP interface {name}: {step} failed: {source}")]
    Setup {
        /// Its name.
        name: String,
        /// System call.
        step: &'static str,
        /// Why.
        #[source]
        source: io::Error,
    },
}

/// Opens an existing TAP interface with a virtio header on each frame, without blocking.
pub fn open_tap(name: &str) -> Result<File, TapError> {
    let owned = || name.to_owned();
    let plain = |byte: u8| byte.is_ascii_graphic() && byte != b'/';
    let c_name = CString::new(name).ok().filter(|_| (1..libc::IFNAMSIZ).contains(&name.len()));
    let Some(c_name) = c_name.filter(|_| name.bytes().all(plain)) else {
        return Err(TapError::Name { name: owned() });
    };
    let mut options = OpenOptions::new();
    options.read(true).write(true).custom_flags(libc::O_NONBLOCK);
    let file = options.open(DEVICE).map_err(|source| TapError::Device { source })?;
    // Root would get a new interface from TUNSETIFF, which nobody has connected to anything.
    // SAFETY: `c_name` is a string with its final NUL.
    if unsafe { libc::if_nametoindex(c_name.as_ptr()) } == 0 {
        return Err(TapError::Missing { name: owned() });
    }
    attach(&file, &c_name).map_err(|source| match source.raw_os_error() {
        Some(libc::EBUSY) => TapError::Busy { name: owned() },
        Some(libc::EPERM) => TapError::Permission { name: owned() },
        Some(libc::EINVAL) => TapError::Kind { name: owned() },
        _ => TapError::Setup { name: owned(), step: "TUNSETIFF", source },
    })?;
    let header_bytes = libc::c_int::try_from(super::HEADER_BYTES).unwrap_or(0);
    // SAFETY: TUNSETVNETHDRSZ reads one int, which lives through the call.
    let result = unsafe { libc::ioctl(file.as_raw_fd(), TUNSETVNETHDRSZ, &raw const header_bytes) };
    checked(result).map_err(|source| TapError::Setup { name: owned(), step: "TUNSETVNETHDRSZ", source })?;
    Ok(file)
}

fn attach(file: &File, name: &CString) -> io::Result<()> {
    // SAFETY: all-zero bytes are a valid ifreq.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (to, byte) in request.ifr_name.iter_mut().zip(name.as_bytes()) {
        *to = byte.cast_signed();
    }
    request.ifr_ifru.ifru_flags = IFF_TAP | IFF_NO_PI | IFF_VNET_HDR;
    // SAFETY: TUNSETIFF reads and writes one ifreq, which lives through the call.
    checked(unsafe { libc::ioctl(file.as_raw_fd(), TUNSETIFF, &raw mut request) })
}

/// Says what frames to the guest may leave to it. Fails on anything but a TAP.
pub(super) fn set_offload(file: &File, offloads: u32) -> io::Result<()> {
    // SAFETY: TUNSETOFFLOAD takes its argument by value.
    checked(unsafe { libc::ioctl(file.as_raw_fd(), TUNSETOFFLOAD, libc::c_ulong::from(offloads)) })
}

/// Reads and writes shall not wait.
pub(super) fn set_nonblocking(file: &File) -> io::Result<()> {
    // SAFETY: F_GETFL and F_SETFL take no pointers.
    let flags = unsafe { libc::fcntl(file.as_raw_fd(), libc::F_GETFL) };
    checked(flags)?;
    // SAFETY: as above.
    checked(unsafe { libc::fcntl(file.as_raw_fd(), libc::F_SETFL, flags | libc::O_NONBLOCK) })
}

fn checked(result: libc::c_int) -> io::Result<()> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_no_interface_has_are_refused() {
        for name in ["", "a/b", "a b", "sixteen-bytes-xx", "nul\0"] {
            assert!(matches!(open_tap(name), Err(TapError::Name { .. })), "{name:?}");
        }
    }

    #[test]
    fn a_missing_tap_is_named_with_the_command_that_makes_it() {
        let error = open_tap("tern-missing").unwrap_err();
        let text = error.to_string();
        match error {
            TapError::Missing { .. } => assert!(text.contains("ip tuntap add tern-missing mode tap")),
            // Without the device or the permission to open it, that comes first.
            TapError::Device { .. } => assert!(text.contains(DEVICE)),
            other => panic!("{other}"),
        }
    }
}
