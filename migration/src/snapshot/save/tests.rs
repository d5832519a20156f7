//! Whole saves of the fake guest: what is in the file is what the guest had, and whatever fails, it goes on.

mod compressed;
mod trouble;

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use super::super::SnapshotFile;
use super::*;
use crate::channel::{Route, Uri};
use crate::config::{LiveParameters, Parameters};
use crate::control::{Observer, Unobserved};
use crate::fake::{Call, FakeGuest, FakeV1, FakeVm, LogMode, Options, SOURCE_CALLS};
use crate::source::{self, Outcome, SourceEnd};
use crate::stats::{Side, Status};
use crate::vm::PAGE_BYTES;

/// An older file of the same name.
const OLDER: &str = "TERNSNAP of another time";
const KEEP_RUNNING: &str = r#"{"capabilities": [{"capability": "keep-running", "state": true}]}"#;

fn control() -> Arc<Control> {
    Control::new(Side::Source, Box::new(Unobserved)).unwrap()
}

fn live(changes: &str) -> LiveParameters {
    LiveParameters::new(Parameters::default().merged(&serde_json::from_str(changes).unwrap()).unwrap())
}

fn save(vm: FakeVm, path: &Path, changes: &str) -> SourceEnd<FakeVm> {
    source::migrate_to(vm, &Uri::File { path: path.to_owned() }, &live(changes), &control())
}

/// A guest that turns a page zero in the middle, so that every call of a file is made.
fn restless() -> FakeVm {
    FakeVm::booted(Options { touched_every: 1, working_set_pages: 60, ..Options::default() }).unwrap()
}

/// The file has exactly the guest's memory and state, both for a reader and for who maps it.
fn assert_holds(path: &Path, vm: &FakeVm) {
    let snapshot = SnapshotFile::open(path).unwrap();
    let raw = File::open(path).unwrap();
    for (region, place) in snapshot.layout().regions.clone().iter().enumerate() {
        for page in 0..place.pages {
            let (mut read, mut mapped) = ([1; 4096], [1; 4096]);
            snapshot.read_page(region, page, &mut read).unwrap();
            raw.read_exact_at(&mut mapped, place.page_offset(page)).unwrap();
            assert!(read[..] == vm.page(region, page) && read == mapped, "region {region} page {page}");
        }
    }
    snapshot.verify_tables().unwrap();
    assert_eq!(snapshot.state().unwrap().take::<FakeV1>(0).unwrap().writes, vm.writes());
}

fn files(folder: &Path) -> Vec<String> {
    let names = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
    let mut names: Vec<_> = names.collect();
    names.sort();
    names
}

#[test]
fn a_busy_guest_is_saved_whole() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("vm");
    for log in
        [LogMode::Plain, LogMode::Manual { initially_set: true }, LogMode::Manual { initially_set: false }]
    {
        for threads in [1, 4] {
            let options =
                Options { log, region_pages: vec![700, 3000], working_set_pages: 900, ..Options::default() };
            let mut vm = FakeVm::booted(options).unwrap();
            vm.start_writer();
            let end = save(vm, &path, &format!(r#"{{"file-threads": {threads}}}"#));
            assert!(matches!(end.outcome, Outcome::Saved { resumed: false }), "{:?}", end.outcome);
            assert!(!end.vm.is_running());
            assert_holds(&path, &end.vm);
            assert!(SnapshotFile::open(&path).unwrap().index().running);
            assert_eq!((files(folder.path()), end.vm.calls(Call::DirtyLogStop)), (vec!["vm".to_owned()], 1));
        }
    }
}

#[test]
fn a_guest_may_go_on_and_a_paused_one_stays_paused() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("vm");
    for running in [true, false] {
        let mut vm = FakeVm::booted(Options::default()).unwrap();
        vm.set_running(running);
        let end = save(vm, &path, KEEP_RUNNING);
        assert!(matches!(end.outcome, Outcome::Saved { resumed: true }), "{:?}", end.outcome);
        assert_eq!(end.vm.is_running(), running);
        assert_eq!(SnapshotFile::open(&path).unwrap().index().running, running);
        if !running {
            assert_holds(&path, &end.vm);
        }
    }
}

#[test]
fn memory_goes_past_the_page_cache_or_the_save_says_why_not() {
    for folder in [tempfile::tempdir().unwrap(), tempfile::tempdir_in("/dev/shm").unwrap()] {
        let path = folder.path().join("vm");
        let options = Options { region_pages: vec![70, 900], ..Options::default() };
        let end = save(FakeVm::booted(options).unwrap(), &path, r#"{"direct-io": true}"#);
        match end.outcome {
            Outcome::Saved { .. } => assert_holds(&path, &end.vm),
            Outcome::Failed(error) => {
                assert_eq!(error.code(), "direct-io");
                assert!(error.text().contains("leave out direct-io") && files(folder.path()).is_empty());
            }
            other => panic!("{other:?}"),
        }
    }
}

#[test]
fn a_machine_that_fails_leaves_no_file() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("vm");
    for call in SOURCE_CALLS {
        // A file never gets the disks.
        if matches!(call, Call::DirtyLogStop | Call::ReleaseDisks | Call::Resume) {
            continue;
        }
        let mut vm = restless();
        vm.set_fail(Some((call, 0)));
        let end = save(vm, &path, "{}");
        assert!(matches!(end.outcome, Outcome::Failed(_)), "{call:?}: {:?}", end.outcome);
        assert!(end.vm.is_running() && files(folder.path()).is_empty(), "{call:?}");
    }
}

