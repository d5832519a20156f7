//! One of the two processes is killed or stands still where `phases.rs` and `handover.rs` don't look: before the switch,
//! while the manager has its say; around COMMIT; and a destination that stands still, for a moment or for good.

use std::fs::File;
use std::path::Path;
use std::process::Command;

use serde_json::{Value, json};
use tern_tests::binary::tern_binary;
use tern_tests::{Direction, Fault, Frame, Incoming, Place, Proxy, PulseLog, Tern, kvm_or_skip, migrate};

use Direction::{ToDestination, ToSource};

const WORDS: &str = "ws=24M rate=2000 content=random interval=50";

/// A guest that runs, and a destination behind a link that holds here; the migration is there.
fn held_at(direction: Direction, place: Place) -> (Tern, Tern, Proxy) {
    let (source, destination) = Tern::pulse(WORDS).start_pair(Incoming::Unix);
    source.wait_beats(1, 2);
    let proxy = Proxy::with(&destination.uri(), direction, place, Fault::Hold);
    source.qmp().execute("migrate", json!({ "uri": proxy.uri() }));
    proxy.wait_fault();
    (source, destination, proxy)
}

/// As [`held_at`], with a guest that runs and waits for its manager.
fn before_the_switch() -> (Tern, Tern) {
    let (source, destination) = Tern::pulse(WORDS).start_pair(Incoming::Unix);
    source.wait_beats(1, 2);
    let capabilities = json!([{ "capability": "pause-before-switchover", "state": true }]);
    let mut near = source.qmp();
    near.execute("migrate", json!({ "uri": destination.uri(), "capabilities": capabilities }));
    near.wait_migrate(&["pre-switchover"]);
    (source, destination)
}

/// Two beats more than there were.
fn goes_on(owner: &Tern) {
    let beats = owner.serial().text().matches("\nB ").count();
    owner.serial().wait("beats", |text| (text.matches("\nB ").count() > beats + 1).then_some(()));
}

fn tern(control: &Tern, words: &[&str]) -> (bool, String) {
    let mut command = Command::new(tern_binary());
    let output = command.args(words).arg("--control").arg(control.control()).output().unwrap();
    let said = [output.stdout, output.stderr].map(|bytes| String::from_utf8_lossy(&bytes).into_owned());
    (output.status.success(), said.concat())
}

fn is_one_guest(sides: &[&Tern]) {
    PulseLog::read(&sides.iter().map(|side| side.serial().text()).collect::<String>());
}

fn code(answer: &Value) -> &str {
    answer["report"]["error"]["code"].as_str().unwrap_or_default()
}

#[test]
fn a_destination_that_dies_before_the_switch_leaves_the_guest_running() {
    if !kvm_or_skip() {
        return;
    }
    let (source, mut destination) = before_the_switch();
    destination.kill();
    // Nobody says `migrate-continue`: that the peer has gone is seen all the same.
    let answer = source.qmp().wait_migrate(&["failed"]);
    assert_eq!(answer["report"]["error"]["blame"], "link", "{answer:#}");
    source.qmp().wait_state(&["running"]);
    goes_on(&source);
    let second = Tern::pulse(WORDS).incoming(Incoming::Unix).start();
    migrate(&source, &second);
    second.wait_beats(1, 2);
    is_one_guest(&[&source, &second]);
}

#[test]
fn a_source_that_dies_before_the_switch_leaves_a_destination_that_waits_for_the_next() {
    if !kvm_or_skip() {
        return;
    }
    let (mut source, destination) = before_the_switch();
    source.kill();
    destination.qmp().wait_migrate(&["failed"]);
    destination.qmp().wait_state(&["inmigrate"]);
    let another = Tern::pulse(WORDS).start();
    another.wait_beats(1, 2);
    migrate(&another, &destination);
    destination.wait_beats(1, 2);
    is_one_guest(&[&another, &destination]);
}

#[test]
fn a_source_that_dies_when_commit_has_come_leaves_a_guest_that_runs_and_moves_on() {
    if !kvm_or_skip() {
        return;
    }
    let (mut source, destination, proxy) = held_at(ToSource, Place::Before(Frame::Running));
    source.kill();
    proxy.cut();
    let answer = destination.qmp().wait_migrate(&["completed"]);
    // Nobody has said how long the whole stop was.
    assert!(answer["report"]["downtime"]["total_us"].is_null(), "{answer:#}");
    destination.qmp().wait_state(&["running"]);
    goes_on(&destination);
    let third = Tern::pulse(WORDS).incoming(Incoming::Unix).start();
    migrate(&destination, &third);
    third.wait_beats(1, 2);
    is_one_guest(&[&source, &destination, &third]);
}

