//! The fixture of the tests, the demo and the bench: guests in `tern` processes, driven through the built
//! binary's command line and its control socket only.
//!
//! ```text
//! tern     a process: built with flags, watched, ended with whoever started it; Linux guests that booted earlier
//! qmp      a client of its control socket
//! serial   what its guest prints; pulse and agent read what the two guests say, and check it
//! migrate  moves a guest from one process to another, and shows both reports
//! proxy    a link between the two that holds, cuts or garbles at a chosen frame or byte
//! host     what the host has: KVM, root; namespace makes a network of a test's own; opens counts a file's opens
//! ```
//!
//! A step that fails panics with everything a person needs: here a failed step is a failed test.
#![expect(clippy::panic, reason = "a fixture: a failed step is a failed test, and says so by panicking")]

pub mod agent;
pub mod binary;
pub mod host;
pub mod limit;
pub mod migrate;
pub mod namespace;
pub mod opens;
pub mod proxy;
pub mod pulse;
pub mod qmp;
pub mod serial;
pub mod spawn;
pub mod tern;

pub use agent::Agent;
pub use host::{kvm_or_skip, root_or_skip};
pub use migrate::{Moved, migrate, save};
pub use namespace::Namespace;
pub use proxy::{Direction, Fault, Frame, Place, Proxy};
pub use pulse::PulseLog;
pub use qmp::Qmp;
pub use serial::Serial;
pub use tern::{Incoming, Tern, TernBuilder};
