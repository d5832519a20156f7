//! KVM's dirty logging in memory, as the kernel does it (virt/kvm/kvm_main.c, virt/kvm/dirty_ring.c): a page that
//! is write-protected is logged at its first write and is writable from then on. What is protected too late or
//! not at all loses writes here as it does there.

use std::collections::VecDeque;
use std::io;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, MutexGuard};

use kvm_bindings::{KVM_DIRTY_LOG_INITIALLY_SET, KVM_DIRTY_LOG_MANUAL_PROTECT_ENABLE};

use super::dirty_ring::{DIRTY, Entry, HARVESTED};
use super::{LogCalls, ResetRings, RingMemory, Slot};

/// Entries that KVM keeps free for what a vCPU writes while it leaves the guest.
const RESERVED: usize = 4;

/// A write that a vCPU is about to make, or has made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Write {
    pub(super) vcpu: usize,
    pub(super) slot: usize,
    pub(super) page: u64,
}

/// The vCPU's ring is full: it left the guest before the write.
#[derive(Debug)]
pub(super) struct RingFull;

#[derive(Debug)]
struct FakeSlot {
    logging: bool,
    writable: Vec<bool>,
    bitmap: Vec<u64>,
    /// For each page the number of its last write.
    memory: Vec<u64>,
}

#[derive(Debug)]
struct FakeRing {
    entries: Arc<[Entry]>,
    dirty_index: usize,
    reset_index: usize,
}

#[derive(Debug)]
struct Inner {
    slots: Vec<FakeSlot>,
    rings: Vec<FakeRing>,
    manual: u32,
    writes: u64,
    /// Writes that race with the calls, so many at the start and at the end of each.
    racing: VecDeque<Write>,
    racing_at_once: usize,
    blocked: Vec<Write>,
    /// After so many entries a signal comes in the middle of a reset; then the next number counts.
    signals: VecDeque<usize>,
}

/// The fake; cheap to clone.
#[derive(Debug, Clone)]
pub(super) struct FakeKvm {
    inner: Arc<Mutex<Inner>>,
}

impl FakeKvm {
    pub(super) fn new(slot_pages: &[u64], vcpus: usize, ring_entries: usize) -> Self {
        let slot = |pages: &u64| FakeSlot {
            logging: false,
            writable: vec![true; *pages as usize],
            bitmap: vec![0; pages.div_ceil(64) as usize],
            memory: vec![0; *pages as usize],
        };
        let ring = |_| FakeRing {
            entries: (0..ring_entries).map(|_| Entry::default()).collect(),
            dirty_index: 0,
            reset_index: 0,
        };
        let inner = Inner {
            slots: slot_pages.iter().map(slot).collect(),
            rings: if ring_entries == 0 { Vec::new() } else { (0..vcpus).map(ring).collect() },
            manual: 0,
            writes: 0,
            racing: VecDeque::new(),
            racing_at_once: 0,
            blocked: Vec::new(),
            signals: VecDeque::new(),
        };
        Self { inner: Arc::new(Mutex::new(inner)) }
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap()
    }

    pub(super) fn ring_memory(&self) -> Vec<Box<dyn RingMemory>> {
        let shared = |ring: &FakeRing| -> Box<dyn RingMemory> { Box::new(Arc::clone(&ring.entries)) };
        self.lock().rings.iter().map(shared).collect()
    }

    /// The guest writes.
    pub(super) fn write(&self, write: Write) -> Result<(), RingFull> {
        self.lock().write(write)
    }

    /// Writes that happen while calls are made.
    pub(super) fn race(&self, writes: impl IntoIterator<Item = Write>, at_once: usize) {
        let mut inner = self.lock();
        inner.racing.extend(writes);
        inner.racing_at_once = at_once;
    }

    /// Signals that come in the middle of resets.
    pub(super) fn interrupt(&self, after: impl IntoIterator<Item = usize>) {
        self.lock().signals.extend(after);
    }

    /// Writes whose vCPU found its ring full, to be made again.
    pub(super) fn take_blocked(&self) -> Vec<Write> {
        std::mem::take(&mut self.lock().blocked)
    }

    /// The last write of each page.
    pub(super) fn memory(&self) -> Vec<Vec<u64>> {
        self.lock().slots.iter().map(|slot| slot.memory.clone()).collect()
    }
}

impl Inner {
    fn write(&mut self, write: Write) -> Result<(), RingFull> {
        let Write { vcpu, slot: number, page } = write;
        let slot = &mut self.slots[number];
        if slot.logging && !slot.writable[page as usize] {
            match self.rings.get_mut(vcpu) {
                Some(ring) => ring.push(number as u32, page)?,
                None => slot.bitmap[page as usize / 64] |= 1 << (page % 64),
            }
        }
        slot.writable[page as usize] = true;
        self.writes += 1;
        slot.memory[page as usize] = self.writes;
        Ok(())
    }

    fn race(&mut self) {
        for _ in 0..self.racing_at_once {
            let Some(write) = self.racing.pop_front() else { return };
            // A vCPU that stands still writes nothing else either.
            if self.blocked.iter().any(|blocked| blocked.vcpu == write.vcpu) || self.write(write).is_err() {
                self.blocked.push(write);
            }
        }
    }

    fn protect(&mut self, slot: usize, word: usize, mask: u64) {
        for bit in (0..64).filter(|bit| mask & (1 << bit) != 0) {
            self.slots[slot].writable[word * 64 + bit] = false;
        }
    }

