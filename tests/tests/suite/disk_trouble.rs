//! A Linux guest whose disk the host fails, or that hangs: what a migration says of it, and that a cancel doesn't wait.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;

use serde_json::json;
use tern_tests::binary::tern_binary;
use tern_tests::host::{image_or_skip, skip};
use tern_tests::limit::wait_for;
use tern_tests::{Agent, Incoming, Tern, TernBuilder, kvm_or_skip, migrate, root_or_skip};

use crate::linux::file;
use crate::save::limit_file_size;

const DISK_BYTES: usize = 4 << 20;

fn machine(disk: &Path) -> TernBuilder {
    TernBuilder::new().image("linux").disk(disk)
}

/// A guest whose disk checker is at work, and the destination that waits for it.
fn busy_pair(disk: &Path) -> (Tern, Tern) {
    let destination = machine(disk).serial_unix().incoming(Incoming::Unix).start();
    let source = machine(disk).start_booted();
    let guest = Agent::new(source.serial());
    guest.run("disk /dev/vda");
    wait_for("blocks on the disk", || (guest.status().disk_ok > 0).then_some(()));
    (source, destination)
}

#[test]
fn disk_errors_are_a_warning_and_abort_a_migration_that_is_to_be() {
    if !kvm_or_skip() || !image_or_skip("linux") {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let disk = file(folder.path(), "disk", DISK_BYTES, "");
    let (source, destination) = busy_pair(&disk);
    let guest = Agent::new(source.serial());
    let migrate_words = |more: &[&str]| {
        let uri = destination.uri();
        let mut words = vec!["migrate", &uri];
        words.extend(more);
        let output = Command::new(tern_binary()).args(words).arg("--control").arg(source.control()).output();
        let output = output.unwrap();
        let said = [output.stdout, output.stderr].map(|bytes| String::from_utf8_lossy(&bytes).into_owned());
        (output.status.code(), said.concat())
    };
    // The host refuses to write at or behind this length.
    limit_file_size(source.pid(), 0);
    wait_for("a block that could not be written", || (guest.status().disk_bad > 0).then_some(()));
    // It would wait for its manager, and the guest writes meanwhile.
    let waits = "--capability=pause-before-switchover";
    let (code, said) = migrate_words(&[waits, "--abort-on-error"]);
    for part in ["--abort-on-error asks: a disk request failed on this host", "I/O error", "File too large"] {
        assert!(said.contains(part), "{part:?} is not in:\n{said}");
    }
    assert_ne!(code, Some(0), "{said}");
    assert_eq!(source.qmp().state(), "running");
    let report = source.qmp().execute("query-migrate", json!({}))["report"].clone();
    assert!(report["disk_errors"].as_u64().unwrap() > 0, "{report:#}");
    limit_file_size(source.pid(), libc::RLIM_INFINITY);
    guest.run("disk off");
    let (code, said) = migrate_words(&["--abort-on-error"]);
    assert_eq!(code, Some(0), "{said}");
    assert!(!said.contains("disk errors"), "{said}");
    Agent::new(destination.serial()).status();
}

/// A small file system of its own, which can be frozen: who writes then waits.
struct Freezable {
    path: PathBuf,
}

impl Freezable {
    /// None, with the reason told, where the host can't.
    fn new(folder: &Path) -> Option<Self> {
        let (image, path) = (folder.join("ext4"), folder.join("mounted"));
        std::fs::File::create(&image).unwrap().set_len(32 << 20).unwrap();
        std::fs::create_dir(&path).unwrap();
        let done = |program: &str, words: &[&str], at: &[&Path]| {
            let output = Command::new(program).args(words).args(at).output();
            output.is_ok_and(|output| output.status.success())
        };
        if !done("mkfs.ext4", &["-q"], &[&image]) || !done("mount", &["-o", "loop"], &[&image, &path]) {
            skip("no file system can be made in a file and mounted here");
            return None;
        }
        Some(Self { path })
    }

    fn freeze(&self, frozen: bool) {
        let flag = if frozen { "-f" } else { "-u" };
        let done = Command::new("fsfreeze").arg(flag).arg(&self.path).status().unwrap();
        assert!(done.success(), "fsfreeze {flag}");
    }
}

impl Drop for Freezable {
    fn drop(&mut self) {
        // It may not be frozen; whatever is the case, it goes.
        let _ = Command::new("fsfreeze").arg("-u").arg(&self.path).output();
        let _ = Command::new("umount").arg("-l").arg(&self.path).status();
    }
}

/// Thaws before the machines are ended: a process whose write hangs can't be.
struct Thaw<'h>(&'h Freezable);

impl Drop for Thaw<'_> {
    fn drop(&mut self) {
        let _ = Command::new("fsfreeze").arg("-u").arg(&self.0.path).output();
    }
}

#[test]
fn a_cancel_does_not_wait_for_a_disk_that_hangs() {
    if !kvm_or_skip() || !root_or_skip() || !image_or_skip("linux") {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let Some(host) = Freezable::new(folder.path()) else { return };
    let disk = file(&host.path, "disk", DISK_BYTES, "");
    let (source, destination) = busy_pair(&disk);
    let guest = Agent::new(source.serial());
    let _thaw = Thaw(&host);
    host.freeze(true);
    let mut near = source.qmp();
    near.execute("migrate", json!({ "uri": destination.uri() }));
    // Memory has come, and only the disk is waited for: the guest is to be stopped, and still runs.
    near.wait_migrate(&["device"]);
    assert_eq!(near.state(), "running");
    let asked = Instant::now();
    near.execute("migrate_cancel", json!({}));
    near.wait_migrate(&["cancelled"]);
    println!("cancelled with a disk that hangs in {:?}", asked.elapsed());
    assert_eq!(near.state(), "running");
    let beats = guest.status().seq;
    wait_for("the guest's next beats", || (guest.status().seq > beats).then_some(()));
    host.freeze(false);
    let done = guest.status().disk_ok;
    wait_for("the disk to go on", || (guest.status().disk_ok > done).then_some(()));
    migrate(&source, &destination);
    let there = Agent::new(destination.serial());
    let done = there.status().disk_ok;
    wait_for("the disk to go on there", || (there.status().disk_ok > done).then_some(()));
    assert_eq!(there.status().disk_bad, 0);
}
