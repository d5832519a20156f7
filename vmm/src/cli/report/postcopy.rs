//! Post-copy in the table.

use serde_json::Value;

use super::{number, time};

/// Appends what a report says of post-copy; nothing where there was none.
pub(super) fn rows(report: &Value, rows: &mut Vec<(&'static str, String)>) {
    if !report.is_object() {
        return;
    }
    rows.push(("post-copy after", time(&report["switched_at_us"])));
    if let Some(reason) = report["reason"].as_str() {
        rows.push(("  since", reason.to_owned()));
    }
    let count = |name: &str| number(&report[name]).to_string();
    rows.extend([
        ("  pages missing", count("pages_missing")),
        ("  still missing", count("pages_left")),
        ("  by request", count("pages_by_request")),
        ("  before it", count("pages_by_push")),
    ]);
    if number(&report["pages_duplicate"]) > 0 {
        rows.push(("  twice", count("pages_duplicate")));
    }
    waits(report, rows);
    breaks(report, rows);
}

/// Of the destination.
fn waits(report: &Value, rows: &mut Vec<(&'static str, String)>) {
    let latency = &report["fault_latency"];
    if latency.is_object() && number(&report["faults"]) > 0 {
        let [p50, p99, max] = ["p50_us", "p99_us", "max_us"].map(|name| time(&latency[name]));
        let faults = number(&report["faults"]);
        rows.push((
            "waits for a page",
            format!("{faults}: half took {p50}, 99 of 100 {p99}, the longest {max}"),
        ));
    }
    let blocked = &report["blocked"];
    for (index, vcpu) in blocked["vcpus_us"].as_array().into_iter().flatten().enumerate() {
        rows.push((if index == 0 { "vCPUs waited" } else { "" }, format!("{}, vCPU {index}", time(vcpu))));
    }
    if blocked.is_object() {
        rows.push(("  all at once", time(&blocked["all_us"])));
    }
}

fn breaks(report: &Value, rows: &mut Vec<(&'static str, String)>) {
    let pauses = number(&report["pauses"]);
    if pauses > 0 {
        let healed = report["healing_us"].as_array().map(Vec::as_slice).unwrap_or_default();
        let longest = healed.iter().max_by_key(|us| number(us));
        let longest = longest.map_or_else(String::new, |us| format!(", the longest took {}", time(us)));
        rows.push(("breaks", format!("{pauses}, {} healed{longest}", healed.len())));
    }
    if let Some(reason) = report["paused_by"].as_str() {
        rows.push(("  paused by", reason.to_owned()));
    }
}

#[cfg(test)]
mod tests {
    use tern_migration::pager::{BlockedReport, LatencyReport, PagerReport};
    use tern_migration::stats::PostcopyReport;

    fn shown(report: &PostcopyReport) -> String {
        let mut rows = Vec::new();
        super::rows(&serde_json::to_value(report).unwrap(), &mut rows);
        rows.iter().map(|(name, value)| format!("{name}: {value}\n")).collect()
    }

    #[test]
    fn a_destination_shows_who_waited_and_how_long() {
        let mut report = PostcopyReport { switched_at_us: 1_500_000, ..PostcopyReport::default() };
        report.note_pager(PagerReport {
            pages: 700,
            pages_left: 3,
            pages_by_fault: 20,
            faults: 21,
            fault_latency: LatencyReport { mean_us: 1, p50_us: 90, p99_us: 1_200, max_us: 2_000_000 },
            blocked: BlockedReport { vcpus_us: vec![5_000, 70], all_us: 60 },
            ..PagerReport::default()
        });
        let text = shown(&report);
        for line in [
            "post-copy after: 1.50 s",
            "  pages missing: 700",
            "  still missing: 3",
            "  by request: 20",
            "waits for a page: 21: half took 90 us, 99 of 100 1.20 ms, the longest 2.00 s",
            "vCPUs waited: 5.00 ms, vCPU 0",
            ": 70 us, vCPU 1",
            "  all at once: 60 us",
        ] {
            assert!(text.contains(line), "no {line} in:\n{text}");
        }
        assert!(!text.contains("breaks") && !text.contains("twice"), "{text}");
    }

    #[test]
    fn a_source_shows_why_and_what_broke() {
        let report = PostcopyReport {
            reason: Some("it was asked for".into()),
            pauses: 3,
            healing_us: vec![100, 2_500],
            paused_by: Some("the link broke".into()),
            ..PostcopyReport::default()
        };
        let text = shown(&report);
        for line in [
            "  since: it was asked for",
            "breaks: 3, 2 healed, the longest took 2.50 ms",
            "  paused by: the link broke",
        ] {
            assert!(text.contains(line), "no {line} in:\n{text}");
        }
        assert!(!text.contains("waits") && !text.contains("vCPU"), "{text}");
    }
}
