//! A virtual machine in memory that implements both traits: whole migrations without KVM, with a guest that
//! writes at the worst moments, and with failures wherever a test wants them.
//!
//! Its guest writes at every call that the engine makes while it runs, or from a thread. Its state carries a
//! checksum of its memory, which loading compares: a page that came too late or not at all is found there.

mod known;
mod log;
mod relay;
mod seam;

use std::fmt;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::thread::JoinHandle;

use tern_schema::record;
use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryRegion};

use crate::pager::Pager;
use crate::vm::{GuestRam, MemoryRegion, PAGE_BYTES, SectionOffer, VmError, VmFacts};

pub use log::LogMode;
use log::{DirtyLog, PageBits};
pub use relay::{Direction, Fault, relay};

record! {
    /// The state of the fake.
    pub struct FakeV1 = "fake" 1 {
        /// Writes that the guest has made.
        [1] writes: u64,
        /// Checksum of all touched pages.
        [2] checksum: u64,
        /// Touched pages of all regions, a bit each.
        [3] touched: Vec<u64>,
    }
}

/// The calls that can be made to fail.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs, reason = "named as the methods of the traits")]
pub enum Call {
    DirtyLogStart,
    DirtyLogFetch,
    DirtyLogClear,
    DirtyLogStop,
    Resident,
    Stop,
    Save,
    Resume,
    ReleaseDisks,
    Check,
    PageIn,
    Load,
    TakeDisks,
    Start,
}

/// Calls of the source's trait.
pub const SOURCE_CALLS: [Call; 9] = [
    Call::DirtyLogStart,
    Call::DirtyLogFetch,
    Call::DirtyLogClear,
    Call::DirtyLogStop,
    Call::Resident,
    Call::Stop,
    Call::Save,
    Call::ReleaseDisks,
    Call::Resume,
];

/// Calls of the destination's trait that every migration makes.
pub const DESTINATION_CALLS: [Call; 4] = [Call::Check, Call::Load, Call::TakeDisks, Call::Start];

/// How many machines run the same guest: never more than one.
#[derive(Debug, Default)]
pub struct Fleet {
    running: AtomicU32,
    most: AtomicU32,
    /// Which machine has the lock of the disk that all of them have.
    disk: Mutex<Option<usize>>,
}

impl Fleet {
    /// Machines that run now.
    pub fn running(&self) -> u32 {
        self.running.load(Ordering::SeqCst)
    }

    /// Most that ever ran at once.
    pub fn most(&self) -> u32 {
        self.most.load(Ordering::SeqCst)
    }

    /// Takes the disk for a machine; false: another one has it.
    fn take_disk(&self, machine: usize) -> bool {
        let mut disk = self.disk.lock().unwrap_or_else(PoisonError::into_inner);
        *disk.get_or_insert(machine) == machine
    }

    fn release_disk(&self, machine: usize) {
        let mut disk = self.disk.lock().unwrap_or_else(PoisonError::into_inner);
        disk.take_if(|owner| *owner == machine);
    }
}

/// What the machine is like.
#[derive(Debug, Clone)]
pub struct Options {
    /// Pages of each region.
    pub region_pages: Vec<u64>,
    /// How its dirty log behaves.
    pub log: LogMode,
    /// Writes that the guest makes at each call of the engine.
    pub writes_per_call: u32,
    /// The guest writes to this many pages only, once it runs.
    pub working_set_pages: u64,
    /// Before it runs, the guest has written every so manieth page.
    pub touched_every: usize,
    /// Stopping takes until it is cancelled.
    pub disk_is_stuck: bool,
    /// Disk requests that the host has failed.
    pub disk_failures: Arc<AtomicU64>,
    /// The call that fails, and the how manieth of its kind, from 0.
    pub fail: Option<(Call, u32)>,
    /// Why its memory can't come when it is touched; none: it can, if the host lets it.
    pub page_in_refused: Option<&'static str>,
    /// Asked at each call before anything else.
    pub hook: Option<Hook>,
    /// Shared by the machines that a guest moves between.
    pub fleet: Arc<Fleet>,
}

