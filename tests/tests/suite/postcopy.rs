//! Guests that go on at the destination before all of their memory is there.

use serde_json::{Value, json};
use tern_tests::host::mounts_or_skip;
use tern_tests::limit::wait_for;
use tern_tests::{Incoming, Moved, Proxy, PulseLog, Qmp, Tern, kvm_or_skip};

/// Waits for the end on both sides, and checks what a post-copy must say of itself.
fn completed(source: &mut Qmp, destination: &mut Qmp) -> Moved {
    let from = source.wait_migrate(&["completed"]);
    let to = destination.wait_migrate(&["completed"]);
    let moved = Moved { source: from, destination: to };
    let (from, to) = (&moved.source["report"]["postcopy"], &moved.destination["report"]["postcopy"]);
    assert!(from["reason"].as_str().is_some_and(|text| !text.is_empty()), "{from:#}");
    let count = |report: &Value, name: &str| report[name].as_u64().unwrap();
    assert_eq!(count(from, "pages_missing"), count(to, "pages_missing"), "{from:#} {to:#}");
    assert_eq!((count(from, "pages_left"), count(to, "pages_left")), (0, 0));
    let came = count(to, "pages_by_request") + count(to, "pages_by_push");
    assert_eq!(came, count(to, "pages_missing"), "{to:#}");
    let proofs = [&moved.source, &moved.destination].map(|side| side["report"]["proof"]["memory"].clone());
    assert!(proofs[0].is_string() && proofs[0] == proofs[1], "{proofs:?}");
    moved
}

fn migrate(source: &Tern, destination: &Tern, parameters: Value) -> Moved {
    let mut here = source.qmp();
    here.execute("migrate", json!({ "uri": destination.uri(), "parameters": parameters }));
    completed(&mut here, &mut destination.qmp())
}

/// Moves a `pulse` there and, in the other way, back again, and reads all that it printed.
fn moves(cpus: u32, words: &str, ways: [(Incoming, Value); 2]) {
    let words = format!("{words} cpus={cpus} interval=50");
    let machine = Tern::pulse(&words).cpus(cpus);
    let mut here = machine.clone().start();
    here.wait_beats(cpus as usize, 2);
    let mut told = String::new();
    for (how, parameters) in ways {
        let there = machine.clone().incoming(how).start();
        let moved = migrate(&here, &there, parameters);
        let missing = moved.destination["report"]["postcopy"]["pages_missing"].as_u64();
        assert!(missing > Some(0), "{:#}", moved.destination["report"]["postcopy"]);
        there.wait_beats(cpus as usize, 3);
        told += &here.serial().text();
        assert!(here.quit().success());
        here = there;
    }
    PulseLog::read(&(told + &here.serial().text()));
}

fn hybrid() -> (Incoming, Value) {
    (Incoming::Unix, json!({ "postcopy": "auto", "downtime-limit": 1 }))
}

fn at_once(channels: u32, compress: &str) -> (Incoming, Value) {
    (Incoming::Tcp, json!({ "postcopy": "at-once", "channels": channels, "compress": compress }))
}

macro_rules! moves {
    ($($name:ident: $cpus:literal, $words:literal, $channels:literal, $compress:literal;)*) => {$(
        #[test]
        fn $name() {
            if kvm_or_skip() {
                moves($cpus, $words, [hybrid(), at_once($channels, $compress)]);
            }
        }
    )*};
}

moves! {
    pages_in_order: 1, "ws=16M rate=max pattern=seq bytes=64 content=random", 1, "none";
    lines_of_text_at_random: 2, "ws=16M rate=max pattern=random bytes=64 content=text", 4, "lz4";
    whole_pages_hot_and_cold: 3, "ws=16M rate=max pattern=hot bytes=4096 content=random", 2, "zstd";
    pages_that_turn_zero: 4, "ws=8M rate=max pattern=seq bytes=4096 content=zero", 1, "none";
}

