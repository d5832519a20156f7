//! Real guests that move in secret, and those whose move is refused.

use std::path::Path;
use std::process::Command;

use serde_json::json;
use tern_tests::binary::tern_binary;
use tern_tests::migrate::migrate_to;
use tern_tests::{Incoming, PulseLog, Tern, kvm_or_skip};

/// Runs `tern tls` with these words.
fn tls(words: &[&str]) {
    let output = Command::new(tern_binary()).arg("tls").args(words).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

#[test]
fn certificates_of_tern_tls_carry_a_running_guest_over_several_channels() {
    if !kvm_or_skip() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let creds = folder.path().join("tls");
    tls(&["init", text(&creds), "--client", "host-a"]);
    let guest = || Tern::pulse("ws=8M rate=2000 interval=50");
    let listening = guest().incoming(Incoming::Tcp).flag("--tls-creds").flag(&creds);
    let destination = listening.flag("--tls-allow").flag("host-b,host-a").start();
    let source = guest().start();
    source.wait_beats(1, 3);
    let parameters = json!({ "tls-creds": creds, "tls": "require", "channels": 4, "compress": "lz4" });
    let moved = migrate_to(&source, &destination, &destination.uri(), parameters);
    destination.wait_beats(1, 4);
    PulseLog::read(&(source.serial().text() + &destination.serial().text()));
    assert_eq!(moved.source["report"]["transport"], "tcp");
    let (near, far) = (&moved.source["report"]["tls"], &moved.destination["report"]["tls"]);
    assert_eq!((&near["peer"], &far["peer"]), (&json!("127.0.0.1"), &json!("host-a")));
    for side in [near, far] {
        assert_eq!(side["version"], "1.3", "{side}");
        assert!(side["cipher"].as_str().unwrap().starts_with("TLS_") && side["cipher"] == near["cipher"]);
        assert_eq!(side["proven_by"], "certificates");
    }
}

#[test]
fn a_guest_whose_secret_is_another_runs_on_and_moves_with_the_right_one() {
    if !kvm_or_skip() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let [right, wrong] = ["right", "wrong"].map(|name| folder.path().join(name));
    [&right, &wrong].iter().for_each(|file| tls(&["secret", text(file)]));
    let guest = || Tern::pulse("ws=8M rate=2000 interval=50");
    let destination = guest().incoming(Incoming::Tcp).flag("--tls-psk").flag(&right).start();
    let source = guest().start();
    source.wait_beats(1, 3);
    for (parameters, expected) in [
        (json!({ "tls-psk": wrong }), "has another secret"),
        (json!({}), "the peer speaks TLS, and this source does not"),
    ] {
        let mut here = source.qmp();
        here.execute("migrate", json!({ "uri": destination.uri(), "parameters": parameters }));
        let end = here.wait_migrate(&["failed"]);
        assert!(end["error-desc"].as_str().unwrap().contains(expected), "{end:#}");
        assert_eq!(here.state(), "running");
        assert_eq!(destination.qmp().state(), "inmigrate");
    }
    let moved = migrate_to(&source, &destination, &destination.uri(), json!({ "tls-psk": right }));
    for side in [&moved.source, &moved.destination] {
        let tls = &side["report"]["tls"];
        assert!(tls["proven_by"] == "shared-secret" && tls["peer"].is_null(), "{tls}");
    }
    destination.wait_beats(1, 4);
    PulseLog::read(&(source.serial().text() + &destination.serial().text()));
}

#[test]
fn an_address_of_another_host_needs_tls_or_the_word_insecure() {
    let run = |words: &[&str]| {
        let incoming = ["run", "--incoming", "tcp:0.0.0.0:0", "--serial", "null"];
        let output = Command::new(tern_binary()).args(incoming).args(words).output().unwrap();
        (output.status.success(), String::from_utf8_lossy(&output.stderr).into_owned())
    };
    if kvm_or_skip() {
        let (done, said) = run(&[]);
        assert!(!done && said.contains("tern tls init") && said.contains("--insecure"), "{said}");
        let (done, said) = run(&["--tls", "off"]);
        assert!(!done && said.contains("tls=off") && said.contains("--insecure"), "{said}");
        let (done, said) = run(&["--tls-creds", "/no/such/folder"]);
        assert!(!done && said.contains("/no/such/folder/server-cert.pem"), "{said}");
    }
}

#[test]
fn a_guest_goes_through_commands_and_a_failing_one_is_told() {
    if !kvm_or_skip() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let pipe = |name: &str| {
        let path = folder.path().join(name);
        assert!(Command::new("mkfifo").arg(&path).status().unwrap().success());
        path.display().to_string()
    };
    let (there, back) = (pipe("there"), pipe("back"));
    let guest = || Tern::pulse("ws=8M rate=2000 interval=50");
    let destination = guest().incoming(Incoming::Defer).start();
    let source = guest().start();
    source.wait_beats(1, 3);
    let mut here = source.qmp();
    here.execute("migrate", json!({ "uri": "exec:exit 41" }));
    let end = here.wait_migrate(&["failed"]);
    assert!(end["error-desc"].as_str().unwrap().contains("exit status: 41"), "{end:#}");
    assert_eq!(here.state(), "running");
    let uri = format!("exec:cat {there} & exec cat > {back}");
    destination.qmp().execute("migrate-incoming", json!({ "uri": uri }));
    migrate_to(&source, &destination, &format!("exec:cat {back} & exec cat > {there}"), json!({}));
    destination.wait_beats(1, 4);
    PulseLog::read(&(source.serial().text() + &destination.serial().text()));
}
