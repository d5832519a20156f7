//! The Linux guest: each boot takes seconds, so each test does much with one.

use std::path::{Path, PathBuf};
use std::process::Command;

use tern_tests::host::image_or_skip;
use tern_tests::{Agent, Incoming, Tern, TernBuilder, kvm_or_skip, migrate, root_or_skip};

use crate::kernel_files;

/// What `--image linux` gives a kernel, for one that is given by file.
const WORDS: &str = "console=ttyS0 quiet reboot=k panic=-1";

/// A file of `bytes` that begins with `content`.
pub fn file(folder: &Path, name: &str, bytes: usize, content: &str) -> PathBuf {
    let path = folder.join(name);
    let mut all = content.as_bytes().to_vec();
    all.resize(bytes, 0);
    std::fs::write(&path, all).unwrap();
    path
}

/// The guest switches itself off, and the process ends well.
pub fn powers_off(mut tern: Tern) {
    tern.serial().write("poweroff\n");
    assert!(tern.wait_end().success(), "{}", tern.stderr());
}

#[test]
fn an_elf_without_pvh_note_and_disks_that_refuse() {
    if !kvm_or_skip() || !root_or_skip() || !image_or_skip("linux-up") {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let (vmlinux, initramfs) = kernel_files::of_image("linux-up");
    let kernel = kernel_files::without_pvh(&vmlinux, folder.path());
    let small = SmallFilesystem::new(folder.path());
    // A file without blocks, longer than what its file system can hold.
    let disk = small.path.join("disk");
    std::fs::File::create(&disk).unwrap().set_len(16 << 20).unwrap();
    let written = file(folder.path(), "readonly", 1 << 20, "as it was");
    let before = std::fs::read(&written).unwrap();
    let tern = TernBuilder::new().kernel(&kernel).initrd(&initramfs).cmdline(WORDS).disk(&disk);
    let tern = tern.flag("--disk").flag(format!("{},readonly", written.display()));
    let tern = tern.memory("96M").serial_unix().start();
    let guest = Agent::new(tern.serial());
    guest.wait_ready();
    guest.run("disk /dev/vda");
    guest.wait_status("an error of the full disk", |now| now.disk_bad > 0);
    assert_eq!(tern.qmp().state(), "running");
    guest.run("disk off");
    let bad = guest.status().disk_bad;
    guest.run("disk /dev/vdb");
    guest.wait_status("an error of the read-only disk", |now| now.disk_bad > bad);
    guest.run("disk off");
    assert!(std::fs::read(&written).unwrap() == before, "a read-only disk was written");
    assert!(guest.run("mem").contains("free_kib="), "the guest does not go on");
    powers_off(tern);
}

#[test]
fn a_bzimage_boots_reboots_and_moves() {
    if !kvm_or_skip() || !image_or_skip("linux-up") {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let (vmlinux, initramfs) = kernel_files::of_image("linux-up");
    let kernel = kernel_files::as_bzimage(&vmlinux, folder.path());
    let machine = TernBuilder::new().memory("96M").serial_unix().flag("--no-reboot");
    let source = machine.clone().kernel(&kernel).initrd(&initramfs).cmdline(WORDS).start();
    Agent::new(source.serial()).wait_ready();
    let mut destination = machine.incoming(Incoming::Unix).start();
    migrate(&source, &destination);
    let guest = Agent::new(destination.serial());
    assert!(guest.run("clock").contains("mono_us="));
    guest.check();
    // With --no-reboot a reset ends the process.
    destination.serial().write("reboot\n");
    assert!(destination.wait_end().success(), "{}", destination.stderr());
}

/// A file system of 64 KiB.
struct SmallFilesystem {
    path: PathBuf,
}

impl SmallFilesystem {
    fn new(folder: &Path) -> Self {
        let path = folder.join("small");
        std::fs::create_dir(&path).unwrap();
        let mounted =
            Command::new("mount").args(["-t", "tmpfs", "-o", "size=64k", "tmpfs"]).arg(&path).status();
        assert!(mounted.unwrap().success(), "mount -t tmpfs");
        Self { path }
    }
}

impl Drop for SmallFilesystem {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(&self.path).status();
    }
}
