//! KVM's dirty log in its three modes.
//!
//! - *manual-clear*: GET only reads, and CLEAR re-protects a chunk just before its pages are sent: no long hold
//!   of KVM's lock, and no page is reported twice for one write. CLEAR is told exactly the pages that a GET has
//!   reported: a page that was written since would lose its bit without ever having been reported.
//! - *bitmap*: GET reads and re-protects everything at once.
//! - *ring*: [`DirtyRings`]. Decided when the machine is made, and then the only mode: KVM keeps no bitmap
//!   beside it on x86.
//!
//! Of the first two each start chooses: manual protect (api.rst 7.18) may be switched while no slot logs.

use std::io;
use std::ops::Range;
use std::sync::Arc;

use kvm_bindings::{
    KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2, KVM_DIRTY_LOG_INITIALLY_SET, KVM_DIRTY_LOG_MANUAL_PROTECT_ENABLE,
    kvm_userspace_memory_region,
};
use kvm_ioctls::VmFd;
use tern_migration::{DirtyBitmap, DirtyLogMode, VcpuDirty};
use thiserror::Error;

use super::{DirtyRings, LogCalls};

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

impl Slot {
    /// Its pages.
    pub fn pages(&self) -> u64 {
        self.length_bytes / tern_migration::PAGE_BYTES
    }
}

/// Why the log can't be started.
#[derive(Debug, Error)]
pub enum StartError {
    /// A machine with a ring has nothing else.
    #[error(
        "dirty-log={wanted}: this machine was made with a dirty ring (`--dirty-log ring`), and KVM keeps no bitmap beside \
         it: migrate with dirty-log=ring or auto"
    )]
    OnlyRing {
        /// What was asked for.
        wanted: DirtyLogMode,
    },
    /// A machine without one can't get it any more.
    #[error(
        "dirty-log=ring: this machine has no dirty ring, and gets none while it lives: start it with `tern run \
         --dirty-log ring`, or migrate with dirty-log=manual-clear, bitmap or auto"
    )]
    NoRing,
    /// An old kernel.
    #[error(
        "dirty-log=manual-clear: this host's KVM lacks it (Linux 5.0 and later have it): migrate with dirty-log=bitmap \
         or auto"
    )]
    NoManualClear,
    /// KVM refused.
    #[error("KVM refuses to log writes")]
    Kvm(#[from] io::Error),
}

/// The dirty log of one VM.
#[derive(Debug)]
pub struct DirtyLog {
    /// Flags of KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2 that are made use of.
    offered: u32,
    rings: Option<Arc<DirtyRings>>,
    mode: DirtyLogMode,
    slots: Vec<Slot>,
    running: bool,
    words: Vec<u64>,
    /// Mode manual-clear: for each slot, the pages that were reported and not yet cleared.
    reported: Vec<Vec<u64>>,
}

impl DirtyLog {
    /// A log that doesn't run. `offered`: what this host has of manual protect, as [`Self::offered`] says.
    pub fn new(offered: u32, slots: Vec<Slot>, rings: Option<Arc<DirtyRings>>) -> Self {
        let longest = slots.iter().map(|slot| slot.pages().div_ceil(64)).max().unwrap_or(0);
        let reported = slots.iter().map(|slot| vec![0; slot.pages().div_ceil(64) as usize]).collect();
        let (mode, words) = (DirtyLogMode::Bitmap, vec![0; longest as usize]);
        Self { offered, rings, mode, slots, running: false, words, reported }
    }

    /// What KVM offers of manual protect, as far as it is made use of.
    pub fn offered(vm: &VmFd) -> u32 {
        let offered = vm.check_extension_raw(u64::from(KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2)).cast_unsigned();
        offered & (KVM_DIRTY_LOG_MANUAL_PROTECT_ENABLE | KVM_DIRTY_LOG_INITIALLY_SET)
    }

    /// Pages are not all dirty at the start even where KVM offers it: for tests of that.
    pub fn start_clean(&mut self) {
        self.offered &= !KVM_DIRTY_LOG_INITIALLY_SET;
    }

