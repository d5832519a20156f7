//! Finds the built programs.

use std::path::PathBuf;

/// The binary that is tested: `TERN_BIN`, or the one beside the running program (`target/PROFILE/tern`).
///
/// # Panics
/// There is none; the text has the command that builds it.
pub fn tern_binary() -> PathBuf {
    find("TERN_BIN", "tern", "cargo build -p tern")
}

/// The stand-in for the next version of tern: `TERN_NEXT_BIN`, or the one beside the running program.
///
/// # Panics
/// There is none; the text has the command that builds it.
pub fn tern_next_binary() -> PathBuf {
    find("TERN_NEXT_BIN", "tern-next", "cargo build -p tern --features next --bin tern-next")
}

fn find(variable: &str, name: &str, command: &str) -> PathBuf {
    if let Some(given) = std::env::var_os(variable) {
        let path = PathBuf::from(given);
        assert!(path.is_file(), "{variable} is {}, and no file is there", path.display());
        return path;
    }
    let running = std::env::current_exe().unwrap_or_default();
    // target/PROFILE/deps/TEST, target/PROFILE/PROGRAM
    let found =
        running.ancestors().skip(1).take(2).map(|folder| folder.join(name)).find(|path| path.is_file());
    found.unwrap_or_else(|| {
        panic!("no {name} beside {}: build it with `{command}`, or set {variable}", running.display())
    })
}
