//! Guests that move: over both transports, idle and writing, with one and several vCPUs, paused, twenty times in
//! a row, and two at once.

use serde_json::json;
use tern_tests::migrate::migrate_to;
use tern_tests::{Incoming, Moved, PulseLog, Tern, kvm_or_skip, migrate};

/// Moves a `pulse` of `words` once, and checks both processes, both reports and everything that it printed.
fn moves(how: Incoming, cpus: u32, words: &str) -> Moved {
    let words = format!("{words} cpus={cpus} interval=50");
    let (source, destination) = Tern::pulse(&words).cpus(cpus).start_pair(how);
    assert_eq!(destination.qmp().state(), "inmigrate");
    source.wait_beats(cpus as usize, 3);
    let moved = migrate(&source, &destination);
    assert_eq!((source.qmp().state(), destination.qmp().state()), ("postmigrate".into(), "running".into()));
    destination.wait_beats(cpus as usize, 4);
    let log = PulseLog::read(&(source.serial().text() + &destination.serial().text()));
    assert!(log.reached() >= Some(6), "{:?}", log.reached());
    check_reports(&moved, if how == Incoming::Tcp { "tcp" } else { "unix" });
    moved
}

fn check_reports(moved: &Moved, transport: &str) {
    let (from, to) = (&moved.source["report"], &moved.destination["report"]);
    assert_eq!((&from["side"], &to["side"]), (&json!("source"), &json!("destination")));
    assert_eq!((&from["transport"], &to["transport"]), (&json!(transport), &json!(transport)));
    assert!(from["session"].as_str().is_some_and(|id| !id.is_empty()) && from["session"] == to["session"]);
    assert_eq!(from["memory_bytes"], 64 << 20);
    assert_eq!(from["pages"]["raw"], to["pages"]["raw"], "both sides count the same pages");
    let pages = ["raw", "zero", "untouched"].map(|kind| from["pages"][kind].as_u64().unwrap());
    assert!(pages.iter().sum::<u64>() >= (64 << 20) / 4096, "not all of memory is accounted for: {from:#}");
    let rounds = from["rounds"].as_array().unwrap();
    assert!(rounds.len() >= 2 && rounds.last().unwrap()["stopped"] == true, "{rounds:?}");
    let downtime = |part: &str| from["downtime"][part].as_u64().unwrap();
    assert!(downtime("total_us") > 0 && downtime("total_us") < moved.total_us());
    let parts = ["stop_us", "state_save_us", "final_ram_us", "state_send_us", "commit_us"];
    assert!(parts.map(downtime).iter().sum::<u64>() <= downtime("total_us"), "{:#}", from["downtime"]);
    // QMP's own fields, for its own clients.
    assert!(moved.source["downtime"].as_u64().unwrap() >= downtime("total_us") / 1000);
    assert_eq!(moved.source["ram"]["total"], 64 << 20);
}

/// What memory is on a host is no business of the guest's, nor of the other host's.
#[test]
fn memory_of_other_kinds_moves_both_ways() {
    if !kvm_or_skip() {
        return;
    }
    let kinds = [("anon,thp=on", "memfd"), ("memfd", "anon,thp=off")];
    for (here, there) in kinds {
        let guest = || Tern::pulse("ws=8M rate=2000 interval=50");
        let memory = |kind| format!("64M,backing={kind}");
        let destination = guest().memory(&memory(there)).incoming(Incoming::Unix).start();
        let source = guest().memory(&memory(here)).start();
        source.wait_beats(1, 3);
        let moved = migrate(&source, &destination);
        destination.wait_beats(1, 4);
        PulseLog::read(&(source.serial().text() + &destination.serial().text()));
        let untouched = moved.source["report"]["pages"]["untouched"].as_u64().unwrap();
        assert!(untouched > 4096, "{here} to {there}: only {untouched} pages are known to be untouched");
    }
}

macro_rules! moves {
    ($($name:ident: $how:ident, $cpus:literal, $words:literal;)*) => {$(
        #[test]
        fn $name() {
            if kvm_or_skip() {
                moves(Incoming::$how, $cpus, $words);
            }
        }
    )*};
}

moves! {
    an_idle_guest_over_unix: Unix, 1, "ws=0";
    an_idle_guest_over_tcp: Tcp, 1, "ws=0";
    two_idle_cpus: Tcp, 2, "ws=0 nap=10";
    four_idle_cpus: Unix, 4, "ws=0";
    one_byte_of_constant_pages: Unix, 1, "ws=16M rate=4000 pattern=seq bytes=1 content=constant";
    a_line_of_text_pages_at_random: Tcp, 2, "ws=16M rate=max pattern=random bytes=64 content=text";
    whole_random_pages_hot_and_cold: Unix, 4, "ws=16M rate=8000 pattern=hot bytes=4096 content=random";
    pages_that_turn_zero: Tcp, 1, "ws=8M rate=max pattern=seq bytes=4096 content=zero";
    two_cpus_at_full_speed: Unix, 2, "ws=32M rate=max pattern=seq bytes=64 content=random";
}

