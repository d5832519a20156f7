//! The seam: the two traits through which the engine sees a virtual machine.
//!
//! `vmm` implements them for KVM, and a fake in memory implements them for tests. The engine knows neither
//! KVM nor devices; an implementation knows nothing of sockets, frames or rounds.

use std::error::Error;
use std::fmt;
use std::ops::Range;
use std::sync::Arc;

use serde::ser::{Serialize, SerializeStruct, Serializer};
use tern_schema::{StateSet, record};
use vm_memory::GuestMemoryMmap;
use vm_memory::bitmap::AtomicBitmap;

use crate::dirty::{DirtyBitmap, DirtyLogMode, VcpuDirty};
use crate::pager::{OnEnd, PageProvider, Placer};

/// Guest memory. Region number n is memory slot n. Its bitmap records what the VMM and its devices write,
/// which KVM's dirty log doesn't see.
pub type GuestRam = GuestMemoryMmap<AtomicBitmap>;

/// Bytes of a page: the unit of the dirty log and of the page stream.
pub const PAGE_BYTES: u64 = 4096;

record! {
    /// One region of guest memory.
    pub struct MemoryRegion {
        /// First guest-physical address.
        [1] gpa: u64,
        /// Length.
        [2] length_bytes: u64,
    }
}

record! {
    /// One section that the machine saves, and the version in which it saves it.
    pub struct SectionOffer {
        /// Section's name.
        [1] name: String,
        /// Which of several equal parts.
        [2] instance: u32,
        /// Newest version of its record that it can save or load.
        [3] version: u16,
        /// Oldest such version; without it, it is `version` alone.
        [4 optional] oldest: Option<u16>,
        /// May a machine without this part do without it? Without an answer it may not.
        [5 optional] optional: Option<bool>,
    }
}

record! {
    /// What a virtual machine says of itself before anything moves.
    pub struct VmFacts {
        /// The machine's name, for people.
        [1] name: String,
        /// Machine profile, such as `tern-1`: what the guest sees of the machine.
        [2] profile: String,
        /// Version of the tern that runs it.
        [3] tern_version: String,
        /// Number of vCPUs.
        [4] cpus: u32,
        /// Guest memory in slot order.
        [5] memory: Vec<MemoryRegion>,
        /// All sections, in the order in which they are saved.
        [6] sections: Vec<SectionOffer>,
        /// CPUID, MSR, TSC and XSAVE facts and the devices' configuration: a record of the VMM's own, which
        /// the engine carries and [`DestinationVm::check`] compares.
        [7] platform: Vec<u8>,
    }
}

record! {
    /// One thing in which two machines have to agree, compared: a line of `migrate --check`, and, where it
    /// doesn't fit, of a refusal.
    pub struct Aspect {
        /// For programs, such as `memory-layout`; it doesn't change between releases.
        [1] code: String,
        /// For people, such as `memory`.
        [2] name: String,
        /// What the source has, or its guest needs.
        [3] source: String,
        /// What the destination has.
        [4] destination: String,
        /// What a person can do about it; none: it fits.
        [5] remedy: Option<String>,
    }
}

impl Aspect {
    /// An aspect that fits.
    pub fn fits(code: &str, name: &str, source: impl Into<String>, destination: impl Into<String>) -> Self {
        let (code, name) = (code.to_owned(), name.to_owned());
        Self { code, name, source: source.into(), destination: destination.into(), remedy: None }
    }

    /// An aspect that doesn't fit, and what helps.
    pub fn differs(
        code: &str,
        name: &str,
        source: impl Into<String>,
        destination: impl Into<String>,
        remedy: impl Into<String>,
    ) -> Self {
        Self { remedy: Some(remedy.into()), ..Self::fits(code, name, source, destination) }
    }

    /// An aspect in which both must say the same.
    pub fn equal(code: &str, name: &str, source: String, destination: String, remedy: &str) -> Self {
        let remedy = (source != destination).then(|| remedy.to_owned());
        Self { remedy, ..Self::fits(code, name, source, destination) }
    }