    /// kvm_dirty_ring_reset of Linux 6.18, with its batches.
    fn reset_ring(&mut self, index: usize, count: &mut usize) -> Result<(), ()> {
        let mut batch: Vec<(usize, u64)> = Vec::new();
        loop {
            let entries = Arc::clone(&self.rings[index].entries);
            let entry = &entries[self.rings[index].reset_index % entries.len()];
            if entry.flags.load(Ordering::Acquire) & HARVESTED == 0 {
                break;
            }
            // The kernel looks for signals before this, so that one at the very end drops the last batch and nobody
            // sees it: what makes resets must block them.
            if let Some(after) = self.signals.front_mut() {
                if *after == 0 {
                    self.signals.pop_front();
                    return Err(()); // the batch is lost
                }
                *after -= 1;
            }
            let next = (entry.slot.load(Ordering::Relaxed) as usize, entry.page.load(Ordering::Relaxed));
            entry.flags.store(0, Ordering::Release);
            self.rings[index].reset_index += 1;
            *count += 1;
            let fits = |b: &(usize, u64)| b.0 == next.0 && b.1.abs_diff(next.1) < 64;
            if !batch.iter().all(fits) {
                self.flush(&mut batch);
            }
            batch.push(next);
        }
        self.flush(&mut batch);
        Ok(())
    }

    fn flush(&mut self, batch: &mut Vec<(usize, u64)>) {
        for (slot, page) in batch.drain(..) {
            self.slots[slot].writable[page as usize] = false;
        }
    }
}

impl FakeRing {
    /// kvm_dirty_ring_push, behind the look for a soft-full ring with which KVM_RUN begins.
    fn push(&mut self, slot: u32, page: u64) -> Result<(), RingFull> {
        if self.dirty_index - self.reset_index >= self.entries.len() - RESERVED {
            return Err(RingFull);
        }
        let entry = &self.entries[self.dirty_index % self.entries.len()];
        assert_eq!(entry.flags.load(Ordering::Acquire), 0, "an entry in use was overwritten");
        entry.slot.store(slot, Ordering::Relaxed);
        entry.page.store(page, Ordering::Relaxed);
        entry.flags.store(DIRTY, Ordering::Release);
        self.dirty_index += 1;
        Ok(())
    }
}

fn errno(number: i32) -> io::Error {
    io::Error::from_raw_os_error(number)
}

impl ResetRings for FakeKvm {
    fn reset(&self) -> io::Result<usize> {
        let mut inner = self.lock();
        inner.race();
        let mut count = 0;
        for index in 0..inner.rings.len() {
            if inner.reset_ring(index, &mut count).is_err() {
                break;
            }
        }
        inner.race();
        Ok(count)
    }
}

impl LogCalls for FakeKvm {
    fn set_manual_protect(&self, flags: u32) -> io::Result<()> {
        let mut inner = self.lock();
        assert!(inner.rings.is_empty(), "manual protect with a ring loses the pages dirty at the start");
        assert!(inner.slots.iter().all(|slot| !slot.logging), "manual protect is switched while a slot logs");
        inner.manual = flags;
        Ok(())
    }

    fn set_logging(&self, index: u32, _: &Slot, on: bool) -> io::Result<()> {
        let mut inner = self.lock();
        inner.race();
        let initially_set = inner.manual & KVM_DIRTY_LOG_INITIALLY_SET != 0;
        let slot = &mut inner.slots[index as usize];
        if on && !slot.logging {
            // Pages that count as dirty anyway are not write-protected; the others are.
            slot.writable.fill(initially_set);
            slot.bitmap.fill(if initially_set { u64::MAX } else { 0 });
            if let (Some(last), tail @ 1..) = (slot.bitmap.last_mut(), slot.memory.len() % 64) {
                *last &= (1 << tail) - 1;
            }
        }
        slot.logging = on;
        inner.race();
        Ok(())
    }

    fn get(&self, index: u32, pages: u64, words: &mut [u64]) -> io::Result<()> {
        let mut inner = self.lock();
        inner.race();
        let slot = index as usize;
        if !inner.rings.is_empty() {
            return Err(errno(libc::ENXIO));
        }
        if !inner.slots[slot].logging || inner.slots[slot].memory.len() as u64 != pages {
            return Err(errno(libc::ENOENT));
        }
        words.copy_from_slice(&inner.slots[slot].bitmap);
        if inner.manual == 0 {
            for (word, mask) in words.iter().enumerate() {
                inner.slots[slot].bitmap[word] = 0;
                inner.protect(slot, word, *mask);
            }
        }
        inner.race();
        Ok(())
    }

    fn clear(&self, index: u32, first_page: u64, pages: u32, words: &[u64]) -> io::Result<()> {
        let mut inner = self.lock();
        inner.race();
        let (slot, end) = (index as usize, first_page + u64::from(pages));
        let last = inner.slots[slot].memory.len() as u64;
        if inner.manual & KVM_DIRTY_LOG_MANUAL_PROTECT_ENABLE == 0
            || !first_page.is_multiple_of(64)
            || (!pages.is_multiple_of(64) && end != last)
            || end > last
        {
            return Err(errno(libc::EINVAL));
        }
        for (word, mask) in (first_page as usize / 64..).zip(words) {
            let found = inner.slots[slot].bitmap[word] & mask;
            inner.slots[slot].bitmap[word] &= !found;
            inner.protect(slot, word, found);
        }
        inner.race();
        Ok(())
    }
}
