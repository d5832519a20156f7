//! Whole migrations between two machines in memory, with every fault at every message and at every call.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

mod auto;
mod calls;
mod channels;
mod check;
mod doubt;
mod encodings;
mod faults;
mod harness;
mod healing;
mod known;
mod limits;
mod newest;
mod postcopy;
mod proof;
mod secure;
#[path = "../skip/mod.rs"]
mod skip;
mod transports;
mod whole;
