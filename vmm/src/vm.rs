//! A virtual machine: KVM's part, its memory, its vCPUs and its devices, built from a configuration.
//!
//! [`Core`] is shared: the main loop stops and starts it, the control socket looks at it. [`Vm`] is moved:
//! whoever has it may migrate it, so no second migration can begin.

use std::io;
use std::sync::Arc;

use kvm_bindings::kvm_pit_config;
use kvm_ioctls::{Kvm, VmFd};
use tern_devices::GuestRam;
use tern_migration::DirtyLogMode;
use thiserror::Error;

use crate::boot::Entry;
use crate::config::{CpuModel, DirtyLogConfig, VmConfig};
use crate::control::EventSink;
use crate::devices::{DeviceError, DeviceSet, Plugs};
use crate::host::KvmKind;
use crate::kvm::{
    self, DirtyLog, DirtyRings, RingMapping, RingMemory, RingReset, Slot, StartError, set_slot,
};
use crate::laps::Laps;
use crate::layout;
use crate::lines::Lines;
use crate::memory::{self, Backing, Behind, MemoryError, Residency};
use crate::platform::PlatformV1;
use crate::run_control::{Hold, Machinery, RunControl};
use crate::sections;
use crate::vcpu::{
    self, Bus, CpuidV1, Feature, Offer, Profile, Template, Vcpu, VcpuError, VcpuEvent, VcpuSet,
};

/// Why a machine could not be built.
#[derive(Debug, Error)]
pub enum BuildError {
    /// KVM refused.
    #[error("KVM {operation} failed")]
    Kvm {
        /// The ioctl.
        operation: &'static str,
        /// KVM's reason.
        #[source]
        source: kvm_ioctls::Error,
    },
    /// The host refused something else.
    #[error("{what}")]
    Host {
        /// What was tried.
        what: &'static str,
        /// The host's reason.
        #[source]
        source: io::Error,
    },
    /// Memory.
    #[error(transparent)]
    Memory(#[from] MemoryError),
    /// A vCPU.
    #[error("vCPU {index}")]
    Vcpu {
        /// Which.
        index: u32,
        /// Why.
        #[source]
        source: VcpuError,
    },
    /// The CPU profile.
    #[error(transparent)]
    Profile(#[from] vcpu::ProfileError),
    /// A device.
    #[error(transparent)]
    Device(#[from] DeviceError),
    /// No dirty ring, or none so large.
    #[error(
        "--dirty-log {wanted}: {}; a migration can be had without one: leave --dirty-log out", match *most {
            0 => "this host's KVM has no dirty rings (Linux 5.11 and later have them)".to_owned(),
            most => format!("this host's KVM makes rings of at most {most} entries"),
        }
    )]
    Ring {
        /// What was asked for.
        wanted: DirtyLogConfig,
        /// What this host has.
        most: u32,
    },
}

fn kvm_error(operation: &'static str) -> impl Fn(kvm_ioctls::Error) -> BuildError {
    move |source| BuildError::Kvm { operation, source }
}

/// What all machines of this process have in common.
pub struct Host {
    /// `/dev/kvm`.
    pub kvm: Kvm,
    /// What kind of KVM it is, for people.
    pub kind: String,
    /// Features that no guest may see here.
    pub hidden: Vec<Feature>,
}

/// What is stopped and started together.
pub struct Guest {
    vcpus: VcpuSet,
    devices: DeviceSet,
}

impl Machinery for Guest {
    fn halt(&self) {
        self.vcpus.pause();
        self.devices.pause();
    }

    fn go(&self) {
        self.vcpus.iter().for_each(|vcpu| vcpu.announce_stop());
        self.devices.resume();
        self.vcpus.run();
    }
}

/// The shared part of a machine.
pub struct Core {
    // Before the memory, which its threads use until they are joined.
    run: RunControl<Guest>,
    // Before the memory that it fills, and after those who wait for it.
    behind: Behind,
    vm: VmFd,
    ram: GuestRam,
    lines: Lines,
}

impl Core {
    /// Has the guest ended, or is it about to?
    pub fn is_leaving(&self) -> bool {
        self.lines.is_leaving()
    }

    /// Who holds the guest still.
    pub fn run(&self) -> &RunControl<Guest> {
        &self.run
    }

    /// KVM's handle.
    pub fn vm(&self) -> &VmFd {
        &self.vm
    }

    /// What is behind its memory.
    pub fn behind(&self) -> &Behind {
        &self.behind
    }

    /// Guest memory.
    pub fn ram(&self) -> &GuestRam {
        &self.ram
    }

