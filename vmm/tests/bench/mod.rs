//! Machines one after another for one guest, in one process: built, saved, loaded, and what the guest said.

#![allow(dead_code, reason = "each test uses what it needs")]

use std::os::unix::fs::FileExt;
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
const PAGE_BYTES: u64 = 4096;
const PATIENCE: Duration = Duration::from_secs(120);

/// Where a machine runs, and where its guest's words go.
pub struct Bench {
    host: Arc<Host>,
    config: VmConfig,
    plugs: Plugs,
    events: EventSink,
    words: std::fs::File,
    heard: String,
}

impl Bench {
    /// `None` where there is no KVM.
    pub fn new(cpus: u8) -> Option<Self> {
        let kvm = super::host::kvm()?;
        let host = Arc::new(Host { kvm, kind: "test".into(), hidden: Vec::new() });
        let mut config = VmConfig::new(MEMORY_BYTES);
        config.cpus = cpus;
        let words = tempfile::tempfile().unwrap();
        let serial = BytePort::new(PortTarget::File(words.try_clone().unwrap())).unwrap();
        let plugs = Plugs::new(&config, serial, BytePort::new(PortTarget::Null).unwrap()).unwrap();
        let (events, _) = event_queue().unwrap();
        Some(Self { host, config, plugs, events, words, heard: String::new() })
    }

    /// Entries that a dirty ring can have here.
    pub fn most_ring_entries(&self) -> u32 {
        tern_vmm::kvm::most_ring_entries(&self.host.kvm)
    }

    /// What the machines that are built from now on are like.
    pub fn config(&mut self) -> &mut VmConfig {
        &mut self.config
    }

    /// A machine without a guest.
    pub fn machine(&self, hold: Hold) -> Vm {
        let on_event = Arc::new(|event| panic!("a vCPU ended: {event:?}"));
        let backing = Backing::new(self.config.memory_kind.backing, self.config.memory_bytes).unwrap();
        Vm::build(&self.host, &self.config, &backing, &self.plugs, hold, &self.events, on_event).unwrap()
    }

    /// A machine that runs pulse.
    pub fn boot(&self, cmdline: &str) -> Vm {
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

    /// Moves a guest that stands still to a new machine, by the bytes of its state.
    pub fn moved(&self, from: &mut Vm) -> Vm {
        self.moved_as(from, |state| state)
    }

    /// As [`Self::moved`], with a state that `change` has changed.
    pub fn moved_as(&self, from: &mut Vm, change: impl FnOnce(StateSet) -> StateSet) -> Vm {
        let mut bytes = Vec::new();
        saved(from).encode(&mut bytes);
        let mut next = self.machine(Hold::Incoming);
        copy_memory(from, &next);
        next.load(change(StateSet::decode(&bytes).unwrap())).unwrap();
        next
    }

    /// All that the guest has said so far.
    pub fn heard(&mut self) -> &str {
        // At a place of our own: the file's position is the port's, which writes there.
        let mut bytes = vec![0; 1 << 16];
        while let count @ 1.. = self.words.read_at(&mut bytes, self.heard.len() as u64).unwrap() {
            self.heard.push_str(str::from_utf8(&bytes[..count]).expect("pulse speaks ASCII"));
        }
        &self.heard
    }

    /// Waits until what the guest has said fulfils `enough`.
    pub fn wait_until(&mut self, what: &str, mut enough: impl FnMut(&str) -> bool) {
        let deadline = Instant::now() + PATIENCE;
        while !enough(self.heard()) {
            assert!(Instant::now() < deadline, "waited for {what}; the guest said:\n{}", self.heard);
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    /// Waits until the guest has printed more than `beats` beats, and nothing bad.
    pub fn wait_for_beats(&mut self, beats: usize) -> usize {
        let mut count = 0;
        self.wait_until("a beat", |heard| {
            assert!(!heard.contains("CORRUPT"), "{heard}");
            count = heard.lines().filter(|line| line.starts_with("B ")).count();
            count > beats
        });
        count
    }
}

/// Copies the pages that exist: the others are zero on both sides.
pub fn copy_memory(from: &Vm, to: &Vm) {
    let mut page = vec![0; PAGE_BYTES as usize];
    for (index, region) in SourceVm::ram(from).iter().enumerate() {
        let mut present = Vec::new();
        from.resident(index, 0..region.len() / PAGE_BYTES, &mut present).unwrap();
        for number in present.into_iter().flatten() {
            let at = GuestAddress(region.start_addr().0 + number * PAGE_BYTES);
            SourceVm::ram(from).read_slice(&mut page, at).unwrap();
            DestinationVm::ram(to).write_slice(&page, at).unwrap();
        }
    }
}

/// The state of a machine that stands still.
pub fn saved(vm: &mut Vm) -> StateSet {
    let mut state = StateSet::default();
    vm.save(&mut state).unwrap();
    state
}

/// The number behind `name=` in a line of the guest's.
pub fn number(line: &str, name: &str) -> u64 {
    let text = line.split(' ').find_map(|word| word.strip_prefix(name)?.strip_prefix('='));
    text.unwrap_or_else(|| panic!("no {name} in {line}")).parse().unwrap()
}

/// An error with its causes.
pub fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        text.push_str(&format!(": {cause}"));
        next = cause.source();
    }
    text
}

/// The host's CLOCK_REALTIME.
pub fn realtime_ns() -> u64 {
    std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_nanos() as u64
}
