//! The report of a migration as a table for people. The document itself is `tern_migration::Report`.

mod postcopy;

use std::fmt::Write;

use serde_json::Value;

use crate::config::ByteSize;

/// Rounds that are shown; of more, the first and the last ones.
const ROUNDS_SHOWN: usize = 8;

/// The table, from the report as JSON. What a report doesn't have is left out.
pub(super) fn table(report: &Value) -> String {
    let mut text = String::new();
    let nothing_was_done = report["status"] == "failed" && number(&report["memory_bytes"]) == 0;
    if nothing_was_done {
        // The error says all that there is to say.
        return text;
    }
    for (name, value) in rows(report) {
        // Writing to a string doesn't fail.
        let _ = writeln!(text, "{name:<20} {value}");
    }
    rounds(report, &mut text);
    text
}

fn rows(report: &Value) -> Vec<(&'static str, String)> {
    let (pages, bytes) = (&report["pages"], &report["bytes"]);
    let to_file = is_to_file(report);
    let mut rows = vec![
        (if to_file { "save" } else { "migration" }, report["status"].as_str().unwrap_or("none").to_owned()),
        ("total time", time(&report["total_us"])),
        ("  setup", time(&report["setup_us"])),
        ("  guest running", time(&report["live_us"])),
    ];
    if let Value::Object(downtime) = &report["downtime"] {
        if to_file {
            rows.push(("  to the disk", time(&to_disk_us(report).into())));
        }
        let stays = to_file && downtime.get("total_us").is_none_or(Value::is_null);
        let total = if stays { "the guest stays stopped".to_owned() } else { time(&downtime["total_us"]) };
        rows.push(("downtime", total));
        let parts: &[_] = if to_file { &FILE_DOWNTIME_PARTS } else { &DOWNTIME_PARTS };
        for (key, name) in parts.iter().filter(|(key, _)| !stays || *key != "resume_us") {
            if let Some(part) = downtime.get(*key) {
                rows.push((name, time(part)));
            }
        }
    }
    let kinds = ["page_data", "page_records", "state", "messages"];
    let on_wire = kinds.iter().map(|kind| number(&bytes[kind])).fold(0, u64::saturating_add);
    rows.extend([
        ("guest memory", size(&report["memory_bytes"])),
        (if to_file { "written" } else { "on the wire" }, ByteSize(on_wire).to_string()),
        ("  page data", size(&bytes["page_data"])),
        ("  device state", size(&bytes["state"])),
        (if to_file { "pages written" } else { "pages sent" }, with_content(pages, "").to_string()),
        ("  in fewer bytes", number(&pages["encoded"]).to_string()),
        ("  zero", number(&pages["zero"]).to_string()),
        ("  never touched", number(&pages["untouched"]).to_string()),
    ]);
    if number(&report["link_bytes_per_s"]) > 0 {
        rows.push((
            if to_file { "file" } else { "link" },
            format!("{}/s", size(&report["link_bytes_per_s"])),
        ));
    }
    postcopy::rows(&report["postcopy"], &mut rows);
    if let Some(protected) = protected(report) {
        rows.push(("encrypted", protected));
    }
    if number(&report["disk_errors"]) > 0 {
        rows.push(("disk errors", format!("{}, which the guest saw", number(&report["disk_errors"]))));
    }
    if let Some(mode) = report["dirty_log"].as_str() {
        rows.push(("dirty log", mode.to_owned()));
    }
    for (index, vcpu) in report["dirty_by_vcpu"].as_array().into_iter().flatten().enumerate() {
        let (rate, full) = (number(&vcpu["dirty_pages_per_s"]), number(&vcpu["ring_full_exits"]));
        let pages = number(&vcpu["pages"]);
        rows.push(("", format!("vCPU {index}: {pages} pages, {rate}/s at last; ring full {full} times")));
    }
    rows
}

/// How the link was protected; none where there was none, or no peer was heard.
fn protected(report: &Value) -> Option<String> {
    let tls = &report["tls"];
    let Some(version) = tls["version"].as_str() else {
        let is_link = !["", "file"].contains(&report["transport"].as_str().unwrap_or_default());
        return (is_link && report["peer_tern_version"] != "").then(|| "no".to_owned());
    };
    let text = |name: &str| tls[name].as_str().unwrap_or_default();
    let peer = tls["peer"].as_str().map(|peer| format!(" of {peer}")).unwrap_or_default();
    Some(format!("TLS {version}, {}, {}{peer}", text("cipher"), text("proven_by")))
}

