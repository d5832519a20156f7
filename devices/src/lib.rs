//! Chips and virtio devices of a tern machine, without KVM and without placement.
//!
//! A device knows its registers, not where they are: [`BusDevice`] offsets start at its own first port or
//! byte. It asks for interrupts through [`Interrupt`], gets work through [`EventSource`], and its state
//! travels through [`Stateful`].
//!
//! | device | registers from | [`EventSource`] | section |
//! |---|---|---|---|
//! | [`Serial`] | 0x3f8, 8 ports | input | `serial` |
//! | [`I8042`] | 0x60, 5 ports (data 0, command 4) | | `i8042` |
//! | [`Rtc`] | 0x70, 2 ports | | `rtc` |
//! | [`AcpiPm`] | 0x600, 6 ports (event block 0, control 4) | | `acpi-pm` |
//! | [`VmGenId`] | 0x608, 2 ports | | `vmgenid` |
//! | [`MmioTransport`] of [`Blk`], [`Net`], [`Rng`], [`Console`], [`Balloon`] | 0x1000 bytes of MMIO each | queues, TAP, completions | `virtio-blk`, ... |
//!
//! Everything that a guest, a file or a saved state can contain is harmless: it ends in an error, in a
//! register that ignores it, or in a virtio device that asks to be reset.
//!
//! ```text
//! stop vCPUs -> MmioDevice::pause -> Part::put ...                 nothing touches guest memory any more
//! Part::prepare for all -> Apply for all -> MmioDevice::resume -> run vCPUs
//! ```

#![warn(clippy::cast_possible_truncation)]

mod acpi_pm;
mod bus;
mod chips;
mod i8042;
mod irq;
#[cfg(feature = "next")]
pub mod next;
mod path;
mod port;
mod rtc;
mod serial;
mod state;
mod vmgenid;

pub use acpi_pm::{AcpiPm, AcpiPmV1};
pub use bus::{BusDevice, EventSource};
pub use chips::chip_parts;
pub use i8042::{I8042, I8042V1};
pub use irq::Interrupt;
pub use port::{BytePort, PortTarget};
pub use rtc::{HeldClockV1, Rtc, RtcV1};
pub use serial::{Serial, SerialV1};
pub use state::{Apply, Part, RestoreError, Stateful, part};
pub use virtio::balloon::{Balloon, BalloonSize, BalloonV1, Reclaim};
pub use virtio::blk::{Blk, BlkConfig, BlkV1, DiskActivity, DiskFailures};
pub use virtio::console::{Console, ConsoleV1};
pub use virtio::mmio::{MmioDevice, MmioTransport, QUEUE_NOTIFY_OFFSET, VirtQueueV1, VirtioMmioV1};
pub use virtio::net::{Net, NetConfig, NetV1, TapError, open_tap};
pub use virtio::rng::{Rng, RngV1};
pub use vmgenid::{GenerationId, VmGenId, VmGenIdV1};

/// Guest memory. Devices write to it only through `vm-memory`, whose bitmap tells the migration what
/// changed; a clone shares the mappings.
pub type GuestRam = vm_memory::GuestMemoryMmap<vm_memory::bitmap::AtomicBitmap>;
pub mod virtio;
