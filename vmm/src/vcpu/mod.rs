//! vCPUs: one thread each, their exits, their state, and what a person is told when one fails.

mod cpuid;
mod fault;
mod feature;
mod msr;
mod nested;
mod offer;
mod profile;
mod registers;
mod run;
mod set;
mod state;

pub use cpuid::{CpuidV1, Register, Template};
pub use fault::VcpuFault;
pub use feature::{Feature, FeatureSet, MSR_ARCH_CAPABILITIES, Place};
pub use msr::{MSR_TSC, MSR_TSC_DEADLINE, MsrV1, indices as msr_indices};
pub use nested::NestedV1;
pub use offer::{Offer, forced, vendor};
pub use profile::{
    AddressBits, Baseline, BaselineError, FILE_LIMIT_BYTES as PROFILE_LIMIT_BYTES, Fault as ProfileFault,
    HostNote, Profile, ProfileError,
};
pub use registers::{DebugRegsV1, EventsV1, RegsV1, SegmentV1, SregsV1, TableV1, XcrV1};
pub use run::{Bus, Vcpu, VcpuEvent};
pub use set::{VcpuGuard, VcpuSet};
pub use state::{StateAccess, VcpuV1};

use std::io;

use thiserror::Error;

/// What can fail with a vCPU.
#[derive(Debug, Error)]
pub enum VcpuError {
    /// An ioctl of kvm-ioctls failed.
    #[error("KVM {operation} failed")]
    Kvm {
        /// The ioctl.
        operation: &'static str,
        /// KVM's reason.
        #[source]
        source: kvm_ioctls::Error,
    },
    /// An ioctl of ours failed.
    #[error("KVM {operation} failed")]
    Io {
        /// The ioctl.
        operation: &'static str,
        /// KVM's reason.
        #[source]
        source: io::Error,
    },
    /// A register that could be read when the vCPU was made can't be read now.
    #[error("MSR {index:#x} could not be read")]
    MsrUnreadable {
        /// Its index.
        index: u32,
    },
    /// A saved register doesn't fit this host.
    #[error(
        "this host refuses MSR {index:#x} = {value:#x} (it has {}); start the source with a CPU profile that \
         both hosts can give", here.map_or("no such register".to_owned(), |value| format!("{value:#x}"))
    )]
    MsrRefused {
        /// Its index.
        index: u32,
        /// Saved value.
        value: u64,
        /// Value here, if it can be read.
        here: Option<u64>,
    },
    /// More registers than KVM takes in one call.
    #[error("{count} MSRs are more than one call to KVM takes")]
    TooManyMsrs {
        /// How many.
        count: usize,
    },
    /// A saved area has an impossible length.
    #[error("vcpu.{what}: {found} bytes or entries, this host has {expected}")]
    Length {
        /// Which.
        what: &'static str,
        /// Length saved.
        found: usize,
        /// Length here.
        expected: usize,
    },
    /// The guest's TSC frequency can't be had here.
    #[error("the guest's TSC runs at {wanted} kHz, this host's at {here} kHz and it cannot scale")]
    TscKhz {
        /// The guest's.
        wanted: u32,
        /// This host's.
        here: u32,
        /// KVM's reason.
        #[source]
        source: kvm_ioctls::Error,
    },
    /// The guest's TSC would go back.
    #[error(
        "the guest's TSC was at {saved} and would be at {here}: this host's KVM does not let a guest's TSC differ \
         from its own (kvm_pvm); use a host whose TSC is further on, or with VMX or SVM"
    )]
    TscBack {
        /// When it was saved.
        saved: u64,
        /// What this host gives.
        here: u64,
    },
    /// A shadow stack that this host can't give.
    #[error(
        "the guest uses a shadow stack (SSP {ssp:#x}), and this host's KVM can't set one: use Linux 6.18 or later"
    )]
    ShadowStack {
        /// Its pointer.
        ssp: u64,
    },
    /// CPUID has more entries than KVM takes.
    #[error("{count} CPUID entries are more than KVM takes")]
    TooManyCpuidEntries {
        /// How many.
        count: usize,
    },
    /// A thread could not be started.
    #[error("the thread of vCPU {index} could not be started")]
    Thread {
        /// Which vCPU.
        index: u32,
        /// Why.
        #[source]
        source: io::Error,
    },
}

impl VcpuError {
    fn kvm(operation: &'static str) -> impl Fn(kvm_ioctls::Error) -> Self {
        move |source| Self::Kvm { operation, source }
    }

    fn io(operation: &'static str) -> impl Fn(io::Error) -> Self {
        move |source| Self::Io { operation, source }
    }
}
