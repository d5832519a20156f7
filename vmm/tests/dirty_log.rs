//! The oracle of the dirty log on a real guest, after the kernel's own `dirty_log_test`: two vCPUs write pages at
//! random, each visit with a higher generation in the page's first word, while the log is fetched and cleared. What
//! a page holds that its copy doesn't must be reported by the fetch behind it or by the next one; and with the
//! guest at rest, by the last one.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

mod bench;
mod host;

use std::collections::BTreeSet;
use std::ops::Range;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use bench::{Bench, saved};
use tern_migration::{DirtyBitmap, DirtyLogMode, SourceVm};
use tern_vmm::config::DirtyLogConfig;
use tern_vmm::run_control::Hold;
use tern_vmm::vm::Vm;
use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryRegion};

const PAGE_BYTES: u64 = 4096;
/// 2048 pages for each vCPU, twice as many as the smallest ring has entries.
const GUEST: &str = "cpus=2 ws=16M rate=max pattern=random content=random interval=500";
const GUEST_PAGES: Range<u64> = 4096..8192;
/// Behind them: what the VMM writes as a device does.
const VMM_PAGES: Range<u64> = 12_300..12_500;
const ROUNDS: usize = 12;
/// Pages that the guest writes between two fetches, at least.
const WRITTEN: usize = 300;
const PATIENCE: Duration = Duration::from_secs(120);

/// A machine and a copy of its memory, as a migration makes it.
struct Copying {
    vm: Vm,
    pages: u64,
    copy: Vec<u8>,
    pending: DirtyBitmap,
    /// Pages that the last fetch should have reported, and the next one must.
    owed: BTreeSet<u64>,
}

impl Copying {
    fn new(vm: Vm) -> Self {
        let pages = SourceVm::ram(&vm).iter().map(|region| region.len() / PAGE_BYTES).sum();
        let copy = vec![0; (pages * PAGE_BYTES) as usize];
        Self { vm, pages, copy, pending: DirtyBitmap::new([pages]), owed: BTreeSet::new() }
    }

    fn start(&mut self, mode: DirtyLogMode) {
        assert_eq!(self.vm.dirty_log_start(Some(mode)).unwrap(), mode);
        self.vm.dirty_log_fetch(&mut self.pending).unwrap();
        self.pending.set_all();
        self.owed.clear();
    }

    fn tracked() -> impl Iterator<Item = u64> {
        GUEST_PAGES.chain(VMM_PAGES)
    }

    fn word(&self, page: u64) -> u64 {
        SourceVm::ram(&self.vm).read_obj(GuestAddress(page * PAGE_BYTES)).unwrap()
    }

    fn copied_word(&self, page: u64) -> u64 {
        let at = (page * PAGE_BYTES) as usize;
        u64::from_le_bytes(self.copy[at..at + 8].try_into().unwrap())
    }

    /// Tracked pages that differ from their copy.
    fn written(&self) -> Vec<u64> {
        Self::tracked().filter(|page| self.word(*page) != self.copied_word(*page)).collect()
    }

    /// Clears and copies what is pending, chunk by chunk; stops behind `most` chunks.
    fn send(&mut self, chunk_pages: u64, most: usize) {
        let mut chunks = 0;
        for start in (0..self.pages).step_by(chunk_pages as usize) {
            let mut runs = Vec::new();
            let groups = (start / 64) as usize..((start + chunk_pages) / 64) as usize;
            self.pending.take_runs(0, groups, &mut runs);
            if runs.is_empty() {
                continue;
            }
            self.vm.dirty_log_clear(0, start..(start + chunk_pages).min(self.pages)).unwrap();
            for run in runs {
                let (from, to) = (run.start * PAGE_BYTES, run.end * PAGE_BYTES);
                let copy = &mut self.copy[from as usize..to as usize];
                SourceVm::ram(&self.vm).read_slice(copy, GuestAddress(from)).unwrap();
            }
            chunks += 1;
            if chunks == most {
                return;
            }
        }
    }

    fn fetch_and_check(&mut self) {
        let written = self.written();
        let mut found = DirtyBitmap::new([self.pages]);
        self.vm.dirty_log_fetch(&mut found).unwrap();
        self.pending.add(&found);
        for page in std::mem::take(&mut self.owed) {
            assert!(self.pending.get(0, page), "page {page}: written, and not reported by two fetches");
        }
        self.owed.extend(written.into_iter().filter(|page| !self.pending.get(0, *page)));
    }

    /// The guest is at work.
    fn wait_written(&self) {
        let deadline = Instant::now() + PATIENCE;
        while self.written().len() < WRITTEN {
            assert!(Instant::now() < deadline, "the guest hardly writes");
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    fn rounds(&mut self, chunk_pages: u64) {
        for _ in 0..ROUNDS {
            self.send(chunk_pages, usize::MAX);
            self.wait_written();
            self.fetch_and_check();
        }
    }

    /// The guest at rest: the last fetch reports all that is left.
    fn finish(&mut self) {
        assert!(self.vm.stop(&|| false).unwrap());
        saved(&mut self.vm);
        let written = self.written();
        self.vm.dirty_log_fetch(&mut self.pending).unwrap();
        let lost: Vec<u64> = written.into_iter().filter(|page| !self.pending.get(0, *page)).collect();
        assert!(lost.is_empty(), "written, and never reported: {lost:?}");
        self.send(2048, usize::MAX);
        let mut now = vec![0; PAGE_BYTES as usize];
        for page in 0..self.pages {
            SourceVm::ram(&self.vm).read_slice(&mut now, GuestAddress(page * PAGE_BYTES)).unwrap();
            let at = (page * PAGE_BYTES) as usize;
            assert!(self.copy[at..at + PAGE_BYTES as usize] == now, "page {page} of the copy is stale");
        }
    }
}

/// Writes as devices do until `quit`.
fn vmm_writes(ram: &tern_migration::GuestRam, quit: &AtomicBool) {
    let mut generation = 0u64;
    while !quit.load(Ordering::SeqCst) {
        for page in VMM_PAGES {
            generation += 1;
            ram.write_obj(generation, GuestAddress(page * PAGE_BYTES)).unwrap();
        }
        std::thread::sleep(Duration::from_micros(200));
    }
}

/// Ends the writer of a test that fails, too.
struct SetOnDrop<'a>(&'a AtomicBool);

impl Drop for SetOnDrop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::SeqCst);
    }
}

