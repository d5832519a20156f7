//! The ioctls that kvm-ioctls 0.25 lacks or gives in another form: a thin layer over libc.
//!
//! Numbers and layouts: the kernel's `Documentation/virt/kvm/api.rst`.

#![allow(unsafe_code, reason = "ioctl(2) takes pointers; each call passes one that KVM fills or reads")]

use std::io;
use std::os::fd::{AsRawFd, RawFd};

use kvm_bindings::{
    KVM_CAP_EXCEPTION_PAYLOAD, KVM_CAP_X86_TRIPLE_FAULT_EVENT, KVM_VCPU_TSC_CTRL, KVM_VCPU_TSC_OFFSET, KVMIO,
    kvm_clear_dirty_log, kvm_clear_dirty_log__bindgen_ty_1, kvm_device_attr, kvm_dirty_log,
    kvm_dirty_log__bindgen_ty_1, kvm_enable_cap, kvm_nested_state, kvm_sregs2, kvm_xsave,
};
use kvm_ioctls::{VcpuFd, VmFd};
use vmm_sys_util::{ioctl_ior_nr, ioctl_iow_nr, ioctl_iowr_nr};

ioctl_iow_nr!(KVM_GET_DIRTY_LOG, KVMIO, 0x42, kvm_dirty_log);
ioctl_iowr_nr!(KVM_CLEAR_DIRTY_LOG, KVMIO, 0xc0, kvm_clear_dirty_log);
ioctl_ior_nr!(KVM_GET_SREGS2, KVMIO, 0xcc, kvm_sregs2);
ioctl_iow_nr!(KVM_SET_SREGS2, KVMIO, 0xcd, kvm_sregs2);
ioctl_ior_nr!(KVM_GET_XSAVE2, KVMIO, 0xcf, kvm_xsave);
ioctl_iow_nr!(KVM_SET_XSAVE, KVMIO, 0xa5, kvm_xsave);
ioctl_iow_nr!(KVM_GET_DEVICE_ATTR, KVMIO, 0xe2, kvm_device_attr);
ioctl_iow_nr!(KVM_SET_DEVICE_ATTR, KVMIO, 0xe1, kvm_device_attr);
ioctl_iowr_nr!(KVM_GET_NESTED_STATE, KVMIO, 0xbe, kvm_nested_state);
ioctl_iow_nr!(KVM_SET_NESTED_STATE, KVMIO, 0xbf, kvm_nested_state);
ioctl_iow_nr!(KVM_HAS_DEVICE_ATTR, KVMIO, 0xe3, kvm_device_attr);

