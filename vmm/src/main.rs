//! The `tern` binary.

#![allow(unsafe_code, reason = "only the process's beginning can tell which descriptors it was given")]

use std::process::ExitCode;

use tern_migration::channel::descriptor::note_inherited;

fn main() -> ExitCode {
    // SAFETY: nothing was opened here yet.
    unsafe { note_inherited() };
    tern_vmm::cli::main()
}
