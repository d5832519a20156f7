//! `tern migrate --check`: asks whether the guest would fit at a destination, and shows the answer.

use std::fmt::Write;
use std::time::Duration;

use serde_json::{Value, json};

use super::{Exit, Failure, print, print_json};
use crate::config::ByteSize;
use crate::control::client::Client;

/// How long to wait for the event that tells the end, before asking again.
const WAIT: Duration = Duration::from_millis(500);
/// Widest column that others are lined up behind.
const COLUMN_MOST: usize = 40;

/// Asks by `request` (what `migrate` would take), waits for the answer, and prints it.
pub(super) fn run(client: &mut Client, request: Value, json: bool) -> Result<Exit, Failure> {
    let report = ask(client, request)?;
    if json { print_json(&report) } else { print(&table(&report)) }?;
    Ok(if report["fits"] == true { Exit::Success } else { Exit::DoesNotFit })
}

/// Waits for the answer.
pub(super) fn ask(client: &mut Client, request: Value) -> Result<Value, Failure> {
    client.execute("migrate-check", request)?;
    let answer = loop {
        let answer = client.execute("query-migrate-check", json!({}))?;
        if answer["status"] != "active" {
            break answer;
        }
        client.wait_event(WAIT)?;
    };
    if answer["status"] == "cancelled" {
        return Err(Failure::text(Exit::MigrationCancelled, "the check was cancelled"));
    }
    let report = &answer["report"];
    if !report.is_object() {
        let text = answer["error-desc"].as_str().unwrap_or("the check gave no answer");
        return Err(Failure::text(Exit::Failure, format!("the destination can't be asked: {text}")));
    }
    Ok(report.clone())
}

fn text<'a>(value: &'a Value, key: &str) -> &'a str {
    value[key].as_str().unwrap_or("?")
}

/// The report for people.
fn table(report: &Value) -> String {
    let aspects = report["aspects"].as_array().map(Vec::as_slice).unwrap_or_default();
    let width = |key: &str, title: &str| {
        let lengths = aspects.iter().map(|aspect| text(aspect, key).chars().count());
        lengths.filter(|length| *length <= COLUMN_MOST).chain([title.len()]).max().unwrap_or(0)
    };
    let (name, source) = (width("name", "aspect"), width("source", "source"));
    let mut out = String::new();
    // Writing to a string doesn't fail.
    let _ = writeln!(out, "     {:<name$}  {:<source$}  destination", "aspect", "source");
    for aspect in aspects {
        let mark = if aspect["ok"] == true { "ok" } else { "NO" };
        let values = (text(aspect, "name"), text(aspect, "source"), text(aspect, "destination"));
        let _ = writeln!(out, "{mark:<4} {:<name$}  {:<source$}  {}", values.0, values.1, values.2);
        if let Some(remedy) = aspect["remedy"].as_str() {
            let _ = writeln!(out, "     -> {remedy}");
        }
    }
    out.push('\n');
    rows(report).iter().for_each(|(title, value)| {
        let _ = writeln!(out, "{title:<14} {value}");
    });
    let differing = aspects.iter().filter(|aspect| aspect["ok"] != true).count();
    out.push_str(&match (report["fits"] == true, differing) {
        (true, _) => "the guest fits\n".to_owned(),
        (false, count) => format!("the guest does not fit: {count} of {} aspects\n", aspects.len()),
    });
    out
}

fn rows(report: &Value) -> Vec<(&'static str, String)> {
    let number = |key: &str| report[key].as_u64().unwrap_or(0);
    let size = |key: &str| ByteSize(number(key)).to_string();
    let trip_us = number("round_trip_us");
    vec![
        ("destination", format!("{}, tern {}", text(report, "uri"), text(report, "peer_tern_version"))),
        ("round trip", format!("{}.{:03} ms", trip_us / 1000, trip_us % 1000)),
        ("bandwidth", format!("{}/s", size("link_bytes_per_s"))),
        ("guest memory", format!("{}, {} of it touched", size("memory_bytes"), size("resident_bytes"))),
        (
            "would take",
            format!("about {} ms, more if the guest writes meanwhile", number("expected_total_ms").max(1)),
        ),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report(ok: bool) -> Value {
        let remedy = if ok { Value::Null } else { json!("hide it") };
        json!({
            "uri": "tcp:b:4444", "fits": ok, "peer_tern_version": "0.1.0", "round_trip_us": 1042,
            "link_bytes_per_s": 1 << 30, "memory_bytes": 1 << 30, "resident_bytes": 64 << 20,
            "expected_total_ms": 62,
            "aspects": [
                {"code": "memory", "name": "memory", "source": "1 GiB", "destination": "1 GiB", "ok": true},
                {"code": "cpu-features", "name": "CPU features", "source": "98 are seen",
                 "destination": "lacks avx2", "ok": ok, "remedy": remedy},
            ],
        })
    }

    #[test]
    fn all_aspects_and_figures_are_shown() {
        let text = table(&report(true));
        for part in [
            "     aspect        source       destination\n",
            "ok   memory        1 GiB        1 GiB\n",
            "round trip     1.042 ms\n",
            "1 GiB, 64 MiB of it touched",
            "about 62 ms",
            "the guest fits\n",
        ] {
            assert!(text.contains(part), "{part:?} is not in:\n{text}");
        }
    }

    #[test]
    fn what_does_not_fit_stands_out_with_its_remedy() {
        let text = table(&report(false));
        assert!(text.contains("NO   CPU features  98 are seen  lacks avx2\n     -> hide it\n"), "{text}");
        assert!(text.ends_with("the guest does not fit: 1 of 2 aspects\n"), "{text}");
    }
}