#[test]
fn a_source_that_dies_with_its_commit_on_the_way_leaves_no_half_guest() {
    if !kvm_or_skip() {
        return;
    }
    let (mut source, destination, proxy) = held_at(ToDestination, Place::Before(Frame::Commit));
    source.kill();
    proxy.cut();
    destination.qmp().wait_migrate(&["failed"]);
    destination.qmp().wait_state(&["inmigrate"]);
    assert_eq!(destination.serial().text(), "", "a guest that was never handed over has run");
    let another = Tern::pulse(WORDS).start();
    another.wait_beats(1, 2);
    migrate(&another, &destination);
    destination.wait_beats(1, 2);
    is_one_guest(&[&another, &destination]);
}

#[test]
fn a_destination_that_dies_with_the_guest_is_resolved_by_a_person() {
    if !kvm_or_skip() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let disk = folder.path().join("disk");
    File::create(&disk).unwrap().set_len(1 << 20).unwrap();
    let machine = || Tern::pulse(WORDS).disk(Path::new(&disk));
    let (source, mut destination) = machine().start_pair(Incoming::Unix);
    source.wait_beats(1, 2);
    let uri = destination.uri();
    let proxy = Proxy::with(&uri, ToSource, Place::Before(Frame::Running), Fault::Hold);
    source.qmp().execute("migrate", json!({ "uri": proxy.uri() }));
    proxy.wait_fault();
    destination.wait_beats(1, 1);
    // While it lives it has the disk, whatever a person says here.
    drop(proxy);
    source.qmp().wait_migrate(&["in-doubt"]);
    let (done, said) = tern(&source, &["migrate", "--resolve", "run"]);
    assert!(!done && said.contains(&format!("process {}", destination.pid())), "{said}");
    let (done, said) = tern(&source, &["status"]);
    for part in ["in-doubt", "--resolve run", "--resolve discard"] {
        assert!(done && said.contains(part), "{part:?} is not in:\n{said}");
    }
    destination.kill();
    let (done, said) = tern(&source, &["migrate", "--resolve", "run"]);
    assert!(done, "{said}");
    source.qmp().wait_state(&["running"]);
    goes_on(&source);
    let second = machine().incoming(Incoming::Unix).start();
    migrate(&source, &second);
    second.wait_beats(1, 2);
    is_one_guest(&[&source, &second]);
}

#[test]
fn a_destination_stands_still_in_each_phase_and_goes_on() {
    if !kvm_or_skip() {
        return;
    }
    let places = [
        (ToDestination, Place::Byte(0)),
        (ToDestination, Place::Before(Frame::Offer)),
        (ToDestination, Place::Inside(Frame::Pages)),
        (ToDestination, Place::Before(Frame::State)),
        (ToSource, Place::Before(Frame::Prepared)),
        (ToDestination, Place::Before(Frame::Commit)),
    ];
    let machine = Tern::pulse(WORDS);
    let mut here = machine.clone().start();
    let mut told = String::new();
    for (direction, place) in places {
        let there = machine.clone().incoming(Incoming::Unix).start();
        here.wait_beats(1, 2);
        let proxy = Proxy::with(&there.uri(), direction, place, Fault::Hold);
        here.qmp().execute("migrate", json!({ "uri": proxy.uri() }));
        proxy.wait_fault();
        there.signal(libc::SIGSTOP);
        proxy.release();
        // The source answers meanwhile.
        here.qmp().execute("query-migrate", json!({}));
        there.signal(libc::SIGCONT);
        here.qmp().wait_migrate(&["completed"]);
        there.qmp().wait_migrate(&["completed"]);
        there.wait_beats(1, 2);
        told += &here.serial().text();
        here = there;
    }
    PulseLog::read(&(told + &here.serial().text()));
}

/// It takes as long as the engine waits for a silent peer; all three wait at the same time.
#[test]
fn a_destination_that_stands_still_for_good_is_given_up_and_the_next_migration_works() {
    if !kvm_or_skip() {
        return;
    }
    let places = [Place::Before(Frame::Offer), Place::Inside(Frame::Pages), Place::Before(Frame::State)];
    let held = places.map(|place| held_at(ToDestination, place));
    for (_, destination, proxy) in &held {
        destination.signal(libc::SIGSTOP);
        proxy.release();
    }
    for (place, (source, destination, _)) in places.into_iter().zip(&held) {
        let answer = source.qmp().wait_migrate(&["failed"]);
        assert_eq!(code(&answer), "link-stalled", "{place:?}: {answer:#}");
        source.qmp().wait_state(&["running"]);
        goes_on(source);
        destination.signal(libc::SIGCONT);
        // What it finds in its buffers is no whole migration.
        destination.qmp().wait_state(&["inmigrate"]);
        migrate(source, destination);
        destination.wait_beats(1, 2);
        is_one_guest(&[source, destination]);
    }
}
