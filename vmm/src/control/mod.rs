//! The control socket: QMP for those who know it, `tern`'s own subcommands, and tests.
//!
//! ```text
//! client --- unix socket --- connection --- commands (table) --- Operations (the machine)
//!    ^                           |
//!    '-------- events --------- server --- EventQueue <--- EventSink, cloned into every thread
//! ```

mod arguments;
pub mod client;
pub mod commands;
mod connection;
mod error;
mod event;
mod framer;
#[cfg(feature = "fuzz")]
#[doc(hidden)]
pub mod fuzzing;
mod metrics;
mod operations;
mod server;
mod socket;
#[cfg(any(test, feature = "fuzz"))]
mod testing;

pub use arguments::{Argument, Kind};
pub use error::{CommandError, ErrorCode, chain};
pub use event::{Event, EventQueue, EventSink, Stamped, event_queue};
pub use operations::{
    CpuFacts, MachineFacts, MigrateRequest, MigrationCount, MigrationHistory, Operations, ParameterValues,
    Resolution, RunState, SerialFacts,
};
pub use server::{CLIENT_LIMIT, ControlServer};
pub use socket::{ListeningSocket, SocketError};
