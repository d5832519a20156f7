//! What ends a machine.

use std::io;

use thiserror::Error;

use crate::boot::BootError;
use crate::host::KvmError;
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
    /// The serial port's other end.
    #[error("--serial {given}")]
    Serial {
        /// As on the command line.
        given: String,
        /// The host's reason.
        #[source]
        source: io::Error,
    },
    /// The control socket.
    #[error("--control {path}")]
    Control {
        /// Its path.
        path: String,
        /// Why.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// `--incoming URI`.
    #[error("--incoming {uri}: {reason}")]
    Incoming {
        /// As on the command line.
        uri: String,
        /// Why.
        reason: String,
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
