//! A migration is disturbed in each of its phases: cancelled, cut, damaged, or robbed of one side. A proxy stops
//! the stream at the frame that ends the phase, so there is no race. Before the commit the guest goes on at the
//! source and moves at the next try; after it nobody runs it twice.

use serde_json::json;
use tern_tests::{
    Direction, Fault, Frame, Incoming, Place, Proxy, PulseLog, Qmp, Tern, kvm_or_skip, migrate,
};

use Direction::{ToDestination, ToSource};

/// A phase: where the stream is held, and how the source calls it.
type Phase = (&'static str, Direction, Place, &'static str);

/// The phases in which a failure gives the guest back.
const BEFORE_COMMIT: [Phase; 6] = [
    ("nothing was said", ToDestination, Place::Byte(0), "setup"),
    ("the machine is offered", ToDestination, Place::Before(Frame::Offer), "setup"),
    ("the answer is on its way", ToSource, Place::Before(Frame::Agreed), "setup"),
    ("memory moves", ToDestination, Place::Inside(Frame::Pages), "active"),
    ("the guest is stopped", ToDestination, Place::Before(Frame::State), "device"),
    ("all is loaded", ToSource, Place::Before(Frame::Prepared), "device"),
];

/// More memory than fits into the sockets between the two: a source that is held while memory moves stays there.
const WORDS: &str = "ws=24M rate=2000 content=random interval=50";

/// A guest that runs, and a destination behind a link that holds at the phase's place; the migration is there.
fn held_at(phase: Phase) -> (Tern, Tern, Proxy) {
    let (what, direction, place, status) = phase;
    let (source, destination) = Tern::pulse(WORDS).start_pair(Incoming::Unix);
    source.wait_beats(1, 2);
    let proxy = Proxy::with(&destination.uri(), direction, place, Fault::Hold);
    let mut here = source.qmp();
    here.execute("migrate", json!({ "uri": proxy.uri() }));
    proxy.wait_fault();
    let found = here.wait_migrate(&[status]);
    assert_eq!(found["report"]["status"], status, "{what}");
    let state = here.state();
    let expected = if status == "device" { "finish-migrate" } else { "running" };
    assert_eq!(state, expected, "while {what}");
    (source, destination, proxy)
}

/// The guest goes on at the source, and then moves to `destination`.
fn goes_on_and_moves(source: &Tern, destination: &Tern) {
    source.qmp().wait_state(&["running"]);
    let before = source.pulse_log().beats.len();
    source.wait_beats(1, before + 2);
    migrate(source, destination);
    destination.wait_beats(1, 2);
    PulseLog::read(&(source.serial().text() + &destination.serial().text()));
}

#[test]
fn cancelled_in_each_phase() {
    if !kvm_or_skip() {
        return;
    }
    for phase in BEFORE_COMMIT {
        let (source, destination, proxy) = held_at(phase);
        let mut here = source.qmp();
        here.execute("migrate_cancel", json!({}));
        let answer = here.wait_migrate(&["cancelled"]);
        assert_eq!(answer["report"]["error"]["blame"], "cancelled", "{}: {answer:#}", phase.0);
        proxy.cut();
        goes_on_and_moves(&source, &destination);
    }
}

#[test]
fn the_destination_is_killed_in_each_phase() {
    if !kvm_or_skip() {
        return;
    }
    for phase in BEFORE_COMMIT {
        let (source, mut destination, proxy) = held_at(phase);
        destination.kill();
        proxy.cut();
        let answer = source.qmp().wait_migrate(&["failed"]);
        assert_eq!(answer["report"]["error"]["blame"], "link", "{}: {answer:#}", phase.0);
        let second = Tern::pulse(WORDS).incoming(Incoming::Tcp).start();
        goes_on_and_moves(&source, &second);
    }
}

#[test]
fn the_source_is_killed_in_each_phase() {
    if !kvm_or_skip() {
        return;
    }
    for phase in BEFORE_COMMIT {
        let (mut source, destination, proxy) = held_at(phase);
        source.kill();
        proxy.cut();
        let mut there = destination.qmp();
        // Who says nothing is turned away; it is no migration that could fail.
        if phase.0 != "nothing was said" {
            there.wait_migrate(&["failed"]);
        }
        there.wait_state(&["inmigrate"]);
        let another = Tern::pulse(WORDS).start();
        another.wait_beats(1, 2);
        goes_on_and_moves(&another, &destination);
    }
}

#[test]
fn the_link_breaks_or_lies() {
    if !kvm_or_skip() {
        return;
    }
    let cases = [
        (ToDestination, Place::Byte(3), Fault::Cut, "link"),
        (ToDestination, Place::Before(Frame::Offer), Fault::Truncate, "link"),
        (ToDestination, Place::Inside(Frame::Offer), Fault::Garble, "peer"),
        (ToSource, Place::Inside(Frame::Agreed), Fault::Garble, "protocol"),
        (ToDestination, Place::Before(Frame::Pages), Fault::Garble, "peer"),
        (ToDestination, Place::Inside(Frame::Pages), Fault::Garble, "peer"),
        (ToDestination, Place::Inside(Frame::Pages), Fault::Cut, "link"),
        (ToDestination, Place::Inside(Frame::RoundEnd), Fault::Truncate, "link"),
        (ToDestination, Place::Inside(Frame::State), Fault::Garble, "peer"),
        (ToDestination, Place::Inside(Frame::State), Fault::Truncate, "link"),
        (ToSource, Place::Before(Frame::Prepared), Fault::Cut, "link"),
        (ToSource, Place::Before(Frame::Prepared), Fault::Garble, "protocol"),
    ];
    let machine = Tern::pulse(WORDS);
    let (source, destination) = machine.start_pair(Incoming::Tcp);
    source.wait_beats(1, 2);
    for (direction, place, fault, blame) in cases {
        let proxy = Proxy::with(&destination.uri(), direction, place, fault);
        let mut here = source.qmp();
        here.execute("migrate", json!({ "uri": proxy.uri() }));
        proxy.wait_fault();
        let answer = here.wait_migrate(&["failed"]);
        // A destination that is robbed of its words may be heard or not.
        let found = answer["report"]["error"]["blame"].as_str().unwrap();
        assert!(found == blame || found == "link" || found == "peer", "{place:?} {fault:?}: {answer:#}");
        drop(proxy);
        source.qmp().wait_state(&["running"]);
        destination.qmp().wait_state(&["inmigrate"]);
    }
    goes_on_and_moves(&source, &destination);
}

