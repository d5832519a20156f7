//! A real guest comes back to where a snapshot of it is: what it has left alone since isn't sent, and it checks its memory.

use serde_json::{Value, json};
use tern_tests::{Incoming, PulseLog, Tern, kvm_or_skip};

use crate::save::{WORDS, goes_on, save, text};

/// Pages and bytes of an encoding.
fn count(report: &Value, encoding: &str) -> (u64, u64) {
    let all = report["encodings"].as_array().unwrap();
    let found = all.iter().find(|count| count["name"] == encoding);
    found.map_or((0, 0), |count| (count["pages"].as_u64().unwrap(), count["bytes"].as_u64().unwrap()))
}

#[test]
fn a_guest_comes_back_to_its_snapshot_by_name() {
    if !kvm_or_skip() {
        return;
    }
    // Writes one page after the other of 8 MiB, slowly: most of it is as it was when it is saved.
    let source = Tern::pulse("ws=8M rate=50 content=random interval=50").start();
    source.wait_beats(1, 3);
    let folder = tempfile::tempdir().unwrap();
    let files = ["raw", "zstd"].map(|name| folder.path().join(name));
    for (file, method) in files.iter().zip(["none", "zstd"]) {
        let output = save(&source, file, &["--then", "run", "--compress", method]);
        assert!(output.status.success(), "{}", text(&output));
        goes_on(&source);
    }
    let (mut told, mut source) = (String::new(), source);
    let ways = [(1, "none", "raw"), (3, "lz4", "zstd")];
    for (channels, compress, name) in ways {
        let file = folder.path().join(name);
        let builder = Tern::pulse(WORDS).flag("--known").flag(&file).incoming(Incoming::Unix);
        let destination = builder.start();
        let parameters = json!({ "channels": channels, "compress": compress });
        let capabilities = json!([{ "capability": "xbzrle", "state": channels > 1 }]);
        let mut here = source.qmp();
        here.execute(
            "migrate",
            json!({ "uri": destination.uri(), "parameters": parameters, "capabilities": capabilities }),
        );
        let from = here.wait_migrate(&["completed"]);
        let to = destination.qmp().wait_migrate(&["completed"]);
        let (from, to) = (&from["report"], &to["report"]);
        assert_eq!((&from["encodings"], &from["bytes"]), (&to["encodings"], &to["bytes"]));
        let (pages, bytes) = count(from, "known");
        // 2048 pages of data; what it has written since the saves is far less than half of them.
        assert!(pages > 1000, "{name}: {}", from["encodings"]);
        assert_eq!(bytes, pages * 32);
        assert!(from["bytes"]["page_data"].as_u64().unwrap() < 4 << 20, "{name}: {}", from["bytes"]);
        assert_eq!(from["warnings"], json!([]));
        destination.wait_beats(1, 3);
        told += &source.serial().text();
        assert!(source.quit().success());
        source = destination;
    }
    PulseLog::read(&(told + &source.serial().text()));
}

#[test]
fn what_is_no_snapshot_is_refused_before_anybody_waits() {
    if !kvm_or_skip() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let disk = folder.path().join("disk.img");
    std::fs::write(&disk, [0; 8192]).unwrap();
    let there = Tern::pulse(WORDS).flag("--known").flag(&disk).incoming(Incoming::Unix).start_to_end();
    let said = there.stderr();
    assert!(said.contains("disk.img") && said.contains("no snapshot"), "{said}");
    let waits = Tern::pulse(WORDS).incoming(Incoming::Defer).start();
    let uri = "unix:/nowhere/known.sock";
    let request = json!({ "uri": uri, "parameters": { "known": disk } });
    let error = waits.qmp().try_execute("migrate-incoming", request).unwrap_err();
    assert!(error.to_string().contains("no snapshot"), "{error}");
}
