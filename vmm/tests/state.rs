//! The whole state of a machine, moved to a new machine in the same process: without engine and sockets, so
//! that what is lost here was lost by the state itself.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

mod host;

use std::io::{Read, Seek};
use std::sync::Arc;
use std::time::{Duration, Instant};

use tern_devices::{BytePort, PortTarget};
use tern_migration::{DestinationVm, SourceVm};
use tern_schema::StateSet;
use tern_vmm::boot::{self, BootImage, BootSource};
use tern_vmm::config::VmConfig;
use tern_vmm::control::{EventSink, event_queue};
use tern_vmm::devices::Plugs;
use tern_vmm::memory::Backing;
use tern_vmm::run_control::Hold;
use tern_vmm::vm::{Host, Vm};
use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryRegion};

const MEMORY_BYTES: u64 = 64 << 20;
const PATIENCE: Duration = Duration::from_secs(120);

/// Where a machine runs, and where its guest's words go.
struct Bench {
    host: Arc<Host>,
    config: VmConfig,
    plugs: Plugs,
    events: EventSink,
    words: std::fs::File,
}

impl Bench {
    /// `None` where there is no KVM.
    fn new(cpus: u8) -> Option<Self> {
        let kvm = host::kvm()?;
        let host = Arc::new(Host { kvm, kind: "test".into(), hidden: Vec::new() });
        let mut config = VmConfig::new(MEMORY_BYTES);
        config.cpus = cpus;
        let words = tempfile::tempfile().unwrap();
        let serial = BytePort::new(PortTarget::File(words.try_clone().unwrap())).unwrap();
        let plugs = Plugs::new(&config, serial, BytePort::new(PortTarget::Null).unwrap()).unwrap();
        let (events, _) = event_queue().unwrap();
        Some(Self { host, config, plugs, events, words })
    }

    fn machine(&self, hold: Hold) -> Vm {
        let on_event = Arc::new(|event| panic!("a vCPU ended: {event:?}"));
        Vm::build(&self.host, &self.config, &Backing::Anonymous, &self.plugs, hold, &self.events, on_event).unwrap()
    }

    fn boot(&self, cmdline: &str) -> Vm {
        let vm = self.machine(Hold::Building);
        let kernel = BootImage::Bytes { name: "pulse", bytes: tern_guest_images::PULSE };
        let (initrd, host_words, cpus) = (None, &[][..], self.config.cpus);
        let generation_id = self.config.generation_id;
        let source = BootSource { kernel, initrd, cmdline, host_words, cpus, virtio: &[], generation_id };
        let loaded = boot::load(SourceVm::ram(&vm), &source).unwrap();
        vm.enter(&loaded.entry).unwrap();
        vm.core().run().release(Hold::Building);
        vm
    }

    fn heard(&mut self) -> String {
        let mut bytes = Vec::new();
        self.words.rewind().unwrap();
        self.words.read_to_end(&mut bytes).unwrap();
        String::from_utf8_lossy(&bytes).into_owned()
    }

