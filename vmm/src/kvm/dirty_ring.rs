//! Dirty rings: for each vCPU a list that it fills with the pages it wrote (api.rst 8.29, KVM_CAP_DIRTY_LOG_RING).
//!
//! ```text
//! entry:  free --KVM: page, then flag (release)--> dirty --we: page, flag (release)--> harvested
//!           ^------------------- KVM_RESET_DIRTY_RINGS: write-protects the page -----------'
//! ```
//!
//! What the kernel's document demands, and how it is kept:
//! - Entries are harvested in order, by one thread at a time: one lock over all rings.
//! - The reset comes before anyone reads the pages' content: [`DirtyRings::collect`] resets what it has harvested
//!   before it returns, whoever calls it. So a write after a page was reported is in the ring again.
//! - A full ring stops its vCPU with KVM_EXIT_DIRTY_RING_FULL. Its own thread then collects; the pages wait in
//!   a bitmap for the next fetch.
//! - On processors that log writes in a buffer of their own (PML), the newest come into the ring when the vCPU
//!   leaves the guest. Whoever fetches kicks running vCPUs; before the last fetch they are all stopped.
//! - A ring takes what is written on behalf of a vCPU, also by the vCPU's ioctls. On x86 KVM writes guest memory
//!   in no other way for a machine like ours; what this process writes is in vm-memory's bitmap.

use std::fmt;
use std::io;
use std::ops::Deref;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use kvm_bindings::kvm_dirty_gfn;
use tern_migration::{DirtyBitmap, VcpuDirty};

/// KVM_DIRTY_GFN_F_DIRTY (linux/kvm.h).
pub(super) const DIRTY: u32 = 1;
/// KVM_DIRTY_GFN_F_RESET: it was harvested.
pub(super) const HARVESTED: u32 = 2;
/// Calls of the reset that do nothing, one behind the other, before that is an error.
const IDLE_RESETS_MAX: u32 = 1000;
/// The kernel resets entries whose pages are so near to each other in one step.
const BATCH_PAGES: u64 = 64;

/// `struct kvm_dirty_gfn`, shared with the kernel.
#[derive(Debug, Default)]
#[repr(C)]
pub struct Entry {
    pub(super) flags: AtomicU32,
    pub(super) slot: AtomicU32,
    pub(super) page: AtomicU64,
}

const _: () = assert!(size_of::<Entry>() == size_of::<kvm_dirty_gfn>());

/// Where a ring's entries lie; their number is a power of two.
pub trait RingMemory: Deref<Target = [Entry]> + Send + Sync {}
impl<T: Deref<Target = [Entry]> + Send + Sync> RingMemory for T {}

/// KVM_RESET_DIRTY_RINGS.
pub trait ResetRings: Send + Sync {
    /// Write-protects harvested pages and frees their entries; returns how many: a signal may have ended it early.
    fn reset(&self) -> io::Result<usize>;
}

/// A page as the ring names it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Written {
    slot: u32,
    page: u64,
}

struct Ring {
    memory: Box<dyn RingMemory>,
    next: usize,
}

impl Ring {
    /// Takes what is there, at most once around.
    fn harvest(&mut self, into: &mut Vec<Written>) -> u64 {
        let before = into.len();
        for _ in 0..self.memory.len() {
            let Some(entry) = self.memory.get(self.next) else { break };
            // Acquire: the page was written before the flag.
            if entry.flags.load(Ordering::Acquire) != DIRTY {
                break;
            }
            let (slot, page) = (entry.slot.load(Ordering::Relaxed), entry.page.load(Ordering::Relaxed));
            into.push(Written { slot, page });
            // Release: the page was read before KVM may overwrite it.
            entry.flags.store(HARVESTED, Ordering::Release);
            self.next = (self.next + 1) & (self.memory.len() - 1);
        }
        (into.len() - before) as u64
    }
}

struct State {
    rings: Vec<Ring>,
    /// Harvested and not yet reset, in order.
    harvested: Vec<Written>,
    /// Harvested and reset since the last fetch.
    collected: DirtyBitmap,
    /// Pages of which it isn't known whether they are write-protected: dirty at each fetch.
    suspects: Vec<Written>,
    vcpus: Vec<VcpuDirty>,
}

