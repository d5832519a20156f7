//! State of the in-kernel chips: both 8259, the I/O APIC, the PIT, and the VM's clock.

mod clock;
mod ioapic;
mod pic;
mod pit;

pub use clock::ClockV1;
pub use ioapic::IoapicV1;
pub use pic::PicV1;
pub use pit::{PitChannelV1, PitV1};

use thiserror::Error;

/// Why a chip's state could not be saved or restored.
#[derive(Debug, Error)]
pub enum ChipError {
    /// KVM refused.
    #[error("KVM {operation} failed")]
    Kvm {
        /// The ioctl.
        operation: &'static str,
        /// KVM's reason.
        #[source]
        source: kvm_ioctls::Error,
    },
    /// A list has the wrong length.
    #[error("{what}: {found} entries, the chip has {expected}")]
    Count {
        /// What is listed.
        what: &'static str,
        /// Entries found.
        found: usize,
        /// Entries of the chip.
        expected: usize,
    },
}

fn kvm(operation: &'static str) -> impl Fn(kvm_ioctls::Error) -> ChipError {
    move |source| ChipError::Kvm { operation, source }
}
