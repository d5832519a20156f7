//! The answer to QMP's `query-migrate`: QMP's own fields, so that its clients read them, and `report`.

use serde_json::{Map, Value, json};

use super::{PostcopyReport, Report, Status};

/// QMP's `MigrationInfo`, with the whole document as member `report`. Times in ms and `mbps` in megabits a
/// second are QMP's units.
pub fn query_migrate(report: &Report) -> Value {
    let mut out = Map::new();
    let mut put = |name: &str, value: Value| out.insert(name.to_owned(), value);
    put("status", report.status.name().into());
    if report.status != Status::None {
        put("total-time", (report.total_us / 1000).into());
        put("setup-time", (report.setup_us / 1000).into());
        put("ram", ram(report));
        put("report", serde_json::to_value(report).unwrap_or(Value::Null));
    }
    if let (Some(expected), false) = (report.expected_downtime_ms, report.status.is_final()) {
        put("expected-downtime", expected.into());
    }
    let downtime_us = report.downtime.and_then(|downtime| downtime.total_us);
    // Behind a post-copy's switch the guest runs there, and has stood still as long as it will.
    if let (Some(downtime_us), true) =
        (downtime_us, report.status.is_postcopy() || report.status == Status::Completed)
    {
        put("downtime", downtime_us.div_ceil(1000).into());
    }
    if let Some(Value::Object(blocked)) = report.postcopy.as_ref().map(postcopy) {
        for (name, value) in blocked {
            put(&name, value);
        }
    }
    if let Some(error) = &report.error {
        put("error-desc", error.text().into());
    }
    Value::Object(out)
}

/// QMP's figures of a destination: milliseconds, and nanoseconds for latencies; bucket N of the distribution is from 2^N us
/// on.
fn postcopy(report: &PostcopyReport) -> Value {
    let (Some(latency), Some(blocked)) = (&report.fault_latency, &report.blocked) else { return Value::Null };
    let mut buckets = Vec::new();
    for class in &report.fault_classes {
        let bucket = class.up_to_us.max(1).ilog2() as usize;
        if buckets.len() <= bucket {
            buckets.resize(bucket + 1, 0u64);
        }
        if let Some(count) = buckets.get_mut(bucket) {
            *count += class.count;
        }
    }
    json!({
        "postcopy-blocktime": blocked.all_us / 1000,
        "postcopy-vcpu-blocktime": blocked.vcpus_us.iter().map(|us| us / 1000).collect::<Vec<_>>(),
        "postcopy-latency": latency.mean_us.saturating_mul(1000),
        "postcopy-latency-dist": buckets,
    })
}

/// Questions for pages: asked by this side, or answered.
fn requests(report: &Report) -> u64 {
    let from_file = report.on_demand.as_ref().map(|pager| pager.faults);
    let asked = report.postcopy.as_ref().map(|postcopy| postcopy.requests);
    from_file.or(asked).unwrap_or(0)
}

fn ram(report: &Report) -> Value {
    let seconds = report.total_us.saturating_sub(report.setup_us) as f64 / 1e6;
    let per_s = |amount: f64| if seconds > 0.0 { amount / seconds } else { 0.0 };
    let transferred = report.bytes.total();
    let moved = report.moved_bytes_per_s.filter(|_| !report.status.is_final());
    let bytes_per_s = moved.map_or(per_s(transferred as f64), |moved| moved as f64);
    let mut ram = json!({
        "transferred": transferred,
        "remaining": report.remaining_bytes,
        "total": report.memory_bytes,
        "duplicate": report.pages.zero,
        "normal": report.pages.raw,
        "normal-bytes": report.pages.raw * report.page_bytes,
        "dirty-pages-rate": report.dirty_pages_per_s,
        "mbps": bytes_per_s * 8.0 / 1e6,
        "page-size": report.page_bytes,
        "dirty-sync-count": report.rounds_forgotten + report.rounds.len() as u64,
        "pages-per-second": per_s(report.pages.sent() as f64) as u64,
        "multifd-bytes": 0,
        "postcopy-requests": requests(report),
        "precopy-bytes": transferred,
        "downtime-bytes": report.rounds.iter().filter(|r| r.stopped).map(|r| r.wire_bytes).sum::<u64>(),
        "postcopy-bytes": 0,
    });
    // QMP's numbers are never null: what isn't known is left out.
    if let Value::Object(members) = &mut ram {
        members.retain(|_, value| !value.is_null());
    }
    ram
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::MigrationError;
    use crate::pager::{BlockedReport, LatencyClass, LatencyReport, PagerReport};
    use crate::stats::{Downtime, Side};

    #[test]
    fn post_copy_has_qmps_figures_and_units() {
        let mut report = Report::new(Side::Destination);
        report.status = Status::PostcopyActive;
        report.downtime = Some(Downtime { total_us: Some(3_001), ..Downtime::default() });
        let class = |up_to_us, count| LatencyClass { up_to_us, count };
        let mut postcopy = PostcopyReport { requests: 6, ..PostcopyReport::default() };
        report.postcopy = Some(postcopy.clone());
        assert_eq!(query_migrate(&report).get("postcopy-blocktime"), None, "the source doesn't know");
        postcopy.note_pager(PagerReport {
            pages: 9,
            pages_left: 2,
            fault_latency: LatencyReport { mean_us: 70, ..LatencyReport::default() },
            fault_classes: vec![class(0, 1), class(1, 2), class(127, 5), class(1023, 1)],
            blocked: BlockedReport { vcpus_us: vec![5_999, 10_000], all_us: 4_000 },
            ..PagerReport::default()
        });
        report.postcopy = Some(postcopy);
        let answer = query_migrate(&report);
        assert_eq!((&answer["downtime"], &answer["ram"]["postcopy-requests"]), (&json!(4), &json!(6)));
        assert_eq!(answer["postcopy-blocktime"], 4);
        assert_eq!(answer["postcopy-vcpu-blocktime"], json!([5, 10]));
        assert_eq!(answer["postcopy-latency"], 70_000);
        assert_eq!(answer["postcopy-latency-dist"], json!([3, 0, 0, 0, 0, 0, 5, 0, 0, 1]));
        assert_eq!(answer["report"]["postcopy"]["pages_left"], 2);
    }

    #[test]
    fn figures_outlive_failure() {
        let mut report = Report::new(Side::Source);
        assert_eq!(query_migrate(&report), json!({"status": "none"}));
        report.status = Status::Failed;
        (report.total_us, report.setup_us, report.pages.raw) = (2_000_000, 1_000_000, 7);
        report.bytes.page_data = 1_000_000;
        report.error = Some((&MigrationError::Cancelled).into());
        let answer = query_migrate(&report);
        assert_eq!(answer["error-desc"], "the migration was cancelled");
        assert_eq!(answer["ram"]["normal-bytes"], 7 * 4096);
        assert_eq!(answer["ram"]["mbps"], 8.0);
        assert_eq!(answer["report"]["error"]["code"], "cancelled");
        assert_eq!(answer.get("downtime"), None);
    }
}
