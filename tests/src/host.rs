//! What the host must have for a test. A host without it skips the test, says so and is counted; a host that
//! has it in a broken state fails the test.

use std::fs::OpenOptions;
use std::io::Write;
use std::path::Path;
use std::process::Command;

/// Is `/dev/kvm` there? Call it first: `if !kvm_or_skip() { return }`.
///
/// # Panics
/// It is there and can't be used.
pub fn kvm_or_skip() -> bool {
    if !Path::new("/dev/kvm").exists() {
        skip("this host has no /dev/kvm");
        return false;
    }
    if let Err(error) = OpenOptions::new().read(true).write(true).open("/dev/kvm") {
        panic!("/dev/kvm is there and can't be used: {error}; join the group that owns it");
    }
    true
}

/// Does the process run as root, and can it make network namespaces?
pub fn root_or_skip() -> bool {
    let id = Command::new("id").arg("-u").output();
    if id.is_ok_and(|output| output.stdout.trim_ascii() == b"0") {
        return true;
    }
    skip("needs root, for a TAP interface in a network namespace");
    false
}

/// Can a process here have mounts of its own, as `TernBuilder::inside` makes them?
pub fn mounts_or_skip() -> bool {
    let script = "mount -t tmpfs -o size=4m none /mnt";
    let tried = Command::new("unshare").args(["-rm", "sh", "-ec", script]).output();
    let problem = match tried {
        Ok(output) if output.status.success() => return true,
        Ok(output) => String::from_utf8_lossy(&output.stderr).trim().to_owned(),
        Err(error) => format!("unshare: {error}"),
    };
    skip(&format!("no mounts of its own: {problem}"));
    false
}

/// Is the image `name` built? Tests don't build it: that takes minutes.
pub fn image_or_skip(name: &str) -> bool {
    let found = Command::new(crate::binary::tern_binary()).args(["image", "path", name]).output();
    if found.as_ref().is_ok_and(|output| output.status.success()) {
        return true;
    }
    skip(&format!("the image {name} is not built; build it with: tern image build {name}"));
    false
}

/// Writes to the terminal what a person should know even of a test that passes.
pub(crate) fn tell(text: &str) {
    // Not eprint!, which the test harness captures of tests that pass. Where nobody can hear it, it is not said.
    let _ = std::io::stderr().write_all(text.as_bytes());
}

/// Says that the running test is skipped: on the terminal even where the test's output is captured, and, if
/// `TERN_TEST_SKIPPED` names a file, as a line there, for whoever counts.
pub fn skip(reason: &str) {
    let test = std::thread::current().name().unwrap_or("test").to_owned();
    let line = format!("SKIPPED: {test}: {reason}\n");
    tell(&line);
    if let Some(path) = std::env::var_os("TERN_TEST_SKIPPED")
        && let Ok(mut file) = OpenOptions::new().append(true).create(true).open(path)
    {
        let _ = file.write_all(line.as_bytes());
    }
}
