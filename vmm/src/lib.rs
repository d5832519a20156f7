//! The virtual machine monitor: KVM, boot, machine and control.

pub mod boot;
pub mod layout;
pub mod control;
