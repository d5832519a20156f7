//! Mutations of a real machine's state, with right checksums, into real machines: each is refused or applied, nothing
//! runs unless it is told to, and a machine that has refused hundreds takes the right one.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

#[path = "../../vmm/tests/host/mod.rs"]
mod host;

use std::io::{Read, Seek};
use std::sync::Arc;
use std::time::{Duration, Instant};

use tern_devices::{BytePort, PortTarget};
use tern_fuzz::random::Random;
use tern_fuzz::sections::{self, Section};
use tern_fuzz::seeds;
use tern_migration::{DestinationVm, SourceVm};
use tern_schema::StateSet;
use tern_vmm::boot::{self, BootImage, BootSource};
use tern_vmm::config::VmConfig;
use tern_vmm::control::{EventSink, event_queue};
use tern_vmm::devices::Plugs;
use tern_vmm::memory::Backing;
use tern_vmm::run_control::Hold;
use tern_vmm::sections::prepare;
use tern_vmm::vm::{Host, Vm};
use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryRegion};

const SEEDS: u64 = 600;
const CPUS: u8 = 2;
const MEMORY_BYTES: u64 = 64 << 20;
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
    fn new() -> Option<Self> {
        let kvm = host::kvm()?;
        let host = Arc::new(Host { kvm, kind: "test".into(), hidden: Vec::new() });
        let config = VmConfig { cpus: CPUS, ..VmConfig::new(MEMORY_BYTES) };
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
    assert!(vm.stop().unwrap());
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
    let Some(mut bench) = Bench::new() else { return };
    let (source, bytes, beats) = saved_machine(&mut bench);
    assert_eq!(sections::write(&sections::parse(&bytes)), bytes, "a state is written as it was read");
    let mut counts = Counts::default();
    let mut machine = bench.machine(Hold::Incoming);
    for seed in seeds::seeds(SEEDS) {
        let (bytes, what) = mutated(&bytes, seed);
        let what = format!("{}={seed}: {what}", seeds::SEED);
        let began = Instant::now();
        let Ok(state) = StateSet::decode(&bytes) else {
            counts.unreadable += 1;
            continue;
        };
        let core = Arc::clone(machine.core());
        match prepare(core.vcpus(), core.devices().parts(), state) {
            // The next one has the same machine: a state that is refused has changed nothing.
            Err(_) => counts.refused += 1,
            Ok(prepared) => {
                let applied = prepared.apply(core.vm(), core.vcpus()).is_ok();
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
    copy_memory(&source, &machine);
    machine.load(StateSet::decode(&bytes).unwrap()).unwrap();
    drop(source);
    machine.start(true).unwrap();
    bench.wait_for_beats(beats);
    machine.core().run().hold(Hold::Ended);
}
