//! Mutations of a real machine's state, with right checksums, into real machines: each is refused or applied, nothing
//! runs unless it is told to, and a machine that has refused hundreds takes the right one.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

#[path = "../../vmm/tests/again/mod.rs"]
mod again;
#[path = "../../vmm/tests/host/mod.rs"]
mod host;

use std::collections::BTreeMap;
use std::io::{Read, Seek};
use std::sync::Arc;
use std::time::{Duration, Instant};

use tern_devices::{BytePort, PortTarget};
use tern_fuzz::mutate;
use tern_fuzz::random::Random;
use tern_fuzz::recording::{Recording, control, record_between, told};
use tern_fuzz::sections::{self, Section};
use tern_fuzz::seeds;
use tern_migration::destination::receive;
use tern_migration::{DestinationVm, Side, SourceVm};
use tern_schema::StateSet;
use tern_vmm::boot::{self, BootImage, BootSource};
use tern_vmm::config::VmConfig;
use tern_vmm::control::{EventSink, event_queue};
use tern_vmm::devices::Plugs;
use tern_vmm::laps::Laps;
use tern_vmm::memory::Backing;
use tern_vmm::run_control::Hold;
use tern_vmm::sections::prepare;
use tern_vmm::vm::{Host, Vm};
use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryRegion};

const SEEDS: u64 = 600;
const CPUS: u8 = 2;
const MEMORY_BYTES: u64 = 64 << 20;
const STREAMS: u64 = 300;
/// Each stream has a machine of its own, whose memory is compared. `pulse` writes behind 16 MiB.
const SMALL_BYTES: u64 = 18 << 20;
const PATIENCE: Duration = Duration::from_secs(120);
/// Far above what a load takes: longer is a wait for something that can't come.
const HANG: Duration = Duration::from_secs(20);

/// Where machines run, and where their guest's words go.
struct Bench {
    host: Arc<Host>,
    config: VmConfig,
    plugs: Plugs,
    events: EventSink,
    words: std::fs::File,
}

impl Bench {
    /// `None` where there is no KVM.
    fn new(memory_bytes: u64) -> Option<Self> {
        let kvm = host::kvm()?;
        let host = Arc::new(Host { kvm, kind: "test".into(), hidden: Vec::new() });
        let config = VmConfig { cpus: CPUS, ..VmConfig::new(memory_bytes) };
        let words = tempfile::tempfile().unwrap();
        let serial = BytePort::new(PortTarget::File(words.try_clone().unwrap())).unwrap();
        let plugs = Plugs::new(&config, serial, BytePort::new(PortTarget::Null).unwrap()).unwrap();
        let (events, _) = event_queue().unwrap();
        Some(Self { host, config, plugs, events, words })
    }

    /// A guest whose devices were changed may reset or stop itself: that is no failure.
    fn machine(&self, hold: Hold) -> Vm {
        let Self { host, config, plugs, events, .. } = self;
        Vm::build(host, config, &Backing::Anonymous, plugs, hold, events, Arc::new(|_| {})).unwrap()
    }

    fn boot(&self, cmdline: &str) -> Vm {
        let vm = self.machine(Hold::Building);
        let kernel = BootImage::Bytes { name: "pulse", bytes: tern_guest_images::PULSE };
        let source = BootSource {
            kernel,
            initrd: None,
            cmdline,
            host_words: &[],
            cpus: CPUS,
            virtio: &[],
            generation_id: self.config.generation_id,
        };
        let loaded = boot::load(SourceVm::ram(&vm), &source).unwrap();
        vm.enter(&loaded.entry).unwrap();
        vm.core().run().release(Hold::Building);
        vm
    }