/// A migration that has come to `place`, where `fault` holds or cuts it; and the source's control.
fn moving_into(
    source: &Tern,
    destination: &Tern,
    direction: Direction,
    place: Place,
    fault: Fault,
) -> (Proxy, Qmp) {
    let proxy = Proxy::with(&destination.uri(), direction, place, fault);
    let mut here = source.qmp();
    here.execute("migrate", json!({ "uri": proxy.uri() }));
    proxy.wait_fault();
    (proxy, here)
}

#[test]
fn too_late_to_cancel() {
    if !kvm_or_skip() {
        return;
    }
    let (source, destination) = Tern::pulse(WORDS).start_pair(Incoming::Unix);
    source.wait_beats(1, 2);
    let (proxy, mut here) =
        moving_into(&source, &destination, ToDestination, Place::Before(Frame::Commit), Fault::Hold);
    let error = here.try_execute("migrate_cancel", json!({})).unwrap_err();
    assert!(error["desc"].as_str().unwrap().contains("too late"), "{error}");
    proxy.release();
    here.wait_migrate(&["completed"]);
    destination.wait_beats(1, 2);
    PulseLog::read(&(source.serial().text() + &destination.serial().text()));
}

#[test]
fn in_doubt_and_the_destination_is_dead() {
    if !kvm_or_skip() {
        return;
    }
    let (source, mut destination) = Tern::pulse(WORDS).start_pair(Incoming::Unix);
    source.wait_beats(1, 2);
    let (_proxy, mut here) =
        moving_into(&source, &destination, ToDestination, Place::Before(Frame::Commit), Fault::Hold);
    destination.kill();
    here.wait_migrate(&["in-doubt"]);
    assert_eq!(here.wait_state(&["in-doubt"]), "in-doubt");
    let silent = source.serial().text();
    let error = here.try_execute("cont", json!({})).unwrap_err();
    assert!(error["desc"].as_str().unwrap().contains("migrate-resolve"), "{error}");
    assert_eq!(source.serial().text(), silent, "a guest that was given up printed something");
    here.execute("migrate-resolve", json!({ "resolution": "run" }));
    let second = Tern::pulse(WORDS).incoming(Incoming::Unix).start();
    goes_on_and_moves(&source, &second);
}

#[test]
fn a_doubt_settles_when_the_guest_runs_there() {
    if !kvm_or_skip() {
        return;
    }
    let (source, destination) = Tern::pulse(WORDS).start_pair(Incoming::Unix);
    source.wait_beats(1, 2);
    let (proxy, mut here) =
        moving_into(&source, &destination, ToSource, Place::Before(Frame::Running), Fault::Hold);
    destination.wait_beats(1, 2);
    proxy.cut();
    // The next connection goes through.
    let answer = here.wait_migrate(&["completed"]);
    let warnings = answer["report"]["warnings"].to_string();
    assert!(warnings.contains("in doubt until the destination has answered"), "{answer:#}");
    here.wait_state(&["postmigrate"]);
    let error = here.try_execute("migrate-resolve", json!({ "resolution": "run" })).unwrap_err();
    assert!(error["desc"].as_str().unwrap().contains("moved away"), "{error}");
    let second = Tern::pulse(WORDS).incoming(Incoming::Unix).start();
    migrate(&destination, &second);
    second.wait_beats(1, 2);
    PulseLog::read(&(source.serial().text() + &destination.serial().text() + &second.serial().text()));
}

#[test]
fn a_doubt_settles_when_commit_never_came() {
    if !kvm_or_skip() {
        return;
    }
    let (source, destination) = Tern::pulse(WORDS).start_pair(Incoming::Tcp);
    source.wait_beats(1, 2);
    let (_proxy, mut here) =
        moving_into(&source, &destination, ToDestination, Place::Before(Frame::Commit), Fault::Cut);
    let answer = here.wait_migrate(&["failed"]);
    assert!(answer["report"]["warnings"].to_string().contains("goes on here"), "{answer:#}");
    here.wait_state(&["running"]);
    destination.qmp().wait_state(&["inmigrate"]);
    goes_on_and_moves(&source, &destination);
}

#[test]
fn nobody_answers_and_a_person_discards_the_copy() {
    if !kvm_or_skip() {
        return;
    }
    let (mut source, destination) = Tern::pulse(WORDS).start_pair(Incoming::Unix);
    source.wait_beats(1, 2);
    let (proxy, mut here) =
        moving_into(&source, &destination, ToSource, Place::Before(Frame::Running), Fault::Hold);
    destination.wait_beats(1, 2);
    drop(proxy);
    let answer = here.wait_migrate(&["in-doubt"]);
    assert!(answer["doubt"]["advice"].as_str().unwrap().contains("resolve"), "{answer:#}");
    here.wait_state(&["in-doubt"]);
    PulseLog::read(&(source.serial().text() + &destination.serial().text()));
    here.execute("migrate-resolve", json!({ "resolution": "discard" }));
    assert!(source.wait_end().success());
    destination.wait_beats(1, 4);
}