/// # Safety
/// `argument` must be what KVM expects for `request`, and live through the call.
unsafe fn ioctl<T>(fd: RawFd, request: libc::c_ulong, argument: *mut T) -> io::Result<()> {
    // SAFETY: the caller vouches for `argument`; a wrong descriptor is an error, not undefined behaviour.
    let result = unsafe { libc::ioctl(fd, request, argument) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// KVM_GET_DIRTY_LOG into a buffer of the caller's: bit n of word k is page 64 k + n of the slot.
///
/// `words` must cover the slot: KVM writes one bit for each of its `pages`.
pub fn get_dirty_log(vm: &VmFd, slot: u32, pages: u64, words: &mut [u64]) -> io::Result<()> {
    if (words.len() as u64) < pages.div_ceil(64) {
        return Err(io::Error::from(io::ErrorKind::InvalidInput));
    }
    let bitmap = kvm_dirty_log__bindgen_ty_1 { dirty_bitmap: words.as_mut_ptr().cast() };
    let mut log = kvm_dirty_log { slot, padding1: 0, __bindgen_anon_1: bitmap };
    // SAFETY: `words` has room for the slot's bits, checked above.
    unsafe { ioctl(vm.as_raw_fd(), KVM_GET_DIRTY_LOG(), &raw mut log) }
}

/// KVM_CLEAR_DIRTY_LOG: re-protects the pages whose bit is set in `words`. `first_page` is a multiple of
/// 64, and so is `pages` unless it ends with the slot.
pub fn clear_dirty_log(vm: &VmFd, slot: u32, first_page: u64, pages: u32, words: &[u64]) -> io::Result<()> {
    if (words.len() as u64) < u64::from(pages).div_ceil(64) {
        return Err(io::Error::from(io::ErrorKind::InvalidInput));
    }
    let bitmap = kvm_clear_dirty_log__bindgen_ty_1 { dirty_bitmap: words.as_ptr().cast_mut().cast() };
    let mut log = kvm_clear_dirty_log { slot, num_pages: pages, first_page, __bindgen_anon_1: bitmap };
    // SAFETY: KVM only reads the bitmap, which has a bit for each page, checked above.
    unsafe { ioctl(vm.as_raw_fd(), KVM_CLEAR_DIRTY_LOG(), &raw mut log) }
}

/// KVM_GET_SREGS2: special registers with PDPTRs (api.rst 4.132, capability KVM_CAP_SREGS2).
pub fn get_sregs2(vcpu: &VcpuFd) -> io::Result<kvm_sregs2> {
    let mut sregs = kvm_sregs2::default();
    // SAFETY: KVM fills one kvm_sregs2.
    unsafe { ioctl(vcpu.as_raw_fd(), KVM_GET_SREGS2(), &raw mut sregs)? };
    Ok(sregs)
}

/// KVM_SET_SREGS2.
pub fn set_sregs2(vcpu: &VcpuFd, sregs: &kvm_sregs2) -> io::Result<()> {
    let mut sregs = *sregs;
    // SAFETY: KVM reads one kvm_sregs2.
    unsafe { ioctl(vcpu.as_raw_fd(), KVM_SET_SREGS2(), &raw mut sregs) }
}

/// KVM_GET_XSAVE2 into `area`, whose length must be what KVM_CAP_XSAVE2 of this VM says (at least 4096).
pub fn get_xsave2(vcpu: &VcpuFd, area: &mut [u64], size_bytes: usize) -> io::Result<()> {
    if size_of_val(area) < size_bytes {
        return Err(io::Error::from(io::ErrorKind::InvalidInput));
    }
    // SAFETY: KVM writes `size_bytes` bytes, the value of KVM_CAP_XSAVE2, for which `area` has room.
    unsafe { ioctl(vcpu.as_raw_fd(), KVM_GET_XSAVE2(), area.as_mut_ptr()) }
}

/// KVM_SET_XSAVE from `area`, which must cover what KVM_CAP_XSAVE2 of this VM says.
pub fn set_xsave(vcpu: &VcpuFd, area: &mut [u64], size_bytes: usize) -> io::Result<()> {
    if size_of_val(area) < size_bytes {
        return Err(io::Error::from(io::ErrorKind::InvalidInput));
    }
    // SAFETY: KVM reads `size_bytes` bytes, which `area` holds.
    unsafe { ioctl(vcpu.as_raw_fd(), KVM_SET_XSAVE(), area.as_mut_ptr()) }
}

/// Bytes that `area` says it has, in the member `size` of kvm_nested_state.
fn nested_bytes(area: &[u64]) -> usize {
    area.first().map_or(0, |first| usize::try_from(first >> 32).unwrap_or(usize::MAX))
}

/// KVM_GET_NESTED_STATE into `area`, whose member `size` says how long it is (api.rst 4.114).
pub fn get_nested_state(vcpu: &VcpuFd, area: &mut [u64]) -> io::Result<()> {
    if size_of_val(area) < nested_bytes(area).max(size_of::<kvm_nested_state>()) {
        return Err(io::Error::from(io::ErrorKind::InvalidInput));
    }
    // SAFETY: KVM writes no more than `size` bytes, which `area` has, checked above.
    unsafe { ioctl(vcpu.as_raw_fd(), KVM_GET_NESTED_STATE(), area.as_mut_ptr()) }
}

/// KVM_SET_NESTED_STATE from `area`, whose member `size` says how long it is (api.rst 4.115).
pub fn set_nested_state(vcpu: &VcpuFd, area: &mut [u64]) -> io::Result<()> {
    if size_of_val(area) < nested_bytes(area).max(size_of::<kvm_nested_state>()) {
        return Err(io::Error::from(io::ErrorKind::InvalidInput));
    }
    // SAFETY: KVM reads `size` bytes, which `area` has, checked above.
    unsafe { ioctl(vcpu.as_raw_fd(), KVM_SET_NESTED_STATE(), area.as_mut_ptr()) }
}

/// Has KVM tell a pending exception's payload and a pending triple fault in the vCPUs' events, where it can
/// (api.rst 4.31, KVM_CAP_EXCEPTION_PAYLOAD and KVM_CAP_X86_TRIPLE_FAULT_EVENT). Before any vCPU.
pub fn carry_pending_events(vm: &VmFd) -> Result<(), kvm_ioctls::Error> {
    for cap in [KVM_CAP_EXCEPTION_PAYLOAD, KVM_CAP_X86_TRIPLE_FAULT_EVENT] {
        if vm.check_extension_raw(u64::from(cap)) > 0 {
            let on = kvm_enable_cap { cap, args: [1, 0, 0, 0], ..Default::default() };
            vm.enable_cap(&on)?;
        }
    }
    Ok(())
}

fn tsc_offset_attribute(value: *mut u64) -> kvm_device_attr {
    let attr = u64::from(KVM_VCPU_TSC_OFFSET);
    kvm_device_attr { flags: 0, group: KVM_VCPU_TSC_CTRL, attr, addr: value as u64 }
}

/// Can this host read and set a vCPU's TSC offset? (Linux 5.16, `devices/vcpu.rst` section 4.1.)
pub fn has_tsc_offset(vcpu: &VcpuFd) -> bool {
    let mut attribute = tsc_offset_attribute(std::ptr::null_mut());
    // SAFETY: KVM_HAS_DEVICE_ATTR reads the attribute's numbers only.
    unsafe { ioctl(vcpu.as_raw_fd(), KVM_HAS_DEVICE_ATTR(), &raw mut attribute).is_ok() }
}

/// Guest TSC minus host TSC.
pub fn get_tsc_offset(vcpu: &VcpuFd) -> io::Result<u64> {
    let mut offset = 0u64;
    let mut attribute = tsc_offset_attribute(&raw mut offset);
    // SAFETY: KVM writes 64 bits to the address in the attribute, which is `offset`.
    unsafe { ioctl(vcpu.as_raw_fd(), KVM_GET_DEVICE_ATTR(), &raw mut attribute)? };
    Ok(offset)
}

/// Sets guest TSC minus host TSC.
pub fn set_tsc_offset(vcpu: &VcpuFd, mut offset: u64) -> io::Result<()> {
    let mut attribute = tsc_offset_attribute(&raw mut offset);
    // SAFETY: KVM reads 64 bits at the address in the attribute, which is `offset`.
    unsafe { ioctl(vcpu.as_raw_fd(), KVM_SET_DEVICE_ATTR(), &raw mut attribute) }
}
