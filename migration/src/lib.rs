//! The migration engine: it moves a running guest between two virtual machines that it sees through two
//! traits, [`SourceVm`] and [`DestinationVm`].
//!
//! ```text
//! source process                                        destination process
//!   Control::new(Side::Source, observer)                  Control::new(Side::Destination, observer)
//!   channel::connect(&uri, &control)? ------------------> Listener::bind(&uri)?.accept(&control)?
//!   source::migrate(vm, connection, &live, &control)      destination::receive(vm, connection, &control)
//!     -> SourceEnd { vm, outcome: Outcome }                 -> Result<Received { vm, running }, ReceiveError>
//! ```
//!
//! The machine is moved in and comes back in the result, so no other command can race the migration. Each
//! side's [`Control`] cancels the attempt and shows its [`stats::Report`] at any time. How the two sides
//! talk is in PROTOCOL.md.

#[cfg(feature = "bench")]
#[doc(hidden)]
pub mod bench;
mod cancel;
pub mod channel;
pub mod config;
mod control;
pub mod destination;
mod dirty;
pub mod error;
#[cfg(any(test, feature = "fake"))]
pub mod fake;
#[cfg(feature = "fuzz")]
#[doc(hidden)]
pub mod fuzzing;
pub mod handover;
pub mod known;
pub mod pager;
mod policy;
mod postcopy;
mod ram;
#[cfg(feature = "sim")]
pub mod sim;
pub mod snapshot;
pub mod source;
pub mod stats;
pub mod stream;
mod thread;
mod vm;
mod wire;

pub use config::{Capabilities, LiveParameters, Parameters};
pub use control::{Control, Observer, PostcopyOrder, Unobserved};
pub use dirty::{DirtyBitmap, DirtyLogMode, VcpuDirty};
pub use error::{Blame, MigrationError};
pub use policy::postcopy::PostcopyMode;
#[doc(hidden)]
pub use ram::is_zero_slice;
pub use stats::{Report, Side, Status, query_migrate};
pub use vm::{
    Aspect, DestinationVm, DiskFailures, GuestRam, MemoryRegion, PAGE_BYTES, SectionOffer, SourceVm, VmError,
    VmFacts,
};