    /// The vCPUs.
    pub fn vcpus(&self) -> &VcpuSet {
        &self.run.machinery().vcpus
    }

    /// The devices.
    pub fn devices(&self) -> &DeviceSet {
        &self.run.machinery().devices
    }
}

/// A machine that can be migrated by whoever has it.
pub struct Vm {
    pub(crate) core: Arc<Core>,
    pub(crate) dirty: DirtyLog,
    pub(crate) residency: Residency,
    pub(crate) name: String,
    /// What it was built from.
    pub(crate) config: VmConfig,
    pub(crate) kvm: Arc<Host>,
    /// What the guest needs of its host. Kept, because a running vCPU can't be asked.
    pub(crate) platform: PlatformV1,
    /// Of the last save or load.
    pub(crate) laps: Laps,
}

impl Vm {
    /// Builds a machine, held by `hold`. `on_event` is called from vCPU threads.
    pub fn build(
        host: &Arc<Host>,
        config: &VmConfig,
        backing: &Backing,
        plugs: &Plugs,
        hold: Hold,
        events: &EventSink,
        on_event: Arc<dyn Fn(VcpuEvent) + Send + Sync>,
    ) -> Result<Self, BuildError> {
        let vm = host.kvm.create_vm().map_err(kvm_error("CREATE_VM"))?;
        let ram = memory::map(config.memory_bytes, backing)?;
        if let Some(wanted) = config.memory_kind.thp
            && let Some(warning) = memory::advise_huge_pages(&ram, wanted)?
        {
            tracing::warn!("{warning}");
        }
        let slots = memory::slots(&ram);
        enable_rings(host, &vm, config.dirty_log)?;
        for (index, slot) in (0u32..).zip(&slots) {
            let mapping = |source| BuildError::Host { what: "KVM refuses guest memory", source };
            set_slot(&vm, index, slot, 0).map_err(mapping)?;
        }
        // Behind the memory: chips put themselves on KVM's bus, and a slot that comes after that waits for
        // the end of an RCU grace period, 4 to 10 ms (Linux 6.18), where it takes 0.1 ms before.
        chips(&vm)?;
        let behind = Behind::of(backing);
        let (devices, bus) = DeviceSet::build(&vm, config, &ram, &behind, plugs)?;
        let mut vcpus = make_vcpus(host, &vm, config, &ram)?;
        let rings = map_rings(&vm, config.dirty_log, &mut vcpus, &slots)?;
        let dirty = DirtyLog::new(DirtyLog::offered(&vm), slots, rings);
        let bus: Arc<dyn Bus> = Arc::new(bus);
        let started = VcpuSet::new(vcpus, &bus, &on_event);
        let vcpus = started.map_err(|source| BuildError::Vcpu { index: 0, source })?;
        let run = RunControl::new(Guest { vcpus, devices }, hold, events.clone());
        let pagemap = |source| BuildError::Host { what: "/proc/self/pagemap can't be opened", source };
        let residency = Residency::new().map_err(pagemap)?;
        let core = Arc::new(Core { run, behind, vm, ram, lines: plugs.lines.clone() });
        let platform = platform(&core, host);
        let laps = Laps::of(sections::offers(core.vcpus().len(), core.devices().parts()).len());
        Ok(Self {
            core,
            dirty,
            residency,
            name: config.name.clone(),
            config: config.clone(),
            kvm: Arc::clone(host),
            platform,
            laps,
        })
    }

    /// The shared part.
    pub fn core(&self) -> &Arc<Core> {
        &self.core
    }

    /// Its dirty log, for tests of that.
    #[doc(hidden)]
    pub fn dirty_log(&mut self) -> &mut DirtyLog {
        &mut self.dirty
    }

    /// Can a migration find written pages so?
    pub fn can_log(&self, wanted: Option<DirtyLogMode>) -> Result<(), StartError> {
        self.dirty.mode_for(wanted).map(drop)
    }