    /// The same without what could steer a terminal: a peer has written it.
    pub(crate) fn readable(&self) -> Self {
        let plain = |text: &String| text.chars().filter(|c| *c == '\n' || !c.is_control()).collect();
        let Self { code, name, source, destination, remedy } = self;
        let [code, name, source, destination] = [code, name, source, destination].map(plain);
        Self { code, name, source, destination, remedy: remedy.as_ref().map(plain) }
    }

    /// Does it fit?
    pub fn is_ok(&self) -> bool {
        self.remedy.is_none()
    }

    /// One line for people: what it is, both sides' values and, if it doesn't fit, the remedy.
    pub fn text(&self) -> String {
        let Self { name, source, destination, remedy, .. } = self;
        let remedy = remedy.as_ref().map(|remedy| format!("; {remedy}")).unwrap_or_default();
        format!("{name}: source {source}, destination {destination}{remedy}")
    }
}

impl Serialize for Aspect {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        let Self { code, name, source, destination, remedy } = self;
        let mut out = to.serialize_struct("Aspect", 6)?;
        out.serialize_field("code", code)?;
        out.serialize_field("name", name)?;
        out.serialize_field("source", source)?;
        out.serialize_field("destination", destination)?;
        out.serialize_field("ok", &self.is_ok())?;
        out.serialize_field("remedy", remedy)?;
        out.end()
    }
}

/// What went wrong inside a virtual machine, with its cause.
#[derive(Debug)]
pub struct VmError {
    what: String,
    source: Option<Box<dyn Error + Send + Sync>>,
}

impl VmError {
    /// An error with a cause below it.
    pub fn new(what: impl Into<String>, source: impl Into<Box<dyn Error + Send + Sync>>) -> Self {
        Self { what: what.into(), source: Some(source.into()) }
    }

    /// An error that is its own cause.
    pub fn plain(what: impl Into<String>) -> Self {
        Self { what: what.into(), source: None }
    }
}

impl fmt::Display for VmError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.what)
    }
}

impl Error for VmError {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        self.source.as_ref().map(|e| -> &(dyn Error + 'static) { e.as_ref() })
    }
}

/// Disk requests that the host has failed: the guest has seen I/O errors.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct DiskFailures {
    /// How many.
    pub count: u64,
    /// The latest, for people.
    pub latest: Option<String>,
}

