//! How the migration engine sees a KVM machine: the two sides of its seam.

use std::ops::Range;
use std::sync::Arc;
use std::sync::mpsc::{self, RecvTimeoutError};
use std::time::Duration;

use tern_migration::pager::{self, OnEnd, PageProvider, Pager, Placer};
use tern_migration::{
    Aspect, DestinationVm, DirtyBitmap, DirtyLogMode, DiskFailures, GuestRam, MemoryRegion, SourceVm,
    VcpuDirty, VmError, VmFacts,
};
use tern_schema::{StateSet, decode_record, encode_record};
use vm_memory::GuestMemoryBackend;

use crate::config::MacAddress;
use crate::configuration;
use crate::machine_profile;
use crate::memory;
use crate::platform::{self, PlatformV1};
use crate::run_control::Hold;
use crate::sections;
use crate::vcpu::Offer;
use crate::vm::{self, Vm, platform as platform_of};

impl Vm {
    fn describe(&self) -> VmFacts {
        let slots = memory::slots(&self.core.ram().clone());
        let region =
            |slot: &crate::kvm::Slot| MemoryRegion { gpa: slot.gpa, length_bytes: slot.length_bytes };
        VmFacts {
            name: self.name.clone(),
            profile: machine_profile::CURRENT.name.to_owned(),
            tern_version: env!("CARGO_PKG_VERSION").to_owned(),
            cpus: self.core.vcpus().len() as u32,
            memory: slots.iter().map(region).collect(),
            sections: sections::offers(self.core.vcpus().len(), self.core.devices().parts()),
            platform: encode_record(&self.platform),
        }
    }
}

/// While a disk doesn't answer, a cancel is looked for this often.
const CANCEL_POLL: Duration = Duration::from_millis(10);

impl Vm {
    /// In a thread, since a disk that doesn't answer can't be called off: after a cancel that waits alone.
    fn sync_disks(&self, cancelled: &(dyn Fn() -> bool + Sync)) -> Result<(), VmError> {
        let unsynced = |error| VmError::new("the guest's disks can't be synced", error);
        if !self.core.devices().has_disks() {
            return Ok(());
        }
        let (core, (tell, hear)) = (Arc::clone(&self.core), mpsc::channel());
        let sync = move || {
            // Nobody hears it after a cancel.
            let _ = tell.send(core.devices().sync_disks());
        };
        std::thread::Builder::new().name("disk-sync".into()).spawn(sync).map_err(unsynced)?;
        loop {
            match hear.recv_timeout(CANCEL_POLL) {
                Ok(synced) => return synced.map_err(unsynced),
                Err(RecvTimeoutError::Timeout) if !cancelled() => {}
                Err(_) => return Err(VmError::plain("cancelled before the guest's disks were synced")),
            }
        }
    }
}

impl SourceVm for Vm {
    fn facts(&self) -> VmFacts {
        self.describe()
    }

    fn configuration(&self) -> Vec<u8> {
        let mut config = self.config.clone();
        // A guest that came keeps the addresses with which it came.
        for (net, mac) in config.nets.iter_mut().zip(self.core.devices().macs()) {
            net.mac = MacAddress(mac);
        }
        configuration::encode(&config)
    }

    fn ram(&self) -> &GuestRam {
        self.core.ram()
    }

    fn dirty_log_start(&mut self, mode: Option<DirtyLogMode>) -> Result<DirtyLogMode, VmError> {
        for region in self.core.ram().iter() {
            memory::written(region).reset();
        }
        self.dirty
            .start(self.core.vm(), mode)
            .map_err(|error| VmError::new("the dirty log can't be started", error))
    }

    fn dirty_log_fetch(&mut self, dirty: &mut DirtyBitmap) -> Result<(), VmError> {
        if self.dirty.has_rings() && self.core.run().is_running() {
            // What the processor has noted for itself comes into the rings.
            self.core.vcpus().kick();
        }
        let read = self.dirty.fetch(self.core.vm(), dirty);
        read.map_err(|error| VmError::new("the dirty log can't be read", error))?;
        for (index, region) in self.core.ram().iter().enumerate() {
            dirty.add_words(index, &memory::written(region).get_and_reset());
        }
        Ok(())
    }

    fn dirty_log_clear(&mut self, region: usize, pages: Range<u64>) -> Result<(), VmError> {
        let cleared = self.dirty.clear(self.core.vm(), region, pages);
        cleared.map_err(|error| VmError::new("the dirty log can't be cleared", error))
    }

    fn dirty_log_stop(&mut self) -> Result<(), VmError> {
        self.dirty.stop(self.core.vm()).map_err(|error| VmError::new("the dirty log can't be ended", error))
    }

    fn disk_failures(&self) -> DiskFailures {
        let tern_devices::DiskFailures { count, latest } = self.core.devices().disk_failures();
        DiskFailures { count, latest }
    }

    fn dirty_by_vcpu(&self) -> Vec<VcpuDirty> {
        self.dirty.by_vcpu()
    }

    fn resident(&self, region: usize, pages: Range<u64>, out: &mut Vec<Range<u64>>) -> Result<(), VmError> {
        let base = self.core.ram().iter().nth(region).map(|region| region.as_ptr() as u64);
        let base = base.ok_or_else(|| VmError::plain(format!("there is no memory region {region}")))?;
        let found = memory::resident(&self.residency, self.core.behind(), (region, base), pages, out);
        found.map_err(|error| VmError::new("the page map can't be read", error))
    }

