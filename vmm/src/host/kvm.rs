//! `/dev/kvm`: opened with errors that say what to do, and asked what it can.

use std::io;

use kvm_bindings::{
    KVM_CAP_ADJUST_CLOCK, KVM_CAP_DIRTY_LOG_RING, KVM_CAP_DIRTY_LOG_RING_ACQ_REL,
    KVM_CAP_DIRTY_LOG_RING_WITH_BITMAP, KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2, KVM_CAP_MAX_VCPUS,
    KVM_CAP_NESTED_STATE, KVM_CAP_NR_VCPUS, KVM_CAP_PRE_FAULT_MEMORY, KVM_CAP_SREGS2, KVM_CAP_TSC_CONTROL,
    KVM_CAP_VM_TSC_CONTROL, KVM_CAP_X86_SMM, KVM_CAP_XSAVE2,
};
use kvm_ioctls::Kvm;
use serde::Serialize;
use thiserror::Error;

use crate::kvm::permit_large_registers;

/// The one version of KVM's interface there has been since Linux 2.6.22.
const API_VERSION: i32 = 12;
/// `KVM_DIRTY_LOG_MANUAL_PROTECT_ENABLE`.
const MANUAL_PROTECT: i32 = 1;
/// `KVM_DIRTY_LOG_INITIALLY_SET`.
const INITIALLY_SET: i32 = 2;

/// Why there is no KVM.
#[derive(Debug, Error)]
pub enum KvmError {
    /// No device.
    #[error(
        "/dev/kvm is not there: load KVM's module (`modprobe kvm_intel` or `modprobe kvm_amd`, as root), and switch virtualisation on in the firmware, or in the hypervisor if this host is itself a guest"
    )]
    Missing,
    /// No permission.
    #[error(
        "/dev/kvm may not be opened by this user: join its group (`sudo usermod -aG kvm $USER`, then log in again)"
    )]
    Permission,
    /// Anything else.
    #[error("/dev/kvm can't be opened; the kernel's log (`dmesg | grep -i kvm`) may say why")]
    Open {
        /// The kernel's answer.
        source: io::Error,
    },
    /// Not the KVM that everyone has.
    #[error(
        "/dev/kvm speaks version {found} of its interface, and tern {API_VERSION}: use a kernel since 2.6.22"
    )]
    Version {
        /// What it said.
        found: i32,
    },
}

/// Opens `/dev/kvm`, checks the version of its interface, and asks for the large registers that guests can have.
///
/// # Errors
/// A [`KvmError`] with the remedy.
pub fn open_kvm() -> Result<Kvm, KvmError> {
    let kvm = Kvm::new().map_err(|error| match error.errno() {
        libc::ENOENT | libc::ENODEV | libc::ENXIO => KvmError::Missing,
        libc::EACCES | libc::EPERM => KvmError::Permission,
        errno => KvmError::Open { source: io::Error::from_raw_os_error(errno) },
    })?;
    match kvm.get_api_version() {
        API_VERSION => {
            permit_large_registers(&kvm);
            Ok(kvm)
        }
        found => Err(KvmError::Version { found }),
    }
}

/// What this KVM can, as far as tern makes use of it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct KvmFacts {
    /// `KVM_GET_API_VERSION`.
    pub api_version: i32,
    /// vCPUs that KVM recommends for one machine.
    pub recommended_vcpus: i32,
    /// vCPUs that one machine can have.
    pub max_vcpus: i32,
    /// How dirty memory is found.
    pub dirty_log: DirtyLogFacts,
    /// The guest's TSC, in kHz.
    pub tsc_khz: Option<u32>,
    /// A guest can keep another host's TSC frequency.
    pub tsc_scaling: bool,
    /// The frequency can be set for a whole machine, before it has vCPUs.
    pub vm_tsc_frequency: bool,
    /// Bits of `KVM_CAP_ADJUST_CLOCK`.
    pub adjust_clock_flags: i32,
    /// `KVM_GET_SREGS2`.
    pub sregs2: bool,
    /// Size of `KVM_GET_XSAVE2`; 0 where it is missing.
    pub xsave2_bytes: i32,
    /// Guests can run guests, and their state can be saved.
    pub nested_state: bool,
    /// System management mode.
    pub smm: bool,
    /// `KVM_PRE_FAULT_MEMORY`.
    pub pre_fault_memory: bool,
}

/// How dirty memory is found.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct DirtyLogFacts {
    /// The log is cleared by a call of its own, in pieces.
    pub manual_protect: bool,
    /// With it: all pages count as dirty at the start, and nothing is write-protected at once.
    pub initially_set: bool,
    /// Largest dirty ring of one vCPU; 0: there are none.
    pub ring_bytes: i32,
    /// The ring's entries are published with acquire and release.
    pub ring_acq_rel: bool,
    /// The ring has a bitmap beside it, for writes of devices in the kernel.
    pub ring_with_bitmap: bool,
}

impl KvmFacts {
    /// Asks; makes a machine with one vCPU for a moment, since only a vCPU knows the TSC's frequency.
    pub fn probe(kvm: &Kvm) -> Self {
        let cap = |cap: u32| kvm.check_extension_raw(cap.into());
        let manual = cap(KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2);
        let acq_rel_bytes = cap(KVM_CAP_DIRTY_LOG_RING_ACQ_REL);
        let dirty_log = DirtyLogFacts {
            manual_protect: manual & MANUAL_PROTECT != 0,
            initially_set: manual & INITIALLY_SET != 0,
            ring_bytes: acq_rel_bytes.max(cap(KVM_CAP_DIRTY_LOG_RING)),
            ring_acq_rel: acq_rel_bytes > 0,
            ring_with_bitmap: cap(KVM_CAP_DIRTY_LOG_RING_WITH_BITMAP) > 0,
        };
        let vcpu = kvm.create_vm().and_then(|vm| vm.create_vcpu(0));
        Self {
            api_version: kvm.get_api_version(),
            recommended_vcpus: cap(KVM_CAP_NR_VCPUS),
            max_vcpus: cap(KVM_CAP_MAX_VCPUS),
            dirty_log,
            tsc_khz: vcpu.and_then(|vcpu| vcpu.get_tsc_khz()).ok(),
            tsc_scaling: cap(KVM_CAP_TSC_CONTROL) > 0,
            vm_tsc_frequency: cap(KVM_CAP_VM_TSC_CONTROL) > 0,
            adjust_clock_flags: cap(KVM_CAP_ADJUST_CLOCK),
            sregs2: cap(KVM_CAP_SREGS2) > 0,
            xsave2_bytes: cap(KVM_CAP_XSAVE2),
            nested_state: cap(KVM_CAP_NESTED_STATE) > 0,
            smm: cap(KVM_CAP_X86_SMM) > 0,
            pre_fault_memory: cap(KVM_CAP_PRE_FAULT_MEMORY) > 0,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_name_the_remedy() {
        assert!(KvmError::Missing.to_string().contains("modprobe kvm_intel"));
        assert!(KvmError::Permission.to_string().contains("usermod -aG kvm"));
    }
}
