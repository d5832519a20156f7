//! This tern and a stand-in for the next one (`devices/src/next.rs`): guests move between them both ways, and what
//! the older one has no place for is refused with a reason, while the guest goes on.

use std::path::Path;
use std::process::Command;

use serde_json::{Value, json};
use tern_tests::binary::{tern_binary, tern_next_binary};
use tern_tests::{Incoming, PulseLog, Tern, TernBuilder, kvm_or_skip, migrate};

fn pulse() -> TernBuilder {
    Tern::pulse("ws=8M rate=4000 pattern=random content=text interval=50")
        .log("tern_vmm=info,tern_devices=info")
}

/// The last value that the process logged behind `what`, in `name=`.
fn logged(tern: &Tern, what: &str, name: &str) -> Option<String> {
    let text = tern.stderr();
    let line = text.lines().rfind(|line| line.contains(what))?;
    let value = line.split(&format!("{name}=")).nth(1)?;
    Some(value.split_whitespace().next().unwrap_or_default().to_owned())
}

#[test]
fn a_guest_moves_to_the_next_version_and_back_and_forth() {
    if !kvm_or_skip() {
        return;
    }
    let (old, new) = (pulse(), pulse().next(""));
    let mut here = old.clone().start();
    here.wait_beats(1, 3);
    let mut told = String::new();
    // What came with the guest: moves counted by the optional field, and by the optional section.
    let steps = [
        (&new, Some("1"), None),
        (&new, Some("2"), Some("1")),
        (&old, None, None),
        (&new, Some("1"), None),
        (&new, Some("2"), Some("1")),
    ];
    for (machine, field, section) in steps {
        let there = machine.clone().incoming(Incoming::Unix).start();
        migrate(&here, &there);
        there.wait_beats(1, 3);
        assert_eq!(logged(&there, "next: the power button came", "moves").as_deref(), field);
        assert_eq!(logged(&there, "next: the uptime came", "moves").as_deref(), section);
        if field.is_none() {
            let text = there.stderr();
            assert!(
                text.contains("fields: 1, sections: 0"),
                "one field, and no section, is passed over: {text}"
            );
        }
        told += &here.serial().text();
        assert!(here.quit().success());
        here = there;
    }
    let log = PulseLog::read(&(told + &here.serial().text()));
    assert!(log.reached() >= Some(15), "{:?}", log.reached());
}

/// A guest of the next version that uses `uses` is refused by this one with `reason`, and runs on; then it moves to
/// another one of its own age, and still uses it.
fn is_refused(uses: &str, reason: &[&str], arrived: (&str, &str, &str)) {
    let source = pulse().next(uses).start();
    let older = pulse().incoming(Incoming::Unix).start();
    source.wait_beats(1, 2);
    let mut here = source.qmp();
    here.execute("migrate", json!({ "uri": older.uri() }));
    let report = here.wait_migrate(&["failed"]);
    let text = report["error-desc"].as_str().unwrap();
    for part in reason {
        assert!(text.contains(part), "{part} is not in: {text}");
    }
    assert_eq!(here.state(), "running");
    let newer = pulse().next("").incoming(Incoming::Unix).start();
    migrate(&source, &newer);
    newer.wait_beats(1, 2);
    let (what, name, value) = arrived;
    assert_eq!(logged(&newer, what, name).as_deref(), Some(value));
    assert_eq!(older.serial().text(), "", "the guest ran where it was refused");
    PulseLog::read(&(source.serial().text() + &newer.serial().text()));
}

#[test]
fn a_subsection_in_use_is_refused_by_a_tern_that_does_not_know_it() {
    if kvm_or_skip() {
        is_refused(
            "mouse",
            &["i8042/0", "field 4", "newer tern"],
            ("next: the mouse came", "enabled", "true"),
        );
    }
}

#[test]
fn a_value_that_the_older_version_has_no_place_for_is_refused_at_the_source() {
    if kvm_or_skip() {
        let reason = ["rtc/0", "version 1 has no place for a clock set to the millisecond"];
        is_refused("fine-clock", &reason, ("next: the clock came", "fine_ms", "1"));
    }
}

#[test]
fn state_that_no_section_holds_blocks_a_migration_with_a_reason() {
    if !kvm_or_skip() {
        return;
    }
    let (source, destination) =
        (pulse().next("host-mouse").start(), pulse().incoming(Incoming::Unix).start());
    let mut here = source.qmp();
    let reasons = here.execute("query-migrate", json!({}))["blocked-reasons"].take();
    assert!(reasons[0].as_str().unwrap().contains("the mouse is this host's own"), "{reasons}");
    let refused = here.try_execute("migrate", json!({ "uri": destination.uri() })).unwrap_err();
    assert!(refused["desc"].as_str().unwrap().contains("the mouse is this host's own"), "{refused}");
    let mut check = Command::new(tern_binary());
    check.args(["migrate", "--check", "--json", &destination.uri(), "--control"]).arg(source.control());
    let checked = check.output().unwrap();
    let report: Value = serde_json::from_slice(&checked.stdout).unwrap();
    assert_eq!((checked.status.code(), &report["fits"]), (Some(8), &json!(false)), "{report:#}");
    let mut wrong = report["aspects"].as_array().unwrap().iter().filter(|aspect| aspect["ok"] == false);
    let blocked = wrong.next().unwrap();
    assert_eq!((&blocked["code"], &blocked["source"]), (&json!("blocked"), &reasons[0]));
    assert_eq!(wrong.next(), None, "{report:#}");
    assert_eq!(here.state(), "running");
    let free = destination.qmp().execute("query-migrate", json!({}));
    assert!(free.get("blocked-reasons").is_none(), "{free}");
}

fn diff(old: &Path, new: &Path) -> (Option<i32>, Value) {
    let compared =
        Command::new(tern_binary()).args(["schema", "diff", "--json"]).args([old, new]).output().unwrap();
    (compared.status.code(), serde_json::from_slice(&compared.stdout).unwrap())
}

#[test]
fn the_schemas_of_both_are_compatible_and_the_difference_is_told() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("next.json");
    let dumped = Command::new(tern_next_binary()).args(["schema", "dump", "--json"]).output().unwrap();
    std::fs::write(&file, &dumped.stdout).unwrap();
    let (code, found) = diff(Path::new("this"), &file);
    assert_eq!(
        (code, &found["old_to_new"], &found["new_to_old"]),
        (Some(0), &json!("fine"), &json!("conditional"))
    );
    let places: Vec<_> =
        found["changes"].as_array().unwrap().iter().map(|c| c["place"].as_str().unwrap()).collect();
    let expected =
        ["section acpi-pm version 1, moves", "section i8042 version 1, mouse", "section rtc version 2"];
    for place in expected.iter().chain(&["section uptime"]) {
        assert!(places.contains(place), "{place} is not in {places:?}");
    }
    // Broken on purpose: the older version of the clock is dropped.
    let mut broken: Value = serde_json::from_slice(&dumped.stdout).unwrap();
    let rtc = broken["sections"].as_array_mut().unwrap().iter_mut().find(|s| s["name"] == "rtc").unwrap();
    rtc["versions"].as_array_mut().unwrap().remove(0);
    std::fs::write(&file, broken.to_string()).unwrap();
    let (code, found) = diff(Path::new("this"), &file);
    assert_eq!((code, &found["new_to_old"]), (Some(7), &json!("breaks")));
}
