//! Bad input: each case ends with an exit code that isn't 0, a text that names the value and the remedy, and
//! nothing lost.

use std::fs::OpenOptions;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Command, Output, Stdio};

use serde_json::{Value, json};
use tern_tests::binary::tern_binary;
use tern_tests::host::image_or_skip;
use tern_tests::{Incoming, Proxy, PulseLog, Tern, kvm_or_skip};

fn tern(words: &[&str]) -> Output {
    Command::new(tern_binary()).args(words).stdin(Stdio::null()).output().unwrap()
}

/// `words` fail with `code`, and the text has each of `expected`.
fn fails(code: i32, words: &[&str], expected: &[&str]) {
    let output = tern(words);
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(code), "{words:?}: {text}");
    assert!(output.stdout.is_empty(), "{words:?} printed: {}", String::from_utf8_lossy(&output.stdout));
    for part in expected {
        assert!(text.contains(part), "{words:?}: {part:?} is not in: {text}");
    }
    assert!(!text.contains("panicked") && !text.contains("RUST_BACKTRACE"), "{words:?}: {text}");
}

#[test]
fn flags_and_values() {
    let image = ["run", "--image", "pulse"];
    let with = |more: &[&'static str]| [&image[..], more].concat();
    fails(2, &["frobnicate"], &["frobnicate"]);
    fails(2, &with(&["--frobnicate"]), &["--frobnicate"]);
    fails(2, &with(&["--memory", "12Q"]), &["12Q", "--memory"]);
    fails(2, &with(&["--cpus", "99"]), &["99", "--cpus"]);
    fails(2, &with(&["--cpus", "0"]), &["0", "--cpus"]);
    fails(2, &with(&["--serial", "pty"]), &["pty", "unix:PATH"]);
    fails(2, &with(&["--net", "eth0"]), &["eth0", "tap="]);
    fails(2, &with(&["--disk", "a,ro"]), &["a,ro", "readonly"]);
    fails(2, &["run", "--incoming", "pigeon:x", "--control", "c"], &["pigeon:x", "tcp:HOST:PORT"]);
    fails(2, &["run"], &["--kernel", "--image", "--incoming"]);
    fails(1, &["run", "--image", "windows"], &["windows", "pulse"]);
    fails(2, &["migrate", "--control", "c", "udp:h:1"], &["udp:h:1", "tcp:HOST:PORT"]);
}

#[test]
fn kernels_and_files() {
    if !kvm_or_skip() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
    let no_kernel = path("no-kernel");
    std::fs::write(&no_kernel, "#!/bin/sh\necho this is not a kernel\n".repeat(100)).unwrap();
    let cut = path("cut-elf");
    std::fs::write(&cut, b"\x7fELF\x02\x01\x01").unwrap();
    let (missing, directory) = (path("missing"), folder.path().to_str().unwrap().to_owned());
    fails(1, &["run", "--kernel", &missing], &[&missing, "No such file"]);
    fails(1, &["run", "--kernel", &directory], &[&directory]);
    fails(1, &["run", "--kernel", &no_kernel], &[&no_kernel]);
    fails(1, &["run", "--kernel", &cut], &[&cut]);
    fails(1, &["run", "--image", "pulse", "--initrd", &missing], &[&missing, "No such file"]);
    fails(1, &["run", "--image", "pulse", "--disk", &missing], &[&missing, "No such file"]);
    fails(1, &["run", "--image", "pulse", "--serial", &format!("file:{missing}/x")], &[&missing]);
    fails(1, &["run", "--image", "pulse", "--net", "tap=ternnone0"], &["ternnone0", "ip tuntap add"]);
}

#[test]
fn too_little_memory() {
    if !kvm_or_skip() || !image_or_skip("linux-up") {
        return;
    }
    fails(1, &["run", "--image", "linux-up", "--memory", "8M"], &["memory", "8", "--memory"]);
    fails(2, &["run", "--image", "pulse", "--memory", "4K"], &["--memory", "4096", "2 MiB"]);
    // The guest's own words about a working set that does not fit.
    let mut guest = Tern::pulse("ws=1G").flag("--no-reboot").start();
    guest.wait_end();
    assert!(guest.serial().text().contains("ERROR"), "{}", guest.serial().text());
}

#[test]
fn paths_and_ports_in_use() {
    if !kvm_or_skip() {
        return;
    }
    let first = Tern::pulse("ws=0 interval=50").start();
    first.wait_beats(1, 1);
    let control = first.control().to_str().unwrap().to_owned();
    fails(
        1,
        &["run", "--image", "pulse", "--serial", "null", "--control", &control],
        &[&control, "listens there already", "choose another path"],
    );
    assert_eq!(first.qmp().state(), "running", "the process that had the socket lost it");
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let uri = format!("tcp:{}", listener.local_addr().unwrap());
    let other = first.folder().join("other").to_str().unwrap().to_owned();
    let words = ["run", "--serial", "null", "--control", &other, "--incoming", &uri];
    fails(1, &words, &[&uri, "in use"]);
    let plain = first.folder().join("plain");
    std::fs::write(&plain, "keep").unwrap();
    let plain = plain.to_str().unwrap();
    fails(1, &["run", "--image", "pulse", "--serial", "null", "--control", plain], &[plain]);
    assert_eq!(std::fs::read_to_string(plain).unwrap(), "keep", "a file in the socket's place was lost");
}

#[test]
fn no_permission() {
    if !kvm_or_skip() || !tern_tests::root_or_skip() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    std::fs::set_permissions(folder.path(), PermissionsExt::from_mode(0o755)).unwrap();
    // A copy that everyone can reach.
    let binary = folder.path().join("tern");
    std::fs::copy(tern_binary(), &binary).unwrap();
    let as_nobody = |words: &[&str]| {
        let mut command = Command::new("setpriv");
        command.args(["--reuid=65534", "--regid=65534", "--clear-groups"]).arg(&binary).args(words);
        let output = command.stdin(Stdio::null()).output().unwrap();
        (output.status.code(), String::from_utf8_lossy(&output.stderr).into_owned())
    };
    let usable = OpenOptions::new().read(true).open("/dev/kvm").and_then(|file| file.metadata());
    if usable.is_ok_and(|found| found.permissions().mode() & 0o006 == 0) {
        let (code, text) = as_nobody(&["run", "--image", "pulse", "--serial", "null"]);
        assert!(code == Some(1) && text.contains("/dev/kvm") && text.contains("kvm"), "{code:?} {text}");
    }
    let kernel = folder.path().join("secret");
    std::fs::write(&kernel, "x").unwrap();
    std::fs::set_permissions(&kernel, PermissionsExt::from_mode(0o000)).unwrap();
    let (code, text) = as_nobody(&["run", "--dry-run", "--kernel", kernel.to_str().unwrap()]);
    assert!(code == Some(1) && text.contains("secret") && text.contains("ermission"), "{code:?} {text}");
    for command in ["restore", "inspect"] {
        let (code, text) = as_nobody(&[command, kernel.to_str().unwrap()]);
        assert!(code == Some(1) && text.contains("secret") && text.contains("ermission"), "{code:?} {text}");
    }
}

#[test]
fn nobody_at_the_control_path() {
    for command in ["status", "pause", "resume", "cancel", "stop", "console"] {
        fails(1, &[command, "--control", "/nonexistent/tern"], &["/nonexistent/tern", "tern run"]);
    }
    fails(1, &["migrate", "--control", "/nonexistent/tern", "unix:/x"], &["/nonexistent/tern", "tern run"]);
}

fn migrate(source: &Tern, uri: &str, more: &[&str]) -> Output {
    let control = source.control().to_str().unwrap().to_owned();
    tern(&[&["migrate", "--control", &control, uri][..], more].concat())
}

#[test]
fn migrate_says_how_it_ended() {
    if !kvm_or_skip() {
        return;
    }
    let (source, destination) = Tern::pulse("ws=4M rate=1000 interval=50").start_pair(Incoming::Unix);
    source.wait_beats(1, 2);
    let nobody = format!("unix:{}", source.folder().join("nobody").display());
    let failed = migrate(&source, &nobody, &[]);
    let text = String::from_utf8_lossy(&failed.stderr).into_owned();
    assert_eq!(failed.status.code(), Some(4), "{text}");
    assert!(text.contains(&nobody) && text.contains("--incoming"), "{text}");
    assert_eq!(source.qmp().state(), "running");
    let out_of_range = migrate(&source, &nobody, &["--downtime-limit", "99999999"]);
    let text = String::from_utf8_lossy(&out_of_range.stderr).into_owned();
    assert!(out_of_range.status.code() == Some(2) && text.contains("2000000"), "{text}");

    let done = migrate(&source, &destination.uri(), &["--json"]);
    assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
    let report: Value = serde_json::from_slice(&done.stdout).unwrap();
    assert_eq!((&report["status"], &report["side"]), (&json!("completed"), &json!("source")));
    destination.wait_beats(1, 2);
    PulseLog::read(&(source.serial().text() + &destination.serial().text()));
    let control = source.control().to_str().unwrap().to_owned();
    fails(1, &["resume", "--control", &control], &["postmigrate", "moved away"]);
}

#[test]
fn migrate_shows_a_table_and_cancel_ends_it() {
    if !kvm_or_skip() {
        return;
    }
    let (source, destination) =
        Tern::pulse("ws=4M rate=max content=random interval=50").start_pair(Incoming::Unix);
    source.wait_beats(1, 2);
    let control = source.control().to_str().unwrap().to_owned();
    let uri = Proxy::new(&destination.uri());
    let words = ["migrate", "--control", &control, &uri.uri(), "--max-bandwidth", "256K"].map(str::to_owned);
    let waiting = std::thread::spawn(move || tern(&words.each_ref().map(String::as_str)));
    tern_tests::limit::wait_for("a migration that is active", || {
        (source.qmp().migrate_status() == "active").then_some(())
    });
    assert!(tern(&["cancel", "--control", &control]).status.success());
    let cancelled = waiting.join().unwrap();
    assert_eq!(cancelled.status.code(), Some(5), "{}", String::from_utf8_lossy(&cancelled.stderr));
    let status = tern(&["status", "--control", &control]);
    let text = String::from_utf8_lossy(&status.stdout).into_owned();
    assert!(status.status.success() && text.contains("running") && text.contains("cancelled"), "{text}");
    let done = migrate(&source, &destination.uri(), &[]);
    let text = String::from_utf8_lossy(&done.stdout).into_owned();
    assert!(done.status.success() && text.contains("downtime"), "{text}");
    let stopped = tern(&["stop", "--control", &control]);
    assert!(stopped.status.success() && !Path::new(&control).exists(), "the control socket is left behind");
}
