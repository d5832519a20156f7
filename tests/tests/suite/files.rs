//! What can stand in a saved guest's way from outside: the disk, another command, another host, another version of tern.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::json;
use tern_tests::binary::tern_binary;
use tern_tests::host::{mounts_or_skip, skip};
use tern_tests::opens::Opens;
use tern_tests::{PulseLog, Tern, TernBuilder, kvm_or_skip};

use crate::save::{WORDS, goes_on, save, text};

fn started(builder: TernBuilder) -> Tern {
    let guest = builder.start();
    guest.wait_beats(1, 2);
    guest
}

/// A guest in a file, and what it had printed until then.
fn in_file(builder: TernBuilder, file: &Path) -> String {
    let guest = started(builder);
    let output = save(&guest, file, &["--then", "stop"]);
    assert!(output.status.success(), "{}", text(&output));
    guest.serial().text()
}

/// The process ended with `code`, and said all of `parts`; its guest never ran.
fn refused(mut tern: Tern, code: i32, parts: &[&str]) {
    let (status, said) = (tern.wait_end(), tern.stderr());
    assert_eq!(status.code(), Some(code), "{said}");
    for part in parts {
        assert!(said.contains(part), "no {part:?} in {said}");
    }
    assert_eq!(tern.serial().text(), "");
}

fn folder() -> (tempfile::TempDir, PathBuf) {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("guest.snap");
    (folder, file)
}

#[test]
fn several_threads_save_past_the_page_cache() {
    if !kvm_or_skip() {
        return;
    }
    let (_folder, file) = folder();
    let guest = started(Tern::pulse(WORDS));
    let output = save(&guest, &file, &["--then", "stop", "--direct-io", "on", "--file-threads", "4"]);
    if text(&output).contains("does not take direct I/O") {
        goes_on(&guest);
        return skip("the file system of temporary files refuses O_DIRECT");
    }
    assert!(output.status.success(), "{}", text(&output));
    let told = guest.serial().text();
    assert!(guest.quit().success());
    let again = TernBuilder::restore(&file).flag("--mode").flag("eager").start();
    again.wait_beats(1, 3);
    PulseLog::read(&(told + &again.serial().text()));
}

#[test]
fn a_full_disk_fails_the_save_and_nothing_else() {
    if !kvm_or_skip() || !mounts_or_skip() {
        return;
    }
    let (folder, file) = folder();
    let small = folder.path().join("small");
    fs::create_dir(&small).unwrap();
    let mount = format!("mount -t tmpfs -o size=4m none {}", small.display());
    let guest = started(Tern::pulse(WORDS).inside(&mount));
    for more in [&[][..], &["--file-threads", "1"]] {
        let output = save(&guest, &small.join("guest.snap"), more);
        assert_eq!(output.status.code(), Some(4), "{}", text(&output));
        assert!(text(&output).contains("No space left"), "{}", text(&output));
        goes_on(&guest);
    }
    // As the process sees it: nothing is left.
    let seen = format!("/proc/{}/root{}", guest.pid(), small.display());
    assert_eq!(fs::read_dir(seen).unwrap().count(), 0);
    let output = save(&guest, &file, &["--then", "run"]);
    assert!(output.status.success(), "{}", text(&output));
    goes_on(&guest);
}

#[test]
fn a_guest_from_a_file_is_refused_where_its_cpu_is_not() {
    if !kvm_or_skip() {
        return;
    }
    let (folder, file) = folder();
    in_file(Tern::pulse(WORDS), &file);
    let low = folder.path().join("low.json");
    let made = Command::new(tern_binary()).args(["cpu", "baseline", "x86-64-v1", "-o"]).arg(&low).output();
    assert!(made.unwrap().status.success());
    let uri = format!("file:{}", file.display());
    let there = TernBuilder::new().flag("--cpu").flag(&low).flag("--incoming").flag(uri);
    refused(there.start_to_end(), 1, &["CPU features", "lacks ", "--cpu"]);
}

#[test]
fn a_file_is_read_by_the_next_version_and_not_the_other_way_round() {
    if !kvm_or_skip() {
        return;
    }
    let (folder, file) = folder();
    let told = in_file(Tern::pulse(WORDS), &file);
    for mode in ["eager", "mapped"] {
        let next = TernBuilder::restore(&file).next("").flag("--mode").flag(mode).start();
        next.wait_beats(1, 3);
        PulseLog::read(&(told.clone() + &next.serial().text()));
    }
    let newer = folder.path().join("newer.snap");
    in_file(Tern::pulse(WORDS).next(""), &newer);
    refused(TernBuilder::restore(&newer).start_to_end(), 1, &["rtc", "version 2", "version 1"]);
}

#[test]
fn a_guest_is_stopped_continued_and_asked_for_while_it_is_saved() {
    if !kvm_or_skip() {
        return;
    }
    let (_folder, file) = folder();
    let guest = started(Tern::pulse(WORDS));
    let mut here = guest.qmp();
    let uri = format!("file:{}", file.display());
    // Half a minute, if nobody lifted the limit.
    let slow = json!({ "uri": uri, "parameters": { "max-bandwidth": 262_144 } });
    here.execute("migrate", slow.clone());
    here.wait_migrate(&["active"]);
    for request in [slow, json!({ "uri": "unix:/nobody" })] {
        let error = here.try_execute("migrate", request).unwrap_err();
        assert!(error["desc"].as_str().unwrap().contains("migration"), "{error}");
    }
    here.execute("stop", json!({}));
    assert_eq!(here.state(), "paused");
    here.execute("cont", json!({}));
    goes_on(&guest);
    here.execute("stop", json!({}));
    here.execute("migrate-set-parameters", json!({ "max-bandwidth": 0 }));
    here.wait_migrate(&["completed"]);
    let told = guest.serial().text();
    assert!(guest.quit().success());
    // It was stopped when it was saved, and is now.
    let again = TernBuilder::restore(&file).start();
    let mut there = again.qmp();
    there.wait_migrate(&["completed"]);
    assert_eq!((there.state(), again.serial().text()), ("paused".to_owned(), String::new()));
    there.execute("cont", json!({}));
    again.wait_beats(1, 3);
    PulseLog::read(&(told + &again.serial().text()));
}

#[test]
fn a_file_is_opened_once_and_all_that_is_used_is_from_it() {
    if !kvm_or_skip() {
        return;
    }
    let (_folder, file) = folder();
    let told = in_file(Tern::pulse(WORDS), &file);
    for mode in ["eager", "mapped"] {
        let opens = Opens::of(&file);
        let guest = TernBuilder::restore(&file).flag("--mode").flag(mode).start();
        guest.wait_beats(1, 2);
        PulseLog::read(&(told.clone() + &guest.serial().text()));
        assert_eq!(opens.count(), 1, "{mode}: a save in between would have put another file there");
    }
}
