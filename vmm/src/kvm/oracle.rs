//! The oracle: in every mode of the dirty log, a page that differs from its copy is reported, whoever writes
//! whenever. Against KVM in memory; `vmm/tests/dirty_log.rs` asks the same of the real one.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use kvm_bindings::{KVM_DIRTY_LOG_INITIALLY_SET, KVM_DIRTY_LOG_MANUAL_PROTECT_ENABLE};
use proptest::prelude::*;
use tern_migration::{DirtyBitmap, DirtyLogMode, PAGE_BYTES, VcpuDirty};

use super::dirty_log::StartError;
use super::fake::{FakeKvm, Write};
use super::{DirtyLog, DirtyRings, Slot};

const BOTH: u32 = KVM_DIRTY_LOG_MANUAL_PROTECT_ENABLE | KVM_DIRTY_LOG_INITIALLY_SET;
const VCPUS: usize = 3;

/// A machine's log over a fake, and a copy of its memory as a migration has it.
struct Copying {
    kvm: FakeKvm,
    rings: Option<Arc<DirtyRings>>,
    log: DirtyLog,
    copy: Vec<Vec<u64>>,
    pending: DirtyBitmap,
}

impl Copying {
    fn new(slot_pages: &[u64], offered: u32, ring_entries: usize) -> Self {
        let kvm = FakeKvm::new(slot_pages, VCPUS, ring_entries);
        let slot = |pages: &u64| Slot { gpa: 0, length_bytes: pages * PAGE_BYTES, host_address: 0 };
        let slots: Vec<Slot> = slot_pages.iter().map(slot).collect();
        let rings = (ring_entries > 0).then(|| {
            let pages = slot_pages.iter().copied();
            Arc::new(DirtyRings::new(Box::new(kvm.clone()), kvm.ring_memory(), pages))
        });
        let copy = slot_pages.iter().map(|pages| vec![u64::MAX; *pages as usize]).collect();
        let pending = DirtyBitmap::new(slot_pages.iter().copied());
        Self { log: DirtyLog::new(offered, slots, rings.clone()), kvm, rings, copy, pending }
    }

    fn start(&mut self, mode: DirtyLogMode) {
        assert_eq!(self.log.start(&self.kvm, Some(mode)).unwrap(), mode);
        self.fetch();
        self.pending.set_all();
    }

    /// vCPUs whose ring was full come out of the guest, make room, and write.
    fn serve_full_rings(&self) {
        for write in self.kvm.take_blocked() {
            while self.kvm.write(write).is_err() {
                self.rings.as_ref().unwrap().make_room(write.vcpu as u32).unwrap();
            }
        }
    }

    fn fetch(&mut self) {
        self.log.fetch(&self.kvm, &mut self.pending).unwrap();
        self.serve_full_rings();
    }

    /// Copies what is pending, chunk by chunk, and stops behind `most` chunks.
    fn send(&mut self, chunk_pages: u64, most: usize) {
        let mut chunks = 0;
        for slot in 0..self.pending.regions() {
            let pages = self.pending.pages(slot);
            for start in (0..pages).step_by(chunk_pages as usize) {
                let groups = (start / 64) as usize..((start + chunk_pages) / 64) as usize;
                let mut runs = Vec::new();
                self.pending.take_runs(slot, groups, &mut runs);
                if runs.is_empty() {
                    continue;
                }
                self.log.clear(&self.kvm, slot, start..(start + chunk_pages).min(pages)).unwrap();
                self.serve_full_rings();
                let memory = self.kvm.memory();
                for page in runs.into_iter().flatten() {
                    self.copy[slot][page as usize] = memory[slot][page as usize];
                }
                chunks += 1;
                if chunks == most {
                    return;
                }
            }
        }
    }

