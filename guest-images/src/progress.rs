//! How far a build is, for a progress bar.

use std::fmt;

/// What a build is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// Another process builds the same image; its result will be used.
    Waiting,
    /// Unpacking the kernel's source; counted in bytes of the archive.
    Unpacking,
    /// Patching and configuring.
    Configuring,
    /// Compiling; counted in lines that `make` prints, against what the last builds printed.
    Compiling,
    /// Moving results in place and removing what is not needed any more.
    Finishing,
}

impl fmt::Display for Step {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.pad(match self {
            Step::Waiting => "waiting for another build",
            Step::Unpacking => "unpacking",
            Step::Configuring => "configuring",
            Step::Compiling => "compiling",
            Step::Finishing => "finishing",
        })
    }
}

/// How far a step is. Steps come in the order of [`Step`]; a cached part has none.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Progress {
    /// What is being done.
    pub step: Step,
    /// How much of it is done, never more than `total`.
    pub done: u64,
    /// How much there is; 0 where a step cannot be counted.
    pub total: u64,
}

impl Progress {
    pub(crate) fn of(step: Step) -> Self {
        Progress { step, done: 0, total: 0 }
    }

    pub(crate) fn counted(step: Step, done: u64, total: u64) -> Self {
        Progress { step, done: done.min(total), total }
    }
}
