//! The `tern-next` binary: a stand-in for the next version of tern, for tests. See `devices/src/next.rs`.

use std::process::ExitCode;

fn main() -> ExitCode {
    tern_vmm::cli::main()
}
