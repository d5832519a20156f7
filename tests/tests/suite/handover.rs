//! The switch and what is around it: the disks' locks, the wait for the manager, and sides that stall, with real guests.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::time::Instant;

use serde_json::{Value, json};
use tern_tests::{Direction, Fault, Frame, Incoming, Place, Proxy, PulseLog, Tern, kvm_or_skip, migrate};

const WORDS: &str = "ws=24M rate=2000 content=random interval=50";

fn disk(folder: &Path, name: &str) -> PathBuf {
    let path = folder.join(name);
    File::create(&path).unwrap().set_len(1 << 20).unwrap();
    path
}

/// Both sides' output is one guest's: every page that it looked at was right.
fn is_one_guest(sides: &[&Tern]) {
    PulseLog::read(&sides.iter().map(|side| side.serial().text()).collect::<String>());
}

fn text(error: &Value) -> &str {
    error["desc"].as_str().unwrap()
}

#[test]
fn a_disk_has_one_owner_and_goes_with_the_guest() {
    if !kvm_or_skip() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let disk = disk(folder.path(), "disk");
    let machine = || Tern::pulse(WORDS).disk(&disk);
    let (source, destination) = machine().start_pair(Incoming::Unix);
    source.wait_beats(1, 2);
    let refused = |owner: &Tern| {
        let other = machine().start_to_end();
        let said = other.stderr();
        assert!(
            said.contains(&format!("process {} (", owner.pid())) && said.contains("end that first"),
            "{said}"
        );
    };
    refused(&source);
    migrate(&source, &destination);
    destination.wait_beats(1, 2);
    refused(&destination);
    is_one_guest(&[&source, &destination]);
    assert!(destination.quit().success());
    machine().start().wait_beats(1, 1);
}

#[test]
fn a_destination_without_its_disk_holds_the_guest_until_it_is_free() {
    if !kvm_or_skip() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let [here, there] = ["here", "there"].map(|name| disk(folder.path(), name));
    let source = Tern::pulse(WORDS).disk(&here).start();
    source.wait_beats(1, 2);
    let destination = Tern::pulse(WORDS).disk(&there).incoming(Incoming::Unix).start();
    let thief = Tern::pulse("ws=1M interval=50").disk(&there).start();
    let mut near = source.qmp();
    near.execute("migrate", json!({ "uri": destination.uri() }));
    let mut far = destination.qmp();
    let answer = far.wait_migrate(&["failed"]);
    assert!(
        answer["error-desc"].as_str().unwrap().contains(&format!("process {}", thief.pid())),
        "{answer:#}"
    );
    far.wait_state(&["paused"]);
    near.wait_state(&["in-doubt"]);
    tern_tests::limit::wait_for("the destination's answer", || {
        (near.execute("query-migrate", json!({}))["doubt"]["answer"] == "held").then_some(())
    });
    let error = near.try_execute("migrate-resolve", json!({ "resolution": "run" })).unwrap_err();
    assert!(text(&error).contains("the destination has the guest"), "{error}");
    let error = far.try_execute("cont", json!({})).unwrap_err();
    assert!(text(&error).contains(&format!("process {}", thief.pid())), "{error}");
    assert!(thief.quit().success());
    far.execute("cont", json!({}));
    destination.wait_beats(1, 2);
    near.wait_migrate(&["completed"]);
    is_one_guest(&[&source, &destination]);
}

#[test]
fn the_guest_runs_while_the_manager_does_its_work() {
    if !kvm_or_skip() {
        return;
    }
    let (source, destination) = Tern::pulse(WORDS).start_pair(Incoming::Tcp);
    source.wait_beats(1, 2);
    let mut near = source.qmp();
    let error = near.try_execute("migrate-continue", json!({ "state": "pre-switchover" })).unwrap_err();
    assert!(text(&error).contains("no migration waits"), "{error}");
    let capabilities = json!([{ "capability": "pause-before-switchover", "state": true }]);
    near.execute("migrate", json!({ "uri": destination.uri(), "capabilities": capabilities }));
    near.wait_migrate(&["pre-switchover"]);
    assert_eq!(near.state(), "running");
    let before = source.pulse_log().beats.len();
    source.wait_beats(1, before + 20);
    near.execute("migrate-continue", json!({ "state": "pre-switchover" }));
    near.wait_migrate(&["completed"]);
    destination.wait_beats(1, 2);
    is_one_guest(&[&source, &destination]);
}