    fn stop(&mut self, cancelled: &(dyn Fn() -> bool + Sync)) -> Result<bool, VmError> {
        // Twice: most of it while the guest still runs, and what came since with the guest at rest.
        self.sync_disks(cancelled)?;
        self.core.run().hold(Hold::Migration);
        self.sync_disks(cancelled)?;
        // Behind the hold: nobody stops or starts the guest any more, so this stays true.
        let paused = self.core.run().holds(Hold::User);
        if self.core.is_leaving() {
            return Err(VmError::plain("the guest has just reset or switched off its machine"));
        }
        Ok(!paused)
    }

    fn save(&mut self, state: &mut StateSet) -> Result<(), VmError> {
        let (vcpus, parts) = (self.core.vcpus(), self.core.devices().parts());
        let saved = sections::save(self.core.vm(), vcpus, parts, state, &mut self.laps);
        saved.map_err(|error| VmError::new("the machine's state can't be saved", error))
    }

    fn resume(&mut self) -> Result<(), VmError> {
        if self.core.run().holds(Hold::GivenUp) {
            return Err(VmError::plain("the right to run this guest was given to the destination"));
        }
        self.core.run().release(Hold::Migration);
        Ok(())
    }

    fn give_up(&mut self) {
        self.core.run().exchange(Hold::Migration, Hold::GivenUp);
    }

    fn release_disks(&mut self) -> Result<(), VmError> {
        let released = self.core.devices().locks().release();
        released.map_err(|error| VmError::new("the guest's disks can't be let go", error))
    }

    fn take_disks(&mut self) -> Result<(), VmError> {
        DestinationVm::take_disks(self)
    }

    fn take_back(&mut self) {
        if self.core.run().holds(Hold::GivenUp) {
            self.core.run().exchange(Hold::GivenUp, Hold::Migration);
        }
    }
}

impl DestinationVm for Vm {
    fn facts(&self) -> VmFacts {
        self.describe()
    }

    fn check(&self, source: &VmFacts) -> Result<Vec<Aspect>, VmError> {
        let theirs: PlatformV1 = decode_record(&source.platform)
            .map_err(|error| VmError::new("the source's description of its host can't be read", error))?;
        let unread = "this host's CPU features can't be read";
        let offer =
            Offer::of(&self.kvm.kvm, &self.kvm.hidden).map_err(|error| VmError::new(unread, error))?;
        let allowed =
            vm::offer(&self.kvm, &self.config).map_err(|error| VmError::new(unread, error))?.features();
        let can_scale = self.kvm.kvm.check_extension(kvm_ioctls::Cap::TscControl);
        let mut here = self.platform.clone();
        for (fact, known) in here.devices.iter_mut().zip(self.core.devices().facts()) {
            let same =
                |their: &&platform::DeviceFactV1| their.name == fact.name && their.instance == fact.instance;
            if let (true, Some(their)) = (known.adopts, theirs.devices.iter().find(same)) {
                fact.detail.clone_from(&their.detail);
            }
        }
        let mut aspects = platform::compare(
            &theirs,
            &platform::Here { platform: &here, offer: &offer, allowed, can_scale },
        );
        aspects.extend(platform::disks(&self.core.devices().disks_readable()));
        Ok(aspects)
    }

    fn ram(&self) -> &GuestRam {
        self.core.ram()
    }

    fn can_page_in(&self) -> Result<(), VmError> {
        self.core.behind().can_page_in().map_err(VmError::plain)?;
        pager::available().map_err(|error| VmError::plain(error.to_string()))
    }

    fn page_in(
        &mut self,
        missing: &DirtyBitmap,
        provider: Arc<dyn PageProvider>,
        on_end: OnEnd,
    ) -> Result<Placer, VmError> {
        let (ram, behind) = (self.core.ram(), self.core.behind());
        behind.can_page_in().map_err(VmError::plain)?;
        let held = behind.held(&self.residency, ram, missing);
        let held = held.map_err(|error| VmError::new("the page map can't be read", error))?;
        // From here on the guest gives nothing back: it would be asked for again.
        behind.reclaimer().forbid();
        let pager = Pager::serve(ram, missing, &held, provider, on_end)
            .map_err(|error| VmError::new("memory on demand", error))?;
        pager.name_vcpus(&self.core.vcpus().thread_ids());
        let placer = pager.placer();
        let set = behind.set_pager(pager);
        set.map_err(|_| VmError::plain("this machine's memory has a pager already"))?;
        Ok(placer)
    }

    fn load(&mut self, state: StateSet) -> Result<(), VmError> {
        let (vcpus, parts) = (self.core.vcpus(), self.core.devices().parts());
        let prepared = sections::prepare(vcpus, parts, state, &mut self.laps)
            .map_err(|error| VmError::new("the guest's state does not fit this machine", error))?;
        let applied = prepared.apply(self.core.vm(), vcpus, &mut self.laps);
        applied.map_err(|error| VmError::new("this host does not take the guest's state", error))?;
        self.platform = platform_of(&self.core, &self.kvm);
        Ok(())
    }

    fn take_disks(&mut self) -> Result<(), VmError> {
        let taken = self.core.devices().locks().take();
        taken.map_err(|error| VmError::new("the guest's disks can't be had", error))
    }

    fn start(&mut self, running: bool) -> Result<(), VmError> {
        self.core.devices().forget_disk_caches();
        if !running {
            self.core.run().hold(Hold::User);
        }
        self.core.run().release(Hold::Incoming);
        self.core.devices().announce();
        Ok(())
    }
}
