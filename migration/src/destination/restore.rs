//! The destination's phases with a file in place of a peer.
//!
//! ```text
//! check --> memory --> state --> renew --> start
//!            eager: read and verified          |
//!            mapped: verified, or trusted      '-- the file is as it was: any number of guests, any number of times
//!            on demand: a pager put behind it
//! ```
//!
//! There is nobody to agree with, and nobody who gives the guest up: a file never has the right to run it.

mod fill;
mod watch;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Instant;

use super::agree::check;
use super::{ReceiveError, Received, vm_failed};
use crate::control::Control;
use crate::error::MigrationError;
use crate::pager::PageSource;
use crate::ram::RamView;
use crate::snapshot::{SnapshotError, SnapshotFile, SnapshotPages};
use crate::stats::{Downtime, Report, Side, Status};
use crate::vm::{DestinationVm, PAGE_BYTES, VmError};
use watch::Watch;

/// Called with the machine.
pub type Act<V, A> = Box<dyn FnOnce(&mut V, A) -> Result<(), VmError> + Send>;

/// How the guest's memory gets out of the file.
pub enum Filling<V> {
    /// All of it is read and verified before the start.
    Eager,
    /// The machine's memory is a private mapping of the file.
    Mapped {
        /// Compare all of it with what was saved before the start.
        verify: bool,
    },
    /// The machine puts a pager behind its memory; each page is verified before it is placed.
    OnDemand(Act<V, Arc<dyn PageSource>>),
}

/// What is to be restored, and how.
pub struct Restore<V> {
    /// The file's name, for messages.
    pub path: PathBuf,
    /// The file.
    pub snapshot: Arc<SnapshotFile>,
    /// How memory comes.
    pub filling: Filling<V>,
    /// Called when the state is loaded, before the start: what must not be the same in each guest from this
    /// file.
    pub renew: Act<V, ()>,
    /// Leave the guest stopped, however it was saved.
    pub paused: bool,
}

/// Makes `vm`, which was never run, the guest of a file, and starts it if it was running when it was saved.
/// `control` is for this attempt alone.
pub fn restore<V: DestinationVm>(
    vm: V,
    from: Restore<V>,
    control: &Control,
) -> Result<Received<V>, Box<ReceiveError<V>>> {
    let mut report = Report::new(Side::Destination);
    report.transport = "file";
    report.uri = Some(format!("file:{}", from.path.display()));
    report.peer_tern_version.clone_from(&from.snapshot.facts().tern_version);
    report.memory_bytes = RamView::new(vm.ram()).region_pages().sum::<u64>() * PAGE_BYTES;
    control.restart_clock();
    let mut attempt = Attempt { vm, report, control };
    let result = attempt.run(from);
    control.cancel.close();
    let Attempt { vm, report, .. } = attempt;
    match result {
        Ok(running) => {
            control.announce(report, Status::Completed, None);
            Ok(Received { vm, running, settled: true, arrival: None })
        }
        Err(error) => {
            let cancelled = matches!(error, MigrationError::Cancelled);
            control.announce(
                report,
                if cancelled { Status::Cancelled } else { Status::Failed },
                Some(&error),
            );
            Err(Box::new(ReceiveError { vm, committed: false, arrival: None, error }))
        }
    }
}

struct Attempt<'a, V> {
    vm: V,
    report: Report,
    control: &'a Control,
}

impl<V: DestinationVm> Attempt<'_, V> {
    fn run(&mut self, from: Restore<V>) -> Result<bool, MigrationError> {
        let Restore { path, snapshot, filling, renew, paused } = from;
        let named = |source| SnapshotError::In { path: path.clone(), source: Box::new(source) };
        self.show(Status::Setup);
        check(&self.vm, snapshot.facts(), snapshot.description().page_bytes)?;
        let state = snapshot.state().map_err(named)?;
        self.report.setup_us = self.control.elapsed_us();

        self.show(Status::Active);
        let started = Instant::now();
        self.fill(&snapshot, &path, filling)?;
        self.report.live_us = us(started);

        self.show(Status::Device);
        let started = Instant::now();
        self.report.bytes.state = snapshot.state_bytes().len() as u64;
        self.vm.load(state).map_err(vm_failed("loading the guest's state"))?;
        renew(&mut self.vm, ()).map_err(vm_failed("giving the guest its new identity"))?;
        let mut downtime = Downtime { load_us: us(started), ..Downtime::default() };
        if !self.control.cancel.close() {
            return Err(MigrationError::Cancelled);
        }
        let started = Instant::now();
        let running = snapshot.index().running && !paused;
        self.vm.take_disks().map_err(vm_failed("taking the guest's disks"))?;
        self.vm.start(running).map_err(vm_failed("starting the guest"))?;
        downtime.resume_us = us(started);
        self.report.downtime = Some(downtime);
        Ok(running)
    }

    fn fill(
        &mut self,
        snapshot: &Arc<SnapshotFile>,
        path: &std::path::Path,
        filling: Filling<V>,
    ) -> Result<(), MigrationError> {
        let named = |source| SnapshotError::In { path: path.to_owned(), source: Box::new(source) };
        match filling {
            Filling::Eager => {
                let watch = Watch::new(self.control, &self.report);
                let read = fill::read_all(snapshot, self.vm.ram(), &watch, named)?;
                self.report.pages.raw = read.stored;
                self.report.pages.zero = read.zero;
                self.report.bytes.page_data = read.stored * PAGE_BYTES;
                self.report.remaining_bytes = Some(0);
            }
            Filling::Mapped { verify: true } => {
                fill::verify_all(snapshot, &Watch::new(self.control, &self.report), named)?;
            }
            Filling::Mapped { verify: false } => {}
            Filling::OnDemand(put) => {
                let pages = SnapshotPages { path: path.to_owned(), snapshot: Arc::clone(snapshot) };
                put(&mut self.vm, Arc::new(pages)).map_err(vm_failed("putting a pager behind memory"))?;
            }
        }
        Ok(())
    }

    fn show(&mut self, status: Status) {
        self.control.announce(self.report.clone(), status, None);
    }
}

fn us(started: Instant) -> u64 {
    u64::try_from(started.elapsed().as_micros()).unwrap_or(u64::MAX)
}
