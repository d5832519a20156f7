//! Finds the built `tern`.

use std::path::PathBuf;

/// The binary that is tested: `TERN_BIN`, or the one beside the running program (`target/PROFILE/tern`).
///
/// # Panics
/// There is none; the text has the command that builds it.
pub fn tern_binary() -> PathBuf {
    if let Some(given) = std::env::var_os("TERN_BIN") {
        let path = PathBuf::from(given);
        assert!(path.is_file(), "TERN_BIN is {}, and no file is there", path.display());
        return path;
    }
    let running = std::env::current_exe().unwrap_or_default();
    // target/PROFILE/deps/TEST, target/PROFILE/PROGRAM
    let found =
        running.ancestors().skip(1).take(2).map(|folder| folder.join("tern")).find(|path| path.is_file());
    found.unwrap_or_else(|| {
        panic!("no tern beside {}: build it with `cargo build -p tern`, or set TERN_BIN", running.display())
    })
}
