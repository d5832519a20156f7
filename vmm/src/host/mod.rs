//! This host: what serves `/dev/kvm`, what it can, what guests need here, and what to mend.

mod kind;
mod kvm;
mod quirks;
mod show;
mod system;
mod uffd;
mod verdict;

use serde::Serialize;

pub use kind::KvmKind;
pub use kvm::{DirtyLogFacts, KvmError, KvmFacts, open_kvm};
pub use quirks::{Needs, needs};
pub use show::show;
pub use system::{HugePages, SystemFacts, memory_bytes};
pub use uffd::UffdFacts;
pub use verdict::{Outlook, Verdict};

/// All that `tern host` shows.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct HostFacts {
    /// What serves `/dev/kvm`.
    pub kind: KvmKind,
    /// What it can; none if it can't be opened.
    pub kvm: Option<KvmFacts>,
    /// Why it can't be opened, with the remedy.
    pub kvm_problem: Option<String>,
    /// What guests need on it.
    pub needs: Needs,
    /// userfaultfd.
    pub uffd: UffdFacts,
    /// CPUs, memory, clock, network.
    pub system: SystemFacts,
    /// What will work, and what won't.
    pub verdicts: Vec<Verdict>,
}

impl HostFacts {
    /// Looks at everything; takes milliseconds. `tern run` needs [`KvmKind::detect`] and [`needs`] only.
    pub fn probe() -> Self {
        let kind = KvmKind::detect();
        let (kvm, kvm_problem) = match open_kvm() {
            Ok(kvm) => (Some(KvmFacts::probe(&kvm)), None),
            Err(error) => (None, Some(crate::control::chain(&error))),
        };
        let mut facts = Self {
            kind,
            kvm,
            kvm_problem,
            needs: needs(kind),
            uffd: UffdFacts::probe(),
            system: SystemFacts::probe(),
            verdicts: Vec::new(),
        };
        facts.verdicts = verdict::verdicts(&facts);
        facts
    }
}

#[cfg(test)]
mod tests;