    /// Waits until the guest has printed more than `beats` beats.
    fn wait_for_beats(&mut self, beats: usize) -> usize {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let mut heard = Vec::new();
            self.words.rewind().unwrap();
            self.words.read_to_end(&mut heard).unwrap();
            let heard = String::from_utf8_lossy(&heard);
            let count = heard.lines().filter(|line| line.starts_with("B ")).count();
            if count > beats {
                assert!(!heard.contains("CORRUPT"), "{heard}");
                return count;
            }
            assert!(Instant::now() < deadline, "no beat after {beats}:\n{heard}");
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

fn copy_memory(from: &Vm, to: &Vm) {
    let mut piece = vec![0; 1 << 20];
    for region in SourceVm::ram(from).iter() {
        for offset in (0..region.len()).step_by(piece.len()) {
            let at = GuestAddress(region.start_addr().0 + offset);
            SourceVm::ram(from).read_slice(&mut piece, at).unwrap();
            DestinationVm::ram(to).write_slice(&piece, at).unwrap();
        }
    }
}

/// A machine that stands still, and what it would send.
fn saved_machine(bench: &mut Bench) -> (Vm, Vec<u8>, usize) {
    let mut vm = bench.boot("ws=1M rate=1000 interval=20 cpus=2");
    let beats = bench.wait_for_beats(2);
    assert!(vm.stop(&|| false).unwrap());
    let (mut state, mut bytes) = (StateSet::default(), Vec::new());
    SourceVm::save(&mut vm, &mut state).unwrap();
    state.encode(&mut bytes);
    (vm, bytes, beats)
}

/// One or two changes; the names of all sections that differ from the saved ones.
fn mutated(bytes: &[u8], seed: u64) -> (Vec<u8>, String) {
    let mut random = Random::new(seed);
    let mut all: Vec<Section> = sections::parse(bytes);
    let changes = 1 + random.below(4) / 3;
    let what: Vec<_> = (0..changes).map(|_| sections::mutate(&mut all, &mut random)).collect();
    (sections::write(&all), what.join("; "))
}

#[derive(Debug, Default)]
struct Counts {
    unreadable: u32,
    refused: u32,
    not_taken: u32,
    applied: u32,
}

#[test]
fn a_mutated_state_is_refused_or_applied_and_never_runs() {
    let Some(mut bench) = Bench::new(MEMORY_BYTES) else { return };
    let (source, bytes, beats) = saved_machine(&mut bench);
    assert_eq!(sections::write(&sections::parse(&bytes)), bytes, "a state is written as it was read");
    let mut counts = Counts::default();
    let mut machine = bench.machine(Hold::Incoming);
    let mut laps = Laps::of(0);
    let all = seeds::seeds(SEEDS);
    for seed in all.clone() {
        let (bytes, what) = mutated(&bytes, seed);
        let what = format!("{}={seed}: {what}", seeds::SEED);
        let began = Instant::now();
        let Ok(state) = StateSet::decode(&bytes) else {
            counts.unreadable += 1;
            continue;
        };
        let core = Arc::clone(machine.core());
        match prepare(core.vcpus(), core.devices().parts(), state, &mut laps) {
            // The next one has the same machine: a state that is refused has changed nothing.
            Err(_) => counts.refused += 1,
            Ok(prepared) => {
                let applied = prepared.apply(core.vm(), core.vcpus(), &mut laps).is_ok();
                *if applied { &mut counts.applied } else { &mut counts.not_taken } += 1;
                drop(core);
                assert!(!machine.core().run().is_running(), "{what}: the guest runs");
                machine = bench.machine(Hold::Incoming);
            }
        }
        assert!(!machine.core().vcpus().is_running(), "{what}: a vCPU runs");
        assert!(began.elapsed() < HANG, "{what}: took {:?}", began.elapsed());
    }
    println!("{counts:?}");
    if all == (0..SEEDS) {
        let Counts { unreadable, refused, applied, .. } = counts;
        assert!(applied > 0 && refused > 0 && u64::from(unreadable) < SEEDS / 2, "{counts:?}");
    }
    copy_memory(&source, &machine);
    machine.load(StateSet::decode(&bytes).unwrap()).unwrap();
    drop(source);
    machine.start(true).unwrap();
    bench.wait_for_beats(beats);
    machine.core().run().hold(Hold::Ended);
}

/// The first page that differs.
fn differing_page(one: &Vm, other: &Vm) -> Option<GuestAddress> {
    let (mut here, mut there) = (vec![0; 1 << 20], vec![0; 1 << 20]);
    for region in SourceVm::ram(one).iter() {
        for offset in (0..region.len()).step_by(here.len()) {
            let at = GuestAddress(region.start_addr().0 + offset);
            SourceVm::ram(one).read_slice(&mut here, at).unwrap();
            SourceVm::ram(other).read_slice(&mut there, at).unwrap();
            if here != there {
                let page = here.chunks(4096).zip(there.chunks(4096)).position(|(one, other)| one != other);
                return Some(GuestAddress(at.0 + page.unwrap_or(0) as u64 * 4096));
            }
        }
    }
    None
}

fn saved(vm: &mut Vm) -> StateSet {
    let mut state = StateSet::default();
    SourceVm::save(vm, &mut state).unwrap();
    state
}

#[test]
fn a_mutated_stream_brings_the_guest_into_a_machine_or_nothing() {
    let Some(mut bench) = Bench::new(SMALL_BYTES) else { return };
    let mut vm = bench.boot("ws=64K rate=1000 interval=20 cpus=2");
    bench.wait_for_beats(2);
    // Where it arrives it stands still, and can be compared.
    assert!(vm.stop(&|| false).unwrap());
    vm.core().run().hold(Hold::User);
    let recorded = record_between(vm, bench.machine(Hold::Incoming)).unwrap();
    let Recording { to_destination, source: mut sent, .. } = recorded.expect("it arrives");
    let sent_state = saved(&mut sent);
    let (mut arrived, mut unproved, mut started) = (0u64, 0u64, 0u64);
    let mut reasons = BTreeMap::<String, u32>::new();
    let all = seeds::seeds(STREAMS);
    for seed in all.clone() {
        let mutation = mutate::of(&to_destination, seed);
        let what = format!("{}={seed}: {}", seeds::SEED, mutation.what);
        let control = control(Side::Destination).unwrap();
        let (connection, speaker) = told(mutation.bytes).unwrap();
        let began = Instant::now();
        let ended = receive(bench.machine(Hold::Incoming), connection, &control);
        assert!(began.elapsed() < HANG, "{what}: took {:?}", began.elapsed());
        speaker.join().unwrap();
        match ended {
            Err(failed) => {
                assert!(!failed.committed, "{what}: {}", failed.error.text());
                assert!(!failed.vm.core().run().is_running(), "{what}: runs after {}", failed.error.text());
                *reasons.entry(failed.error.code().to_owned()).or_default() += 1;
            }
            // Its offer was changed too: it offers no proof, and all its checksums are right.
            Ok(_) if control.report().proof.is_none() => unproved += 1,
            // It was told to start a guest that stood still, by a peer that may say so.
            Ok(received) if received.running => started += 1,
            Ok(mut received) => {
                assert_eq!(differing_page(&sent, &received.vm), None, "{what}: other memory arrived");
                again::assert_same_but_for(&sent_state, &saved(&mut received.vm), &[]);
                arrived += 1;
            }
        }
    }
    println!("{arrived} arrived, {unproved} without proof, {started} started; refused: {reasons:?}");
    if all == (0..STREAMS) {
        assert!(arrived > 0 && arrived + unproved + started < STREAMS / 2, "{arrived}, {reasons:?}");
        assert!(reasons.len() > 5 && unproved + started < STREAMS / 20, "{unproved}, {started}, {reasons:?}");
    }
}
