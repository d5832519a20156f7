//! What a migration may use, as a command and over QMP, with a real destination; and `migrate` refuses just that.

use std::process::{Command, Stdio};

use serde_json::{Value, json};
use tern_tests::binary::tern_binary;
use tern_tests::{Incoming, Tern, kvm_or_skip};

use crate::save::WORDS;

fn capabilities(tern: &Tern, more: &[&str]) -> String {
    let mut command = Command::new(tern_binary());
    command.arg("capabilities").arg("--control").arg(tern.control()).args(more).stdin(Stdio::null());
    let output = command.output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

fn row<'a>(list: &'a Value, feature: &str) -> &'a Value {
    list.as_array().unwrap().iter().find(|row| row["feature"] == feature).unwrap()
}

#[test]
fn what_is_listed_is_what_migrate_does() {
    if !kvm_or_skip() {
        return;
    }
    let (source, destination) = Tern::pulse(WORDS).start_pair(Incoming::Unix);
    source.wait_beats(1, 2);
    let uri = destination.uri();
    let shown = capabilities(&source, &[]);
    assert!(shown.contains("compress=zstd") && shown.contains("-> file: "), "{shown}");
    let answer: Value = serde_json::from_str(&capabilities(&source, &[uri.as_str(), "--json"])).unwrap();
    let peer = &answer["peer"];
    assert_eq!(
        (&peer["channels"], &peer["proof"], &peer["known_pages"]),
        (&json!(64), &json!(true), &json!(0))
    );
    let there = &answer["to_peer"];
    assert_eq!(row(there, "compress=zstd")["legal"], true);
    let ring = row(there, "dirty-log=ring");
    assert_eq!((&ring["legal"], &ring["effect"]), (&json!(false), &json!("refused")));
    let known =
        there.as_array().unwrap().iter().find(|row| row["feature"] == "known" && row["kind"] == "encoding");
    assert!(known.unwrap()["remedy"].as_str().unwrap().contains("--known"), "{known:?}");

    // Each that is refused, with its reason.
    let mut here = source.qmp();
    for (uri, list, parameters) in [
        (uri.as_str(), &answer["to_peer"], json!({ "dirty-log": "ring" })),
        (uri.as_str(), &answer["to_peer"], json!({ "decompress-threads": 2 })),
        ("file:/nowhere/a", &answer["to_file"], json!({ "channels": 2 })),
        ("file:/nowhere/a", &answer["to_file"], json!({ "postcopy": "manual" })),
    ] {
        let (name, value) = parameters.as_object().unwrap().iter().next().unwrap();
        let name = value.as_str().map_or(name.clone(), |value| format!("{name}={value}"));
        let request = json!({ "uri": uri, "parameters": parameters });
        let error = here.try_execute("migrate", request).unwrap_err().to_string();
        let reason = row(list, &name)["reason"].as_str().unwrap();
        assert!(error.contains(&reason.replace('"', "\\\"")), "{name}: {error}; listed: {reason}");
    }
    let list = here.execute("query-migrate-capabilities", json!({}));
    let xbzrle = list.as_array().unwrap().iter().find(|entry| entry["capability"] == "xbzrle").unwrap();
    assert_eq!((&xbzrle["state"], &xbzrle["to_peer"]["legal"]), (&json!(false), &json!(true)));
    assert!(xbzrle["to_file"]["reason"].as_str().unwrap().contains("a file keeps the latest of each page"));
}
