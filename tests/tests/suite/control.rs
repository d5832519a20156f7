//! The control socket: what is not QMP, what is not legal now, and a client that others wrote.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::process::{Command, Stdio};

use serde_json::{Value, json};
use tern_tests::host::skip;
use tern_tests::{Incoming, Tern, kvm_or_skip};

#[test]
fn malformed_and_oversized_input_is_refused_and_the_connection_lives() {
    if !kvm_or_skip() {
        return;
    }
    let tern = Tern::pulse("ws=0 interval=50").start();
    let stream = UnixStream::connect(tern.control()).unwrap();
    let mut lines = BufReader::new(stream.try_clone().unwrap()).lines();
    let mut next = || -> Value { serde_json::from_str(&lines.next().unwrap().unwrap()).unwrap() };
    assert!(next()["QMP"]["version"].is_object());
    let say = |bytes: &[u8]| (&stream).write_all(bytes).unwrap();
    say(b"{\"execute\": \"query-status\"}\n");
    assert_eq!(next()["error"]["code"], "not-negotiated");
    say(b"{\"execute\": \"qmp_capabilities\", \"id\": [7]}\n");
    assert_eq!(next(), json!({ "return": {}, "id": [7] }));
    let deep = ["[".repeat(100).as_bytes(), b"\n"].concat();
    let long = [b"{\"execute\": \"", "x".repeat(1 << 20).as_bytes(), b"\"}\n"].concat();
    let cases: [(&[u8], &str); 6] = [
        (b"{\"execute\": }\n", "malformed-input"),
        (b"\xff\xfe{}\n", "malformed-input"),
        (b"{\"execute\": 5}\n", "malformed-input"),
        (b"{\"execute\": \"fly\"}\n", "unknown-command"),
        (&deep, "too-large"),
        (&long, "too-large"),
    ];
    for (bytes, code) in cases {
        say(bytes);
        let answer = next();
        assert_eq!(answer["error"]["code"], code, "{answer}");
        assert!(!answer["error"]["desc"].as_str().unwrap().is_empty());
        // Whatever else is said of the same line, the next command is answered.
        say(b"{\"execute\": \"query-name\", \"id\": \"next\"}\n");
        while next()["id"] != "next" {}
    }
    tern.wait_beats(1, 2);
}

#[test]
fn commands_that_the_state_does_not_allow() {
    if !kvm_or_skip() {
        return;
    }
    let (source, destination) = Tern::pulse("ws=1M rate=1000 interval=50").start_pair(Incoming::Unix);
    source.wait_beats(1, 2);
    let refused = |tern: &Tern, command: &str, arguments: Value, expected: &[&str]| {
        let error = tern.qmp().try_execute(command, arguments).unwrap_err();
        assert_eq!(error["code"], "illegal-state", "{command}: {error}");
        for part in expected {
            assert!(error["desc"].as_str().unwrap().contains(part), "{command}: {part:?} is not in: {error}");
        }
    };
    refused(&source, "migrate-incoming", json!({ "uri": "unix:/x" }), &["inmigrate", "running"]);
    refused(&source, "migrate-resolve", json!({ "resolution": "run" }), &["in-doubt", "running"]);
    refused(&destination, "migrate", json!({ "uri": "unix:/x" }), &["inmigrate", "awaited"]);
    refused(&destination, "cont", json!({}), &["inmigrate"]);
    refused(&destination, "system_reset", json!({}), &[]);
    tern_tests::migrate(&source, &destination);
    refused(&source, "cont", json!({}), &["postmigrate", "moved away"]);
    refused(&source, "migrate", json!({ "uri": "unix:/x" }), &["postmigrate"]);
    refused(&destination, "migrate-incoming", json!({ "uri": "unix:/x" }), &["running"]);
    destination.wait_beats(1, 2);
}

#[test]
fn pause_and_resume_hold_the_guest() {
    if !kvm_or_skip() {
        return;
    }
    let tern = Tern::pulse("ws=1M rate=1000 interval=20 cpus=2").cpus(2).start();
    tern.wait_beats(2, 2);
    let mut qmp = tern.qmp();
    for _ in 0..10 {
        qmp.execute("stop", json!({}));
        qmp.wait_event("STOP");
        let (state, before) = (qmp.state(), tern.serial().text());
        let threads = qmp.execute("query-cpus-fast", json!({}));
        assert_eq!((state.as_str(), threads.as_array().unwrap().len()), ("paused", 2));
        assert_eq!(tern.serial().text(), before, "a paused guest printed something");
        qmp.execute("cont", json!({}));
        qmp.wait_event("RESUME");
        let beats = before.matches("\nB ").count();
        tern.serial().wait("beats", |text| (text.matches("\nB ").count() > beats + 1).then_some(()));
    }
    tern.pulse_log();
}

/// `qmp-shell` of PyPI's `qemu.qmp`, in a virtual environment of the cache; none where it can't be had.
fn qmp_shell() -> Option<PathBuf> {
    let cache = std::env::var_os("XDG_CACHE_HOME").map(PathBuf::from);
    let cache = cache.or_else(|| std::env::var_os("HOME").map(|home| PathBuf::from(home).join(".cache")))?;
    let folder = cache.join("tern/python-qemu-qmp");
    let shell = folder.join("bin/qmp-shell");
    if !shell.exists() {
        let quiet = |program: PathBuf, words: &[&str]| {
            let done = Command::new(program).args(words).stdin(Stdio::null()).output();
            done.is_ok_and(|output| output.status.success())
        };
        let made = quiet("python3".into(), &["-m", "venv", folder.to_str()?]);
        if !made || !quiet(folder.join("bin/pip"), &["install", "--quiet", "qemu.qmp"]) {
            return None;
        }
    }
    Some(shell)
}

#[test]
fn qmp_shell_connects_and_works() {
    if !kvm_or_skip() {
        return;
    }
    let Some(shell) = qmp_shell() else { return skip("qemu.qmp can't be installed from PyPI here") };
    let (source, destination) = Tern::pulse("ws=1M rate=1000 interval=50").start_pair(Incoming::Unix);
    source.wait_beats(1, 2);
    let mut child = Command::new(shell);
    child.arg(source.control()).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = child.spawn().unwrap();
    let uri = destination.uri();
    let typed = format!("query-status\nquery-migrate-parameters\nfly\nmigrate uri={uri}\nquery-name\n");
    child.stdin.take().unwrap().write_all(typed.as_bytes()).unwrap();
    let output = child.wait_with_output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
    for part in ["Connected to", "\"running\"", "downtime-limit", "CommandNotFound", "\"name\""] {
        assert!(text.contains(part), "{part:?} is not in: {text}");
    }
    source.qmp().wait_migrate(&["completed"]);
    destination.wait_beats(1, 2);
}