    /// Waits until the guest has printed more than `beats` beats.
    fn wait_for_beats(&mut self, beats: usize) -> usize {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let heard = self.heard();
            assert!(!heard.contains("CORRUPT"), "{heard}");
            let count = heard.lines().filter(|line| line.starts_with("B ")).count();
            if count > beats {
                return count;
            }
            assert!(Instant::now() < deadline, "no beat after {beats}:\n{heard}");
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

fn copy_memory(from: &Vm, to: &Vm) {
    let mut page = vec![0; 1 << 20];
    for region in SourceVm::ram(from).iter() {
        for offset in (0..region.len()).step_by(page.len()) {
            let at = GuestAddress(region.start_addr().0 + offset);
            SourceVm::ram(from).read_slice(&mut page, at).unwrap();
            DestinationVm::ram(to).write_slice(&page, at).unwrap();
        }
    }
}

fn saved(vm: &mut Vm) -> StateSet {
    let mut state = StateSet::default();
    vm.save(&mut state).unwrap();
    state
}

/// Moves the guest through `moves` machines.
fn moves(cpus: u8, cmdline: &str, moves: usize) {
    let Some(mut bench) = Bench::new(cpus) else { return };
    let mut vm = bench.boot(cmdline);
    let mut beats = bench.wait_for_beats(2);
    for _ in 0..moves {
        assert!(vm.stop().unwrap());
        let state = saved(&mut vm);
        let mut bytes = Vec::new();
        state.encode(&mut bytes);
        let mut next = bench.machine(Hold::Incoming);
        copy_memory(&vm, &next);
        next.load(StateSet::decode(&bytes).unwrap()).unwrap();
        drop(vm);
        next.start(true).unwrap();
        vm = next;
        beats = bench.wait_for_beats(beats);
    }
    vm.core().run().hold(Hold::Ended);
    let heard = bench.heard();
    assert_eq!(heard.matches("A ready").count(), 1, "the guest started anew:\n{heard}");
    for cpu in 0..cpus {
        let mine = format!(" cpu={cpu} ");
        let seqs: Vec<u64> =
            heard.lines().filter(|l| l.starts_with("B ") && l.contains(&mine)).map(seq).collect();
        assert!(seqs.iter().copied().eq(0..seqs.len() as u64), "beats of vCPU {cpu} are missing: {seqs:?}");
    }
}

fn seq(line: &str) -> u64 {
    line.split("seq=").nth(1).and_then(|rest| rest.split(' ').next()).unwrap().parse().unwrap()
}

#[test]
fn a_writing_guest_goes_on_in_twenty_machines() {
    moves(1, "ws=8M rate=max interval=20 pattern=random", 20);
}

#[test]
fn an_idle_guest_with_an_armed_timer_goes_on_in_twenty_machines() {
    moves(1, "ws=0 interval=20", 20);
}

#[test]
fn two_vcpus_go_on_in_ten_machines() {
    moves(2, "ws=8M rate=2000 interval=20 cpus=2", 10);
}

/// Sections whose bytes may differ between a state and the same state loaded and saved again: the clocks
/// have gone on.
const GOES_ON: [&str; 3] = ["vcpu", "clock", "pit"];

#[test]
fn what_is_loaded_is_saved_again() {
    let Some(mut bench) = Bench::new(2) else { return };
    let mut vm = bench.boot("ws=1M rate=1000 interval=20 cpus=2");
    bench.wait_for_beats(2);
    vm.stop().unwrap();
    let first = saved(&mut vm);
    let mut next = bench.machine(Hold::Incoming);
    copy_memory(&vm, &next);
    next.load(first.clone()).unwrap();
    let second = saved(&mut next);
    let names =
        |state: &StateSet| state.sections().iter().map(|s| (s.name.clone(), s.instance)).collect::<Vec<_>>();
    assert_eq!(names(&first), names(&second));
    for (one, two) in first.sections().iter().zip(second.sections()) {
        if !GOES_ON.contains(&one.name.as_str()) {
            assert_eq!(one.body, two.body, "section {}/{}", one.name, one.instance);
        }
    }
    let (mut first, mut second) = (first, second);
    for vcpu in 0..2 {
        let one: tern_vmm::vcpu::VcpuV1 = first.take(vcpu).unwrap();
        let two: tern_vmm::vcpu::VcpuV1 = second.take(vcpu).unwrap();
        assert_eq!(one.regs, two.regs);
        assert_eq!(one.sregs, two.sregs);
        assert_eq!(one.xsave, two.xsave);
        assert_eq!((one.xcrs, one.debug_regs, one.events), (two.xcrs, two.debug_regs, two.events));
        assert_eq!((one.mp_state, one.tsc_khz, one.cpuid), (two.mp_state, two.tsc_khz, two.cpuid));
        for (msr, again) in one.msrs.iter().zip(&two.msrs) {
            let clock = [tern_vmm::vcpu::MSR_TSC].contains(&msr.index);
            assert!(clock || msr == again, "{msr:x?} became {again:x?}");
        }
    }
}