/// Parts of the downtime in the order in which they happen; an indented one is part of the one above.
const DOWNTIME_PARTS: [(&str, &str); 7] = [
    ("stop_us", "  stop"),
    ("state_save_us", "  save state"),
    ("final_ram_us", "  last memory"),
    ("state_send_us", "  send state"),
    ("load_us", "    load"),
    ("commit_us", "  commit"),
    ("resume_us", "    resume"),
];

/// As far as a guest is stopped for a file; what comes after it is the disk's time, and the guest may run again.
const FILE_DOWNTIME_PARTS: [(&str, &str); 4] = [
    ("stop_us", "  stop"),
    ("state_save_us", "  save state"),
    ("final_ram_us", "  last memory"),
    ("resume_us", "  resume"),
];

/// What a finished save takes besides the rounds and the stop: the host's disk catches up, and the file gets its name.
fn to_disk_us(report: &Value) -> u64 {
    let stopped = FILE_DOWNTIME_PARTS.map(|(key, _)| number(&report["downtime"][key]));
    let before = [number(&report["setup_us"]), number(&report["live_us"])];
    before.into_iter().chain(stopped).fold(number(&report["total_us"]), u64::saturating_sub)
}

fn is_to_file(report: &Value) -> bool {
    report["transport"] == "file"
}

fn rounds(report: &Value, text: &mut String) {
    let rounds = report["rounds"].as_array().map(Vec::as_slice).unwrap_or_default();
    if rounds.is_empty() {
        return;
    }
    let _ = writeln!(
        text,
        "\n{:>5} {:>10} {:>10} {:>10} {:>12} {:>10}",
        "round", "pages", "zero", "dirty", "bytes", "time"
    );
    let left_out = rounds.len().saturating_sub(ROUNDS_SHOWN);
    for (index, round) in rounds.iter().enumerate() {
        if index > 0 && index <= left_out {
            if index == left_out {
                let _ = writeln!(text, "  ... {left_out} more");
            }
            continue;
        }
        let note = if round["stopped"] == true { "  guest stopped" } else { "" };
        let _ = writeln!(
            text,
            "{:>5} {:>10} {:>10} {:>10} {:>12} {:>10}{note}",
            number(&round["round"]),
            with_content(round, "pages_"),
            number(&round["pages_zero"]),
            number(&round["pages_dirty_at_end"]),
            size(&round["wire_bytes"]),
            time(&round["duration_us"]),
        );
    }
}

/// Pages that were sent with what is in them: as they are, compressed, or as a delta.
fn with_content(pages: &Value, prefix: &str) -> u64 {
    let count = |kind: &str| number(&pages[format!("{prefix}{kind}")]);
    count("raw").saturating_add(count("encoded"))
}

fn number(value: &Value) -> u64 {
    value.as_u64().unwrap_or_default()
}

fn size(value: &Value) -> String {
    ByteSize(number(value)).to_string()
}