#[test]
fn a_person_begins_it_and_what_comes_too_late_is_refused() {
    if !kvm_or_skip() {
        return;
    }
    let machine = Tern::pulse("ws=16M rate=max pattern=random bytes=64 content=random interval=50");
    let (source, destination) = machine.start_pair(Incoming::Unix);
    source.wait_beats(1, 2);
    let (mut here, mut there) = (source.qmp(), destination.qmp());
    let refused = |qmp: &mut Qmp, name: &str, arguments: Value, part: &str| {
        let error = qmp.try_execute(name, arguments).unwrap_err();
        assert!(error["desc"].as_str().unwrap().contains(part), "{error}");
    };
    refused(&mut here, "migrate-start-postcopy", json!({}), "no migration runs");
    // So slow that it is begun in the middle of the first round, and goes on for as long as this test looks.
    let parameters =
        json!({ "postcopy": "manual", "max-bandwidth": 4 << 20, "max-postcopy-bandwidth": 1 << 20 });
    here.execute("migrate", json!({ "uri": destination.uri(), "parameters": parameters }));
    here.wait_migrate(&["active"]);
    refused(&mut there, "migrate-start-postcopy", json!({}), "at the source");
    source.qmp().execute("migrate-start-postcopy", json!({}));
    here.wait_migrate(&["postcopy-active"]);
    there.wait_migrate(&["postcopy-active"]);
    assert_eq!((here.state().as_str(), there.state().as_str()), ("postmigrate", "running"));
    refused(&mut here, "migrate_cancel", json!({}), "the guest goes on at the destination");
    refused(&mut here, "quit", json!({}), "may be only here");
    refused(&mut here, "cont", json!({}), "moved away");
    let away = json!({ "uri": "unix:/nowhere" });
    refused(&mut there, "migrate", away, "still at the source");
    // Who runs is stopped and goes on, though not all of it is there.
    there.execute("stop", json!({}));
    assert_eq!(there.state(), "paused");
    there.execute("cont", json!({}));
    destination.wait_beats(1, 1);
    let faults = wait_for("a page that somebody waited for", || {
        let answer = there.execute("query-migrate", json!({}));
        answer["ram"]["postcopy-requests"].as_u64().filter(|count| *count > 0)
    });
    assert!(faults > 0);
    here.execute("migrate-set-parameters", json!({ "max-postcopy-bandwidth": 0 }));
    let moved = completed(&mut here, &mut there);
    let (from, to) = (&moved.source["report"]["postcopy"], &moved.destination["report"]["postcopy"]);
    assert_eq!(from["reason"], "it was asked for");
    assert!(to["faults"].as_u64() > Some(0) && to["fault_latency"]["p99_us"].as_u64() > Some(0), "{to:#}");
    assert_eq!(to["blocked"]["vcpus_us"].as_array().map(Vec::len), Some(1), "{to:#}");
    assert!(moved.destination["postcopy-blocktime"].is_u64(), "{:#}", moved.destination);
    let metrics = there.execute("query-metrics", json!({}));
    assert!(
        metrics["text"].as_str().unwrap().contains("tern_migration_postcopy_blocked_seconds{vcpu=\"all\"}")
    );
    destination.wait_beats(1, 3);
    PulseLog::read(&(source.serial().text() + &destination.serial().text()));
    assert!(source.quit().success());
}

#[test]
fn a_destination_that_may_not_use_userfaultfd_says_so_before_anything_moves() {
    if !kvm_or_skip() || !mounts_or_skip() {
        return;
    }
    // Not root of the host, and no device.
    let device = "/dev/userfaultfd";
    let closed = format!("mount --bind {device} {device}; mount -o remount,bind,nodev {device}");
    let guest = || Tern::pulse("ws=4M rate=1000 interval=50");
    let source = guest().start();
    let destination = guest().incoming(Incoming::Unix).inside(&closed).start();
    source.wait_beats(1, 2);
    let mut here = source.qmp();
    let request = json!({ "uri": destination.uri(), "parameters": { "postcopy": "auto" } });
    here.execute("migrate-check", request.clone());
    let found = wait_for("the end of a check", || {
        let answer = here.execute("query-migrate-check", json!({}));
        (answer["status"] != "active").then_some(answer)
    });
    let text = found.to_string();
    assert!(text.contains("post-copy") && text.contains("setfacl") && text.contains("sysctl"), "{found:#}");
    here.execute("migrate", request);
    let refused = here.wait_migrate(&["failed"]);
    assert!(refused["error-desc"].as_str().unwrap().contains("setfacl"), "{refused:#}");
    // Without it the guest moves.
    here.wait_state(&["running"]);
    tern_tests::migrate(&source, &destination);
    destination.wait_beats(1, 2);
    PulseLog::read(&(source.serial().text() + &destination.serial().text()));
}

/// A guest that needs its pages one after the other, for a long time: it goes on at the destination before a page was sent.
fn begun(source: &Tern, uri: &str) -> Qmp {
    source.wait_beats(1, 2);
    let mut here = source.qmp();
    let parameters = json!({ "postcopy": "at-once", "max-postcopy-bandwidth": 256 << 10 });
    here.execute("migrate", json!({ "uri": uri, "parameters": parameters }));
    here.wait_migrate(&["postcopy-active"]);
    here
}

