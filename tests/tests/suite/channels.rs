//! One real guest that moves on and on, each time over other connections and in another encoding. It checks its own
//! memory; both sides must have counted the same.

use serde_json::{Value, json};
use tern_tests::{Incoming, Moved, PulseLog, Qmp, Tern, kvm_or_skip};

/// The passes before the guest may be stopped: in some of them pages are sent again.
const PASSES: u32 = 4;

/// Slow enough that the guest has written something in each pass.
const MAX_BANDWIDTH: u64 = 8_000_000;

/// Parameters and capabilities of one move.
fn moves() -> Vec<(u32, &'static str, bool)> {
    vec![
        (4, "none", false),
        (1, "lz4", false),
        (3, "zstd", true),
        (1, "none", true),
        (2, "zlib", false),
        (16, "auto", true),
        (64, "lz4", true),
    ]
}

/// Waits for so many passes, or until it is over: a guest that has written nothing may be stopped at any time.
fn wait_passes(source: &mut Qmp) {
    let over = |event: &Value| event["event"] == "MIGRATION" && event["data"]["status"] == "completed";
    for _ in 0..PASSES {
        let next = |event: &Value| event["event"] == "MIGRATION_PASS" || over(event);
        if over(&source.wait_event_where("MIGRATION_PASS", next)) {
            return;
        }
    }
}

fn migrate(source: &Tern, destination: &Tern, (channels, compress, xbzrle): (u32, &str, bool)) -> Moved {
    let mut here = source.qmp();
    let parameters = json!({ "channels": channels, "compress": compress, "downtime-limit": 0, "max-bandwidth": MAX_BANDWIDTH });
    let capabilities = json!([{ "capability": "xbzrle", "state": xbzrle }]);
    let arguments =
        json!({ "uri": destination.uri(), "parameters": parameters, "capabilities": capabilities });
    here.execute("migrate", arguments);
    wait_passes(&mut here);
    // Refused if it is over already, which `wait_migrate` finds out.
    let _ =
        here.try_execute("migrate-set-parameters", json!({ "downtime-limit": 10_000, "max-bandwidth": 0 }));
    let from = here.wait_migrate(&["completed"]);
    let to = destination.qmp().wait_migrate(&["completed"]);
    Moved { source: from, destination: to }
}

/// Pages sent in this encoding.
fn pages(report: &Value, encoding: &str) -> u64 {
    let all = report["encodings"].as_array().unwrap();
    let found = all.iter().find(|count| count["name"] == encoding);
    found.map_or(0, |count| count["pages"].as_u64().unwrap())
}

fn check(moved: &Moved, (channels, compress, xbzrle): (u32, &str, bool)) {
    let what = format!("{channels} channels, {compress}, xbzrle {xbzrle}");
    let (from, to) = (&moved.source["report"], &moved.destination["report"]);
    for same in ["encodings", "channels"] {
        assert_eq!(from[same], to[same], "{what}");
    }
    assert_eq!(from["channels"].as_array().unwrap().len(), channels as usize, "{what}");
    assert!(
        from["proof"]["memory"].is_string() && from["proof"]["memory"] == to["proof"]["memory"],
        "{what}"
    );
    if ["lz4", "zstd", "zlib"].contains(&compress) {
        assert!(pages(from, compress) > 0, "{what}: {}", from["encodings"]);
        assert!(
            from["bytes"]["page_data"].as_u64() < from["pages"]["encoded"].as_u64().map(|n| n * 4096),
            "{what}"
        );
    }
    if xbzrle {
        // How many there are depends on what the guest has written while it moved.
        let counts = ["hits", "overflows"].map(|name| from["xbzrle"][name].as_u64().unwrap());
        assert_eq!(counts[0], counts[1] + pages(from, "xbzrle"), "{what}: {}", from["xbzrle"]);
    }
    assert_eq!(from["warnings"], json!([]), "{what}");
}

#[test]
fn a_guest_moves_over_several_channels_in_every_encoding() {
    if !kvm_or_skip() {
        return;
    }
    let words = "ws=8M rate=max pattern=random bytes=64 content=text interval=50";
    let machine = Tern::pulse(words);
    let mut here = machine.clone().start();
    here.wait_beats(1, 2);
    let (mut told, mut deltas) = (String::new(), 0);
    for (number, how) in moves().into_iter().enumerate() {
        let way = if number % 2 == 0 { Incoming::Unix } else { Incoming::Tcp };
        let there = machine.clone().incoming(way).start();
        let moved = migrate(&here, &there, how);
        check(&moved, how);
        deltas += pages(&moved.source["report"], "xbzrle");
        there.wait_beats(1, 2);
        told += &here.serial().text();
        assert!(here.quit().success());
        here = there;
    }
    PulseLog::read(&(told + &here.serial().text()));
    assert!(deltas > 0, "no page was ever sent as what has changed in it");
}

#[test]
fn a_cancel_leaves_the_guest_here_whatever_sends_it() {
    if !kvm_or_skip() {
        return;
    }
    let machine = Tern::pulse("ws=8M rate=max pattern=random bytes=64 content=text interval=50");
    let (source, destination) = machine.start_pair(Incoming::Tcp);
    source.wait_beats(1, 2);
    let mut here = source.qmp();
    for (channels, compress, xbzrle) in moves() {
        let parameters = json!({ "channels": channels, "compress": compress, "downtime-limit": 0, "max-bandwidth": MAX_BANDWIDTH });
        let capabilities = json!([{ "capability": "xbzrle", "state": xbzrle }]);
        let arguments =
            json!({ "uri": destination.uri(), "parameters": parameters, "capabilities": capabilities });
        here.execute("migrate", arguments);
        here.wait_event("MIGRATION_PASS");
        here.execute("migrate_cancel", json!({}));
        here.wait_migrate(&["cancelled"]);
        destination.qmp().wait_migrate(&["failed"]);
        assert_eq!(here.state(), "running");
    }
    let how = (4, "zstd", true);
    check(&migrate(&source, &destination, how), how);
    destination.wait_beats(1, 2);
    PulseLog::read(&(source.serial().text() + &destination.serial().text()));
}
