//! Virtio 1.2 devices on the MMIO transport.
//!
//! ```text
//! guest driver -- registers --> MmioTransport -- process_queue / process_event --> VirtioDevice
//!                                    |                                               |
//!                                    '--------- Queues: pop chain, push used <-------'
//! ```
//!
//! The transport owns the queues and all that the specification says of them; a device sees chains of
//! buffers that lie inside guest memory, or nothing. A driver that breaks the rules ends in [`Broken`], and
//! the transport turns that into `DEVICE_NEEDS_RESET`.

pub mod balloon;
pub mod blk;
pub mod console;
mod device;
pub mod mmio;
pub mod net;
mod queue;
pub mod rng;
#[cfg(test)]
mod testing;

pub use device::VirtioDevice;
pub use queue::{Broken, Chain, Queues, Segment};
