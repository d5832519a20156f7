//! What can keep a device from being made.

use std::io;
use std::path::PathBuf;

use tern_devices::TapError;
use thiserror::Error;

use crate::disk_locks::LockError;

/// Why a device could not be made.
#[derive(Debug, Error)]
pub enum DeviceError {
    /// No event descriptor.
    #[error("an eventfd for {device} can't be had")]
    EventFd {
        /// For which device.
        device: &'static str,
        /// The host's reason.
        #[source]
        source: io::Error,
    },
    /// KVM doesn't take an interrupt line.
    #[error("KVM refuses interrupt line {gsi} of {device}")]
    Irqfd {
        /// Of which device.
        device: &'static str,
        /// The line.
        gsi: u32,
        /// KVM's reason.
        #[source]
        source: kvm_ioctls::Error,
    },
    /// KVM doesn't take a queue's doorbell.
    #[error("KVM refuses the doorbell of {device} at {gpa:#x}")]
    Ioeventfd {
        /// Of which device.
        device: &'static str,
        /// Where.
        gpa: u64,
        /// KVM's reason.
        #[source]
        source: kvm_ioctls::Error,
    },
    /// A disk's file.
    #[error("--disk {}: it can't be opened", path.display())]
    Disk {
        /// Its path.
        path: PathBuf,
        /// The host's reason.
        #[source]
        source: io::Error,
    },
    /// One file as two disks, at least one of them writable.
    #[error(
        "--disk {}: it is the same file as --disk {}, and what one disk writes would corrupt the other; give each \
         its own file, or both `,readonly`", path.display(), other.display()
    )]
    DiskTwice {
        /// The later one.
        path: PathBuf,
        /// The earlier one.
        other: PathBuf,
    },
    /// A disk that is somebody else's.
    #[error(transparent)]
    DiskLock(#[from] LockError),
    /// A network's interface.
    #[error(transparent)]
    OpenTap(#[from] TapError),
    /// A network's interface, later.
    #[error("--net tap={name}")]
    Tap {
        /// Its name.
        name: String,
        /// The host's reason.
        #[source]
        source: io::Error,
    },
    /// A virtio device.
    #[error("{device} can't be made")]
    Virtio {
        /// Which.
        device: &'static str,
        /// The host's reason.
        #[source]
        source: io::Error,
    },
}
