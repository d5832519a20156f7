//! Guests from files: each way of their memory, many from one file, onward from there, and files that are not what
//! they should be.

use std::fs::{File, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use serde_json::json;
use tempfile::TempDir;
use tern_tests::host::skip;
use tern_tests::{Incoming, PulseLog, Tern, TernBuilder, kvm_or_skip, migrate, save};
use tern_vmm::host::UffdFacts;

/// Where `pulse`'s pages begin (its banner says so), behind the 2 MiB with which a snapshot begins.
const WORKING_SET: u64 = (16 << 20) + (2 << 20);

/// May userfaultfd be used here? If not, a part of the running test is skipped.
fn on_demand() -> bool {
    let UffdFacts { usable, problem, .. } = UffdFacts::probe();
    if !usable {
        skip(&format!("no userfaultfd: {}", problem.unwrap_or_default()));
    }
    usable
}

/// The ways that this host can.
pub(crate) fn modes() -> Vec<&'static str> {
    let all = ["eager", "mapped", "on-demand"];
    if on_demand() { all.into() } else { all.into_iter().filter(|mode| *mode != "on-demand").collect() }
}

/// A guest that was saved while it ran, and what it had printed until then.
struct Saved {
    folder: TempDir,
    told: String,
}

impl Saved {
    fn file(&self) -> PathBuf {
        self.folder.path().join("guest.snap")
    }

    fn bytes(&self) -> Vec<u8> {
        std::fs::read(self.file()).unwrap()
    }

    fn restore(&self, mode: &str) -> TernBuilder {
        TernBuilder::restore(&self.file()).flag("--mode").flag(mode)
    }

    /// A guest from this file has printed `count` beats for each vCPU, and everything fits to what it had printed
    /// before.
    fn check(&self, guest: &Tern, cpus: usize, count: usize) {
        guest.wait_beats(cpus, count);
        PulseLog::read(&(self.told.clone() + &guest.serial().text()));
    }
}

fn saved(cpus: u32, words: &str) -> Saved {
    let machine = Tern::pulse(&format!("{words} cpus={cpus} interval=50")).cpus(cpus);
    let guest = machine.start();
    guest.wait_beats(cpus as usize, 2);
    let folder = tempfile::tempdir().unwrap();
    save(&guest, &folder.path().join("guest.snap"));
    let told = guest.serial().text();
    assert!(guest.quit().success());
    Saved { folder, told }
}

#[test]
fn every_way_gives_the_guest_back_and_leaves_the_file_as_it_was() {
    if !kvm_or_skip() {
        return;
    }
    let saved = saved(2, "ws=8M rate=max pattern=random content=text");
    let before = saved.bytes();
    for mode in modes() {
        let guest = saved.restore(mode).flag("--json").start();
        saved.check(&guest, 2, 3);
        assert_eq!(guest.qmp().state(), "running", "{mode}");
        let told: serde_json::Value = serde_json::from_str(&guest.stdout()).unwrap();
        assert_eq!((&told["mode"], &told["running"]), (&json!(mode), &json!(true)), "{told}");
        assert!(guest.quit().success(), "{mode}");
        assert!(saved.bytes() == before, "{mode} has changed the file");
    }
}

#[test]
fn several_guests_run_from_one_file_at_once() {
    if !kvm_or_skip() {
        return;
    }
    let saved = saved(1, "ws=8M rate=4000 content=random");
    let guests: Vec<Tern> = modes()
        .into_iter()
        .map(|mode| saved.restore(mode).start())
        .chain([TernBuilder::restore(&saved.file()).flag("--name").flag("another").start()])
        .collect();
    for guest in &guests {
        saved.check(guest, 1, 3);
    }
    let names = guests.iter().map(|guest| guest.qmp().execute("query-name", json!({}))["name"].clone());
    let names: Vec<_> = names.collect();
    let (another, others) = names.split_last().unwrap();
    assert!(another == "another" && others.iter().all(|name| name == "tern"), "{names:?}");
    // The one that was not told how says what it chose.
    let said = guests.last().unwrap().stderr();
    assert!(said.contains("on demand") || said.contains("mapped"), "{said}");
}

