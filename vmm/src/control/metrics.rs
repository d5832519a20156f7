//! The machine's figures as Prometheus reads them: its text exposition format 0.0.4, base units (seconds, bytes),
//! counters ending in `_total`.

use std::fmt::Write;

use tern_migration::stats::PostcopyReport;
use tern_migration::{Report, Side, Status};

use super::operations::{MachineFacts, MigrationHistory, RunState};

/// All figures of a machine.
pub fn text(facts: &MachineFacts, state: RunState, history: &MigrationHistory) -> String {
    let mut out = Metrics::default();
    let version = env!("CARGO_PKG_VERSION");
    let uuid = facts.uuid.to_string();
    out.head("tern_info", "gauge", "The machine and its tern; always 1.");
    out.value("tern_info", &[("name", &facts.name), ("uuid", &uuid), ("version", version)], 1.0);
    out.head("tern_state", "gauge", "1 for the state that the machine is in.");
    for possible in RunState::ALL {
        out.value("tern_state", &[("state", possible.name())], f64::from(u8::from(possible == state)));
    }
    out.one("tern_vcpus", "gauge", "Virtual CPUs.", facts.cpus.len() as f64);
    out.head("tern_migrations_total", "counter", "Migrations and saves that are over, by side and end.");
    for side in [Side::Source, Side::Destination] {
        for status in [Status::Completed, Status::Failed, Status::Cancelled, Status::InDoubt] {
            let same = history.counts.iter().find(|count| (count.side, count.status) == (side, status));
            let labels = [("side", side.name()), ("status", status.name())];
            out.value("tern_migrations_total", &labels, same.map_or(0, |count| count.migrations) as f64);
        }
    }
    if let Some(last) = history.reports.last() {
        migration(&mut out, last);
    }
    out.text
}

/// The running migration, or the last one.
fn migration(out: &mut Metrics, report: &Report) {
    let seconds = |us: u64| us as f64 / 1e6;
    let active = !report.status.is_final();
    out.head("tern_migration_info", "gauge", "The running migration, or the last one; always 1.");
    let labels = [
        ("side", report.side.name()),
        ("status", report.status.name()),
        ("session", &report.session),
        ("transport", report.transport),
    ];
    out.value("tern_migration_info", &labels, 1.0);
    let progress = report.progress_percent as f64 / 100.0;
    let gauges = [
        ("tern_migration_active", "1 while it runs.", Some(f64::from(u8::from(active)))),
        ("tern_migration_progress_ratio", "How much of it is done, from 0 to 1.", Some(progress)),
        (
            "tern_migration_eta_seconds",
            "How long it will still take.",
            report.eta_ms.map(|ms| ms as f64 / 1e3),
        ),
        (
            "tern_migration_duration_seconds",
            "Since its start, or its whole time.",
            Some(seconds(report.total_us)),
        ),
        ("tern_migration_memory_bytes", "Guest memory.", Some(report.memory_bytes as f64)),
        (
            "tern_migration_remaining_bytes",
            "Memory still to be moved.",
            report.remaining_bytes.map(|b| b as f64),
        ),
        (
            "tern_migration_expected_downtime_seconds",
            "Downtime if the guest were stopped now.",
            report.expected_downtime_ms.map(|ms| ms as f64 / 1e3),
        ),
        (
            "tern_migration_downtime_seconds",
            "How long the guest stood still.",
            report.downtime.and_then(|downtime| downtime.total_us).map(seconds),
        ),
        (
            "tern_migration_dirty_pages_per_second",
            "Pages that the guest wrote, in the last whole round.",
            report.dirty_pages_per_s.map(|pages| pages as f64),
        ),
        (
            "tern_migration_link_bytes_per_second",
            "What the link carries while it is busy.",
            report.link_bytes_per_s.map(|bytes| bytes as f64),
        ),
        (
            "tern_migration_ended_timestamp_seconds",
            "When it ended, in seconds since 1970.",
            report.ended_at_unix_ms.map(|ms| ms as f64 / 1e3),
        ),
    ];
    for (name, help, value) in gauges {
        if let Some(value) = value {
            out.one(name, "gauge", help, value);
        }
    }
    let rounds = report.rounds_forgotten.saturating_add(report.rounds.len() as u64);
    out.one("tern_migration_rounds", "gauge", "Rounds so far.", rounds as f64);
    // Every kind that the report has: a new encoding shows here without another line.
    by_kind(out, "tern_migration_pages", "Pages by what became of them.", &report.pages);
    by_kind(out, "tern_migration_bytes", "Bytes on the wire by kind.", &report.bytes);
    if let Some(postcopy) = &report.postcopy {
        self::postcopy(out, postcopy);
    }
}