/// Attempts that are cancelled at different points, then one that goes to its end.
fn no_write_is_lost(bench: &mut Bench, mut machine: Copying, mode: DirtyLogMode) {
    bench.wait_until("two vCPUs at work", |heard| heard.contains("A ready"));
    let ram = SourceVm::ram(&machine.vm).clone();
    let quit = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let quit_on_panic = SetOnDrop(&quit);
        scope.spawn(|| vmm_writes(&ram, &quit));
        for (chunk_pages, last_chunks) in [(64, 0), (2048, 3)] {
            machine.start(mode);
            machine.rounds(chunk_pages);
            machine.send(64, last_chunks);
            machine.vm.dirty_log_stop().unwrap();
            // Nobody sees these.
            machine.wait_written();
        }
        machine.start(mode);
        machine.rounds(2048);
        machine.send(2048, usize::MAX);
        drop(quit_on_panic);
    });
    machine.finish();
    machine.vm.dirty_log_stop().unwrap();
    assert!(!bench.heard().contains("CORRUPT"), "{}", bench.heard());
    machine.vm.core().run().hold(Hold::Ended);
}

fn with_bitmaps(mode: DirtyLogMode, initially_set: bool) {
    let Some(mut bench) = Bench::new(2) else { return };
    let mut vm = bench.boot(GUEST);
    if vm.can_log(Some(mode)).is_err() {
        return host::skip("this host's KVM has no manual clear");
    }
    if !initially_set {
        vm.dirty_log().start_clean();
    }
    no_write_is_lost(&mut bench, Copying::new(vm), mode);
}

#[test]
fn no_write_is_lost_with_manual_clear() {
    with_bitmaps(DirtyLogMode::ManualClear, true);
}

#[test]
fn no_write_is_lost_with_manual_clear_and_a_clean_start() {
    with_bitmaps(DirtyLogMode::ManualClear, false);
}

#[test]
fn no_write_is_lost_with_a_bitmap() {
    with_bitmaps(DirtyLogMode::Bitmap, true);
}

/// A machine with rings of so many entries; none where KVM has no rings.
fn with_rings(size: u32) -> Option<(Bench, Copying)> {
    let mut bench = Bench::new(2)?;
    let most = bench.most_ring_entries();
    if most < size {
        host::skip(&format!("this host's KVM makes dirty rings of at most {most} entries, not {size}"));
        return None;
    }
    let config: DirtyLogConfig = format!("ring,size={size}").parse().unwrap();
    bench.config().dirty_log = config;
    let vm = bench.boot(GUEST);
    Some((bench, Copying::new(vm)))
}

#[test]
fn no_write_is_lost_with_large_rings() {
    let Some((mut bench, machine)) = with_rings(65_536) else { return };
    no_write_is_lost(&mut bench, machine, DirtyLogMode::Ring);
}

#[test]
fn no_write_is_lost_with_rings_that_are_always_full() {
    let Some((mut bench, mut machine)) = with_rings(1024) else { return };
    bench.wait_until("two vCPUs at work", |heard| heard.contains("A ready"));
    // Nobody fetches: each vCPU has to make room for itself, again and again.
    machine.start(DirtyLogMode::Ring);
    machine.send(2048, usize::MAX);
    let deadline = Instant::now() + PATIENCE;
    while !machine.vm.dirty_by_vcpu().iter().all(|vcpu| vcpu.ring_full_exits > 1) {
        assert!(Instant::now() < deadline, "no ring is full: {:?}", machine.vm.dirty_by_vcpu());
        std::thread::sleep(Duration::from_millis(5));
    }
    machine.fetch_and_check();
    machine.fetch_and_check();
    let written = machine.vm.dirty_by_vcpu();
    assert!(written.len() == 2 && written.iter().all(|vcpu| vcpu.pages > 1024), "{written:?}");
    machine.vm.dirty_log_stop().unwrap();
    no_write_is_lost(&mut bench, machine, DirtyLogMode::Ring);
}

#[test]
fn a_machine_with_rings_refuses_bitmaps_and_says_what_helps() {
    let Some((_bench, mut machine)) = with_rings(1024) else { return };
    let refused = machine.vm.dirty_log_start(Some(DirtyLogMode::Bitmap)).unwrap_err();
    let text = bench::chain(&refused);
    assert!(text.contains("migrate with dirty-log=ring or auto"), "{text}");
    assert_eq!(machine.vm.dirty_log_start(None).unwrap(), DirtyLogMode::Ring);
}