    /// A fetch, and the oracle: what was written before it and isn't in the copy is pending. What is written
    /// while it is made may come with the next one.
    fn fetch_and_check(&mut self) -> Result<(), TestCaseError> {
        let before = self.kvm.memory();
        self.fetch();
        for (slot, (memory, copy)) in before.iter().zip(&self.copy).enumerate() {
            for (page, (written, copied)) in memory.iter().zip(copy).enumerate() {
                let known = self.pending.get(slot, page as u64);
                prop_assert!(written == copied || known, "the write of page {page} of slot {slot} is lost");
            }
        }
        Ok(())
    }
}

/// All ways to log: what the host offers, the mode, and the entries of a ring.
fn ways() -> impl Strategy<Value = (u32, DirtyLogMode, usize)> {
    prop_oneof![
        Just((0, DirtyLogMode::Bitmap, 0)),
        Just((BOTH, DirtyLogMode::Bitmap, 0)),
        Just((BOTH, DirtyLogMode::ManualClear, 0)),
        Just((KVM_DIRTY_LOG_MANUAL_PROTECT_ENABLE, DirtyLogMode::ManualClear, 0)),
        prop::sample::select(vec![8usize, 16, 128]).prop_map(|entries| (BOTH, DirtyLogMode::Ring, entries)),
    ]
}

fn writes(slot_pages: Vec<u64>) -> impl Strategy<Value = (Vec<u64>, Vec<Write>)> {
    let pages = slot_pages.clone();
    let one = (0..VCPUS, 0..slot_pages.len(), 0u64..1 << 20, any::<bool>());
    let write = one.prop_map(move |(vcpu, slot, page, hot)| {
        let page = page % if hot { pages[slot].min(5) } else { pages[slot] };
        Write { vcpu, slot, page }
    });
    (Just(slot_pages), prop::collection::vec(write, 0..600))
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn no_write_is_lost_in_any_mode_over_cancel_and_retry(
        (offered, mode, ring_entries) in ways(),
        (slot_pages, writes) in prop::collection::vec(1u64..200, 1..4).prop_flat_map(writes),
        at_once in 1usize..6,
        chunk_pages in prop::sample::select(vec![64u64, 128, 2048]),
        attempts in prop::collection::vec((1usize..5, prop::option::of(1usize..4)), 1..4),
        signals in prop::collection::vec(0usize..40, 0..6),
    ) {
        let mut machine = Copying::new(&slot_pages, offered, ring_entries);
        machine.kvm.race(writes, at_once);
        machine.kvm.interrupt(signals);
        for (rounds, cancelled_behind) in attempts {
            machine.start(mode);
            for _ in 0..rounds {
                machine.send(chunk_pages, usize::MAX);
                machine.fetch_and_check()?;
            }
            if let Some(chunks) = cancelled_behind {
                machine.send(chunk_pages, chunks);
            } else {
                // The guest stands still from here on: each vCPU has ended the write that it was at.
                machine.kvm.race([], 0);
                machine.serve_full_rings();
                machine.fetch_and_check()?;
                machine.send(chunk_pages, usize::MAX);
                prop_assert_eq!(&machine.copy, &machine.kvm.memory());
                machine.kvm.race([], at_once);
            }
            machine.log.stop(&machine.kvm).unwrap();
            machine.serve_full_rings();
        }
    }
}

/// The mode's logic must be what makes the property true.
#[test]
fn a_log_that_clears_what_it_did_not_report_is_found_out() {
    let mut machine = Copying::new(&[64], BOTH, 0);
    machine.start(DirtyLogMode::ManualClear);
    machine.send(64, usize::MAX);
    machine.kvm.write(Write { vcpu: 0, slot: 0, page: 7 }).unwrap();
    // As if the engine asked KVM to clear a page that no fetch has reported.
    super::LogCalls::clear(&machine.kvm, 0, 0, 64, &[u64::MAX]).unwrap();
    machine.fetch_and_check().unwrap_err();
}

/// Ends the writers of a test that fails, too.
struct SetOnDrop<'a>(&'a AtomicBool);

impl Drop for SetOnDrop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::SeqCst);
    }
}

