//! Chips and virtio devices of a tern machine, without KVM and without placement.
//!
//! A device knows its registers, not where they are: [`BusDevice`] offsets start at its own first port or
//! byte. It asks for interrupts through [`Interrupt`], gets work through [`EventSource`], and its state
//! travels through [`Stateful`].
//!
//! | device | registers from | [`EventSource`] | section |
//! |---|---|---|---|
//! | `Serial` | 0x3f8, 8 ports | input | `serial` |
//! | [`I8042`] | 0x60, 5 ports (data 0, command 4) | | `i8042` |
//! | `Rtc` | 0x70, 2 ports | | `rtc` |
//! | `AcpiPm` | 0x600, 6 ports (event block 0, control 4) | | `acpi-pm` |
//! | `MmioTransport` of `Blk`, `Net`, `Rng`, `Console` | 0x1000 bytes of MMIO each | queues, TAP, completions | `virtio-blk`, ... |
//!
//! Everything that a guest, a file or a saved state can contain is harmless: it ends in an error, in a
//! register that ignores it, or in a virtio device that asks to be reset.
//!
//! ```text
//! BytePort::new(PortTarget) -> io::Result<Arc<BytePort>>    PortTarget::{Null, Stdio, File(File), Unix(UnixListener)}
//!     .flush(Duration) -> bool   .bytes_lost() -> u64       output never blocks; its own thread does the I/O
//! Serial::new(Arc<BytePort>, Arc<dyn Interrupt>)            BusDevice + EventSource + Stateful
//! I8042::new(reset: EventFd)                                BusDevice + Stateful
//! Rtc::new(below_4g_bytes: u64, above_4g_bytes: u64)        BusDevice + Stateful
//! AcpiPm::new(sci: Arc<dyn Interrupt>, power_off: EventFd)  BusDevice + Stateful; .press_power_button()
//! Blk::new(File, BlkConfig { read_only: bool, id: String }) -> io::Result<Blk>
//! open_tap(name: &str) -> Result<File, TapError>
//! Net::new(tap: File, NetConfig { mac: [u8; 6] }) -> io::Result<Net>   .self_announce() -> io::Result<()>
//! Rng::new() -> io::Result<Rng>
//! Console::new(Arc<BytePort>) -> io::Result<Console>
//! MmioTransport::new(device: D, GuestRam, Arc<dyn Interrupt>) -> io::Result<MmioTransport<D>>
//!     Stateful (BlkV1, NetV1, RngV1, ConsoleV1) + MmioDevice; .device() -> &D
//! trait MmioDevice: BusDevice + EventSource {
//!     fn queue_events(&self) -> Vec<&EventFd>;   one per queue: ioeventfd at GPA + QUEUE_NOTIFY_OFFSET (0x50),
//!                                                4 bytes, datamatch = index in the list
//!     fn pause(&mut self);                       drains; afterwards no guest memory is touched
//!     fn resume(&mut self);                      every active queue is looked at, the interrupt raised again
//!     fn reset(&mut self);                       machine reset
//!     fn needs_reset(&self) -> bool;
//! }
//! order: stop vCPUs, pause(), put() ... ; prepare() all, apply all (leaves virtio paused), resume(), run vCPUs
//! ```

#![warn(clippy::cast_possible_truncation)]

mod acpi_pm;
mod bus;
mod i8042;
mod irq;
mod port;
mod rtc;
mod serial;
mod state;

pub use acpi_pm::{AcpiPm, AcpiPmV1};
pub use bus::{BusDevice, EventSource};
pub use i8042::{I8042, I8042V1};
pub use irq::Interrupt;
pub use port::{BytePort, PortTarget};
pub use rtc::{HeldClockV1, Rtc, RtcV1};
pub use serial::{Serial, SerialV1};
pub use state::{Apply, Part, RestoreError, Stateful, part};

/// Guest memory. Devices write to it only through `vm-memory`, whose bitmap tells the migration what
/// changed; a clone shares the mappings.
pub type GuestRam = vm_memory::GuestMemoryMmap<vm_memory::bitmap::AtomicBitmap>;