    /// Sets vCPU 0 to a kernel's entry; the others wait for SIPI.
    pub fn enter(&self, entry: &Entry) -> Result<(), BuildError> {
        for (index, vcpu) in (0u32..).zip(self.core.vcpus().iter()) {
            vcpu.enter(entry).map_err(|source| BuildError::Vcpu { index, source })?;
        }
        Ok(())
    }
}

/// What the guest needs of its host, as its parked vCPUs say.
pub(crate) fn platform(core: &Core, host: &Host) -> PlatformV1 {
    let (mut cpuid, mut msrs, mut xsave_bytes, mut tsc_khz): (Vec<CpuidV1>, Vec<u64>, u32, u32) =
        Default::default();
    let mut feature_msrs = Vec::new();
    if let Some(vcpu) = core.vcpus().iter().next() {
        cpuid = vcpu.cpuid().to_vec();
        vcpu::forced(KvmKind::detect()).show(&mut cpuid);
        feature_msrs = vcpu.feature_msrs().unwrap_or_default();
        msrs = vcpu.access().msrs().iter().copied().map(u64::from).collect();
        xsave_bytes = vcpu.access().xsave_bytes() as u32;
        tsc_khz = vcpu.tsc_khz().unwrap_or(0);
    }
    let devices = core.devices().facts().iter().map(|known| known.fact.clone()).collect();
    PlatformV1 { cpuid, tsc_khz, msrs, xsave_bytes, devices, kvm: host.kind.clone(), feature_msrs }
}

/// The in-kernel chips, before any vCPU.
fn chips(vm: &VmFd) -> Result<(), BuildError> {
    // KVM then answers port 0x61 too, through which guests calibrate against the PIT.
    let pit = kvm_pit_config { flags: kvm_bindings::KVM_PIT_SPEAKER_DUMMY, ..Default::default() };
    vm.set_tss_address(layout::KVM_TSS as usize).map_err(kvm_error("SET_TSS_ADDR"))?;
    vm.set_identity_map_address(layout::KVM_IDENTITY_MAP).map_err(kvm_error("SET_IDENTITY_MAP_ADDR"))?;
    kvm::carry_pending_events(vm).map_err(kvm_error("ENABLE_CAP (pending events)"))?;
    vm.create_irq_chip().map_err(kvm_error("CREATE_IRQCHIP"))?;
    vm.create_pit2(pit).map_err(kvm_error("CREATE_PIT2"))
}

/// What a machine of this configuration can show its guest here: all that the host has, or what `--cpu` leaves.
pub(crate) fn offer(host: &Host, config: &VmConfig) -> Result<Offer, BuildError> {
    let offer = Offer::of(&host.kvm, &host.hidden).map_err(|source| BuildError::Vcpu { index: 0, source })?;
    Ok(match &config.cpu {
        CpuModel::Host => offer,
        CpuModel::Profile(name) => Profile::named(name)?.apply(offer)?,
        CpuModel::File(profile) => profile.apply(offer)?,
    })
}

/// Dirty rings, before any vCPU.
fn enable_rings(host: &Host, vm: &VmFd, wanted: DirtyLogConfig) -> Result<(), BuildError> {
    let DirtyLogConfig::Ring(entries) = wanted else { return Ok(()) };
    let most = kvm::most_ring_entries(&host.kvm);
    if entries.get() > most {
        return Err(BuildError::Ring { wanted, most });
    }
    let refused = |source| BuildError::Host { what: "KVM gives no dirty rings", source };
    kvm::enable_dirty_rings(vm, entries.get()).map_err(refused)
}

/// The rings that the vCPUs have got.
fn map_rings(
    vm: &VmFd,
    config: DirtyLogConfig,
    vcpus: &mut [Vcpu],
    slots: &[Slot],
) -> Result<Option<Arc<DirtyRings>>, BuildError> {
    let DirtyLogConfig::Ring(entries) = config else { return Ok(None) };
    let unmapped = |source| BuildError::Host { what: "the dirty rings can't be mapped", source };
    let map = |vcpu: &Vcpu| -> io::Result<Box<dyn RingMemory>> {
        Ok(Box::new(RingMapping::new(vcpu.fd(), entries.get())?))
    };
    let memory = vcpus.iter().map(map).collect::<io::Result<_>>().map_err(unmapped)?;
    let reset = RingReset::new(vm).map_err(unmapped)?;
    let rings = Arc::new(DirtyRings::new(Box::new(reset), memory, slots.iter().map(Slot::pages)));
    vcpus.iter_mut().for_each(|vcpu| vcpu.fill_rings(Arc::clone(&rings)));
    Ok(Some(rings))
}

fn make_vcpus(host: &Host, vm: &VmFd, config: &VmConfig, ram: &GuestRam) -> Result<Vec<Vcpu>, BuildError> {
    let cpus = u32::from(config.cpus);
    let at = |index| move |source| BuildError::Vcpu { index, source };
    let template = Template::new(offer(host, config)?, cpus);
    let msrs = vcpu::msr_indices(&host.kvm).map_err(kvm_error("GET_MSR_INDEX_LIST"))?;
    let make = |index| Vcpu::new(vm, index, cpus, &template, &msrs, ram.clone()).map_err(at(index));
    (0..cpus).map(make).collect()
}
