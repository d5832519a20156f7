//! The answer to QMP's `query-migrate`: QMP's own fields, so that its clients read them, and `report`.

use serde_json::{Map, Value, json};

use super::{Report, Status};

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
    if let (Some(downtime_us), Status::Completed) = (downtime_us, report.status) {
        put("downtime", downtime_us.div_ceil(1000).into());
    }
    if let Some(error) = &report.error {
        put("error-desc", error.text().into());
    }
    Value::Object(out)
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
        "postcopy-requests": report.on_demand.as_ref().map_or(0, |pager| pager.faults),
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
    use crate::stats::Side;

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
