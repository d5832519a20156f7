//! A Linux guest with a balloon gives back what it doesn't use or is asked for: the host has it again, and it isn't sent.

use serde_json::json;
use tern_tests::host::image_or_skip;
use tern_tests::limit::wait_for;
use tern_tests::{Agent, Incoming, Qmp, Tern, TernBuilder, kvm_or_skip, migrate};

/// What the guest uses for a while.
const USED_MIB: u64 = 8;
/// What has to come back: the kernel keeps some of it.
const BACK_MIB: u64 = 4;
/// Blocks of 64 KiB are reported, where Linux waits for 4 MiB, and for 128 MiB of free ones; and little stays with the
/// CPU that has freed it, which may be an eighth of all memory.
const AT_ONCE: &str = "page_reporting.page_reporting_order=4 sysctl.vm.percpu_pagelist_high_fraction=64";

/// Memory of the process that is there, guest's and other.
fn resident_mib(tern: &Tern) -> u64 {
    let rollup = std::fs::read_to_string(format!("/proc/{}/smaps_rollup", tern.pid())).unwrap();
    let line = rollup.lines().find(|line| line.starts_with("Rss:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap() >> 10
}

#[test]
fn what_a_guest_gives_back_is_the_hosts_and_does_not_move() {
    if !kvm_or_skip() || !image_or_skip("linux-up") {
        return;
    }
    let machine = TernBuilder::new().memory("96M").serial_unix().flag("--balloon");
    let source = machine.clone().image("linux-up").cmdline(AT_ONCE).start();
    let guest = Agent::new(source.serial());
    guest.wait_ready();
    guest.run(&format!("pages {USED_MIB}M max"));
    guest
        .wait_status("the guest to have used its memory", |now| now.pages_written >= (USED_MIB << 20) / 4096);
    let most = resident_mib(&source);
    guest.run("pages off");
    let left = wait_for("the guest to give its memory back", || {
        let left = resident_mib(&source);
        (left + BACK_MIB <= most).then_some(left)
    });
    // What is taken while memory moves is looked at again.
    guest.run("pages 2M max");
    let destination = machine.incoming(Incoming::Unix).start();
    let moved = migrate(&source, &destination);
    let sent_mib = (moved.source["report"]["pages"]["raw"].as_u64().unwrap() * 4096) >> 20;
    assert!(sent_mib < most, "{sent_mib} MiB were sent of {left} MiB ({most} MiB before)");
    let there = Agent::new(destination.serial());
    let before = there.status().pages_verified;
    there.wait_status("the guest to check its memory", |now| now.pages_verified > before);
    let text = source.serial().text() + &destination.serial().text();
    tern_tests::agent::check(&text);
}

/// The guest's memory, and what it is to make do with.
const ALL: u64 = 96 << 20;
const LESS: u64 = 88 << 20;

/// Asks for a size, and waits until the guest says that it has come to it.
fn resize(qmp: &mut Qmp, bytes: u64) {
    qmp.execute("balloon", json!({ "value": bytes }));
    qmp.wait_event_where("BALLOON_CHANGE", |event| {
        event["event"] == "BALLOON_CHANGE" && event["data"]["actual"] == bytes
    });
    assert_eq!(qmp.execute("query-balloon", json!({})), json!({ "actual": bytes, "wanted": bytes }));
}

/// Memory of the guest as its kernel counts it, in KiB.
fn total_kib(guest: Agent<'_>) -> u64 {
    let told = guest.run("mem");
    let found = told.split_whitespace().find_map(|word| word.strip_prefix("total_kib="));
    found.unwrap().parse().unwrap()
}

#[test]
fn a_guest_makes_do_with_less_moves_so_and_gets_it_back() {
    if !kvm_or_skip() || !image_or_skip("linux-up") {
        return;
    }
    let machine = TernBuilder::new().memory("96M").serial_unix().flag("--balloon");
    let source = machine.clone().image("linux-up").start();
    let guest = Agent::new(source.serial());
    guest.wait_ready();
    guest.run("pages 2M max");
    let before = total_kib(guest);
    let mut here = source.qmp();
    assert_eq!(here.execute("query-balloon", json!({})), json!({ "actual": ALL, "wanted": ALL }));
    resize(&mut here, LESS);
    assert_eq!(total_kib(guest), before - ((ALL - LESS) >> 10));

    let destination = machine.incoming(Incoming::Unix).start();
    let moved = migrate(&source, &destination);
    let sent = moved.source["report"]["pages"]["raw"].as_u64().unwrap() * 4096;
    assert!(sent < LESS, "{sent} bytes were sent");
    let there = Agent::new(destination.serial());
    let mut yonder = destination.qmp();
    assert_eq!(yonder.execute("query-balloon", json!({})), json!({ "actual": LESS, "wanted": LESS }));
    assert_eq!(total_kib(there), before - ((ALL - LESS) >> 10));
    resize(&mut yonder, ALL);
    assert_eq!(total_kib(there), before);
    // What has come back is used.
    there.run("pages 16M max");
    wait_for("the guest to use its memory", || {
        (there.status().pages_written >= (16 << 20) / 4096).then_some(())
    });
    let text = source.serial().text() + &destination.serial().text();
    tern_tests::agent::check(&text);
}

#[test]
fn without_a_balloon_there_is_nothing_to_ask() {
    if !kvm_or_skip() {
        return;
    }
    let guest = Tern::pulse("ws=1M").start();
    for (command, arguments) in [("balloon", json!({ "value": 1 << 20 })), ("query-balloon", json!({}))] {
        let error = guest.qmp().try_execute(command, arguments).unwrap_err().to_string();
        assert!(error.contains("--balloon"), "{error}");
    }
}