#[test]
fn a_restored_guest_is_saved_and_restored_again() {
    if !kvm_or_skip() {
        return;
    }
    let first = saved(1, "ws=8M rate=max content=text");
    for mode in modes() {
        let guest = first.restore(mode).start();
        let folder = tempfile::tempdir().unwrap();
        guest.qmp().wait_migrate(&["completed"]);
        // At once: on demand, most of its memory is still in the first file.
        save(&guest, &folder.path().join("guest.snap"));
        let told = first.told.clone() + &guest.serial().text();
        assert!(guest.quit().success());
        let second = Saved { folder, told };
        let again = second.restore(mode).start();
        second.check(&again, 1, 3);
    }
}

#[test]
fn a_restored_guest_migrates_before_its_memory_is_there() {
    if !kvm_or_skip() {
        return;
    }
    let saved = saved(1, "ws=16M rate=4000 content=text");
    for mode in modes() {
        let destination = Tern::pulse("").incoming(Incoming::Unix).start();
        let guest = saved.restore(mode).start();
        guest.qmp().wait_migrate(&["completed"]);
        migrate(&guest, &destination);
        destination.wait_beats(1, 3);
        PulseLog::read(
            &[&saved.told, &guest.serial().text(), &destination.serial().text()].map(|s| s.as_str()).concat(),
        );
    }
}

#[test]
fn the_report_tells_how_memory_came() {
    if !kvm_or_skip() {
        return;
    }
    let saved = saved(1, "ws=16M rate=4000 content=text");
    let report = |guest: &Tern| guest.qmp().wait_migrate(&["completed"])["report"].clone();
    for mode in modes() {
        let guest = saved.restore(mode).start();
        guest.wait_beats(1, 1);
        let told = report(&guest);
        let number = |value: &serde_json::Value| value.as_u64().unwrap_or_else(|| panic!("{mode}: {told:#}"));
        assert_eq!((&told["transport"], &told["side"]), (&json!("file"), &json!("destination")));
        if mode != "on-demand" {
            assert_eq!(told["on_demand"], json!(null), "{mode}");
            continue;
        }
        let pager = &told["on_demand"];
        assert_eq!(number(&pager["pages"]) * 4096, number(&told["memory_bytes"]));
        // Its first instruction was a page that wasn't there.
        assert!(number(&pager["faults"]) > 0 && number(&pager["pages_by_fault"]) > 0, "{pager}");
        let latency = &pager["fault_latency"];
        let [half, most, all] = ["p50_us", "p99_us", "max_us"].map(|name| number(&latency[name]));
        assert!(half <= most && most <= all && all > 0, "{latency}");
        let done = tern_tests::limit::wait_for("all memory", || {
            Some(report(&guest)).filter(|now| now["on_demand"]["total_us"].is_u64())
        });
        let count = |name: &str| number(&done["on_demand"][name]);
        assert_eq!((count("pages_left"), number(&done["remaining_bytes"])), (0, 0));
        assert_eq!(count("pages_by_fault") + count("pages_by_prefetch"), count("pages"), "{done:#}");
    }
}