/// A virtual machine that is to be moved away.
///
/// Order of calls: `dirty_log_start`, then rounds of `dirty_log_fetch` and, chunk by chunk just before its
/// pages are read, `dirty_log_clear`; `stop`, `save`, a last `dirty_log_fetch` (saving may write guest
/// memory), and then either `give_up`, or `resume` after any failure, even one of `stop` itself.
/// `dirty_log_stop` ends every attempt, a failed one before `resume`, a completed one after the peer's
/// answer.
pub trait SourceVm: Send {
    /// What the peer must know before anything moves.
    fn facts(&self) -> VmFacts;
    /// What a new process needs in order to build this machine from a file alone: a record of the VMM's own,
    /// which the engine stores in the file and doesn't look into. A link doesn't carry it: there the
    /// destination was built before.
    fn configuration(&self) -> Vec<u8>;
    /// Guest memory.
    fn ram(&self) -> &GuestRam;
    /// Starts the dirty log. A host with "initially all set" reports every page in the first fetch; the
    /// engine treats all pages as dirty at the start on every host.
    ///
    /// `mode`: how, or any that the machine can (none). Returns how; a machine that can't do it so says what
    /// would help.
    fn dirty_log_start(&mut self, mode: Option<DirtyLogMode>) -> Result<DirtyLogMode, VmError>;
    /// Adds to `dirty` all pages written since they were last cleared ([`DirtyLogMode::ManualClear`]) or last
    /// fetched (the others), by the guest as by the VMM and its devices.
    fn dirty_log_fetch(&mut self, dirty: &mut DirtyBitmap) -> Result<(), VmError>;
    /// Clears and re-protects those pages of the range that a fetch has reported and that weren't cleared
    /// since, so that later writes to them are reported again. **A page that no fetch has reported must stay
    /// logged**: it may have become dirty since the fetch, and the engine, which doesn't know of it, sends
    /// it in the next round only. `pages.start` is a multiple of 64, and so is `pages.end` unless it is
    /// the region's end. Does nothing in the modes whose fetch has cleared already.
    fn dirty_log_clear(&mut self, region: usize, pages: Range<u64>) -> Result<(), VmError>;
    /// Ends the dirty log. Harmless when it isn't running.
    fn dirty_log_stop(&mut self) -> Result<(), VmError>;
    /// The guest's disk requests that this host has failed since the machine was made, and the latest of them.
    fn disk_failures(&self) -> DiskFailures {
        DiskFailures::default()
    }
    /// What each vCPU has written since the log was started and until it was last fetched; empty where the log
    /// doesn't say who wrote.
    fn dirty_by_vcpu(&self) -> Vec<VcpuDirty> {
        Vec::new()
    }
    /// Appends to `out`, in order, the parts of `pages` that may hold something other than zeroes; a page
    /// outside them was never touched and reads as zero. Must be asked after `dirty_log_clear` of the same
    /// pages, or a write between the two would be lost.
    fn resident(&self, region: usize, pages: Range<u64>, out: &mut Vec<Range<u64>>) -> Result<(), VmError>;
    /// Stops all vCPUs and drains the devices; returns when nothing writes guest memory any more, and
    /// whether the guest was running (`false`: it was paused already, and must arrive paused).
    /// What takes long before that, such as a disk that doesn't answer, ends with an error soon after `cancelled` says so.
    fn stop(&mut self, cancelled: &(dyn Fn() -> bool + Sync)) -> Result<bool, VmError>;
    /// Adds the state of all vCPUs, interrupt controllers, clocks and devices to `state`. Stopped only.
    fn save(&mut self, state: &mut StateSet) -> Result<(), VmError>;
    /// Goes on as before `stop`: a guest that was paused stays paused.
    fn resume(&mut self) -> Result<(), VmError>;
    /// Gives up the right to run this guest: called just before COMMIT is sent. From here on `resume` must
    /// fail, unless a person takes the right back.
    fn give_up(&mut self);
    /// Lets go of the locks of all disks that the guest writes or reads, since another process is about to take them.
    /// After an error some may be gone.
    fn release_disks(&mut self) -> Result<(), VmError>;
    /// Takes them, all or none; those that are held already stay. An error says who has one.
    fn take_disks(&mut self) -> Result<(), VmError>;
    /// The reverse of `give_up`: `resume` is legal again.
    fn take_back(&mut self);
}

/// A virtual machine that is to be filled and started: built from the same configuration, never run.
///
/// A failed attempt leaves memory half filled: the next one needs a machine built anew.
pub trait DestinationVm: Send {
    /// What this side was configured with.
    fn facts(&self) -> VmFacts;
    /// Can the source's guest run here? Compares what the engine can't: CPU, clocks, devices. All aspects,
    /// those that fit as well; the guest is refused if one doesn't. An error: they can't be compared.
    fn check(&self, source: &VmFacts) -> Result<Vec<Aspect>, VmError>;
    /// Guest memory, all zero at the start.
    fn ram(&self) -> &GuestRam;
    /// Can pages of this machine's memory come when they are touched?
    ///
    /// # Errors
    /// Why not, and what helps.
    fn can_page_in(&self) -> Result<(), VmError>;
    /// Drops what the pages of `missing` hold, and has `provider` bring those that somebody touches. Called before
    /// `load`, which may touch such pages itself. The machine keeps the pager and must not run without it; the engine
    /// places what comes. `on_end` is told when all is there.
    fn page_in(
        &mut self,
        missing: &DirtyBitmap,
        provider: Arc<dyn PageProvider>,
        on_end: OnEnd,
    ) -> Result<Placer, VmError>;
    /// Parses all, validates all, then applies.
    fn load(&mut self, state: StateSet) -> Result<(), VmError>;
    /// Takes the locks of all disks, all or none. Called after COMMIT, or for a guest from a
    /// file, and before `start`. An error says who has one.
    fn take_disks(&mut self) -> Result<(), VmError>;
    /// Starts the guest, or leaves it paused as it was on the source. Called after COMMIT only.
    fn start(&mut self, running: bool) -> Result<(), VmError>;
}
