//! Permission for the processor's large register files (AMX) in guests.
//!
//! The kernel gives a process no room for them until it asks (`Documentation/arch/x86/xstate.rst`, "Dynamic
//! features for virtual machines"), and leaves them out of KVM_GET_SUPPORTED_CPUID and KVM_CAP_XSAVE2 until
//! then (`api.rst` 4.46 and 4.134). It must be asked before the first vCPU is made, at the source and at the
//! destination alike.

#![allow(unsafe_code, reason = "arch_prctl(2) and one ioctl have no safe wrapper")]

use std::os::fd::AsRawFd;

use kvm_bindings::{KVMIO, kvm_device_attr};
use kvm_ioctls::Kvm;
use vmm_sys_util::ioctl_iow_nr;

ioctl_iow_nr!(KVM_GET_DEVICE_ATTR, KVMIO, 0xe2, kvm_device_attr);

/// `ARCH_REQ_XCOMP_GUEST_PERM` (asm/prctl.h).
const REQUEST_FOR_GUESTS: libc::c_long = 0x1025;
/// `KVM_X86_XCOMP_GUEST_SUPP`: attribute 0 of group 0 of /dev/kvm itself (asm/kvm.h, Linux 5.17).
const SUPPORTED_IN_GUESTS: u64 = 0;
/// State components that are given on request only: AMX's tiles (Intel SDM volume 1, 13.1).
const ON_REQUEST: [u32; 1] = [18];

/// The components of `supported` that have to be asked for.
fn to_request(supported: u64) -> impl Iterator<Item = u32> {
    ON_REQUEST.into_iter().filter(move |component| supported & 1 << component != 0)
}

/// Asks for whatever this host can give. Once a process is enough; more often does no harm. What is refused
/// is not in this host's CPUID, and so a guest that needs it is refused with a list.
pub fn permit_large_registers(kvm: &Kvm) {
    for component in to_request(supported(kvm)) {
        // SAFETY: arch_prctl takes two numbers here.
        let refused =
            unsafe { libc::syscall(libc::SYS_arch_prctl, REQUEST_FOR_GUESTS, u64::from(component)) };
        if refused != 0 {
            let error = std::io::Error::last_os_error();
            tracing::warn!(component, %error, "this process may not give guests a register file that the host has");
        }
    }
}

/// Components that KVM can give to guests, a bit each; 0 where it can't say (before Linux 5.17).
fn supported(kvm: &Kvm) -> u64 {
    let mut components = 0u64;
    let addr = (&raw mut components) as u64;
    let attribute = kvm_device_attr { flags: 0, group: 0, attr: SUPPORTED_IN_GUESTS, addr };
    // SAFETY: KVM writes 64 bits to the address in the attribute, which is `components`.
    let failed = unsafe { libc::ioctl(kvm.as_raw_fd(), KVM_GET_DEVICE_ATTR(), &raw const attribute) };
    if failed == 0 { components } else { 0 }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_the_host_has_is_asked_for() {
        assert_eq!(to_request(0b111).count(), 0);
        assert_eq!(to_request(0b11 << 17 | 0b111).collect::<Vec<_>>(), [18]);
    }
}