#[test]
fn one_path_has_one_writer_at_a_time() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("vm");
    let first = Partial::create(&path, false).unwrap();
    let end = save(restless(), &path, "{}");
    let Outcome::Failed(error) = end.outcome else { panic!("{:?}", end.outcome) };
    assert!(
        error.code() == "file-busy" && error.text().contains("already being written"),
        "{}",
        error.text()
    );
    assert!(end.vm.is_running());
    assert_eq!(files(folder.path()), ["vm.partial"], "the other's file is not touched");
    drop(first);
    assert!(files(folder.path()).is_empty());
    // A killed process leaves one.
    fs::write(folder.path().join("vm.partial"), [&b"TERNSNAP"[..], &[7; 5 << 20]].concat()).unwrap();
    let end = save(end.vm, &path, "{}");
    assert!(matches!(end.outcome, Outcome::Saved { .. }), "{:?}", end.outcome);
    assert_holds(&path, &end.vm);
    assert_eq!(files(folder.path()), ["vm"]);
}

#[test]
fn paths_that_can_not_be_files_are_named_before_anything_happens() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    fs::create_dir(at("folder")).unwrap();
    std::os::unix::fs::symlink("elsewhere", at("link")).unwrap();
    let _socket = std::os::unix::net::UnixListener::bind(at("socket")).unwrap();
    fs::create_dir(at("taken.partial")).unwrap();
    fs::write(at("disk"), [7; 4096]).unwrap();
    for (name, code, text) in [
        ("folder", "not-regular", "is a folder, not a regular file"),
        ("link", "not-regular", "is a symbolic link, not a regular file"),
        ("socket", "not-regular", "is a socket, not a regular file"),
        ("disk", "not-a-snapshot", "is a file, and no snapshot"),
        ("taken", "not-regular", "taken.partial is a folder"),
        ("none/vm", "file-create", "make its folder first"),
        ("..", "no-file-name", "names no file"),
    ] {
        let end = save(restless(), &at(name), "{}");
        let Outcome::Failed(error) = end.outcome else { panic!("{name}: {:?}", end.outcome) };
        assert!(error.code() == code && error.text().contains(text), "{name}: {}", error.text());
        assert!(end.vm.is_running() && end.vm.calls(Call::DirtyLogStart) == 0);
    }
    assert_eq!(files(folder.path()), ["disk", "folder", "link", "socket", "taken.partial"]);
    assert_eq!(fs::read(at("disk")).unwrap(), [7; 4096]);
    fs::write(at("empty"), "").unwrap();
    let end = save(restless(), &at("empty"), "{}");
    assert!(matches!(end.outcome, Outcome::Saved { .. }), "{:?}", end.outcome);
}

#[test]
fn a_state_that_nobody_could_read_is_not_written() {
    let folder = tempfile::tempdir().unwrap();
    let (control, path) = (control(), folder.path().join("vm"));
    let mut file = SaveFile::create(&path, &LiveParameters::default(), &control).unwrap();
    let mut state = vec![0; STATE_MAX_BYTES as usize + 1];
    let error = file.state(&state, true).unwrap_err();
    assert!(error.code() == "file-format" && error.text().contains("67108865"), "{}", error.text());
    state.pop();
    file.state(&state, true).unwrap();
}

#[test]
fn a_guest_that_stays_stopped_is_stopped_after_one_round() {
    let folder = tempfile::tempdir().unwrap();
    let (control, path) = (control(), folder.path().join("vm"));
    let uri = Uri::File { path: path.clone() };
    let options = Options {
        region_pages: vec![700, 3000],
        working_set_pages: 900,
        writes_per_call: 50,
        ..Options::default()
    };
    let live = live(r#"{"downtime-limit": 1}"#);
    let end = source::migrate_to(FakeVm::booted(options).unwrap(), &uri, &live, &control);
    assert!(matches!(end.outcome, Outcome::Saved { resumed: false }), "{:?}", end.outcome);
    assert_holds(&path, &end.vm);
    let stopped: Vec<bool> = control.report().rounds.iter().map(|round| round.stopped).collect();
    assert_eq!(stopped, [false, true]);
}

#[test]
fn the_report_has_the_figures_of_a_link() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("vm");
    let control = control();
    let uri = Uri::File { path: path.clone() };
    let end = source::migrate_to(restless(), &uri, &live(KEEP_RUNNING), &control);
    assert!(matches!(end.outcome, Outcome::Saved { resumed: true }));
    let report = control.report();
    assert_eq!((report.status, report.transport), (Status::Completed, "file"));
    assert_eq!(report.uri, Some(format!("file:{}", path.display())));
    assert_eq!(report.memory_bytes, 270 * PAGE_BYTES);
    assert!(report.rounds.len() >= 2 && report.pages.raw > 0 && report.bytes.state > 0);
    assert!(report.downtime.unwrap().total_us.is_some());
    let (proof, index) = (report.proof.unwrap(), SnapshotFile::open(&path).unwrap().index().clone());
    assert_eq!((proof.memory, proof.state), (Some(index.ram_hash), Some(index.state_hash)));
    assert!(proof.hash_us > 0 && proof.stopped_hash_us <= proof.hash_us, "{proof:?}");
    // Two blocks of tables, description, index, two heads: what isn't a page or state.
    let file_bytes = fs::metadata(&path).unwrap().len();
    assert!(report.bytes.messages > 2 * 4096 && report.bytes.messages < file_bytes);
}
