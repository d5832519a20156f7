//! The virtual machine monitor: KVM, boot, machine and control.

// They panic where the standard error can't be written; `cli::tell` doesn't.
#![warn(clippy::print_stderr)]

pub mod balloon;
pub mod boot;
pub mod bus;
pub mod catalog;
pub mod cli;
pub mod config;
pub mod configuration;
pub mod control;
pub mod devices;
pub mod disk_locks;
pub mod dump;
pub mod host;
pub mod inspect;
pub mod kvm;
pub mod laps;
pub mod layout;
pub mod lines;
pub mod machine;
pub mod machine_profile;
pub mod memory;
pub mod migrate;
pub mod platform;
pub mod restore;
pub mod run_control;
pub mod schema;
pub mod sections;
pub mod vcpu;
pub mod vm;

#[cfg(test)]
#[path = "../../migration/tests/skip/mod.rs"]
mod skip;