/// Microseconds for people.
fn time(value: &Value) -> String {
    match number(value) {
        us @ 0..1_000 => format!("{us} us"),
        us @ 1_000..1_000_000 => format!("{}.{:02} ms", us / 1000, us % 1000 / 10),
        us => format!("{}.{:02} s", us / 1_000_000, us % 1_000_000 / 10_000),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;
    use tern_migration::stats::{Downtime, Report, Round, Side, Status, TlsReport};

    use super::*;

    fn report(rounds: u32) -> Value {
        let mut report = Report::new(Side::Source);
        report.status = Status::Completed;
        (report.total_us, report.memory_bytes) = (1_234_567, 1 << 30);
        report.bytes.page_data = 5 << 20;
        report.downtime = Some(Downtime {
            total_us: Some(4_560),
            stop_us: 70,
            state_send_us: Some(0),
            commit_us: Some(0),
            ..Downtime::default()
        });
        report.link_bytes_per_s = Some(0);
        let round = |round| Round { round, pages_dirty_at_end: Some(0), ..Round::default() };
        report.rounds = (0..rounds).map(round).collect();
        if let Some(last) = report.rounds.last_mut() {
            last.stopped = true;
        }
        serde_json::to_value(report).unwrap()
    }

    #[test]
    fn every_name_that_the_table_reads_is_in_the_report() {
        let report = report(1);
        for (key, _) in DOWNTIME_PARTS {
            assert!(report["downtime"][key].is_u64(), "{key}");
        }
        for key in ["total_us", "setup_us", "live_us", "memory_bytes", "link_bytes_per_s"] {
            assert!(report[key].is_u64(), "{key}");
        }
        for key in ["page_data", "page_records", "state", "messages"] {
            assert!(report["bytes"][key].is_u64(), "{key}");
        }
        assert_eq!(
            report["bytes"].as_object().map(serde_json::Map::len),
            Some(4),
            "a kind of bytes is not counted"
        );
        for key in ["round", "pages_raw", "pages_zero", "pages_dirty_at_end", "wire_bytes", "duration_us"] {
            assert!(report["rounds"][0][key].is_u64(), "{key}");
        }
    }

    #[test]
    fn figures_are_readable() {
        let text = table(&report(2));
        for part in ["completed", "1.23 s", "4.56 ms", "70 us", "1 GiB", "5 MiB", "guest stopped"] {
            assert!(text.contains(part), "no {part} in:\n{text}");
        }
    }

    #[test]
    fn a_save_shows_what_a_file_has_and_all_times_add_up() {
        let mut report = report(1);
        (report["transport"], report["setup_us"], report["live_us"]) =
            (json!("file"), json!(1_000), json!(30_000));
        let text = table(&report);
        assert!(text.contains("  to the disk        1.20 s"), "{text}");
        assert!(!text.contains("commit") && !text.contains("load"), "{text}");
        report["downtime"]["total_us"] = Value::Null;
        assert!(table(&report).contains("stays stopped"));
    }

    #[test]
    fn of_nothing_there_is_no_table() {
        let mut report = report(0);
        (report["status"], report["memory_bytes"]) = (json!("failed"), json!(0));
        assert_eq!(table(&report), "");
    }

    #[test]
    fn vcpus_and_what_they_write_are_shown_where_it_is_known() {
        let mut report = report(1);
        assert!(!table(&report).contains("dirty log"));
        report["dirty_log"] = json!("ring");
        report["dirty_by_vcpu"] = json!([{ "pages": 70, "dirty_pages_per_s": 7, "ring_full_exits": 2 }]);
        let text = table(&report);
        assert!(text.contains("dirty log            ring"), "{text}");
        assert!(text.contains("vCPU 0: 70 pages, 7/s at last; ring full 2 times"), "{text}");
    }

    #[test]
    fn pages_count_in_whatever_encoding_they_went() {
        let mut report = report(1);
        (report["pages"]["raw"], report["pages"]["encoded"]) = (json!(100), json!(900));
        (report["rounds"][0]["pages_raw"], report["rounds"][0]["pages_encoded"]) = (json!(70), json!(7));
        let text = table(&report);
        assert!(text.contains("pages sent           1000\n  in fewer bytes     900\n"), "{text}");
        assert!(text.lines().last().unwrap().contains("    0         77"), "{text}");
    }

    #[test]
    fn the_table_says_whether_others_could_read_it() {
        let mut report = report(1);
        assert!(!table(&report).contains("encrypted"));
        report["transport"] = "tcp".into();
        report["peer_tern_version"] = "0.1.0".into();
        assert!(table(&report).contains("encrypted            no\n"));
        let cipher = "TLS_AES_256_GCM_SHA384";
        let tls = TlsReport {
            version: "1.3",
            cipher: cipher.into(),
            proven_by: "certificates",
            peer: Some("b".into()),
        };
        report["tls"] = serde_json::to_value(tls).unwrap();
        let shown = format!("encrypted            TLS 1.3, {cipher}, certificates of b\n");
        assert!(table(&report).contains(&shown), "{}", table(&report));
    }

    #[test]
    fn many_rounds_are_cut_in_the_middle() {
        let text = table(&report(100));
        let lines = text.lines().skip_while(|line| !line.contains("round")).count();
        assert_eq!(lines, 1 + ROUNDS_SHOWN + 1);
        assert!(text.contains("... 92 more") && text.contains("   99 "));
    }

    #[test]
    fn an_empty_report_is_no_problem() {
        assert!(table(&json!(null)).contains("none"));
    }
}
