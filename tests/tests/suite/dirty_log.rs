//! A guest that writes and checks its memory, moved with each mode of the dirty log, over a cancel and between
//! machines with and without dirty rings.

use std::process::Command;

use serde_json::{Value, json};
use tern_tests::host::skip;
use tern_tests::migrate::migrate_to;
use tern_tests::{Incoming, PulseLog, Tern, TernBuilder, kvm_or_skip};

const RING: &str = "ring,size=1024";

fn guest() -> TernBuilder {
    Tern::pulse("ws=16M rate=20000 pattern=random content=random interval=50 cpus=2").cpus(2)
}

/// Has this host dirty rings of 1024 entries?
fn rings_or_skip() -> bool {
    if !kvm_or_skip() {
        return false;
    }
    let output = Command::new(tern_tests::binary::tern_binary()).args(["host", "--json"]).output().unwrap();
    let host: Value = serde_json::from_slice(&output.stdout).unwrap();
    let bytes = host["kvm"]["dirty_log"]["ring_bytes"].as_u64().unwrap();
    if bytes < 1024 * 16 {
        skip("this host's KVM has no dirty rings of 1024 entries");
        return false;
    }
    true
}

/// Starts a migration that can't end, lets it make rounds, and cancels it.
fn cancel_on_the_way(source: &Tern, destination: &Tern, mode: &str) {
    let mut here = source.qmp();
    let parameters = json!({ "dirty-log": mode, "downtime-limit": 0, "max-bandwidth": 32 << 20 });
    here.execute("migrate", json!({ "uri": destination.uri(), "parameters": parameters }));
    here.wait_event_where("the third pass", |event| {
        event["event"] == "MIGRATION_PASS" && event["data"]["pass"].as_u64() > Some(2)
    });
    here.execute("migrate_cancel", json!({}));
    let answer = here.wait_migrate(&["cancelled"]);
    assert_eq!(answer["report"]["dirty_log"], mode);
}

/// Moves the guest with this mode, behind an attempt that was cancelled; returns the source's report.
fn moves(source: &Tern, destination: &Tern, mode: &str) -> Value {
    source.wait_beats(2, 2);
    cancel_on_the_way(source, destination, mode);
    let parameters = json!({ "dirty-log": mode, "downtime-limit": 5000 });
    let moved = migrate_to(source, destination, &destination.uri(), parameters);
    assert_eq!(moved.source["report"]["dirty_log"], mode);
    destination.wait_beats(2, 3);
    let log = PulseLog::read(&(source.serial().text() + &destination.serial().text()));
    assert!(log.verified() > 0);
    moved.source["report"].clone()
}

#[test]
fn a_guest_moves_with_manual_clear_and_after_a_cancel() {
    if !kvm_or_skip() {
        return;
    }
    let (source, destination) = guest().start_pair(Incoming::Unix);
    moves(&source, &destination, "manual-clear");
}

#[test]
fn a_guest_moves_with_a_bitmap_and_after_a_cancel() {
    if !kvm_or_skip() {
        return;
    }
    let (source, destination) = guest().start_pair(Incoming::Unix);
    let report = moves(&source, &destination, "bitmap");
    assert_eq!(report["dirty_by_vcpu"], json!([]), "a bitmap doesn't say who wrote");
}

#[test]
fn a_guest_moves_from_rings_to_a_machine_without_and_each_vcpu_is_counted() {
    if !rings_or_skip() {
        return;
    }
    let destination = guest().incoming(Incoming::Unix).start();
    let source = guest().flag("--dirty-log").flag(RING).start();
    let report = moves(&source, &destination, "ring");
    let vcpus = report["dirty_by_vcpu"].as_array().unwrap();
    assert_eq!(vcpus.len(), 2);
    for vcpu in vcpus {
        assert!(vcpu["pages"].as_u64() > Some(0) && vcpu["ring_full_exits"].is_u64(), "{vcpu}");
    }
}

#[test]
fn a_mode_that_the_machine_can_not_do_is_refused_with_a_remedy_and_auto_does_its_best() {
    if !rings_or_skip() {
        return;
    }
    let plain = guest().start();
    let (with_ring, destination) = guest().flag("--dirty-log").flag(RING).start_pair(Incoming::Unix);
    plain.wait_beats(2, 1);
    with_ring.wait_beats(2, 1);
    for (machine, mode, remedy) in [
        (&plain, "ring", "start it with `tern run --dirty-log ring`"),
        (&with_ring, "bitmap", "migrate with dirty-log=ring or auto"),
        (&with_ring, "manual-clear", "migrate with dirty-log=ring or auto"),
    ] {
        let arguments = json!({ "uri": destination.uri(), "parameters": { "dirty-log": mode } });
        let error = machine.qmp().try_execute("migrate", arguments).unwrap_err();
        let text = error["desc"].as_str().unwrap();
        assert!(text.starts_with(&format!("dirty-log={mode}: ")) && text.contains(remedy), "{text}");
        assert_eq!(
            (machine.qmp().migrate_status(), machine.qmp().state()),
            (String::new(), "running".into())
        );
    }
    let moved = tern_tests::migrate(&with_ring, &destination);
    assert_eq!(moved.source["report"]["dirty_log"], "ring");
}

#[test]
fn a_ring_that_kvm_does_not_make_ends_the_start() {
    if !kvm_or_skip() {
        return;
    }
    let tern = guest().flag("--dirty-log").flag("ring,size=4").start_to_end();
    assert!(tern.stderr().contains("a power of two from 1024 to 65536"), "{}", tern.stderr());
}