    /// The mode in which a start with this wish would log.
    ///
    /// # Errors
    /// This machine can't, with the remedy.
    pub fn mode_for(&self, wanted: Option<DirtyLogMode>) -> Result<DirtyLogMode, StartError> {
        let manual = self.offered & KVM_DIRTY_LOG_MANUAL_PROTECT_ENABLE != 0;
        match (wanted, self.rings.is_some()) {
            (None | Some(DirtyLogMode::Ring), true) => Ok(DirtyLogMode::Ring),
            (Some(wanted), true) => Err(StartError::OnlyRing { wanted }),
            (Some(DirtyLogMode::Ring), false) => Err(StartError::NoRing),
            (None | Some(DirtyLogMode::ManualClear), false) if manual => Ok(DirtyLogMode::ManualClear),
            (Some(DirtyLogMode::ManualClear), false) => Err(StartError::NoManualClear),
            (None | Some(DirtyLogMode::Bitmap), false) => Ok(DirtyLogMode::Bitmap),
        }
    }

    /// Starts logging in all slots.
    pub fn start(
        &mut self,
        kvm: &impl LogCalls,
        wanted: Option<DirtyLogMode>,
    ) -> Result<DirtyLogMode, StartError> {
        self.mode = self.mode_for(wanted)?;
        if self.mode != DirtyLogMode::Ring && self.offered != 0 {
            // Never with a ring: pages that count as dirty at the start are not write-protected, and a ring has
            // no bit for them.
            let manual = self.mode == DirtyLogMode::ManualClear;
            kvm.set_manual_protect(if manual { self.offered } else { 0 })?;
        }
        self.reported.iter_mut().for_each(|words| words.fill(0));
        if let Some(rings) = &self.rings {
            rings.restart()?;
        }
        self.running = true;
        self.set_logging(kvm, true)?;
        Ok(self.mode)
    }

    /// Ends logging. Harmless when it isn't running.
    pub fn stop(&mut self, kvm: &impl LogCalls) -> io::Result<()> {
        if !std::mem::take(&mut self.running) {
            return Ok(());
        }
        self.set_logging(kvm, false)?;
        // What is still in the rings is nobody's any more, and a vCPU may wait for room.
        self.rings.as_ref().map_or(Ok(()), |rings| rings.restart())
    }

    fn set_logging(&self, kvm: &impl LogCalls, on: bool) -> io::Result<()> {
        (0u32..).zip(&self.slots).try_for_each(|(index, slot)| kvm.set_logging(index, slot, on))
    }

    /// Adds the pages that the guest wrote to `dirty`.
    pub fn fetch(&mut self, kvm: &impl LogCalls, dirty: &mut DirtyBitmap) -> io::Result<()> {
        if let Some(rings) = &self.rings {
            return rings.fetch(dirty);
        }
        for (index, (slot, reported)) in self.slots.iter().zip(&mut self.reported).enumerate() {
            let pages = slot.pages();
            let words = self.words.get_mut(..pages.div_ceil(64) as usize).unwrap_or_default();
            kvm.get(index as u32, pages, words)?;
            dirty.add_words(index, words);
            if self.mode == DirtyLogMode::ManualClear {
                reported.iter_mut().zip(words).for_each(|(all, word)| *all |= *word);
            }
        }
        Ok(())
    }

    /// Re-protects those pages of `range` (64-page aligned, or up to the slot's end) of a slot that were
    /// reported, if a fetch hasn't done it.
    pub fn clear(&mut self, kvm: &impl LogCalls, slot: usize, range: Range<u64>) -> io::Result<()> {
        if self.mode != DirtyLogMode::ManualClear {
            return Ok(());
        }
        let words = range.start as usize / 64..range.end.div_ceil(64) as usize;
        let Some(words) = self.reported.get_mut(slot).and_then(|reported| reported.get_mut(words)) else {
            return Err(io::Error::from(io::ErrorKind::InvalidInput));
        };
        let pages = u32::try_from(range.end - range.start).map_err(io::Error::other)?;
        kvm.clear(slot as u32, range.start, pages, words)?;
        words.fill(0);
        Ok(())
    }

    /// What each vCPU has written; empty without rings.
    pub fn by_vcpu(&self) -> Vec<VcpuDirty> {
        self.rings.as_ref().map_or_else(Vec::new, |rings| rings.by_vcpu())
    }

    /// Does the log tell who wrote?
    pub fn has_rings(&self) -> bool {
        self.rings.is_some()
    }
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
