//! What the dirty log asks of KVM: a seam, so that tests can put a KVM in memory behind it.

use std::io;

use kvm_bindings::{KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2, KVM_MEM_LOG_DIRTY_PAGES, kvm_enable_cap};
use kvm_ioctls::VmFd;

use super::{Slot, clear_dirty_log, get_dirty_log, set_slot};

/// The calls of the dirty log, but for those of the ring ([`super::ResetRings`]).
pub trait LogCalls {
    /// Flags of KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2 from now on; 0: off. While no slot logs.
    fn set_manual_protect(&self, flags: u32) -> io::Result<()>;
    /// Starts or ends logging in one slot.
    fn set_logging(&self, index: u32, slot: &Slot, on: bool) -> io::Result<()>;
    /// As [`get_dirty_log`].
    fn get(&self, index: u32, pages: u64, words: &mut [u64]) -> io::Result<()>;
    /// As [`clear_dirty_log`].
    fn clear(&self, index: u32, first_page: u64, pages: u32, words: &[u64]) -> io::Result<()>;
}

impl LogCalls for VmFd {
    fn set_manual_protect(&self, flags: u32) -> io::Result<()> {
        let mut cap = kvm_enable_cap { cap: KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2, ..Default::default() };
        cap.args[0] = flags.into();
        Ok(self.enable_cap(&cap)?)
    }

    fn set_logging(&self, index: u32, slot: &Slot, on: bool) -> io::Result<()> {
        set_slot(self, index, slot, if on { KVM_MEM_LOG_DIRTY_PAGES } else { 0 })
    }

    fn get(&self, index: u32, pages: u64, words: &mut [u64]) -> io::Result<()> {
        get_dirty_log(self, index, pages, words)
    }

    fn clear(&self, index: u32, first_page: u64, pages: u32, words: &[u64]) -> io::Result<()> {
        clear_dirty_log(self, index, first_page, pages, words)
    }
}