#[test]
fn vcpus_that_fill_their_rings_race_with_fetches_and_lose_nothing() {
    let mut machine = Copying::new(&[900, 70], 0, 16);
    machine.start(DirtyLogMode::Ring);
    machine.kvm.interrupt((0..200).map(|n| n * 7 % 23));
    let (kvm, rings) = (machine.kvm.clone(), Arc::clone(machine.rings.as_ref().unwrap()));
    let quit = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let _quit = SetOnDrop(&quit);
        for vcpu in 0..VCPUS {
            let (kvm, rings, quit) = (&kvm, &rings, &quit);
            scope.spawn(move || {
                let mut number = vcpu as u64;
                while !quit.load(Ordering::SeqCst) {
                    number = number.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                    let slot = usize::from(number >> 60 == 0);
                    let write = Write { vcpu, slot, page: (number >> 33) % [900, 70][slot] };
                    while kvm.write(write).is_err() {
                        rings.make_room(vcpu as u32).unwrap();
                    }
                }
            });
        }
        let busy = |vcpu: &VcpuDirty| vcpu.pages > 1000 && vcpu.ring_full_exits > 0;
        let deadline = Instant::now() + Duration::from_secs(120);
        let mut rounds = 0;
        while rounds < 300 || !machine.log.by_vcpu().iter().all(busy) {
            assert!(Instant::now() < deadline, "{:?}", machine.log.by_vcpu());
            machine.send(2048, usize::MAX);
            machine.fetch_and_check().unwrap();
            std::thread::yield_now();
            rounds += 1;
        }
    });
    machine.fetch_and_check().unwrap();
    machine.send(2048, usize::MAX);
    assert_eq!(machine.copy, kvm.memory());
}

#[test]
fn a_machine_has_a_ring_or_bitmaps_and_says_what_helps() {
    let ring = Copying::new(&[64], BOTH, 16).log;
    let bitmaps = Copying::new(&[64], BOTH, 0).log;
    let old = Copying::new(&[64], 0, 0).log;
    let best = [&ring, &bitmaps, &old].map(|log| log.mode_for(None).unwrap());
    assert_eq!(best, [DirtyLogMode::Ring, DirtyLogMode::ManualClear, DirtyLogMode::Bitmap]);
    bitmaps.mode_for(Some(DirtyLogMode::Bitmap)).unwrap();
    for (log, wanted, help) in [
        (&ring, DirtyLogMode::Bitmap, "dirty-log=ring or auto"),
        (&ring, DirtyLogMode::ManualClear, "dirty-log=ring or auto"),
        (&bitmaps, DirtyLogMode::Ring, "`tern run --dirty-log ring`"),
        (&old, DirtyLogMode::ManualClear, "dirty-log=bitmap"),
    ] {
        let text = log.mode_for(Some(wanted)).unwrap_err().to_string();
        assert!(text.contains(&format!("dirty-log={wanted}: ")) && text.contains(help), "{text}");
    }
}

/// A KVM that frees nothing.
struct Stuck;

impl super::ResetRings for Stuck {
    fn reset(&self) -> std::io::Result<usize> {
        Ok(0)
    }
}

#[test]
fn a_reset_that_never_comes_is_an_error() {
    let kvm = FakeKvm::new(&[64], 1, 16);
    let rings = DirtyRings::new(Box::new(Stuck), kvm.ring_memory(), [64]);
    let mut log = DirtyLog::new(0, Vec::new(), Some(Arc::new(rings)));
    log.start(&kvm, None).unwrap();
    super::LogCalls::set_logging(
        &kvm,
        0,
        &Slot { gpa: 0, length_bytes: 64 * PAGE_BYTES, host_address: 0 },
        true,
    )
    .unwrap();
    kvm.write(Write { vcpu: 0, slot: 0, page: 3 }).unwrap();
    let error = log.fetch(&kvm, &mut DirtyBitmap::new([64])).unwrap_err();
    assert!(error.to_string().contains("reset 0 of 1 entries"), "{error}");
    let error: StartError = log.start(&kvm, None).unwrap_err();
    assert!(matches!(error, StartError::Kvm(_)), "{error}");
}
