//! A test that can't run on this host: it says so and is counted.

use std::fs::OpenOptions;
use std::io::Write;

/// Says it past the harness, which captures what a passing test prints, and in a line of the file that
/// `TERN_TEST_SKIPPED` names, for whoever counts.
#[allow(clippy::unwrap_used, reason = "a test fails by panicking")]
pub fn skip(reason: &str) {
    let test = std::thread::current().name().unwrap_or("test").to_owned();
    let line = format!("SKIPPED: {test}: {reason}\n");
    // Where nobody can hear it, it is not said.
    let _ = std::io::stderr().write_all(line.as_bytes());
    if let Some(path) = std::env::var_os("TERN_TEST_SKIPPED") {
        let mut file = OpenOptions::new().append(true).create(true).open(path).unwrap();
        file.write_all(line.as_bytes()).unwrap();
    }
}
