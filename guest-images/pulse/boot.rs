//! `boot.s`: from the PVH entry to `cpu_main`, and the exceptions' way to `report_fault`.

#![allow(unsafe_code, reason = "the first instructions of each vCPU are assembly")]

core::arch::global_asm!(include_str!("boot.s"), options(att_syntax));