impl State {
    fn collect(&mut self, kvm: &dyn ResetRings) -> io::Result<()> {
        for (ring, vcpu) in self.rings.iter_mut().zip(&mut self.vcpus) {
            vcpu.pages += ring.harvest(&mut self.harvested);
        }
        let (mut done, mut idle) = (0, 0);
        let mut result = Ok(());
        while done < self.harvested.len() {
            let count = match kvm.reset() {
                Ok(count) => count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => 0,
                Err(error) => {
                    result = Err(error);
                    break;
                }
            };
            done = (done + count).min(self.harvested.len());
            if done < self.harvested.len() {
                self.suspect_before(done);
            }
            idle = if count == 0 { idle + 1 } else { 0 };
            if idle >= IDLE_RESETS_MAX {
                let text = format!("KVM has reset {done} of {} entries", self.harvested.len());
                result = Err(io::Error::other(text));
                break;
            }
        }
        for Written { slot, page } in self.harvested.drain(..done) {
            self.collected.set(slot as usize, page);
        }
        result
    }

    /// A signal has ended a reset behind `done` entries. Linux since 6.16 frees entries before it write-protects
    /// their pages, batch by batch, and an interrupted call drops the batch at hand. So those pages may have
    /// become writable for good without anyone seeing it; which is as good as dirty at all times.
    fn suspect_before(&mut self, done: usize) {
        let done = self.harvested.get(..done).unwrap_or_default();
        let Some(last) = done.last() else { return };
        let near = |w: &&Written| w.slot == last.slot && w.page.abs_diff(last.page) < BATCH_PAGES;
        for written in done.iter().rev().take_while(near) {
            if !self.suspects.contains(written) {
                self.suspects.push(*written);
            }
        }
    }
}

/// The rings of all vCPUs of a VM.
pub struct DirtyRings {
    kvm: Box<dyn ResetRings>,
    state: Mutex<State>,
}

impl fmt::Debug for DirtyRings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("DirtyRings").field("vcpus", &self.by_vcpu()).finish_non_exhaustive()
    }
}

impl DirtyRings {
    /// One ring a vCPU, in the order of the vCPUs; `slot_pages`: pages of each slot.
    pub fn new(
        kvm: Box<dyn ResetRings>,
        memory: Vec<Box<dyn RingMemory>>,
        slot_pages: impl IntoIterator<Item = u64>,
    ) -> Self {
        let vcpus = vec![VcpuDirty::default(); memory.len()];
        let rings = memory.into_iter().map(|memory| Ring { memory, next: 0 }).collect();
        let (harvested, suspects) = (Vec::new(), Vec::new());
        let collected = DirtyBitmap::new(slot_pages);
        Self { kvm, state: Mutex::new(State { rings, harvested, collected, suspects, vcpus }) }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Empties the rings and forgets what was in them. While no slot logs.
    pub fn restart(&self) -> io::Result<()> {
        let mut state = self.lock();
        state.collect(self.kvm.as_ref())?;
        state.collected.clear_all();
        state.suspects.clear();
        state.vcpus.fill(VcpuDirty::default());
        Ok(())
    }

    /// Adds to `dirty` what was written since the last fetch, and write-protects it.
    pub fn fetch(&self, dirty: &mut DirtyBitmap) -> io::Result<()> {
        let mut state = self.lock();
        state.collect(self.kvm.as_ref())?;
        dirty.add(&state.collected);
        state.collected.clear_all();
        state.suspects.iter().for_each(|suspect| dirty.set(suspect.slot as usize, suspect.page));
        Ok(())
    }

    /// A vCPU's ring is full: makes room. Called by its own thread.
    pub fn make_room(&self, vcpu: u32) -> io::Result<()> {
        let mut state = self.lock();
        if let Some(vcpu) = state.vcpus.get_mut(vcpu as usize) {
            vcpu.ring_full_exits += 1;
        }
        state.collect(self.kvm.as_ref())
    }

    /// What each vCPU has written since the log was started, as far as it was harvested.
    pub fn by_vcpu(&self) -> Vec<VcpuDirty> {
        self.lock().vcpus.clone()
    }
}