fn postcopy(out: &mut Metrics, report: &PostcopyReport) {
    let seconds = |us: u64| us as f64 / 1e6;
    let mut counts = serde_json::to_value(report).unwrap_or_default();
    if let Some(members) = counts.as_object_mut() {
        members.retain(|name, _| !name.ends_with("_us"));
    }
    by_kind(out, "tern_migration_postcopy", "Post-copy: pages, requests, waits and breaks by kind.", &counts);
    let healing = report.healing_us.iter().copied().max();
    if let Some(us) = healing {
        let help = "Post-copy: how long the longest break took.";
        out.one("tern_migration_postcopy_healing_seconds_max", "gauge", help, seconds(us));
    }
    if let Some(latency) = &report.fault_latency {
        let name = "tern_migration_postcopy_fault_seconds";
        out.head(name, "gauge", "Post-copy: how long somebody waited for a page.");
        let quantiles = [("0.5", latency.p50_us), ("0.99", latency.p99_us), ("1", latency.max_us)];
        for (quantile, us) in quantiles {
            out.value(name, &[("quantile", quantile)], seconds(us));
        }
    }
    if let Some(blocked) = &report.blocked {
        let name = "tern_migration_postcopy_blocked_seconds";
        out.head(name, "gauge", "Post-copy: how long vCPUs stood still for pages; `all` of them at once.");
        for (vcpu, us) in blocked.vcpus_us.iter().enumerate() {
            out.value(name, &[("vcpu", &vcpu.to_string())], seconds(*us));
        }
        out.value(name, &[("vcpu", "all")], seconds(blocked.all_us));
    }
}

/// One sample for each number of `members`, with its name as the label `kind`.
fn by_kind(out: &mut Metrics, name: &str, help: &str, members: &impl serde::Serialize) {
    let Ok(serde_json::Value::Object(members)) = serde_json::to_value(members) else { return };
    out.head(name, "gauge", help);
    for (kind, value) in &members {
        if let Some(value) = value.as_f64() {
            out.value(name, &[("kind", kind)], value);
        }
    }
}

/// Lines of the format.
#[derive(Default)]
struct Metrics {
    text: String,
}

impl Metrics {
    fn head(&mut self, name: &str, kind: &str, help: &str) {
        // Writing to a string doesn't fail.
        let _ = writeln!(self.text, "# HELP {name} {help}\n# TYPE {name} {kind}");
    }

    fn value(&mut self, name: &str, labels: &[(&str, &str)], value: f64) {
        let label = |(key, value): &(&str, &str)| format!("{key}=\"{}\"", escaped(value));
        let labels = labels.iter().map(label).collect::<Vec<_>>().join(",");
        let labels = if labels.is_empty() { labels } else { format!("{{{labels}}}") };
        let _ = writeln!(self.text, "{name}{labels} {value}");
    }

    fn one(&mut self, name: &str, kind: &str, help: &str, value: f64) {
        self.head(name, kind, help);
        self.value(name, &[], value);
    }
}

/// A label's value: backslash, quote and line feed are escaped.
fn escaped(text: &str) -> String {
    text.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::MigrationCount;
    use tern_migration::pager::{BlockedReport, PagerReport};

    fn facts(name: &str) -> MachineFacts {
        MachineFacts {
            name: name.to_owned(),
            uuid: uuid::Uuid::nil(),
            generation_id: None,
            cpus: Vec::new(),
            serial: crate::control::SerialFacts::Null,
        }
    }

    #[test]
    fn every_sample_has_a_head_and_a_number() {
        let mut report = Report::new(Side::Source);
        (report.status, report.total_us, report.pages.raw) = (Status::Failed, 1_500_000, 7);
        let mut postcopy = PostcopyReport { healing_us: vec![2_500_000], ..PostcopyReport::default() };
        let blocked = BlockedReport { vcpus_us: vec![1_500_000], all_us: 1 };
        postcopy.note_pager(PagerReport { pages_left: 9, blocked, ..PagerReport::default() });
        report.postcopy = Some(postcopy);
        let counts = vec![MigrationCount { side: Side::Source, status: Status::Failed, migrations: 3 }];
        let history = MigrationHistory { reports: vec![report], counts };
        let text = text(&facts("a \"b\"\n\\"), RunState::Paused, &history);
        let mut heads = Vec::new();
        for line in text.lines() {
            if let Some(head) = line.strip_prefix("# TYPE ") {
                let (name, kind) = head.split_once(' ').unwrap();
                assert!(!heads.contains(&name) && matches!(kind, "gauge" | "counter"), "{line}");
                assert_eq!(name.ends_with("_total"), kind == "counter", "{line}");
                heads.push(name);
            } else if !line.starts_with("# HELP ") {
                let name = line.split(['{', ' ']).next().unwrap();
                assert_eq!(heads.last(), Some(&name), "{line}");
                line.rsplit_once(' ').unwrap().1.parse::<f64>().unwrap();
            }
        }
        for expected in [
            "name=\"a \\\"b\\\"\\n\\\\\"",
            "tern_state{state=\"paused\"} 1\n",
            "tern_state{state=\"running\"} 0\n",
            "tern_migrations_total{side=\"source\",status=\"failed\"} 3\n",
            "tern_migration_duration_seconds 1.5\n",
            "tern_migration_pages{kind=\"raw\"} 7\n",
            "tern_migration_postcopy{kind=\"pages_left\"} 9\n",
            "tern_migration_postcopy_healing_seconds_max 2.5\n",
            "tern_migration_postcopy_fault_seconds{quantile=\"0.99\"} 0\n",
            "tern_migration_postcopy_blocked_seconds{vcpu=\"0\"} 1.5\n",
        ] {
            assert!(text.contains(expected), "no {expected} in {text}");
        }
        assert!(!text.contains("eta"), "{text}");
    }
}
