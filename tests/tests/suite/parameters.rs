//! What one migration can be told: before it starts and while it runs.

use serde_json::{Value, json};
use tern_tests::limit::wait_for;
use tern_tests::{Incoming, PulseLog, Qmp, Tern, kvm_or_skip};

/// As much as a link of 130 Mbit/s carries, and far less than the guest writes: it never converges by itself.
const SLOW: u64 = 16 << 20;

/// A guest of 4 MiB that is being rewritten, under way to its destination with these parameters.
fn under_way(parameters: Value) -> (Tern, Tern, Qmp) {
    let words = "ws=4M rate=max pattern=random content=random interval=50";
    let (source, destination) = Tern::pulse(words).start_pair(Incoming::Unix);
    source.wait_beats(1, 2);
    let mut here = source.qmp();
    here.execute("migrate", json!({ "uri": destination.uri(), "parameters": parameters }));
    here.wait_migrate(&["active"]);
    (source, destination, here)
}

fn arrives(source: &Tern, destination: &Tern, here: &mut Qmp) -> Value {
    let answer = here.wait_migrate(&["completed"]);
    destination.wait_beats(1, 2);
    PulseLog::read(&(source.serial().text() + &destination.serial().text()));
    answer
}

#[test]
fn bandwidth_is_limited_until_the_limit_is_lifted() {
    if !kvm_or_skip() {
        return;
    }
    // 4 MiB would take 16 s.
    let (source, destination, mut here) = under_way(json!({ "max-bandwidth": 262_144 }));
    let sent =
        |here: &mut Qmp| here.execute("query-migrate", json!({}))["ram"]["transferred"].as_u64().unwrap();
    let first = sent(&mut here);
    wait_for("bytes under the limit", || (sent(&mut here) > first).then_some(()));
    let slow = here.execute("query-migrate", json!({}));
    assert_eq!(slow["status"], "active");
    let (bytes, total_us) =
        (slow["ram"]["transferred"].as_u64().unwrap(), slow["report"]["total_us"].as_u64().unwrap());
    // Twice the limit, and one batch that is under way.
    assert!(bytes < 524_288 * total_us / 1_000_000 + (2 << 20), "{bytes} bytes in {total_us} us");
    assert_eq!(here.execute("query-migrate-parameters", json!({}))["max-bandwidth"], 262_144);
    here.execute("migrate-set-parameters", json!({ "max-bandwidth": 0 }));
    let answer = arrives(&source, &destination, &mut here);
    let (bytes, total_us) =
        (answer["ram"]["transferred"].as_u64().unwrap(), answer["report"]["total_us"].as_u64().unwrap());
    assert!(
        bytes > 524_288 * total_us / 1_000_000,
        "{bytes} bytes in {total_us} us: the limit was not lifted"
    );
}

#[test]
fn a_guest_that_writes_converges_when_the_downtime_limit_is_raised() {
    if !kvm_or_skip() {
        return;
    }
    let (source, destination, mut here) = under_way(json!({ "downtime-limit": 0, "max-bandwidth": SLOW }));
    wait_for("five rounds", || {
        let answer = here.execute("query-migrate", json!({}));
        assert_eq!(answer["status"], "active", "it converged with a limit of 0 ms: {answer:#}");
        (answer["ram"]["dirty-sync-count"].as_u64().unwrap() >= 5).then_some(())
    });
    here.execute("migrate-set-parameters", json!({ "downtime-limit": 5000 }));
    let answer = arrives(&source, &destination, &mut here);
    assert_eq!(answer["report"]["downtime_limit_ms"], 5000);
}

#[test]
fn a_migration_that_takes_too_long_fails_and_the_guest_runs_on() {
    if !kvm_or_skip() {
        return;
    }
    let (source, destination, mut here) =
        under_way(json!({ "downtime-limit": 0, "max-total-time": 2000, "max-bandwidth": SLOW }));
    let answer = here.wait_migrate(&["failed"]);
    assert_eq!(answer["report"]["error"]["code"], "not-converging", "{answer:#}");
    let text = answer["error-desc"].as_str().unwrap();
    assert!(
        ["max-total-time 2000 ms", "downtime-limit 0 ms"].iter().all(|word| text.contains(word)),
        "{text}"
    );
    assert!(answer["ram"]["transferred"].as_u64().unwrap() > 1 << 20, "the figures are gone: {answer:#}");
    assert_eq!(here.state(), "running");
    here.execute("migrate", json!({ "uri": destination.uri() }));
    arrives(&source, &destination, &mut here);
    assert_history(&mut here, "source", &["failed", "completed"]);
    assert_history(&mut destination.qmp(), "destination", &["failed", "completed"]);
}