const SLOW: &str = "ws=32M rate=100 pattern=random bytes=64 content=random interval=50";

fn healed(qmp: &mut Qmp) -> usize {
    let answer = qmp.execute("query-migrate", json!({}));
    assert_ne!(answer["status"], "completed", "it was over before the last cut: {answer:#}");
    answer["report"]["postcopy"]["healing_us"].as_array().map_or(0, Vec::len)
}

#[test]
fn fifty_cuts_in_one_migration_lose_no_page() {
    const CUTS: usize = 50;
    if !kvm_or_skip() {
        return;
    }
    let (source, destination) = Tern::pulse(SLOW).start_pair(Incoming::Unix);
    let proxy = Proxy::new(&destination.uri());
    let mut here = begun(&source, &proxy.uri());
    let mut there = destination.qmp();
    for cut in 1..=CUTS {
        // A cut in the middle of a recovery counts for both.
        let before = healed(&mut here);
        proxy.cut();
        if cut % 5 == 0 {
            proxy.cut();
        }
        wait_for("the connections after a cut", || (healed(&mut here) > before).then_some(()));
    }
    here.execute("migrate-set-parameters", json!({ "max-postcopy-bandwidth": 0 }));
    let moved = completed(&mut here, &mut there);
    let (from, to) = (&moved.source["report"]["postcopy"], &moved.destination["report"]["postcopy"]);
    assert!(from["pauses"].as_u64() >= Some(CUTS as u64), "{from:#}");
    assert!(to["healing_us"].as_array().map(Vec::len) >= Some(CUTS), "{to:#}");
    destination.wait_beats(1, 3);
    PulseLog::read(&(source.serial().text() + &destination.serial().text()));
}

#[test]
fn a_person_pauses_it_again_and_again_and_it_goes_on_by_itself() {
    if !kvm_or_skip() {
        return;
    }
    let (source, destination) = Tern::pulse(SLOW).start_pair(Incoming::Tcp);
    let mut here = begun(&source, &destination.uri());
    let mut there = destination.qmp();
    for _ in 0..2 {
        let before = healed(&mut here);
        here.execute("migrate-pause", json!({}));
        wait_for("the connections after a pause", || (healed(&mut here) > before).then_some(()));
    }
    here.execute("migrate-set-parameters", json!({ "max-postcopy-bandwidth": 0 }));
    completed(&mut here, &mut there);
    destination.wait_beats(1, 3);
    PulseLog::read(&(source.serial().text() + &destination.serial().text()));
}

const BROKEN: &[&str] = &["postcopy-paused", "postcopy-recover"];

#[test]
fn where_the_destination_is_killed_the_source_runs_the_guest_from_the_switch_if_a_person_says_so() {
    if !kvm_or_skip() {
        return;
    }
    let (source, mut destination) = Tern::pulse(SLOW).start_pair(Incoming::Unix);
    let mut here = begun(&source, &destination.uri());
    destination.kill();
    let broken = here.wait_migrate(BROKEN);
    assert!(broken["report"]["postcopy"]["paused_by"].is_string(), "{broken:#}");
    let error = here.try_execute("cont", json!({})).unwrap_err();
    assert!(error["desc"].as_str().unwrap().contains("moved away"), "{error}");
    let before = source.pulse_log().beats.len();
    here.execute("migrate-resolve", json!({ "resolution": "run" }));
    here.wait_state(&["running"]);
    source.wait_beats(1, before + 3);
    let after = here.wait_migrate(&["failed"]);
    assert!(after["report"]["warnings"].to_string().contains("is lost"), "{after:#}");
    PulseLog::read(&source.serial().text());
}

#[test]
fn where_the_source_is_killed_the_destination_says_what_is_missing_and_can_be_ended() {
    if !kvm_or_skip() {
        return;
    }
    let (mut source, mut destination) = Tern::pulse(SLOW).start_pair(Incoming::Unix);
    drop(begun(&source, &destination.uri()));
    let mut there = destination.qmp();
    there.wait_migrate(&["postcopy-active"]);
    source.kill();
    let broken = there.wait_migrate(BROKEN);
    let postcopy = &broken["report"]["postcopy"];
    assert!(postcopy["paused_by"].is_string() && postcopy["pages_left"].as_u64() > Some(0), "{broken:#}");
    // A vCPU may wait for a page that never comes.
    let error = there.try_execute("stop", json!({})).unwrap_err();
    assert!(error["desc"].as_str().unwrap().contains("still at the source"), "{error}");
    there.execute("quit", json!({}));
    destination.wait_end();
    assert!(destination.stderr().contains("still at the source"), "{}", destination.stderr());
}
