//! What the demo says in the end.

use std::fmt::Write;
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::echo::Client;
use crate::guest::{Beat, Guest};
use crate::number;

/// Answers that came this long after the migration still show its silence.
const ECHO_AFTER: Duration = Duration::from_millis(500);

/// When the guest was at work at the source: since then, and from that line of its own.
#[derive(Debug, Clone, Copy)]
pub struct Daily {
    pub since: Instant,
    pub beats: usize,
}

/// The migration.
#[derive(Debug, Clone)]
pub struct Moved {
    /// tern's own report.
    pub report: Value,
    /// Lines that the guest had printed when it began.
    pub beats_before: usize,
    /// The guest's work before it.
    pub daily: Daily,
    /// When the migration started.
    pub started: Instant,
    /// When it was over.
    pub ended: Instant,
}

/// All that was seen.
#[derive(Debug, Clone)]
pub struct Story {
    /// The migration.
    pub moved: Moved,
    /// What the guest said of its checks, at both ends.
    pub beats: Vec<Beat>,
    /// Bytes that it printed at the source.
    pub source_bytes: usize,
}

/// The report, as text.
pub fn text(guest: Guest, story: &Story, client: Option<&Client>) -> String {
    let mut text = String::from("\n");
    for (what, line) in lines(guest, story, client) {
        // Writing to a string doesn't fail.
        let _ = writeln!(text, "{what:<10}  {line}");
    }
    text
}

fn lines(guest: Guest, story: &Story, client: Option<&Client>) -> Vec<(&'static str, String)> {
    let mut lines =
        vec![("moved", figures(&story.moved.report)), ("downtime", tern_saw(&story.moved.report))];
    lines.push(("", guest_saw(guest, story)));
    lines.extend(client.map(|client| ("", client_saw(client, &story.moved))));
    if client.is_none() && guest.has_devices() {
        lines.push(("", "a network client's view needs root".to_owned()));
    }
    lines.extend(intact(guest, story).into_iter().zip(["intact", "", ""]).map(|(line, what)| (what, line)));
    lines
}

fn figures(report: &Value) -> String {
    let on_wire: u64 = ["page_data", "page_records", "state", "messages"]
        .iter()
        .map(|kind| number(&report["bytes"][kind]))
        .fold(0, u64::saturating_add);
    let rounds = report["rounds"].as_array().map_or(0, Vec::len) as u64 + number(&report["rounds_forgotten"]);
    format!(
        "in {}: {} sent for {} of memory, in {rounds} rounds",
        time(number(&report["total_us"])),
        mebibytes(on_wire),
        mebibytes(number(&report["memory_bytes"])),
    )
}

fn tern_saw(report: &Value) -> String {
    format!("{:<10}  as tern measured it", time(number(&report["downtime"]["total_us"])))
}

/// The guest's clock across the switch, and in its daily work.
fn guest_saw(guest: Guest, story: &Story) -> String {
    let largest = |beats: &mut dyn Iterator<Item = &Beat>| beats.map(|beat| beat.gap_us).max().unwrap_or(0);
    let moved = &story.moved;
    let before = largest(&mut story.beats.iter().take(moved.beats_before).skip(moved.daily.beats));
    let mut at_switch =
        story.beats.iter().filter(|beat| beat.ends_at > story.source_bytes).take(guest.lines_at_switch());
    format!(
        "{:<10}  as the guest saw it: the largest gap of its clock ({} before it moved)",
        time(largest(&mut at_switch)),
        time(before)
    )
}

fn client_saw(client: &Client, moved: &Moved) -> String {
    let silence = |from, until| {
        let longest = client.longest_silence(from, until).unwrap_or_default();
        time(u64::try_from(longest.as_micros()).unwrap_or(u64::MAX))
    };
    format!(
        "{:<10}  as a network client saw it: the longest silence of its UDP echo ({} before it moved)",
        silence(moved.started, moved.ended + ECHO_AFTER),
        silence(moved.daily.since, moved.started)
    )
}

fn intact(guest: Guest, story: &Story) -> Vec<String> {
    let at_source = story.beats.iter().rev().find(|beat| beat.ends_at <= story.source_bytes);
    let (then, now) =
        (at_source.copied().unwrap_or_default(), story.beats.last().copied().unwrap_or_default());
    let mut lines = vec![format!(
        "pages checked by the guest: {} before the switch, {} after it, each of its {} at least once; none wrong",
        then.pages_verified,
        now.pages_verified - then.pages_verified,
        guest.working_set_pages()
    )];
    if guest.has_devices() {
        lines.push(format!(
            "disk blocks checked: {} before, {} after; none wrong",
            then.disk_verified,
            now.disk_verified - then.disk_verified
        ));
    }
    lines.push(format!(
        "the guest's {} lines are numbered without a hole, and it started once",
        story.beats.len()
    ));
    lines
}

fn mebibytes(bytes: u64) -> String {
    format!("{:.1} MiB", bytes as f64 / f64::from(1 << 20))
}

/// Microseconds for people.
fn time(us: u64) -> String {
    match us {
        0..1_000 => format!("{us} us"),
        1_000..1_000_000 => format!("{:.1} ms", us as f64 / 1e3),
        _ => format!("{:.2} s", us as f64 / 1e6),
    }
}
