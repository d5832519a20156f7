//! A migration's progress on a terminal; silent in a pipe.

use std::io::{self, IsTerminal};
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use serde_json::Value;

/// A progress bar, or nothing.
pub(crate) struct Progress {
    bar: Option<ProgressBar>,
    /// Without a bar: when the last line was written.
    lines: Option<Instant>,
}

/// Between two lines.
const LINE_EVERY: Duration = Duration::from_secs(1);

impl Progress {
    /// A bar on stderr, if `wanted` and if someone looks; else a line a second, if it is to be `verbose`.
    pub(crate) fn new(wanted: bool, verbose: bool) -> Self {
        let bar = (wanted && io::stderr().is_terminal()).then(|| {
            let bar = ProgressBar::with_draw_target(Some(1), ProgressDrawTarget::stderr());
            match ProgressStyle::with_template("{prefix:<9} [{bar:12}] {wide_msg}") {
                Ok(style) => bar.with_style(style.progress_chars("=> ")),
                Err(_) => bar,
            }
        });
        let lines = (verbose && bar.is_none()).then(Instant::now);
        Self { bar, lines }
    }

    /// Shows an answer to `query-migrate`.
    pub(crate) fn show(&mut self, state: &Value) {
        let Some(bar) = &self.bar else { return self.show_line(state) };
        bar.set_prefix(state["status"].as_str().unwrap_or("starting").to_owned());
        bar.set_length(100);
        bar.set_position(number(&state["report"]["progress_percent"]));
        bar.set_message(message(state));
    }

    fn show_line(&mut self, state: &Value) {
        let Some(last) = self.lines.filter(|last| last.elapsed() >= LINE_EVERY) else { return };
        self.lines = Some(last + LINE_EVERY);
        let status = state["status"].as_str().unwrap_or("starting");
        crate::cli::tell(&format!(
            "{status} {} %  {}",
            number(&state["report"]["progress_percent"]),
            message(state)
        ));
    }

    /// Takes the bar away.
    pub(crate) fn end(&mut self) {
        if let Some(bar) = self.bar.take() {
            bar.finish_and_clear();
        }
    }
}

fn number(value: &Value) -> u64 {
    value.as_u64().unwrap_or_default()
}

/// `round 3  512 MiB left  1.2 GiB/s  dirty 24 MiB/s  downtime ~40 ms`: with the bar, 80 columns hold it.
fn message(state: &Value) -> String {
    let ram = &state["ram"];
    if !ram.is_object() {
        return String::new();
    }
    // Out of a file come no rounds.
    if state["report"]["side"] == "destination" {
        return ram["remaining"].as_u64().map(|left| format!("{} left", short(left))).unwrap_or_default();
    }
    // Megabits, as QMP has it. Rates are far below 2^53: a float is exact enough for people.
    let rate = (ram["mbps"].as_f64().unwrap_or_default() * 1e6 / 8.0) as u64;
    let dirtied = number(&ram["dirty-pages-rate"]).saturating_mul(number(&ram["page-size"]));
    let mut parts = vec![
        format!("round {}", number(&ram["dirty-sync-count"])),
        format!("{} left", short(number(&ram["remaining"]))),
        format!("{}/s", short(rate)),
        format!("dirty {}/s", short(dirtied)),
    ];
    let left = state["report"]["eta_ms"].as_u64().map(|ms| format!("~{} s", ms.div_ceil(1000)));
    parts.extend(left);
    parts.extend(state["expected-downtime"].as_u64().map(|downtime| format!("downtime ~{downtime} ms")));
    parts.join("  ")
}

/// Three digits at most and a unit: the figures change ten times a second.
fn short(bytes: u64) -> String {
    let mut amount = bytes as f64;
    let mut units = ["B", "KiB", "MiB", "GiB", "TiB"].into_iter();
    let mut unit = units.next().unwrap_or_default();
    for larger in units {
        if amount < 1000.0 {
            break;
        }
        amount /= 1024.0;
        unit = larger;
    }
    if amount < 10.0 && unit != "B" { format!("{amount:.1} {unit}") } else { format!("{amount:.0} {unit}") }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn the_message_has_rate_dirty_rate_round_and_downtime() {
        let ram = json!({
            "total": 1 << 30, "remaining": 512 << 20, "mbps": 8589.934592, "dirty-pages-rate": 256, "page-size": 4096,
            "dirty-sync-count": 3,
        });
        let state = json!({"status": "active", "expected-downtime": 40, "ram": ram});
        assert_eq!(message(&state), "round 3  512 MiB left  1.0 GiB/s  dirty 1.0 MiB/s  downtime ~40 ms");
        assert_eq!(message(&json!({"status": "setup"})), "");
        let restore = json!({"ram": {"remaining": 512 << 20}, "report": {"side": "destination"}});
        assert_eq!(message(&restore), "512 MiB left");
        assert_eq!([short(0), short(999), short(u64::MAX)], ["0 B", "999 B", "16777216 TiB"]);
    }

    #[test]
    fn without_a_terminal_nothing_is_shown() {
        let mut progress = Progress::new(false, false);
        progress.show(&json!({"status": "active"}));
        progress.end();
    }
}