#[test]
fn a_waiting_process_takes_a_guest_from_a_file() {
    if !kvm_or_skip() {
        return;
    }
    let saved = saved(1, "ws=8M rate=4000 content=text");
    let guest = Tern::pulse("").incoming(Incoming::Defer).start();
    let mut qmp = guest.qmp();
    let from = |path: &Path| json!({ "uri": format!("file:{}", path.display()) });
    // Refused at once, and nothing has changed.
    for (path, part) in
        [(saved.folder.path().join("none"), "No such file"), ("/dev/null".into(), "character device")]
    {
        let error = qmp.try_execute("migrate-incoming", from(&path)).unwrap_err();
        assert!(error["cause"].as_str().unwrap().contains(part), "{error}");
        assert_eq!(qmp.state(), "inmigrate");
    }
    // Refused when the machines are compared: the process waits for another word.
    let folder = tempfile::tempdir().unwrap();
    let other = folder.path().join("other.snap");
    let large = Tern::pulse("ws=1M interval=50").memory("128M").start();
    large.wait_beats(1, 1);
    save(&large, &other);
    assert!(large.quit().success());
    qmp.execute("migrate-incoming", from(&other));
    let failed = qmp.wait_migrate(&["failed"]);
    assert!(failed["error-desc"].as_str().unwrap().contains("memory"), "{failed}");
    qmp.execute("migrate-incoming", from(&saved.file()));
    qmp.wait_migrate(&["completed"]);
    saved.check(&guest, 1, 3);
    assert_eq!(qmp.state(), "running");
    let error = qmp.try_execute("migrate-incoming", from(&saved.file())).unwrap_err();
    assert!(error["desc"].as_str().unwrap().contains("running"), "{error}");
}

#[test]
fn a_guest_can_be_left_stopped_and_comes_stopped_if_it_was() {
    if !kvm_or_skip() {
        return;
    }
    let saved = saved(1, "ws=4M rate=1000");
    for mode in modes() {
        let guest = saved.restore(mode).flag("--paused").start();
        let mut qmp = guest.qmp();
        qmp.wait_migrate(&["completed"]);
        assert_eq!((qmp.state(), guest.serial().text()), ("paused".to_owned(), String::new()), "{mode}");
        qmp.execute("cont", json!({}));
        saved.check(&guest, 1, 2);
    }
}

#[test]
fn a_reset_boots_what_the_file_says() {
    if !kvm_or_skip() {
        return;
    }
    let saved = saved(1, "ws=1M rate=1000");
    let guest = TernBuilder::restore(&saved.file()).start();
    saved.check(&guest, 1, 2);
    guest.qmp().execute("system_reset", json!({}));
    guest.serial().wait_text("A tern-pulse");
    guest.serial().wait_text("A ready");
}

#[test]
fn a_disk_may_be_somewhere_else() {
    if !kvm_or_skip() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let [disk, copy, file] = ["disk", "copy", "guest.snap"].map(|name| folder.path().join(name));
    File::create(&disk).unwrap().set_len(1 << 20).unwrap();
    let guest = Tern::pulse("ws=1M interval=50").disk(&disk).start();
    guest.wait_beats(1, 1);
    save(&guest, &file);
    assert!(guest.quit().success());
    std::fs::rename(&disk, &copy).unwrap();
    let failed = TernBuilder::restore(&file).start_to_end();
    assert!(failed.stderr().contains(disk.to_str().unwrap()), "{}", failed.stderr());
    let guest = TernBuilder::restore(&file).flag("--disk").flag(format!("0={}", copy.display())).start();
    guest.wait_beats(1, 2);
    // Another size is another disk.
    File::create(&disk).unwrap().set_len(2 << 20).unwrap();
    let failed = TernBuilder::restore(&file).start_to_end();
    for part in ["2048 sectors", "4096 sectors"] {
        assert!(failed.stderr().contains(part), "no {part} in {}", failed.stderr());
    }
}

/// The process ended with `code`, and said all of `parts`.
fn ended(mut tern: Tern, code: i32, parts: &[&str]) {
    let (status, said) = (tern.wait_end(), tern.stderr());
    assert_eq!(status.code(), Some(code), "{said}");
    for part in parts {
        assert!(said.contains(part), "no {part:?} in {said}");
    }
    assert!(!said.contains("panicked"), "{said}");
}