/// What a test does at each call of the engine; an error fails the call.
#[derive(Clone)]
pub struct Hook(pub Arc<dyn Fn(Call) -> Result<(), VmError> + Send + Sync>);

impl fmt::Debug for Hook {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Hook")
    }
}

impl Default for Options {
    fn default() -> Self {
        Self {
            region_pages: vec![70, 200],
            log: LogMode::Manual { initially_set: true },
            writes_per_call: 3,
            working_set_pages: 40,
            touched_every: 3,
            disk_is_stuck: false,
            disk_failures: Arc::default(),
            fail: None,
            page_in_refused: None,
            hook: None,
            fleet: Arc::default(),
        }
    }
}

/// The machine.
#[derive(Debug)]
pub struct FakeVm {
    shared: Arc<Shared>,
    options: Options,
    calls: Mutex<Vec<Call>>,
    given_up: bool,
    paused: bool,
    writer: Option<(Arc<AtomicBool>, JoinHandle<()>)>,
    pager: Option<Pager>,
}

#[derive(Debug)]
struct Shared {
    ram: GuestRam,
    region_pages: Vec<u64>,
    working_set_pages: u64,
    log: DirtyLog,
    touched: PageBits,
    /// Held for reading over each write of the guest, and for writing to start and stop it.
    gate: RwLock<bool>,
    writes: AtomicU64,
}

/// The guest in a machine that may be in the middle of a migration.
#[derive(Debug)]
pub struct FakeGuest {
    shared: Arc<Shared>,
}

impl FakeGuest {
    /// Does it run?
    pub fn is_running(&self) -> bool {
        *self.shared.gate.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// The guest writes so often, if it runs.
    pub fn write(&self, count: u32) {
        self.shared.guest_writes(count);
    }

    /// The first page that differs from another guest's.
    pub fn first_difference(&self, other: &Self) -> Option<(usize, u64)> {
        self.shared.first_difference(&other.shared)
    }

    /// The guest makes a page zero. False: it doesn't run.
    pub fn zero_page(&self, region: usize, page: u64) -> bool {
        let gate = self.shared.gate.read().unwrap_or_else(PoisonError::into_inner);
        if *gate {
            self.shared.put(region, page, 0, &[0; PAGE_BYTES as usize]);
        }
        *gate
    }
}

impl FakeVm {
    /// An empty machine that doesn't run.
    pub fn new(options: Options) -> Result<Self, VmError> {
        let mut gpa = 0;
        let mut ranges = Vec::new();
        for pages in &options.region_pages {
            ranges.push((GuestAddress(gpa), (pages * PAGE_BYTES) as usize));
            gpa += (pages * PAGE_BYTES).next_multiple_of(1 << 30) + (1 << 30);
        }
        let ram = GuestRam::from_ranges(&ranges).map_err(|e| VmError::new("fake memory", e))?;
        let pages = options.region_pages.clone();
        let shared = Shared {
            ram,
            log: DirtyLog::new(&pages, options.log),
            touched: PageBits::new(&pages),
            working_set_pages: options.working_set_pages.min(pages.iter().sum()).max(1),
            region_pages: pages,
            gate: RwLock::new(false),
            writes: AtomicU64::new(0),
        };
        let (shared, calls) = (Arc::new(shared), Mutex::default());
        Ok(Self { shared, options, calls, given_up: false, paused: true, writer: None, pager: None })
    }

