//! `migrate --check`: the source's guest is asked about and not touched, the destination goes on listening, and
//! everything that doesn't fit is listed at once.

use std::fs;
use std::os::unix::net::UnixListener;
use std::process::{Command, Output};

use serde_json::{Value, json};
use tern_tests::binary::tern_binary;
use tern_tests::{Incoming, PulseLog, Tern, kvm_or_skip, migrate};

fn check(source: &Tern, uri: &str, more: &[&str]) -> Output {
    let mut command = Command::new(tern_binary());
    command.args(["migrate", "--control"]).arg(source.control()).args([uri, "--check"]).args(more);
    command.output().unwrap()
}

fn stdout(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// Codes of the aspects that don't fit.
fn differing(report: &Value) -> Vec<&str> {
    let aspects = report["aspects"].as_array().unwrap().iter();
    aspects.filter(|aspect| aspect["ok"] == false).map(|aspect| aspect["code"].as_str().unwrap()).collect()
}

#[test]
fn a_guest_that_fits_is_told_so_and_runs_on() {
    if !kvm_or_skip() {
        return;
    }
    let (source, destination) = Tern::pulse("ws=8M rate=2000 interval=50").start_pair(Incoming::Tcp);
    let mut watching = source.qmp();
    source.wait_beats(1, 3);
    let shown = check(&source, &destination.uri(), &[]);
    let text = stdout(&shown);
    assert_eq!(shown.status.code(), Some(0), "{text}");
    for part in [
        "CPU vendor",
        "CPU features",
        "TSC frequency",
        "XSAVE area",
        "round trip",
        "bandwidth",
        "the guest fits",
    ] {
        assert!(text.contains(part), "{part} is not in:\n{text}");
    }
    let answer = check(&source, &destination.uri(), &["--json"]);
    let report: Value = serde_json::from_str(&stdout(&answer)).unwrap();
    assert_eq!((answer.status.code(), &report["fits"]), (Some(0), &json!(true)), "{report:#}");
    assert!(report["link_bytes_per_s"].as_u64() > Some(0) && report["round_trip_us"].as_u64() > Some(0));
    assert_eq!(report["memory_bytes"], 64 << 20);

    // Nobody stopped the guest or began a migration: the first such event is the stop that comes now.
    assert_eq!((watching.state(), watching.migrate_status()), ("running".to_owned(), String::new()));
    watching.execute("stop", json!({}));
    let told = watching.wait_event_where("STOP, RESUME or MIGRATION", |event| {
        ["STOP", "RESUME", "MIGRATION"].iter().any(|name| event["event"] == *name)
    });
    assert_eq!(told["event"], "STOP");
    watching.execute("cont", json!({}));
    watching.wait_event("RESUME");

    assert_eq!(destination.qmp().state(), "inmigrate");
    migrate(&source, &destination);
    destination.wait_beats(1, 3);
    PulseLog::read(&(source.serial().text() + &destination.serial().text()));
}

#[test]
fn everything_that_does_not_fit_is_listed_at_once() {
    if !kvm_or_skip() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let disk = |name: &str, bytes: u64| {
        let path = folder.path().join(name);
        fs::File::create(&path).unwrap().set_len(bytes).unwrap();
        path
    };
    let source = Tern::pulse("ws=0").disk(&disk("small", 1 << 20)).start();
    // A destination takes only what its own profile has.
    let low = folder.path().join("low.json");
    let level =
        Command::new(tern_binary()).args(["cpu", "baseline", "x86-64-v1", "-o"]).arg(&low).output().unwrap();
    assert!(level.status.success(), "{}", String::from_utf8_lossy(&level.stderr));
    let other =
        Tern::pulse("ws=0").disk(&disk("large", 2 << 20)).memory("32M").cpus(2).flag("--cpu").flag(&low);
    let destination = other.incoming(Incoming::Unix).start();
    source.wait_beats(1, 2);

    let answer = check(&source, &destination.uri(), &["--json"]);
    let report: Value = serde_json::from_str(&stdout(&answer)).unwrap();
    assert_eq!(answer.status.code(), Some(8), "{report:#}");
    let codes = differing(&report);
    for code in ["cpus", "memory-layout", "device", "cpu-features"] {
        assert!(codes.contains(&code), "{code} is not in {codes:?}");
    }
    let text = stdout(&check(&source, &destination.uri(), &[]));
    for part in
        ["2048 sectors, writable", "4096 sectors, writable", "--disk", "lacks ", "--cpu", "does not fit"]
    {
        assert!(text.contains(part), "{part} is not in:\n{text}");
    }
    let differing = report["aspects"].as_array().unwrap().iter().filter(|aspect| aspect["ok"] == false);
    assert!(differing.into_iter().all(|aspect| aspect["remedy"].is_string()), "{report:#}");
    assert_eq!((source.qmp().state(), destination.qmp().state()), ("running".into(), "inmigrate".into()));
}

#[test]
fn a_destination_that_is_not_there_is_an_error_and_no_verdict() {
    if !kvm_or_skip() {
        return;
    }
    let source = Tern::pulse("ws=0").start();
    let nobody = format!("unix:{}", source.folder().join("nobody").display());
    let output = check(&source, &nobody, &[]);
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(1), "{text}");
    assert!(text.contains("can't be asked") && text.contains("nobody"), "{text}");
    let file = format!("file:{}", source.folder().join("file").display());
    let text = String::from_utf8_lossy(&check(&source, &file, &[]).stderr).into_owned();
    assert!(text.contains("a file can't be asked"), "{text}");
    assert_eq!(source.qmp().state(), "running");
}

