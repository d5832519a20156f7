//! A guest from a file: which way its memory comes, and what it must not have in common with other guests from
//! the same file.

use std::io;
use std::os::fd::AsFd;
use std::path::PathBuf;
use std::sync::Arc;

use tern_migration::Control;
use tern_migration::destination::{self, Filling, ReceiveError, Received, Restore};
use tern_migration::pager::{OnEnd, Pager};
use tern_migration::snapshot::{SnapshotError, SnapshotFile};
use tern_migration::{PAGE_BYTES, VmError};
use thiserror::Error;

use crate::config::{MacAddress, RestoreConfig, RestoreMode};
use crate::configuration::ConfigurationError;
use crate::host::UffdFacts;
use crate::layout;
use crate::memory::{self, Backing};
use crate::vm::Vm;

/// Why a file can't be restored from.
#[derive(Debug, Error)]
pub enum RestoreError {
    /// The file.
    #[error(transparent)]
    Snapshot(#[from] SnapshotError),
    /// Its description of the machine.
    #[error("snapshot {}", path.display())]
    Configuration {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        #[source]
        source: ConfigurationError,
    },
    /// Pages that aren't in the file as they are in memory.
    #[error(
        "--mode mapped: pages in {} are compressed, and can't be mapped; use --mode eager or on-demand", path.display()
    )]
    NotMappable {
        /// The file.
        path: PathBuf,
    },
    /// No userfaultfd.
    #[error("--mode on-demand needs userfaultfd: {problem}; or use --mode eager or mapped")]
    NoUserfaultfd {
        /// Why, and what to do.
        problem: String,
    },
    /// The file's descriptor.
    #[error("snapshot {}: no second descriptor for it can be had", path.display())]
    Descriptor {
        /// The file.
        path: PathBuf,
        /// The host's reason.
        #[source]
        source: io::Error,
    },
}

/// A file that was opened, and the way its memory will come.
pub struct Opened {
    config: RestoreConfig,
    snapshot: Arc<SnapshotFile>,
    mode: RestoreMode,
    /// Why it is not the way that is best.
    why: Option<String>,
}

impl Opened {
    /// Opens the file, and decides. Reads no page.
    ///
    /// # Errors
    /// The file is none, or is damaged, or what was asked for can't be had here.
    pub fn open(config: &RestoreConfig) -> Result<Self, RestoreError> {
        Self::of(config, SnapshotFile::open(&config.path)?)
    }

    /// Decides for a file that is open already: the path may name another one by now, which a save has put there.
    ///
    /// # Errors
    /// What was asked for can't be had here.
    pub fn of(config: &RestoreConfig, snapshot: SnapshotFile) -> Result<Self, RestoreError> {
        let snapshot = Arc::new(snapshot);
        let uffd = UffdFacts::probe();
        let (mode, why) = choose(config, &uffd, snapshot.is_mappable())?;
        Ok(Self { config: config.clone(), snapshot, mode, why })
    }

    /// For a machine that is built already: its memory can't become the file any more.
    #[must_use]
    pub fn for_a_built_machine(self) -> Self {
        let mode = if self.mode == RestoreMode::Mapped { RestoreMode::Eager } else { self.mode };
        Self { mode, ..self }
    }

    /// The way that was decided on, in words.
    pub fn way(&self) -> String {
        let way = match (self.mode, self.config.verify) {
            (RestoreMode::Eager, _) => "eager: all memory is read first",
            (RestoreMode::Mapped, true) => "mapped: memory is the file, compared with what was saved first",
            (RestoreMode::Mapped, false) => "mapped: memory is the file",
            (RestoreMode::OnDemand, _) => "on demand: memory is read as it is touched",
        };
        self.why.as_ref().map_or_else(|| way.to_owned(), |why| format!("{way}; {why}"))
    }

    /// The options.
    pub fn config(&self) -> &RestoreConfig {
        &self.config
    }

    /// How memory comes.
    pub fn mode(&self) -> RestoreMode {
        self.mode
    }

    /// What a machine of so much memory is to be built on.
    ///
    /// # Errors
    /// No more descriptors.
    pub fn backing(&self, memory_bytes: u64) -> Result<Backing, RestoreError> {
        let places = &self.snapshot.layout().regions;
        let same = layout::ram_regions(memory_bytes)
            .iter()
            .map(|(start, bytes)| (start.0, *bytes as u64))
            .eq(places.iter().map(|place| (place.gpa, place.pages.saturating_mul(PAGE_BYTES))));
        // Memory of another size is refused, with both sides', when the machines are compared.
        if self.mode != RestoreMode::Mapped || !same {
            return Ok(Backing::Anonymous);
        }
        let path = &self.config.path;
        let file = self.snapshot.file().as_fd().try_clone_to_owned();
        let file = file.map_err(|source| RestoreError::Descriptor { path: path.clone(), source })?;
        let offsets = places.iter().map(|place| place.data_offset).collect();
        Ok(Backing::File { file: file.into(), offsets })
    }