/// All that this side has seen, in its history and in its metrics.
fn assert_history(qmp: &mut Qmp, side: &str, ends: &[&str]) {
    let history = qmp.execute("query-migrate-history", json!({}));
    let reports = history["reports"].as_array().unwrap();
    let seen: Vec<_> = reports.iter().map(|report| report["status"].as_str().unwrap()).collect();
    assert_eq!(seen, ends, "{history:#}");
    assert!(reports.iter().all(|report| report["ended_at_unix_ms"].is_u64()), "{history:#}");
    assert_eq!(reports.last().unwrap()["progress_percent"], 100);
    let metrics = qmp.execute("query-metrics", json!({}));
    let metrics = metrics["text"].as_str().unwrap();
    for end in ends {
        let line = format!("tern_migrations_total{{side=\"{side}\",status=\"{end}\"}} 1\n");
        assert!(metrics.contains(&line), "no {line} in {metrics}");
    }
    assert!(metrics.contains("tern_migration_progress_ratio 1\n"), "{metrics}");
}

#[test]
fn nothing_leaks_into_the_next_migration() {
    if !kvm_or_skip() {
        return;
    }
    let (source, destination, mut here) = under_way(json!({ "max-bandwidth": 262_144, "downtime-limit": 7 }));
    here.execute("migrate_cancel", json!({}));
    here.wait_migrate(&["cancelled"]);
    let defaults = here.execute("query-migrate-parameters", json!({}));
    assert_eq!((&defaults["max-bandwidth"], &defaults["downtime-limit"]), (&json!(0), &json!(300)));
    let error = here.try_execute("migrate-set-parameters", json!({ "downtime-limit": 1 })).unwrap_err();
    assert!(error["desc"].as_str().unwrap().contains("no migration runs"), "{error}");
    here.execute("migrate", json!({ "uri": destination.uri() }));
    let answer = arrives(&source, &destination, &mut here);
    assert_eq!(answer["report"]["downtime_limit_ms"], 300);
}

#[test]
fn wrong_parameters_are_named_and_change_nothing() {
    if !kvm_or_skip() {
        return;
    }
    let (source, destination) = Tern::pulse("ws=1M rate=1000 interval=50").start_pair(Incoming::Unix);
    let mut here = source.qmp();
    let uri = destination.uri();
    for (parameters, expected) in [
        (json!({ "downtime-limit": 2_000_001 }), "2000001 ms is out of range; legal: 0 to 2000000"),
        (json!({ "max-bandwidth": 1 }), "legal: 0 (unlimited) or 262144"),
        (json!({ "max-bandwith": 0 }), "these exist: max-bandwidth"),
        (json!({ "max-total-time": "soon" }), "\"soon\" is not a whole number"),
    ] {
        let arguments = json!({ "uri": uri, "parameters": parameters });
        let error = here.try_execute("migrate", arguments).unwrap_err();
        assert!(error["desc"].as_str().unwrap().contains(expected), "{expected}: {error}");
    }
    let error = here.try_execute("migrate", json!({ "uri": uri, "capabilities": ["warp"] })).unwrap_err();
    assert!(error["desc"].as_str().unwrap().contains("warp"), "{error}");
    assert_eq!((here.migrate_status(), here.state()), (String::new(), "running".into()));
    let mut there = destination.qmp();
    let error = there.try_execute("migrate-set-parameters", json!({ "downtime-limit": 9 })).unwrap_err();
    assert!(error["desc"].as_str().unwrap().contains("give it to `migrate` there"), "{error}");
    // A destination has capabilities of its own, until its guest has come.
    let quiet = json!([{ "capability": "events", "state": false }]);
    there.execute("migrate-set-parameters", json!({ "capabilities": quiet }));
    let first = &there.execute("query-migrate-capabilities", json!({}))[0];
    assert_eq!((&first["capability"], &first["state"]), (&quiet[0]["capability"], &quiet[0]["state"]));
    tern_tests::migrate(&source, &destination);
    assert_eq!(there.execute("query-migrate-capabilities", json!({}))[0]["state"], true);
}
