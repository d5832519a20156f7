//! The control socket: QMP for those who know it, `tern`'s own subcommands, and tests.
//!
//! ```text
//! client --- unix socket --- server --- commands (table) --- Operations (the machine)
//!    ^                          |
//!    '-------- events ----------'--- EventSink, cloned into every thread
//! ```

mod error;
mod event;
mod operations;

pub use error::{CommandError, ErrorCode, chain};
pub use event::{Event, EventQueue, EventSink, Stamped, event_queue};
pub use operations::{
    CpuFacts, MachineFacts, MigrateRequest, Operations, ParameterValues, Resolution, RunState, SerialFacts,
};
