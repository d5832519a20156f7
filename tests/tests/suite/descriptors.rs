//! A guest goes through a socket that others have opened: inherited by both processes, or passed to them while they run.

use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::process::Command;

use serde_json::json;
use tern_tests::binary::tern_binary;
use tern_tests::tern::INHERITED;
use tern_tests::{Incoming, PulseLog, Tern, kvm_or_skip};

const WORDS: &str = "ws=8M rate=2000 interval=50";

fn pair() -> [OwnedFd; 2] {
    let (one, other) = UnixStream::pair().unwrap();
    [one.into(), other.into()]
}

#[test]
fn both_processes_have_inherited_their_ends() {
    if !kvm_or_skip() {
        return;
    }
    let [here, there] = pair();
    let uri = format!("fd:{INHERITED}");
    let listening = Tern::pulse(WORDS).receiver().flag("--incoming").flag(&uri);
    let destination = listening.inherits(there).start();
    let source = Tern::pulse(WORDS).inherits(here).start();
    source.wait_beats(1, 2);
    let migrate = || {
        let output =
            Command::new(tern_binary()).args(["migrate", &uri, "--control"]).arg(source.control()).output();
        let output = output.unwrap();
        let said = [output.stdout, output.stderr].map(|bytes| String::from_utf8_lossy(&bytes).into_owned());
        (output.status.success(), said.concat())
    };
    let (done, said) = migrate();
    assert!(done, "{said}");
    destination.wait_beats(1, 2);
    let report = &destination.qmp().wait_migrate(&["completed"])["report"];
    assert!(report["transport"] == "fd" && report["uri"] == uri.as_str(), "{report:#}");
    PulseLog::read(&(source.serial().text() + &destination.serial().text()));
}

#[test]
fn descriptors_are_passed_to_processes_that_run_and_used_once() {
    if !kvm_or_skip() {
        return;
    }
    let (source, destination) = Tern::pulse(WORDS).start_pair(Incoming::Defer);
    source.wait_beats(1, 2);
    let (mut near, mut far) = (source.qmp(), destination.qmp());
    // A first pair whose other end nobody listens at any more: the guest stays, and the next pair works.
    let [alone, gone] = pair();
    drop(gone);
    near.pass("out", alone.as_fd());
    near.execute("migrate", json!({ "uri": "fd:out" }));
    near.wait_migrate(&["failed"]);
    near.wait_state(&["running"]);
    near.execute("migrate", json!({ "uri": "fd:out" }));
    let again = near.wait_migrate(&["failed"]);
    assert!(again["error-desc"].as_str().unwrap().contains("used already"), "{again:#}");
    let [here, there] = pair();
    near.pass("out", here.as_fd());
    far.pass("in", there.as_fd());
    drop((here, there, alone));
    far.execute("migrate-incoming", json!({ "uri": "fd:in" }));
    near.execute("migrate", json!({ "uri": "fd:out" }));
    near.wait_migrate(&["completed"]);
    far.wait_migrate(&["completed"]);
    destination.wait_beats(1, 2);
    PulseLog::read(&(source.serial().text() + &destination.serial().text()));
}
