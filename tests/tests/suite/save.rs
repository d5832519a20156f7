//! Guests that are saved into files: live, stopped, to go on or to end, and with everything in the way that a file
//! can have in the way. The guest proves each time that it lost nothing.

use std::fs;
use std::path::Path;
use std::process::{Command, Output, Stdio};

use serde_json::{Value, json};
use tern_migration::snapshot::{Outline, SnapshotError, SnapshotFile};
use tern_tests::binary::tern_binary;
use tern_tests::{PulseLog, Tern, kvm_or_skip};

/// What `pulse` is to do, unless a test wants something else.
pub(crate) const WORDS: &str = "ws=8M rate=2000 content=random interval=50";
/// 8 MiB at this rate: long enough that nobody has to hurry to be in the middle of a save.
const SLOW: &str = "262144";

/// `tern save`.
pub(crate) fn save(tern: &Tern, file: &Path, more: &[&str]) -> Output {
    let mut command = Command::new(tern_binary());
    command.arg("save").arg("--control").arg(tern.control()).arg(file).args(more);
    command.stdin(Stdio::null()).output().unwrap()
}

/// What a command has said.
pub(crate) fn text(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// Reads everything that is in a file.
fn verify(file: &Path) -> SnapshotFile {
    let snapshot = SnapshotFile::open(file).unwrap();
    snapshot.verify_tables().unwrap();
    snapshot.state().unwrap();
    let mut bytes = vec![0; 340 * 4096];
    for (region, place) in snapshot.layout().regions.clone().iter().enumerate() {
        for first in (0..place.pages).step_by(340) {
            let pages = first..place.pages.min(first + 340);
            let length = (pages.end - pages.start) as usize * 4096;
            snapshot.read_pages(region, pages, &mut bytes[..length]).unwrap();
        }
    }
    snapshot
}

/// The guest runs, prints, and has lost nothing.
pub(crate) fn goes_on(tern: &Tern) {
    assert_eq!(tern.qmp().state(), "running");
    let before = tern.pulse_log().beats.len();
    tern.wait_beats(1, before + 3);
    PulseLog::read(&tern.serial().text());
}

fn names(folder: &Path, start: &str) -> Vec<String> {
    let all = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
    let mut names: Vec<_> = all.filter(|name| name.starts_with(start)).collect();
    names.sort();
    names
}

/// Starts a save over QMP that takes half a minute, and waits until memory moves.
fn begin_slow_save(tern: &Tern, file: &Path) {
    let parameters = json!({ "max-bandwidth": SLOW.parse::<u64>().unwrap() });
    let mut here = tern.qmp();
    here.execute("migrate", json!({ "uri": format!("file:{}", file.display()), "parameters": parameters }));
    here.wait_migrate(&["active"]);
}

#[test]
fn a_saved_guest_ends_unless_told_otherwise() {
    if !kvm_or_skip() {
        return;
    }
    let mut source = Tern::pulse(WORDS).start();
    source.wait_beats(1, 3);
    let file = source.folder().join("vm");
    let output = save(&source, &file, &["--json"]);
    assert!(output.status.success(), "{}", text(&output));
    assert!(source.wait_end().success());
    let snapshot = verify(&file);
    assert!(snapshot.index().running && snapshot.is_mappable() && snapshot.facts().cpus == 1);
    let report: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!((&report["status"], &report["transport"]), (&json!("completed"), &json!("file")));
    assert_eq!(report["memory_bytes"], 64 << 20);
    assert!(report["rounds"].as_array().unwrap().last().unwrap()["stopped"] == true, "{report:#}");
    assert!(report["pages"]["raw"].as_u64() >= snapshot.index().pages_stored, "{report:#}");
    assert_eq!(names(source.folder(), "vm"), ["vm"]);
}

#[test]
fn a_guest_that_stays_can_go_on() {
    if !kvm_or_skip() {
        return;
    }
    let source = Tern::pulse(WORDS).start();
    source.wait_beats(1, 3);
    let file = source.folder().join("vm");
    let output = save(&source, &file, &["--then", "stop"]);
    assert!(output.status.success(), "{}", text(&output));
    let mut here = source.qmp();
    assert_eq!(here.state(), "paused");
    here.execute("cont", json!({}));
    goes_on(&source);
    // And again, to the same file, stopped this time.
    here.execute("stop", json!({}));
    let output = save(&source, &file, &["--then", "run", "--file-threads", "3"]);
    assert!(output.status.success(), "{}", text(&output));
    assert_eq!(here.state(), "paused", "it was not running");
    assert!(!verify(&file).index().running);
    here.execute("cont", json!({}));
    goes_on(&source);
}

#[test]
fn a_guest_goes_on_while_its_file_is_finished() {
    if !kvm_or_skip() {
        return;
    }
    let source =
        Tern::pulse("ws=16M rate=max content=random pattern=random interval=50 cpus=2").cpus(2).start();
    source.wait_beats(2, 3);
    let file = source.folder().join("vm");
    for _ in 0..3 {
        let output = save(&source, &file, &["--then", "run", "--json"]);
        assert!(output.status.success(), "{}", text(&output));
        let report: Value = serde_json::from_slice(&output.stdout).unwrap();
        assert_eq!(report["capabilities"]["keep_running"], true);
        let downtime_us = report["downtime"]["total_us"].as_u64().unwrap();
        assert!(downtime_us > 0 && downtime_us < report["total_us"].as_u64().unwrap(), "{report:#}");
        verify(&file);
        goes_on(&source);
    }
}

#[test]
fn a_disk_that_goes_on_changing_is_warned_of() {
    if !kvm_or_skip() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let disk = folder.path().join("disk");
    fs::write(&disk, vec![0; 1 << 20]).unwrap();
    let source = Tern::pulse(WORDS).disk(&disk).start();
    source.wait_beats(1, 2);
    let output = save(&source, &folder.path().join("vm"), &["--then", "run"]);
    assert!(output.status.success(), "{}", text(&output));
    assert!(text(&output).contains(&format!("goes on writing to {}", disk.display())), "{}", text(&output));
    let output = save(&source, &folder.path().join("vm"), &["--then", "stop"]);
    assert!(output.status.success() && text(&output).is_empty(), "{}", text(&output));
}

#[test]
fn a_file_that_may_not_be_so_large_is_no_file_and_the_older_one_stays() {
    if !kvm_or_skip() {
        return;
    }
    let source = Tern::pulse(WORDS).start();
    source.wait_beats(1, 3);
    let file = source.folder().join("vm");
    let older = b"TERNSNAP of another time".to_vec();
    fs::write(&file, &older).unwrap();
    limit_file_size(source.pid(), 16 << 20);
    for how in ["quit", "stop", "run"] {
        let output = save(&source, &file, &["--then", how]);
        assert_eq!(output.status.code(), Some(4), "{}", text(&output));
        for part in ["the guest was not saved, and goes on", "ulimit -f", "File too large"] {
            assert!(text(&output).contains(part), "{}", text(&output));
        }
        assert_eq!(
            (fs::read(&file).unwrap(), names(source.folder(), "vm")),
            (older.clone(), vec!["vm".into()])
        );
        goes_on(&source);
    }
    limit_file_size(source.pid(), libc::RLIM_INFINITY);
    assert!(save(&source, &file, &["--then", "run"]).status.success());
    verify(&file);
}

/// Most bytes of a file that the process may write (`setrlimit(2)`, RLIMIT_FSIZE).
#[expect(unsafe_code, reason = "prlimit(2) has no safe wrapper in the crates used here")]
pub(crate) fn limit_file_size(pid: u32, bytes: libc::rlim_t) {
    let limit = libc::rlimit { rlim_cur: bytes, rlim_max: libc::RLIM_INFINITY };
    // SAFETY: the kernel reads the structure, which lives through the call.
    let set = unsafe {
        libc::prlimit(pid as libc::pid_t, libc::RLIMIT_FSIZE, &raw const limit, std::ptr::null_mut())
    };
    assert!(set == 0, "prlimit: {}", std::io::Error::last_os_error());
}

#[test]
fn two_guests_can_not_be_saved_into_one_file_at_once() {
    if !kvm_or_skip() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("vm");
    let (one, other) = (Tern::pulse(WORDS).start(), Tern::pulse(WORDS).start());
    one.wait_beats(1, 2);
    other.wait_beats(1, 2);
    begin_slow_save(&one, &file);
    let output = save(&other, &file, &[]);
    assert_eq!(output.status.code(), Some(4), "{}", text(&output));
    assert!(text(&output).contains("already being written by another process"), "{}", text(&output));
    goes_on(&other);
    assert_eq!(names(folder.path(), "vm"), ["vm.partial"]);
    one.qmp().execute("migrate_cancel", json!({}));
    one.qmp().wait_migrate(&["cancelled"]);
    goes_on(&one);
    assert!(names(folder.path(), "vm").is_empty());
    assert!(save(&other, &file, &["--then", "run"]).status.success());
    verify(&file);
}

#[test]
fn a_process_that_is_killed_in_the_middle_leaves_the_older_file() {
    if !kvm_or_skip() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("vm");
    let next = Tern::pulse(WORDS).start();
    next.wait_beats(1, 2);
    assert!(save(&next, &file, &["--then", "run"]).status.success());
    let saved_at = verify(&file).index().saved_at_unix_ms;
    let mut killed = Tern::pulse(WORDS).start();
    killed.wait_beats(1, 2);
    begin_slow_save(&killed, &file);
    killed.kill();
    assert_eq!(names(folder.path(), "vm"), ["vm", "vm.partial"]);
    assert_eq!(verify(&file).index().saved_at_unix_ms, saved_at);
    // What is left says whose it is, and that it is not whole.
    let partial = folder.path().join("vm.partial");
    let outline = Outline::of_file(&partial).unwrap();
    assert_eq!(outline.description.unwrap().unwrap().facts.cpus, 1);
    assert!(matches!(outline.length, Some(Err(SnapshotError::Unfinished))));
    assert_eq!(SnapshotFile::open(&partial).unwrap_err().code(), "unfinished");
    // The next one takes it over.
    assert!(save(&next, &file, &["--then", "run"]).status.success());
    assert!(verify(&file).index().saved_at_unix_ms > saved_at);
    assert_eq!(names(folder.path(), "vm"), ["vm"]);
    goes_on(&next);
}

#[test]
fn a_process_that_is_told_to_end_leaves_nothing() {
    if !kvm_or_skip() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let source = Tern::pulse(WORDS).start();
    source.wait_beats(1, 2);
    begin_slow_save(&source, &folder.path().join("vm"));
    assert!(source.quit().success());
    assert!(names(folder.path(), "vm").is_empty());
}

#[test]
fn paths_and_parameters_that_can_not_be() {
    if !kvm_or_skip() {
        return;
    }
    let source = Tern::pulse(WORDS).start();
    source.wait_beats(1, 2);
    let folder = source.folder();
    for (path, part) in [
        (folder.to_owned(), "is a folder, not a regular file"),
        (source.control(), "is a socket, not a regular file"),
        (folder.join("none/vm"), "make its folder first"),
        (Path::new("/proc/self/vm").to_owned(), "can not be made"),
    ] {
        let output = save(&source, &path, &[]);
        assert_eq!(output.status.code(), Some(4), "{}", text(&output));
        assert!(text(&output).contains(part), "{part}: {}", text(&output));
    }
    let output = save(&source, &folder.join("vm"), &["--file-threads", "99"]);
    assert_eq!(output.status.code(), Some(2), "{}", text(&output));
    let mut here = source.qmp();
    for parameters in [json!({ "file-threads": 3 }), json!({ "direct-io": true })] {
        let request = json!({ "uri": "unix:/nobody", "parameters": parameters });
        let error = here.try_execute("migrate", request).unwrap_err();
        assert!(error["desc"].as_str().unwrap().contains("for saving into a file"), "{error}");
    }
    let error = here.try_execute("migrate", json!({ "uri": "file:" })).unwrap_err();
    assert!(error["desc"].as_str().unwrap().contains("file:PATH"), "{error}");
    goes_on(&source);
}

/// Lets a process have so much more address space than it has now; none: as much as it likes.
fn limit_memory(tern: &Tern, more_bytes: Option<u64>) {
    let statm = fs::read_to_string(format!("/proc/{}/statm", tern.pid())).unwrap();
    let now = statm.split(' ').next().unwrap().parse::<u64>().unwrap() * 4096;
    let limit = more_bytes.map_or_else(|| "unlimited".to_owned(), |more| (now + more).to_string());
    let mut command = Command::new("prlimit");
    command.args(["--pid", &tern.pid().to_string(), &format!("--as={limit}:")]);
    assert!(command.status().unwrap().success(), "prlimit, from util-linux");
}

#[test]
fn a_host_that_has_no_thread_leaves_the_guest_running() {
    if !kvm_or_skip() {
        return;
    }
    let tern = Tern::pulse(WORDS).start();
    tern.wait_beats(1, 2);
    let file = tern.folder().join("file");
    // Less than a thread's stack.
    limit_memory(&tern, Some(1 << 20));
    let output = save(&tern, &file, &["--then", "run"]);
    assert!(text(&output).contains("the migration's thread can't be started"), "{}", text(&output));
    assert_eq!(output.status.code(), Some(1));
    goes_on(&tern);
    limit_memory(&tern, None);
    let output = save(&tern, &file, &["--then", "run"]);
    assert!(output.status.success(), "{}", text(&output));
    verify(&file);
    goes_on(&tern);
}