#[test]
fn a_manager_who_says_nothing_ends_the_migration_and_the_next_one_works() {
    if !kvm_or_skip() {
        return;
    }
    let (source, destination) = Tern::pulse(WORDS).start_pair(Incoming::Unix);
    source.wait_beats(1, 2);
    let mut near = source.qmp();
    let capabilities = json!([{ "capability": "pause-before-switchover", "state": true }]);
    let parameters = json!({ "switchover-limit": 300 });
    let request = json!({ "uri": destination.uri(), "capabilities": capabilities, "parameters": parameters });
    near.execute("migrate", request);
    let answer = near.wait_migrate(&["failed"]);
    assert_eq!(answer["report"]["error"]["code"], "not-continued", "{answer:#}");
    near.wait_state(&["running"]);
    migrate(&source, &destination);
    destination.wait_beats(1, 2);
    is_one_guest(&[&source, &destination]);
}

#[test]
fn a_cancel_does_not_wait_for_a_destination_that_stands_still() {
    if !kvm_or_skip() {
        return;
    }
    let (source, destination) = Tern::pulse(WORDS).start_pair(Incoming::Unix);
    source.wait_beats(1, 2);
    let capabilities = json!([{ "capability": "pause-before-switchover", "state": true }]);
    for (status, limit) in [("active", 0), ("pre-switchover", 0), ("active", 1 << 20)] {
        let mut near = source.qmp();
        let proxy = match status {
            "active" => Some(Proxy::with(
                &destination.uri(),
                Direction::ToDestination,
                Place::Inside(Frame::Pages),
                Fault::Hold,
            )),
            _ => None,
        };
        let uri = proxy.as_ref().map_or_else(|| destination.uri(), Proxy::uri);
        let parameters = json!({ "max-bandwidth": limit });
        let request = json!({ "uri": uri, "capabilities": capabilities, "parameters": parameters });
        near.execute("migrate", request);
        near.wait_migrate(&[status]);
        destination.signal(libc::SIGSTOP);
        let asked = Instant::now();
        near.execute("migrate_cancel", json!({}));
        let answered = asked.elapsed();
        near.wait_migrate(&["cancelled"]);
        println!("cancel in {status}: answered in {answered:?}, carried out in {:?}", asked.elapsed());
        near.wait_state(&["running"]);
        destination.signal(libc::SIGCONT);
        drop(proxy);
        destination.qmp().wait_state(&["inmigrate"]);
        let before = source.pulse_log().beats.len();
        source.wait_beats(1, before + 2);
    }
    migrate(&source, &destination);
    destination.wait_beats(1, 2);
    is_one_guest(&[&source, &destination]);
}

#[test]
fn a_destination_that_stands_still_after_commit_is_asked_until_it_answers() {
    if !kvm_or_skip() {
        return;
    }
    let (source, destination) = Tern::pulse(WORDS).start_pair(Incoming::Tcp);
    source.wait_beats(1, 2);
    let proxy =
        Proxy::with(&destination.uri(), Direction::ToSource, Place::Before(Frame::Running), Fault::Hold);
    let mut near = source.qmp();
    near.execute("migrate", json!({ "uri": proxy.uri() }));
    proxy.wait_fault();
    destination.signal(libc::SIGSTOP);
    proxy.cut();
    near.wait_migrate(&["in-doubt"]);
    let error = near.try_execute("cont", json!({})).unwrap_err();
    assert!(text(&error).contains("migrate-resolve"), "{error}");
    destination.signal(libc::SIGCONT);
    near.wait_migrate(&["completed"]);
    destination.wait_beats(1, 2);
    is_one_guest(&[&source, &destination]);
}

#[test]
fn the_source_stands_still_in_each_phase_and_goes_on() {
    if !kvm_or_skip() {
        return;
    }
    let places = [
        (Direction::ToDestination, Place::Before(Frame::Offer)),
        (Direction::ToDestination, Place::Before(Frame::State)),
        (Direction::ToSource, Place::Before(Frame::Prepared)),
        (Direction::ToSource, Place::Before(Frame::Running)),
    ];
    for (direction, place) in places {
        let (source, destination) = Tern::pulse(WORDS).start_pair(Incoming::Unix);
        source.wait_beats(1, 2);
        let proxy = Proxy::with(&destination.uri(), direction, place, Fault::Hold);
        source.qmp().execute("migrate", json!({ "uri": proxy.uri() }));
        proxy.wait_fault();
        source.signal(libc::SIGSTOP);
        proxy.release();
        // The destination answers meanwhile.
        destination.qmp().execute("query-migrate", json!({}));
        source.signal(libc::SIGCONT);
        source.qmp().wait_migrate(&["completed"]);
        destination.wait_beats(1, 2);
        is_one_guest(&[&source, &destination]);
    }
}