#[test]
fn a_profile_from_a_file_moves_and_one_that_is_none_says_where() {
    if !kvm_or_skip() {
        return;
    }
    let tern = |words: &[&str]| Command::new(tern_binary()).args(words).output().unwrap();
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
    let (dump, both) = (path("dump.json"), path("both.json"));
    assert!(tern(&["cpu", "dump", "--name", "here", "-o", &dump]).status.success());
    let made = tern(&["cpu", "baseline", &dump, "x86-64-v1", "-o", &both]);
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    assert!(String::from_utf8_lossy(&made.stderr).contains("here loses: "));
    for profile in [&dump, &both] {
        assert_eq!(tern(&["cpu", "check", profile]).status.code(), Some(0));
        assert_eq!(tern(&["cpu", "check", profile, &dump]).status.code(), Some(0));
    }

    let machine = Tern::pulse("ws=4M rate=1000 interval=50").flag("--cpu").flag(&both);
    let (source, destination) = machine.start_pair(Incoming::Unix);
    source.wait_beats(1, 2);
    // The guest's machine needs its file no more.
    fs::write(&both, fs::read_to_string(&both).unwrap().replacen("\"sse2\"", "\"sse9\"", 1)).unwrap();
    migrate(&source, &destination);
    destination.wait_beats(1, 2);
    let bad = tern(&["run", "--image", "pulse", "--cpu", &both]);
    let text = String::from_utf8_lossy(&bad.stderr).into_owned();
    assert_eq!(bad.status.code(), Some(2), "{text}");
    assert!(text.contains("both.json") && text.contains("\"sse9\"") && text.contains("line "), "{text}");
    let host = tern(&["cpu", "check", "x86-64-v1", &both]);
    assert_eq!(host.status.code(), Some(1));
}

#[test]
fn a_cancel_ends_a_check_and_says_so() {
    if !kvm_or_skip() {
        return;
    }
    let source = Tern::pulse("ws=0").start();
    let silent = source.folder().join("silent");
    let listener = UnixListener::bind(&silent).unwrap();
    let mut qmp = source.qmp();
    qmp.execute("migrate-check", json!({ "uri": format!("unix:{}", silent.display()) }));
    let _asked = listener.accept().unwrap();

    // A migration that runs is what a cancel is for; the check goes on.
    let moving = source.folder().join("moving");
    let to = UnixListener::bind(&moving).unwrap();
    qmp.execute("migrate", json!({ "uri": format!("unix:{}", moving.display()) }));
    let _offered = to.accept().unwrap();
    qmp.execute("migrate_cancel", json!({}));
    qmp.wait_migrate(&["cancelled"]);
    assert_eq!(qmp.execute("query-migrate-check", json!({}))["status"], "active");

    qmp.execute("migrate_cancel", json!({}));
    assert_eq!(qmp.wait_event("MIGRATION_CHECK")["data"]["status"], "cancelled");
    assert_eq!(qmp.execute("query-migrate-check", json!({}))["status"], "cancelled");
    assert_eq!(qmp.state(), "running");
}