    /// A machine whose guest has written [`Options::touched_every`] page and runs.
    pub fn booted(options: Options) -> Result<Self, VmError> {
        let mut vm = Self::new(options)?;
        for (region, pages) in vm.shared.region_pages.iter().enumerate() {
            (0..*pages)
                .step_by(vm.options.touched_every.max(1))
                .for_each(|page| vm.shared.write(region, page));
        }
        if !vm.options.fleet.take_disk(vm.number()) {
            return Err(VmError::plain("another machine has the disk"));
        }
        vm.set_running(true);
        Ok(vm)
    }

    /// Distinguishes it from all others that live.
    fn number(&self) -> usize {
        Arc::as_ptr(&self.shared).addr()
    }

    /// Has it the lock of the disk?
    pub fn has_disk(&self) -> bool {
        let disk = self.options.fleet.disk.lock().unwrap_or_else(PoisonError::into_inner);
        *disk == Some(self.number())
    }

    /// Pauses or resumes as a person does.
    pub fn set_running(&mut self, running: bool) {
        self.paused = !running;
        self.run(running);
    }

    /// Does the guest run?
    pub fn is_running(&self) -> bool {
        *self.shared.gate.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// The guest writes as fast as it can from a thread of its own, until the machine is dropped.
    pub fn start_writer(&mut self) {
        let (shared, quit) = (Arc::clone(&self.shared), Arc::new(AtomicBool::new(false)));
        let stop = Arc::clone(&quit);
        let thread = std::thread::spawn(move || {
            while !stop.load(Ordering::SeqCst) {
                shared.guest_writes(1);
                std::thread::yield_now();
            }
        });
        self.writer = Some((quit, thread));
    }

    /// Writes that the guest has made.
    pub fn writes(&self) -> u64 {
        self.shared.writes.load(Ordering::SeqCst)
    }

    /// Was this page ever written?
    pub fn touched(&self, region: usize, page: u64) -> bool {
        self.shared.touched.get(region, page)
    }

    /// One page's bytes.
    pub fn page(&self, region: usize, page: u64) -> Vec<u8> {
        self.shared.page(region, page)
    }

    /// A hand on the guest while the machine is moved.
    pub fn guest(&self) -> FakeGuest {
        FakeGuest { shared: Arc::clone(&self.shared) }
    }

    /// The first page that differs from another machine's.
    pub fn first_difference(&self, other: &Self) -> Option<(usize, u64)> {
        self.shared.first_difference(&other.shared)
    }

    /// Another hook, or none.
    pub fn set_hook(&mut self, hook: Option<Hook>) {
        self.options.hook = hook;
    }

    /// Another failure, or none.
    pub fn set_fail(&mut self, fail: Option<(Call, u32)>) {
        self.options.fail = fail;
        self.calls.lock().unwrap_or_else(PoisonError::into_inner).clear();
    }

    /// Calls so far, since the last [`Self::set_fail`].
    pub fn calls(&self, call: Call) -> u32 {
        let calls = self.calls.lock().unwrap_or_else(PoisonError::into_inner);
        calls.iter().filter(|made| **made == call).count() as u32
    }

    /// Everything that may happen at a call: the guest writes before it, and it may fail.
    fn call(&self, call: Call) -> Result<(), VmError> {
        if let Some(Hook(hook)) = &self.options.hook {
            hook(call)?;
        }
        self.shared.guest_writes(self.options.writes_per_call);
        let before = self.calls(call);
        self.calls.lock().unwrap_or_else(PoisonError::into_inner).push(call);
        if self.options.fail == Some((call, before)) {
            return Err(VmError::plain(format!("injected failure of {call:?} number {before}")));
        }
        Ok(())
    }

    fn run(&self, running: bool) {
        let mut gate = self.shared.gate.write().unwrap_or_else(PoisonError::into_inner);
        let fleet = &self.options.fleet;
        if running && !*gate {
            let now = fleet.running.fetch_add(1, Ordering::SeqCst) + 1;
            fleet.most.fetch_max(now, Ordering::SeqCst);
        } else if !running && *gate {
            fleet.running.fetch_sub(1, Ordering::SeqCst);
        }
        *gate = running;
    }

    fn own_facts(&self) -> VmFacts {
        let memory = self.shared.ram.iter();
        VmFacts {
            name: "fake".into(),
            profile: "fake-1".into(),
            tern_version: env!("CARGO_PKG_VERSION").into(),
            cpus: 1,
            memory: memory.map(|r| MemoryRegion { gpa: r.start_addr().0, length_bytes: r.len() }).collect(),
            sections: vec![SectionOffer {
                name: "fake".into(),
                instance: 0,
                version: 1,
                oldest: None,
                optional: None,
            }],
            platform: Vec::new(),
        }
    }
}

impl Drop for FakeVm {
    fn drop(&mut self) {
        self.run(false);
        self.options.fleet.release_disk(self.number());
        if let Some((quit, thread)) = self.writer.take() {
            quit.store(true, Ordering::SeqCst);
            // A writer that panicked has failed its test already.
            let _ = thread.join();
        }
    }
}

impl Shared {
    fn guest_writes(&self, count: u32) {
        let gate = self.gate.read().unwrap_or_else(PoisonError::into_inner);
        if !*gate {
            return;
        }
        for _ in 0..count {
            // Strides over all of the working set in an order that looks random.
            let number = self.writes.load(Ordering::SeqCst);
            let mut page = number.wrapping_mul(0x9e37_79b9_7f4a_7c15) % self.working_set_pages;
            for (region, pages) in self.region_pages.iter().enumerate() {
                if page < *pages {
                    self.write(region, page);
                    break;
                }
                page -= pages;
            }
        }
    }

