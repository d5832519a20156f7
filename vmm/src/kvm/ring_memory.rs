//! Dirty rings of a real machine: how large they can be, where they are mapped, and their reset.

#![allow(
    unsafe_code,
    reason = "the rings are mapped from vCPUs; ioctl and signal masks have no safe wrapper"
)]

use std::io;
use std::ops::Deref;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::ptr::NonNull;

use kvm_bindings::{
    KVM_CAP_DIRTY_LOG_RING, KVM_CAP_DIRTY_LOG_RING_ACQ_REL, KVM_DIRTY_LOG_PAGE_OFFSET, KVMIO, kvm_enable_cap,
};
use kvm_ioctls::{Kvm, VcpuFd, VmFd};
use vmm_sys_util::ioctl_io_nr;

use super::dirty_ring::{Entry, ResetRings};

ioctl_io_nr!(KVM_RESET_DIRTY_RINGS, KVMIO, 0xc7);

/// Which capability of rings this KVM has, and the most entries that a ring can have; none: no rings. The one that
/// promises acquire and release comes first; the older one only exists where memory is ordered by itself.
fn offered(check: impl Fn(u32) -> i32) -> Option<(u32, u32)> {
    [KVM_CAP_DIRTY_LOG_RING_ACQ_REL, KVM_CAP_DIRTY_LOG_RING].into_iter().find_map(|cap| {
        let entries = u32::try_from(check(cap)).unwrap_or(0) / size_of::<Entry>() as u32;
        (entries > 0).then_some((cap, entries))
    })
}

/// Most entries that a vCPU's ring can have on this host; 0: there are no rings.
pub fn most_ring_entries(kvm: &Kvm) -> u32 {
    offered(|cap| kvm.check_extension_raw(cap.into())).map_or(0, |(_, entries)| entries)
}

/// Gives each vCPU that is made from now on a ring of `entries`, a power of two. Before the first vCPU.
pub fn enable_dirty_rings(vm: &VmFd, entries: u32) -> io::Result<()> {
    let (cap, _) = offered(|cap| vm.check_extension_raw(cap.into()))
        .ok_or_else(|| io::Error::from(io::ErrorKind::Unsupported))?;
    let bytes = u64::from(entries) * size_of::<Entry>() as u64;
    Ok(vm.enable_cap(&kvm_enable_cap { cap, args: [bytes, 0, 0, 0], ..Default::default() })?)
}

/// A vCPU's ring, mapped.
#[derive(Debug)]
pub struct RingMapping {
    address: NonNull<Entry>,
    entries: usize,
}

// SAFETY: shared memory whose members are atomics; the mapping is only undone on drop.
unsafe impl Send for RingMapping {}
// SAFETY: as above.
unsafe impl Sync for RingMapping {}

impl RingMapping {
    /// Maps the ring of `vcpu`, which was made with this many entries.
    pub fn new(vcpu: &VcpuFd, entries: u32) -> io::Result<Self> {
        let entries = entries as usize;
        let length = entries * size_of::<Entry>();
        // SAFETY: sysconf(3) takes a number and has no effect.
        let page_bytes = unsafe { libc::sysconf(libc::_SC_PAGESIZE) };
        let offset = libc::off_t::from(KVM_DIRTY_LOG_PAGE_OFFSET) * page_bytes;
        let (protection, fd) = (libc::PROT_READ | libc::PROT_WRITE, vcpu.as_raw_fd());
        // SAFETY: a new mapping at a place that the kernel chooses.
        let address =
            unsafe { libc::mmap(std::ptr::null_mut(), length, protection, libc::MAP_SHARED, fd, offset) };
        if address == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let address = NonNull::new(address.cast()).ok_or_else(|| io::Error::other("mapped at 0"))?;
        Ok(Self { address, entries })
    }
}

impl Deref for RingMapping {
    type Target = [Entry];

    fn deref(&self) -> &[Entry] {
        // SAFETY: mapped, page-aligned and zeroed by the kernel, with room for so many entries.
        unsafe { std::slice::from_raw_parts(self.address.as_ptr(), self.entries) }
    }
}

impl Drop for RingMapping {
    fn drop(&mut self) {
        // SAFETY: this mapping is ours, and nobody borrows from it any more.
        unsafe { libc::munmap(self.address.as_ptr().cast(), self.entries * size_of::<Entry>()) };
    }
}

/// The reset of a VM's rings, from any thread.
#[derive(Debug)]
pub struct RingReset {
    vm: OwnedFd,
}

impl RingReset {
    /// Keeps the VM alive.
    pub fn new(vm: &VmFd) -> io::Result<Self> {
        // SAFETY: the descriptor is open while `vm` is borrowed.
        let vm = unsafe { BorrowedFd::borrow_raw(vm.as_raw_fd()) };
        Ok(Self { vm: vm.try_clone_to_owned()? })
    }
}

impl ResetRings for RingReset {
    fn reset(&self) -> io::Result<usize> {
        // A kick of the vCPU whose thread this is must wait: the kernel would stop in the middle (Linux 6.16), and at
        // the very end it does so without a word. See `State::suspect_before`.
        let _blocked = SignalsBlocked::new()?;
        // SAFETY: takes no argument.
        let count = unsafe { libc::ioctl(self.vm.as_fd().as_raw_fd(), KVM_RESET_DIRTY_RINGS(), 0) };
        usize::try_from(count).map_err(|_| io::Error::last_os_error())
    }
}

/// All signals of this thread wait while it lives.
struct SignalsBlocked {
    before: libc::sigset_t,
}

impl SignalsBlocked {
    fn new() -> io::Result<Self> {
        // SAFETY: a signal set is plain data, and sigfillset(3) sets all of it.
        let (mut all, mut before) =
            unsafe { (std::mem::zeroed::<libc::sigset_t>(), std::mem::zeroed::<libc::sigset_t>()) };
        // SAFETY: both sets live through the calls.
        let failed = unsafe {
            libc::sigfillset(&raw mut all);
            libc::pthread_sigmask(libc::SIG_SETMASK, &raw const all, &raw mut before)
        };
        if failed == 0 { Ok(Self { before }) } else { Err(io::Error::from_raw_os_error(failed)) }
    }
}

impl Drop for SignalsBlocked {
    fn drop(&mut self) {
        // SAFETY: the set is the one that was there before.
        unsafe { libc::pthread_sigmask(libc::SIG_SETMASK, &raw const self.before, std::ptr::null_mut()) };
    }
}
