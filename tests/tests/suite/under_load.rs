//! While much memory moves: a destination answers whatever it is asked, and no more passes than the limit allows. How soon
//! and how exactly is measured by the bench (groups `answers` and `limit`).

use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tern_tests::limit::wait_for;
use tern_tests::{Direction, Incoming, Proxy, PulseLog, Tern, kvm_or_skip};

/// Writes more than the limits below let through, so that memory moves until they are lifted.
const WORDS: &str = "ws=24M rate=max content=text interval=50";
const QUESTIONS: usize = 500;
const LIMIT: u64 = 4_000_000;
/// What lies between the two sides and was sent before: in sockets, and in the proxy.
const BETWEEN_BYTES: u64 = 1 << 20;

#[test]
fn a_destination_answers_every_question_while_a_guest_arrives() {
    if !kvm_or_skip() {
        return;
    }
    let (source, destination) = Tern::pulse(WORDS).start_pair(Incoming::Tcp);
    source.wait_beats(1, 2);
    let (mut near, mut far) = (source.qmp(), destination.qmp());
    let parameters = json!({ "channels": 4, "compress": "lz4", "max-bandwidth": 20_000_000 });
    // Until the manager has said so, it doesn't end.
    let waits = json!([{ "capability": "pause-before-switchover", "state": true }]);
    let request = json!({ "uri": destination.uri(), "parameters": parameters, "capabilities": waits });
    near.execute("migrate", request);
    far.wait_migrate(&["active"]);
    let moved = |answer: &Value| answer["report"]["bytes"]["page_data"].as_u64().unwrap();
    let (mut before, mut first) = (0, None);
    for _ in 0..QUESTIONS {
        assert_eq!(far.state(), "inmigrate");
        let answer = far.execute("query-migrate", json!({}));
        assert_eq!(answer["status"], "active", "{answer:#}");
        assert!(moved(&answer) >= before, "{answer:#}");
        before = moved(&answer);
        first.get_or_insert(before);
    }
    // What was answered is of now: it goes on.
    wait_for("more memory at the destination", || {
        (moved(&far.execute("query-migrate", json!({}))) > first.unwrap()).then_some(())
    });
    near.execute("migrate-set-parameters", json!({ "downtime-limit": 10_000, "max-bandwidth": 0 }));
    near.wait_migrate(&["pre-switchover"]);
    near.execute("migrate-continue", json!({}));
    near.wait_migrate(&["completed"]);
    destination.wait_beats(1, 2);
    PulseLog::read(&(source.serial().text() + &destination.serial().text()));
}

#[test]
fn no_more_passes_than_the_limit_allows_and_a_change_counts_at_once() {
    if !kvm_or_skip() {
        return;
    }
    let (source, destination) = Tern::pulse(WORDS).start_pair(Incoming::Unix);
    source.wait_beats(1, 2);
    let proxy = Proxy::new(&destination.uri());
    let mut near = source.qmp();
    for (channels, limits) in [(1, [LIMIT, LIMIT / 4]), (4, [LIMIT / 4, LIMIT])] {
        let parameters = json!({ "channels": channels, "downtime-limit": 0, "max-bandwidth": limits[0] });
        let waits = json!([{ "capability": "pause-before-switchover", "state": true }]);
        let request = json!({ "uri": proxy.uri(), "parameters": parameters, "capabilities": waits });
        near.execute("migrate", request);
        near.wait_migrate(&["active"]);
        for limit in limits {
            near.execute("migrate-set-parameters", json!({ "max-bandwidth": limit }));
            let (began, from) = (Instant::now(), proxy.bytes(Direction::ToDestination));
            let mut passed = 0;
            // A host that has no time for it moves less, never more.
            while passed < 2 * limit {
                passed = proxy.bytes(Direction::ToDestination) - from;
                let most = began.elapsed().as_secs_f64() * limit as f64 * 1.03;
                assert!(passed <= most as u64 + BETWEEN_BYTES, "{passed} of {most} over {channels} channels");
                std::thread::sleep(Duration::from_millis(5));
            }
        }
        near.execute("migrate_cancel", json!({}));
        near.wait_migrate(&["cancelled"]);
        destination.qmp().wait_state(&["inmigrate"]);
    }
    near.execute("migrate", json!({ "uri": proxy.uri() }));
    near.wait_migrate(&["completed"]);
    destination.wait_beats(1, 2);
    PulseLog::read(&(source.serial().text() + &destination.serial().text()));
}