    /// Makes `vm` the guest of this file, and starts it unless it was saved stopped or is to be `paused`. `before_start`
    /// is called when all else is done, `on_end` hears of the end of a memory that comes on demand.
    pub fn run(
        self,
        vm: Vm,
        paused: bool,
        control: &Control,
        before_start: Box<dyn FnOnce() + Send>,
        on_end: OnEnd,
    ) -> Result<Received<Vm>, Box<ReceiveError<Vm>>> {
        let Self { config: RestoreConfig { path, verify, macs, .. }, snapshot, mode, .. } = self;
        let filling = match mode {
            RestoreMode::Eager => Filling::Eager,
            RestoreMode::Mapped => Filling::Mapped { verify },
            RestoreMode::OnDemand => Filling::OnDemand(Box::new(|vm: &mut Vm, pages| {
                let held = memory::touched(&vm.residency, vm.core().ram());
                let held = held.map_err(|error| VmError::new("the page map can't be read", error))?;
                let pager = Pager::start(vm.core().ram(), &held, pages, on_end)
                    .map_err(|error| VmError::new("memory on demand", error))?;
                pager.name_vcpus(&vm.core().vcpus().thread_ids());
                let set = vm.core().behind().set_pager(pager);
                set.map_err(|_| VmError::plain("this machine's memory has a pager already"))
            })),
        };
        let renew = Box::new(move |vm: &mut Vm, ()| {
            renew_identity(vm, &macs)?;
            before_start();
            Ok(())
        });
        let received = destination::restore(vm, Restore { path, snapshot, filling, renew, paused }, control)?;
        if let Some(pager) = received.vm.core().behind().pager()
            && let Err(error) = pager.prefetch()
        {
            tracing::warn!(%error, "memory comes only as it is touched");
        }
        Ok(received)
    }
}

/// What must not be the same in every guest from one file. Called when its state is loaded, before it starts.
fn renew_identity(vm: &mut Vm, macs: &[(usize, MacAddress)]) -> Result<(), VmError> {
    let devices = vm.core().devices();
    devices
        .new_generation()
        .map_err(|error| VmError::new("the guest can't be given a new VM generation ID", error))?;
    for (index, mac) in macs {
        if !devices.set_mac(*index, mac.0) {
            return Err(VmError::plain(format!(
                "the machine has no interface {index} to give an address to"
            )));
        }
    }
    Ok(())
}

/// The way asked for, or the best that this host can, with the reason if it isn't the best.
fn choose(
    config: &RestoreConfig,
    uffd: &UffdFacts,
    mappable: bool,
) -> Result<(RestoreMode, Option<String>), RestoreError> {
    let problem = || uffd.problem.clone().unwrap_or_default();
    match config.mode {
        Some(RestoreMode::Mapped) if !mappable => {
            Err(RestoreError::NotMappable { path: config.path.clone() })
        }
        Some(RestoreMode::OnDemand) if !uffd.usable => {
            Err(RestoreError::NoUserfaultfd { problem: problem() })
        }
        Some(mode) => Ok((mode, None)),
        None if uffd.usable => Ok((RestoreMode::OnDemand, None)),
        None => {
            let mode = if mappable { RestoreMode::Mapped } else { RestoreMode::Eager };
            Ok((mode, Some(format!("not on demand, since userfaultfd is missing: {}", problem()))))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chosen(
        mode: Option<RestoreMode>,
        usable: bool,
        mappable: bool,
    ) -> Result<(RestoreMode, bool), String> {
        let config = RestoreConfig { mode, ..RestoreConfig::new("a.snap".into()) };
        let problem = (!usable).then(|| "is not permitted: run as root".to_owned());
        let uffd = UffdFacts { usable, problem, ..UffdFacts::default() };
        let chosen = choose(&config, &uffd, mappable);
        chosen.map(|(mode, why)| (mode, why.is_some())).map_err(|error| error.to_string())
    }

    #[test]
    fn the_best_way_that_the_host_can_is_taken_and_another_has_a_reason() {
        assert_eq!(chosen(None, true, true), Ok((RestoreMode::OnDemand, false)));
        assert_eq!(chosen(None, false, true), Ok((RestoreMode::Mapped, true)));
        assert_eq!(chosen(None, false, false), Ok((RestoreMode::Eager, true)));
    }

    #[test]
    fn what_is_asked_for_is_taken_or_refused_with_the_remedy() {
        assert_eq!(chosen(Some(RestoreMode::Eager), false, false), Ok((RestoreMode::Eager, false)));
        let text = chosen(Some(RestoreMode::OnDemand), false, true).unwrap_err();
        assert!(text.contains("run as root") && text.contains("--mode eager or mapped"), "{text}");
        let text = chosen(Some(RestoreMode::Mapped), true, false).unwrap_err();
        assert!(text.contains("a.snap") && text.contains("--mode eager or on-demand"), "{text}");
    }
}
