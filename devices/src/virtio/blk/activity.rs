//! What others may know of a disk's requests without the device's lock, which a stop holds while it waits for them.

use std::sync::Arc;

use super::pool::Shared;

/// Requests that the host failed: the guest has seen I/O errors.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct DiskFailures {
    /// How many there were.
    pub count: u64,
    /// The latest of them, for people.
    pub latest: Option<String>,
}

/// The requests of one disk.
#[derive(Debug, Clone)]
pub struct DiskActivity(pub(super) Arc<Shared>);

impl DiskActivity {
    /// Those that failed on the host since the machine was made.
    pub fn failures(&self) -> DiskFailures {
        self.0.disk().failures()
    }

    /// Waits until all requests that are under way now are complete, whatever comes meanwhile: for as long as the host's
    /// file takes, which may be for ever.
    pub fn wait_for_present(&self) {
        self.0.wait_for_present();
    }
}