    /// One write: the page's number and the write's number, at the page's start and somewhere in it.
    fn write(&self, region: usize, page: u64) {
        let number = self.writes.fetch_add(1, Ordering::SeqCst) + 1;
        let text = [region as u64, page, number].map(u64::to_le_bytes).concat();
        self.put(region, page, 0, &text);
        self.put(region, page, number.wrapping_mul(40) % 4000, &text);
    }

    /// The log's bit is set after the write: a real one traps before it, but with the page locked.
    fn put(&self, region: usize, page: u64, offset: u64, bytes: &[u8]) {
        self.touched.set(region, page);
        let base = self.ram.iter().nth(region).map(|r| r.start_addr().0);
        if let Some(base) = base {
            let written = self.ram.write_slice(bytes, GuestAddress(base + page * PAGE_BYTES + offset));
            debug_assert!(written.is_ok(), "page {page} of region {region} exists");
        }
        self.log.mark(region, page);
    }

    fn page(&self, region: usize, page: u64) -> Vec<u8> {
        let mut bytes = vec![0; PAGE_BYTES as usize];
        let base = self.ram.iter().nth(region).map(|r| r.start_addr().0);
        if let Some(base) = base {
            let read = self.ram.read_slice(&mut bytes, GuestAddress(base + page * PAGE_BYTES));
            debug_assert!(read.is_ok(), "page {page} of region {region} exists");
        }
        bytes
    }

    fn first_difference(&self, other: &Self) -> Option<(usize, u64)> {
        let pages = self.region_pages.iter().enumerate();
        let mut all = pages.flat_map(|(region, pages)| (0..*pages).map(move |page| (region, page)));
        all.find(|(region, page)| self.page(*region, *page) != other.page(*region, *page))
    }

    fn checksum(&self, touched: &[u64]) -> u64 {
        let mut crc = crc32fast::Hasher::new();
        let mut bits = touched.iter().flat_map(|word| (0..64).map(move |bit| word & (1 << bit) != 0));
        for (region, pages) in self.region_pages.iter().enumerate() {
            for page in 0..pages.next_multiple_of(64) {
                // A hostile state may have bits behind a region's last page.
                if bits.next().unwrap_or(false) && page < *pages {
                    crc.update(&self.page(region, page));
                }
            }
        }
        crc.finalize().into()
    }
}
