//! What a device adds to the transport.

use std::io;
use std::os::fd::RawFd;

use tern_schema::Section;

use super::mmio::VirtioMmioV1;
use super::{Broken, Queues};
use crate::RestoreError;

/// A virtio device behind an `MmioTransport`.
pub trait VirtioDevice: Send + 'static {
    /// The device's section, with the transport's state inside.
    type Saved: Section + Send;
    /// Device ID (virtio 1.2, section 5).
    const DEVICE_TYPE: u32;
    /// Most entries of each queue; powers of two.
    const QUEUE_MAX_SIZES: &'static [u16];

    /// Device-specific feature bits. The transport adds those of virtio itself.
    fn features(&self) -> u64;
    /// Configuration space.
    fn config(&self) -> &[u8];
    /// The driver has written its configuration space, where it may write at all; bytes outside of it have been cut off.
    fn write_config(&mut self, offset: usize, bytes: &[u8]) {
        let _ = (offset, bytes);
    }
    /// The driver is ready and has agreed to `features`; called again after a restore.
    fn activate(&mut self, features: u64) -> io::Result<()>;
    /// Back to power-on. On return, nothing touches guest memory any more, and what was under way is forgotten.
    fn reset(&mut self);
    /// The driver has put buffers into a queue. Works until a pop returns none.
    fn process_queue(&mut self, queue: usize, queues: &mut Queues<'_>) -> Result<(), Broken>;
    /// Descriptors of the host side that the event loop watches (readable, edge-triggered).
    fn event_fds(&self) -> Vec<RawFd> {
        Vec::new()
    }
    /// The `event`-th descriptor of [`Self::event_fds`] may be readable.
    fn process_event(&mut self, event: usize, queues: &mut Queues<'_>) -> Result<(), Broken> {
        let _ = (event, queues);
        Ok(())
    }
    /// Waits until nothing is under way, and completes it in the queues.
    fn drain(&mut self, queues: &mut Queues<'_>) -> Result<(), Broken>;

    /// The whole state.
    fn save(&self, transport: VirtioMmioV1) -> Self::Saved;
    /// The transport's part of a state.
    fn transport(saved: &Self::Saved) -> &VirtioMmioV1;
    /// Could this device take `saved`? (The transport checks its own part.)
    fn check(&self, saved: &Self::Saved) -> Result<(), RestoreError>;
    /// Takes a state that has been checked, after a reset. [`Self::activate`] follows.
    fn restore(&mut self, saved: &Self::Saved);
}
