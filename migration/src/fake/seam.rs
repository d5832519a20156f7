//! The two traits for the fake.

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use tern_schema::StateSet;

use super::{Call, FakeV1, FakeVm};
use crate::dirty::{DirtyBitmap, DirtyLogMode, VcpuDirty};
use crate::pager::{self, OnEnd, PageProvider, Pager, Placer};
use crate::vm::{Aspect, DestinationVm, DiskFailures, GuestRam, SourceVm, VmError, VmFacts};

impl SourceVm for FakeVm {
    fn facts(&self) -> VmFacts {
        self.own_facts()
    }

    fn configuration(&self) -> Vec<u8> {
        b"a fake's configuration".to_vec()
    }

    fn ram(&self) -> &GuestRam {
        &self.shared.ram
    }

    fn dirty_log_start(&mut self, mode: Option<DirtyLogMode>) -> Result<DirtyLogMode, VmError> {
        self.call(Call::DirtyLogStart)?;
        let can_not = || VmError::plain(format!("this machine has no dirty log of the kind {mode:?}"));
        self.shared.log.start(mode).ok_or_else(can_not)
    }

    fn dirty_by_vcpu(&self) -> Vec<VcpuDirty> {
        self.shared.log.by_vcpu()
    }

    fn disk_failures(&self) -> DiskFailures {
        let count = self.options.disk_failures.load(Ordering::SeqCst);
        DiskFailures { count, latest: (count > 0).then(|| format!("request {count}")) }
    }

    fn dirty_log_fetch(&mut self, dirty: &mut DirtyBitmap) -> Result<(), VmError> {
        self.call(Call::DirtyLogFetch)?;
        self.shared.log.fetch(dirty);
        self.shared.guest_writes(self.options.writes_per_call);
        Ok(())
    }

    fn dirty_log_clear(&mut self, region: usize, pages: Range<u64>) -> Result<(), VmError> {
        self.call(Call::DirtyLogClear)?;
        let last = self.shared.region_pages.get(region).copied().unwrap_or(0);
        if !pages.start.is_multiple_of(64)
            || (!pages.end.is_multiple_of(64) && pages.end != last)
            || pages.end > last
        {
            return Err(VmError::plain(format!("clear of {pages:?} of {last} pages is not aligned")));
        }
        self.shared.log.clear(region, pages);
        self.shared.guest_writes(self.options.writes_per_call);
        Ok(())
    }

    fn dirty_log_stop(&mut self) -> Result<(), VmError> {
        self.call(Call::DirtyLogStop)?;
        self.shared.log.stop();
        Ok(())
    }

    fn resident(&self, region: usize, pages: Range<u64>, out: &mut Vec<Range<u64>>) -> Result<(), VmError> {
        self.call(Call::Resident)?;
        for page in pages.filter(|page| self.shared.touched.get(region, *page)) {
            match out.last_mut() {
                Some(last) if last.end == page => last.end += 1,
                _ => out.push(page..page + 1),
            }
        }
        self.shared.guest_writes(self.options.writes_per_call);
        Ok(())
    }

    fn stop(&mut self, cancelled: &(dyn Fn() -> bool + Sync)) -> Result<bool, VmError> {
        self.call(Call::Stop)?;
        while self.options.disk_is_stuck && !cancelled() {
            std::thread::sleep(Duration::from_millis(1));
        }
        if self.options.disk_is_stuck {
            return Err(VmError::plain("cancelled while the disk was stuck"));
        }
        self.run(false);
        Ok(!self.paused)
    }

    fn save(&mut self, state: &mut StateSet) -> Result<(), VmError> {
        self.call(Call::Save)?;
        // Saving writes guest memory, as a clock page is written by the host.
        self.shared.put(0, 1, 64, b"written by saving");
        let touched = self.shared.touched.words();
        let (writes, checksum) = (self.writes(), self.shared.checksum(&touched));
        let saved = state.put(0, &FakeV1 { writes, checksum, touched });
        saved.map_err(|error| VmError::new("state", error))
    }

    fn resume(&mut self) -> Result<(), VmError> {
        self.call(Call::Resume)?;
        if self.given_up {
            return Err(VmError::plain("the guest was given up"));
        }
        self.run(!self.paused);
        Ok(())
    }

    fn give_up(&mut self) {
        self.given_up = true;
    }

    fn release_disks(&mut self) -> Result<(), VmError> {
        self.call(Call::ReleaseDisks)?;
        self.options.fleet.release_disk(self.number());
        Ok(())
    }

    fn take_disks(&mut self) -> Result<(), VmError> {
        DestinationVm::take_disks(self)
    }

    fn take_back(&mut self) {
        self.given_up = false;
    }
}

impl DestinationVm for FakeVm {
    fn facts(&self) -> VmFacts {
        self.own_facts()
    }

    fn check(&self, _source: &VmFacts) -> Result<Vec<Aspect>, VmError> {
        self.call(Call::Check)?;
        Ok(vec![Aspect::fits("fake", "fake", "a", "b")])
    }

    fn ram(&self) -> &GuestRam {
        &self.shared.ram
    }

    fn can_page_in(&self) -> Result<(), VmError> {
        if let Some(reason) = self.options.page_in_refused {
            return Err(VmError::plain(reason));
        }
        pager::available().map_err(|error| VmError::new("memory on demand", error))
    }

    fn page_in(
        &mut self,
        missing: &DirtyBitmap,
        provider: Arc<dyn PageProvider>,
        on_end: OnEnd,
    ) -> Result<Placer, VmError> {
        self.call(Call::PageIn)?;
        let (mut all, mut held) = (missing.clone(), Vec::new());
        for region in 0..missing.regions() {
            let mut runs = Vec::new();
            all.take_runs(region, 0..missing.words(region).len(), &mut runs);
            held.extend(runs.into_iter().map(|run| (region, run)));
        }
        let pager = Pager::serve(&self.shared.ram, missing, &held, provider, on_end)
            .map_err(|error| VmError::new("memory on demand", error))?;
        Ok(self.pager.insert(pager).placer())
    }

    fn load(&mut self, mut state: StateSet) -> Result<(), VmError> {
        self.call(Call::Load)?;
        let failed = |error| VmError::new("state", error);
        let FakeV1 { writes, checksum, touched } = state.take(0).map_err(failed)?;
        state.finish().map_err(failed)?;
        // While pages are missing, only one is looked at: loading may touch them, and must get them.
        let found = if self.pager.is_some() {
            self.shared.page(0, 1);
            checksum
        } else {
            self.shared.checksum(&touched)
        };
        if found != checksum {
            return Err(VmError::plain(format!(
                "memory has checksum {found:#x}, the source's had {checksum:#x}"
            )));
        }
        self.shared.writes.store(writes, Ordering::SeqCst);
        self.shared.touched.load(&touched);
        Ok(())
    }

    fn take_disks(&mut self) -> Result<(), VmError> {
        self.call(Call::TakeDisks)?;
        if self.options.fleet.take_disk(self.number()) {
            return Ok(());
        }
        Err(VmError::plain("another machine has the disk"))
    }

    fn start(&mut self, running: bool) -> Result<(), VmError> {
        self.call(Call::Start)?;
        self.set_running(running);
        Ok(())
    }
}
