//! The virtual machine monitor: KVM, boot, machine and control.

pub mod boot;
pub mod layout;
pub mod cli;
pub mod config;
pub mod control;
pub mod host;
pub mod kvm;
pub mod vcpu;
pub mod bus;
pub mod memory;
pub mod platform;
pub mod run_control;
pub mod devices;
pub mod migrate;
pub mod sections;
pub mod vm;
pub mod lines;
pub mod machine;