#[test]
fn untouched_and_zero_memory_is_not_sent() {
    if !kvm_or_skip() {
        return;
    }
    let moved = moves(Incoming::Unix, 1, "ws=0");
    let sent = moved.source["report"]["bytes"]["page_data"].as_u64().unwrap();
    assert!(sent < 4 << 20, "{sent} bytes of an idle guest of 64 MiB were sent");
}

#[test]
fn a_paused_guest_arrives_paused() {
    if !kvm_or_skip() {
        return;
    }
    let (source, destination) = Tern::pulse("ws=4M rate=max interval=50").start_pair(Incoming::Unix);
    source.wait_beats(1, 3);
    source.qmp().execute("stop", json!({}));
    migrate(&source, &destination);
    let mut there = destination.qmp();
    assert_eq!(there.state(), "paused");
    assert_eq!(destination.serial().text(), "", "a paused guest printed something");
    there.execute("cont", json!({}));
    there.wait_event("RESUME");
    destination.wait_beats(1, 3);
    PulseLog::read(&(source.serial().text() + &destination.serial().text()));
}

#[test]
fn a_guest_that_never_ran_arrives_and_starts() {
    if !kvm_or_skip() {
        return;
    }
    let destination = Tern::pulse("").incoming(Incoming::Unix).start();
    let source = Tern::pulse("ws=4M rate=1000 interval=50").flag("--paused").start();
    assert_eq!(source.qmp().state(), "paused");
    migrate(&source, &destination);
    destination.qmp().execute("cont", json!({}));
    destination.wait_beats(1, 3);
    assert!(source.serial().text().is_empty());
    assert!(destination.pulse_log().ready);
}

#[test]
fn twenty_moves_in_a_row() {
    if !kvm_or_skip() {
        return;
    }
    let machine = Tern::pulse("ws=8M rate=max pattern=random content=text cpus=2 interval=50").cpus(2);
    let mut here = machine.clone().start();
    here.wait_beats(2, 2);
    let mut told = String::new();
    for number in 0..20 {
        let how = if number % 2 == 0 { Incoming::Unix } else { Incoming::Tcp };
        let there = machine.clone().incoming(how).start();
        migrate(&here, &there);
        there.wait_beats(2, 2);
        told += &here.serial().text();
        assert!(here.quit().success());
        here = there;
    }
    let log = PulseLog::read(&(told + &here.serial().text()));
    assert!(log.reached() >= Some(40), "{:?}", log.reached());
}

#[test]
fn two_guests_cross_side_by_side() {
    if !kvm_or_skip() {
        return;
    }
    let pairs = ["ws=8M rate=2000 content=text interval=50", "ws=8M rate=2000 content=random interval=50"]
        .map(|words| Tern::pulse(words).start_pair(Incoming::Unix));
    for (source, _) in &pairs {
        source.wait_beats(1, 2);
    }
    // Both are under way before either is waited for.
    let mut clients: Vec<_> = pairs.iter().map(|(source, _)| source.qmp()).collect();
    for (client, (_, destination)) in clients.iter_mut().zip(&pairs) {
        client.execute("migrate", json!({ "uri": destination.uri() }));
    }
    for (client, (source, destination)) in clients.iter_mut().zip(&pairs) {
        client.wait_migrate(&["completed"]);
        destination.wait_beats(1, 3);
        PulseLog::read(&(source.serial().text() + &destination.serial().text()));
    }
}

#[test]
fn a_guest_moves_into_a_process_that_learns_later_where_to_listen() {
    if !kvm_or_skip() {
        return;
    }
    let (source, destination) = Tern::pulse("ws=1M rate=1000 interval=50").start_pair(Incoming::Defer);
    let mut there = destination.qmp();
    let uri = format!("unix:{}", destination.folder().join("later").display());
    let error = there.try_execute("migrate-incoming", json!({ "uri": "carrier-pigeon:x" })).unwrap_err();
    assert!(error["desc"].as_str().unwrap().contains("carrier-pigeon:x"), "{error}");
    there.execute("migrate-incoming", json!({ "uri": uri }));
    let again = there.try_execute("migrate-incoming", json!({ "uri": uri })).unwrap_err();
    assert!(again["desc"].as_str().unwrap().contains("already listens"), "{again}");
    source.wait_beats(1, 2);
    migrate_to(&source, &destination, &uri, json!({}));
    destination.wait_beats(1, 2);
    PulseLog::read(&(source.serial().text() + &destination.serial().text()));
}

#[test]
fn events_tell_the_story_on_both_sides() {
    if !kvm_or_skip() {
        return;
    }
    let (source, destination) = Tern::pulse("ws=4M rate=1000 interval=50").start_pair(Incoming::Unix);
    source.wait_beats(1, 2);
    let (mut here, mut there) = (source.qmp(), destination.qmp());
    here.execute("migrate", json!({ "uri": destination.uri() }));
    for status in ["setup", "active"] {
        assert_eq!(here.wait_status_event(&["setup", "active", "device", "completed"]), status);
    }
    here.wait_event("MIGRATION_PASS");
    here.wait_event("STOP");
    here.wait_status_event(&["completed"]);
    there.wait_event("RESUME");
    there.wait_status_event(&["completed"]);
}
