//! What ends a machine.

use std::io;
use std::path::PathBuf;

use tern_migration::MigrationError;
use tern_migration::pager::PagerError;
use thiserror::Error;

use crate::boot::BootError;
use crate::control::SocketError;
use crate::host::KvmError;
use crate::restore::RestoreError;
use crate::vcpu::VcpuFault;
use crate::vm::BuildError;

/// Why a machine could not run, or could not run on.
#[derive(Debug, Error)]
pub enum RunError {
    /// `/dev/kvm`.
    #[error(transparent)]
    NoKvm(#[from] KvmError),
    /// The image can't be used.
    #[error("--image {name}")]
    Image {
        /// Its name.
        name: String,
        /// Why.
        #[source]
        source: tern_guest_images::ImageError,
    },
    /// The image isn't there yet.
    #[error("--image {name}: it is not built yet; build it with: tern image build {name}")]
    ImageMissing {
        /// Its name.
        name: String,
    },
    /// The kernel can't be booted.
    #[error(transparent)]
    Boot(#[from] BootError),
    /// The machine can't be built.
    #[error(transparent)]
    Build(#[from] BuildError),
    /// The other end of the serial port or the console.
    #[error("{flag} {given}: can't be opened; does the directory exist, and may you write it?")]
    Port {
        /// The flag.
        flag: &'static str,
        /// As on the command line.
        given: String,
        /// The host's reason.
        #[source]
        source: io::Error,
    },
    /// A listening socket.
    #[error(transparent)]
    Socket(#[from] SocketError),
    /// `--incoming URI`.
    #[error("--incoming {uri}: {reason}")]
    Incoming {
        /// As on the command line.
        uri: String,
        /// Why.
        reason: String,
    },
    /// A file to restore from.
    #[error(transparent)]
    Restore(#[from] RestoreError),
    /// The guest did not come out of its file.
    #[error("the guest can't be restored from {}", path.display())]
    NotRestored {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: Box<MigrationError>,
    },
    /// A page of memory that was to come on demand.
    #[error("{}", super::restoring::LOST)]
    MemoryLost {
        /// Which, and why.
        #[source]
        source: PagerError,
    },
    /// The host refused something.
    #[error("{what}")]
    Host {
        /// What was tried.
        what: &'static str,
        /// The host's reason.
        #[source]
        source: io::Error,
    },
    /// A vCPU can't go on.
    #[error("{0}")]
    Vcpu(Box<VcpuFault>),
}
