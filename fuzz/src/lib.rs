//! Hostile input. Whatever a peer, a guest, a file or a command can send ends in success or in an error: never
//! in a panic, a hang, or more memory than the input is worth.
//!
//! ```text
//! corpus/TARGET/*  --replayed by-->  tests/corpora.rs (every `cargo test`)
//!       ^  |
//!       |  '------ mutated by -----> tern-fuzz-engine (coverage-guided: `make fuzz`) --> crashes/
//!  tern-fuzz seeds
//!
//! a recorded migration, a saved machine --mutated by seed--> tests/hostile_*.rs (every `cargo test`)
//! ```
//!
//! A target is a function of bytes and says whether it took them. It checks by itself what else must hold, by
//! panicking where it doesn't. What a run may allocate is in the table.

#![allow(clippy::panic, reason = "a target fails by panicking")]

pub mod corpus;
pub mod fields;
pub mod memory;
pub mod mutate;
pub mod peer;
pub mod random;
pub mod recording;
pub mod sections;
pub mod seeds;
pub mod sparse;
pub mod stream;
pub mod targets;

pub use targets::{Target, Verdict, find};