fn flip(file: &Path, offset: u64) {
    let file = OpenOptions::new().read(true).write(true).open(file).unwrap();
    let mut byte = [0];
    file.read_exact_at(&mut byte, offset).unwrap();
    file.write_all_at(&[byte[0] ^ 4], offset).unwrap();
}

#[test]
fn a_flipped_bit_is_refused_with_the_page_and_both_hashes() {
    if !kvm_or_skip() {
        return;
    }
    let saved = saved(1, "ws=4M rate=1000 content=random bytes=4096");
    let path = saved.file();
    flip(&path, WORKING_SET + 100 * 4096 + 17);
    let page = format!("page {})", (16 << 20) / 4096 + 100);
    let parts = ["guest.snap", &page, "has hash 0x", "saved was 0x"];
    for mode in ["eager", "mapped"] {
        ended(saved.restore(mode).start_to_end(), 1, &parts);
    }
    // The guest runs until the page is looked at.
    let parts = [&parts[..], &["the guest was stopped", "can't be had"]].concat();
    if on_demand() {
        ended(saved.restore("on-demand").start_to_end(), 3, &parts);
    }
}

#[test]
fn data_where_a_zero_page_should_be_is_refused_by_a_mapping_and_harms_no_other() {
    if !kvm_or_skip() {
        return;
    }
    let saved = saved(1, "ws=1M rate=1000");
    // Behind the working set nothing was ever written.
    flip(&saved.file(), WORKING_SET + (32 << 20));
    ended(saved.restore("mapped").start_to_end(), 1, &["guest.snap", "has hash 0x"]);
    for mode in modes().into_iter().filter(|mode| *mode != "mapped") {
        let guest = saved.restore(mode).start();
        saved.check(&guest, 1, 2);
    }
}

#[test]
fn another_machine_is_refused_with_both_values() {
    if !kvm_or_skip() {
        return;
    }
    let saved = saved(1, "ws=1M rate=1000");
    let incoming = |builder: TernBuilder| {
        builder.flag("--incoming").flag(format!("file:{}", saved.file().display())).start_to_end()
    };
    ended(incoming(TernBuilder::new().memory("128M")), 1, &["memory", "64 MiB", "128 MiB", "--memory"]);
    ended(incoming(TernBuilder::new().cpus(2)), 1, &["vCPUs", "source 1", "destination 2", "--cpus"]);
    let disk = saved.folder.path().join("disk");
    File::create(&disk).unwrap().set_len(1 << 20).unwrap();
    ended(incoming(TernBuilder::new().disk(&disk)), 1, &["virtio-blk", "2048 sectors"]);
}

#[test]
fn files_that_hold_no_guest_are_refused() {
    if !kvm_or_skip() {
        return;
    }
    let saved = saved(1, "ws=1M rate=1000");
    let (file, whole) = (saved.file(), saved.bytes());
    let restore = |path: &Path| TernBuilder::restore(path).start_to_end();
    for (length, part) in
        [(0, "truncated"), (100, "truncated"), (20 << 20, "truncated"), (whole.len() - 1, "truncated")]
    {
        OpenOptions::new().write(true).open(&file).unwrap().set_len(length as u64).unwrap();
        ended(restore(&file), 1, &["guest.snap", part]);
        std::fs::write(&file, &whole).unwrap();
    }
    std::fs::write(&file, [&whole[..], b"!"].concat()).unwrap();
    ended(restore(&file), 1, &["guest.snap", "appended"]);
    std::fs::write(&file, "#!/bin/sh\n".repeat(1000)).unwrap();
    ended(restore(&file), 1, &["guest.snap", "no snapshot", "TERNSNAP"]);
    ended(restore(saved.folder.path()), 1, &["a folder", "regular file"]);
    ended(restore(Path::new("/dev/null")), 1, &["/dev/null", "a character device"]);
    ended(restore(&saved.folder.path().join("none")), 1, &["none", "No such file"]);
}
