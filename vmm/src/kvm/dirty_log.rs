//! KVM's dirty log: manual protect where the host has it, the plain log elsewhere.
//!
//! With manual protect, GET only reads, and CLEAR re-protects a chunk just before its pages are sent: no
//! long hold of KVM's lock, and no page is reported twice for one write. CLEAR is told exactly the pages that
//! a GET has reported: a page that was written since would lose its bit without ever having been reported.
//! With the plain log, GET reads and re-protects everything at once.

use std::io;
use std::ops::Range;

use kvm_bindings::{
    KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2, KVM_DIRTY_LOG_INITIALLY_SET, KVM_DIRTY_LOG_MANUAL_PROTECT_ENABLE,
    KVM_MEM_LOG_DIRTY_PAGES, kvm_enable_cap, kvm_userspace_memory_region,
};
use kvm_ioctls::VmFd;
use tern_migration::DirtyBitmap;

use super::{clear_dirty_log, get_dirty_log};

/// A memory slot: its number is its place in the list.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Slot {
    /// First guest-physical address.
    pub gpa: u64,
    /// Length.
    pub length_bytes: u64,
    /// Where it is mapped in this process.
    pub host_address: u64,
}

/// How this host reports dirty pages.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DirtyLogMode {
    /// GET reads and re-protects.
    Plain,
    /// GET reads, CLEAR re-protects.
    Manual,
}

/// The dirty log of one VM.
#[derive(Debug)]
pub struct DirtyLog {
    mode: DirtyLogMode,
    slots: Vec<Slot>,
    running: bool,
    words: Vec<u64>,
    /// For each slot, the pages that were reported and not yet cleared.
    reported: Vec<Vec<u64>>,
}

impl DirtyLog {
    /// Turns manual protect on where the host has it. Before the first memory slot logs.
    pub fn new(vm: &VmFd, slots: Vec<Slot>) -> io::Result<Self> {
        let offered = vm.check_extension_raw(u64::from(KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2)).cast_unsigned();
        let wanted = offered & (KVM_DIRTY_LOG_MANUAL_PROTECT_ENABLE | KVM_DIRTY_LOG_INITIALLY_SET);
        let mode = if wanted & KVM_DIRTY_LOG_MANUAL_PROTECT_ENABLE != 0 {
            let mut cap = kvm_enable_cap { cap: KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2, ..Default::default() };
            cap.args[0] = u64::from(wanted);
            vm.enable_cap(&cap)?;
            DirtyLogMode::Manual
        } else {
            DirtyLogMode::Plain
        };
        let longest = slots.iter().map(|slot| pages(slot).div_ceil(64)).max().unwrap_or(0);
        let reported = slots.iter().map(|slot| vec![0; pages(slot).div_ceil(64) as usize]).collect();
        Ok(Self { mode, slots, running: false, words: vec![0; longest as usize], reported })
    }

    /// How this host reports dirty pages.
    pub fn mode(&self) -> DirtyLogMode {
        self.mode
    }

    /// Starts logging in all slots.
    pub fn start(&mut self, vm: &VmFd) -> io::Result<()> {
        self.running = true;
        self.reported.iter_mut().for_each(|words| words.fill(0));
        self.set_flags(vm, KVM_MEM_LOG_DIRTY_PAGES)
    }

    /// Ends logging. Harmless when it isn't running.
    pub fn stop(&mut self, vm: &VmFd) -> io::Result<()> {
        if !std::mem::take(&mut self.running) {
            return Ok(());
        }
        self.set_flags(vm, 0)
    }

    fn set_flags(&self, vm: &VmFd, flags: u32) -> io::Result<()> {
        for (index, slot) in (0u32..).zip(&self.slots) {
            set_slot(vm, index, slot, flags)?;
        }
        Ok(())
    }

    /// Adds the pages that the guest wrote to `dirty`.
    pub fn fetch(&mut self, vm: &VmFd, dirty: &mut DirtyBitmap) -> io::Result<()> {
        for (index, (slot, reported)) in self.slots.iter().zip(&mut self.reported).enumerate() {
            let pages = pages(slot);
            let words = self.words.get_mut(..pages.div_ceil(64) as usize).unwrap_or_default();
            get_dirty_log(vm, index as u32, pages, words)?;
            dirty.add_words(index, words);
            reported.iter_mut().zip(words).for_each(|(all, word)| *all |= *word);
        }
        Ok(())
    }

    /// Re-protects those pages of `range` (64-page aligned, or up to the slot's end) of a slot that were
    /// reported, on hosts with manual protect.
    pub fn clear(&mut self, vm: &VmFd, slot: usize, range: Range<u64>) -> io::Result<()> {
        if self.mode == DirtyLogMode::Plain {
            return Ok(());
        }
        let words = range.start as usize / 64..range.end.div_ceil(64) as usize;
        let Some(words) = self.reported.get_mut(slot).and_then(|reported| reported.get_mut(words)) else {
            return Err(io::Error::from(io::ErrorKind::InvalidInput));
        };
        let pages = u32::try_from(range.end - range.start).map_err(io::Error::other)?;
        clear_dirty_log(vm, slot as u32, range.start, pages, words)?;
        words.fill(0);
        Ok(())
    }
}

fn pages(slot: &Slot) -> u64 {
    slot.length_bytes / tern_migration::PAGE_BYTES
}

/// Tells KVM of a memory slot.
#[allow(unsafe_code, reason = "KVM maps host memory that only the caller can vouch for")]
pub fn set_slot(vm: &VmFd, index: u32, slot: &Slot, flags: u32) -> io::Result<()> {
    let region = kvm_userspace_memory_region {
        slot: index,
        flags,
        guest_phys_addr: slot.gpa,
        memory_size: slot.length_bytes,
        userspace_addr: slot.host_address,
    };
    // SAFETY: the slots are made from a GuestRam that the same `Vm` owns, and it is dropped after its VmFd.
    unsafe { vm.set_user_memory_region(region) }.map_err(io::Error::from)
}
