//! The short commands: each is one or two commands of the control socket.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use clap::Args;
use serde_json::{Value, json};

use super::{Exit, Failure, print, print_json};
use crate::config::ByteSize;
use crate::control::client::{Client, ClientError};

/// Longest wait for a process that was told to end.
const QUIT_TIMEOUT: Duration = Duration::from_secs(30);

/// How a doubt is settled.
pub(super) const RESOLVE: &str =
    "then: tern migrate --resolve discard (it runs there) or --resolve run (it doesn't)";

#[derive(Debug, Args)]
pub struct ControlArgs {
    /// Control socket of the machine (`tern run --control PATH`)
    #[arg(long, value_name = "PATH")]
    pub(super) control: PathBuf,
}

impl ControlArgs {
    pub(super) fn connect(&self) -> Result<Client, ClientError> {
        Client::connect(&self.control)
    }
}

#[derive(Debug, Args)]
pub struct StatusArgs {
    #[command(flatten)]
    control: ControlArgs,
    /// As JSON
    #[arg(long)]
    json: bool,
    /// Show the latest migrations of this process instead, oldest first
    #[arg(long)]
    history: bool,
}

pub(super) const METRICS_EXAMPLES: &str = "\
Examples:
  tern metrics --control /tmp/a.sock
  tern metrics --control /tmp/a.sock > /var/lib/node_exporter/textfile/tern.prom.new && mv \
/var/lib/node_exporter/textfile/tern.prom.new /var/lib/node_exporter/textfile/tern.prom

The control socket has the same text: `query-metrics`.";

#[derive(Debug, Args)]
pub struct StopArgs {
    #[command(flatten)]
    control: ControlArgs,
    /// Press the guest's power button, and leave the rest to the guest
    #[arg(long)]
    powerdown: bool,
}

pub(super) fn simple(args: &ControlArgs, command: &str) -> Result<Exit, Failure> {
    args.connect()?.execute(command, json!({}))?;
    Ok(Exit::Success)
}

pub(super) const BALLOON_EXAMPLES: &str = "\
Examples:
  tern balloon --control /tmp/a.sock
  tern balloon --control /tmp/a.sock 512M

What the guest gives back reads as zero, is the host's, and isn't sent when the guest moves; what was asked for goes along \
with it. A machine that starts anew has all of its memory again.";

#[derive(Debug, Args)]
pub struct BalloonArgs {
    #[command(flatten)]
    control: ControlArgs,
    /// How much of its memory the guest shall make do with; without it, show how much it has
    #[arg(value_name = "SIZE")]
    size: Option<ByteSize>,
    /// As JSON
    #[arg(long, conflicts_with = "size")]
    json: bool,
}

pub(super) fn balloon(args: &BalloonArgs) -> Result<Exit, Failure> {
    let mut client = args.control.connect()?;
    if let Some(ByteSize(bytes)) = args.size {
        client.execute("balloon", json!({ "value": bytes }))?;
        return Ok(Exit::Success);
    }
    let answer = client.execute("query-balloon", json!({}))?;
    if args.json {
        return print_json(&answer);
    }
    let size = |key: &str| ByteSize(answer[key].as_u64().unwrap_or(0));
    print(&format!(
        "the guest has {} of its memory, and was asked to make do with {}\n",
        size("actual"),
        size("wanted")
    ))
}

pub(super) fn metrics(args: &ControlArgs) -> Result<Exit, Failure> {
    let answer = args.connect()?.execute("query-metrics", json!({}))?;
    print(answer["text"].as_str().unwrap_or_default())
}

pub(super) fn status(args: &StatusArgs) -> Result<Exit, Failure> {
    let mut client = args.control.connect()?;
    if args.history {
        let history = client.execute("query-migrate-history", json!({}))?;
        return if args.json { print_json(&history) } else { print(&history_for_people(&history)) };
    }
    let mut ask = |command| client.execute(command, json!({}));
    let (name, uuid, state) = (ask("query-name")?, ask("query-uuid")?, ask("query-status")?);
    let (cpus, migration) = (ask("query-cpus-fast")?, ask("query-migrate")?);
    let document = json!({
        "name": name["name"],
        "uuid": uuid["UUID"],
        "status": state["detail"].as_str().or(state["status"].as_str()),
        "running": state["running"],
        "cpus": cpus.as_array().map_or(0, Vec::len),
        "migration": migration,
    });
    if args.json { print_json(&document) } else { print(&for_people(&document)) }
}

/// One line a migration.
fn history_for_people(history: &Value) -> String {
    let reports = history["reports"].as_array().map(Vec::as_slice).unwrap_or_default();
    if reports.is_empty() {
        return "no migration so far\n".to_owned();
    }
    let line = |report: &Value| {
        let text = |name: &str| report[name].as_str().unwrap_or("-").to_owned();
        let ms =
            |us: &Value| us.as_u64().map_or_else(|| "-".to_owned(), |us| format!("{} ms", us.div_ceil(1000)));
        let why = report["error"]["chain"][0].as_str().unwrap_or_default();
        let (side, status, uri) = (text("side"), text("status"), text("uri"));
        let (total, downtime) = (ms(&report["total_us"]), ms(&report["downtime"]["total_us"]));
        format!("{side:<12} {status:<10} {total:>10} {downtime:>10}  {uri}  {why}").trim_end().to_owned()
            + "\n"
    };
    let head = format!("{:<12} {:<10} {:>10} {:>10}  {}\n", "side", "ended", "time", "downtime", "uri");
    head + &reports.iter().map(line).collect::<String>()
}

/// `: 43 %, about 12 s left` of a migration that runs.
fn outlook(report: &Value) -> String {
    let left = match report["eta_ms"].as_u64() {
        Some(ms) => format!(", about {} s left", ms.div_ceil(1000)),
        None => String::new(),
    };
    let ended = !report["ended_at_unix_ms"].is_null();
    let progress = report["progress_percent"].as_u64().filter(|_| !ended);
    progress.map(|percent| format!(": {percent} %{left}")).unwrap_or_default()
}

fn for_people(document: &Value) -> String {
    let text = |value: &Value| value.as_str().unwrap_or("unknown").to_owned();
    let migration = match document["migration"]["status"].as_str() {
        None | Some("none") => "none".to_owned(),
        Some(status) => match document["migration"]["error-desc"].as_str() {
            Some(error) => format!("{status}: {error}"),
            None => status.to_owned() + &outlook(&document["migration"]["report"]),
        },
    };
    let head = format!(
        "name       {} ({})\nstatus     {}\nvCPUs      {}\nmigration  {migration}\n",
        text(&document["name"]),
        text(&document["uuid"]),
        text(&document["status"]),
        document["cpus"],
    );
    head + &doubt(&document["migration"]["doubt"]) + &on_demand(&document["migration"]["report"])
}

/// What a person is to do about a migration in doubt; empty where there is none.
fn doubt(doubt: &Value) -> String {
    let Some(advice) = doubt["advice"].as_str() else { return String::new() };
    let asked = doubt["asked"].as_u64().unwrap_or_default();
    let answer = doubt["answer"].as_str().unwrap_or("none");
    format!(
        "doubt      asked {asked} times, latest answer: {answer}\n           {advice}\n           {RESOLVE}\n"
    )
}

/// How far memory is that comes on demand; empty where none does.
fn on_demand(report: &Value) -> String {
    let (pager, number) = (&report["on_demand"], |value: &Value| value.as_u64().unwrap_or_default());
    if !pager.is_object() {
        return String::new();
    }
    let of = |pages: &Value| ByteSize(number(pages).saturating_mul(number(&report["page_bytes"])));
    let latency = &pager["fault_latency"];
    let all = of(&pager["pages"]);
    let left = match number(&pager["pages_left"]) {
        0 => format!("all {all} here"),
        _ => format!("{} of {all} not here yet", of(&pager["pages_left"])),
    };
    format!(
        "memory     {left}; {} waits for a page, half of them up to {} us, 99 % up to {} us, all up to {} us\n",
        number(&pager["faults"]),
        number(&latency["p50_us"]),
        number(&latency["p99_us"]),
        number(&latency["max_us"]),
    )
}

pub(super) fn stop(args: &StopArgs) -> Result<Exit, Failure> {
    let mut client = args.control.connect()?;
    if args.powerdown {
        client.execute("system_powerdown", json!({}))?;
        return Ok(Exit::Success);
    }
    quit(&mut client, &args.control)
}

/// Ends the process, and waits for that.
pub(super) fn quit(client: &mut Client, control: &ControlArgs) -> Result<Exit, Failure> {
    client.execute("quit", json!({}))?;
    // The process has ended when its socket has: a script may go on and use the same paths.
    let deadline = Instant::now() + QUIT_TIMEOUT;
    while Instant::now() < deadline {
        match client.wait_event(Duration::from_millis(200)) {
            Err(ClientError::Broken { .. }) => return Ok(Exit::Success),
            Err(error) => return Err(error.into()),
            Ok(_) => {}
        }
    }
    let path = control.control.display();
    let text = format!(
        "--control {path}: the process took `quit`, but has not ended in {} s",
        QUIT_TIMEOUT.as_secs()
    );
    Err(Failure::text(Exit::Failure, text))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_history_has_a_line_for_each_migration() {
        assert_eq!(history_for_people(&json!({"reports": []})), "no migration so far\n");
        let error = json!({"chain": ["the link broke", "reset by peer"]});
        let failed =
            json!({"side": "source", "status": "failed", "uri": "unix:/m", "total_us": 1500, "error": error});
        let text = history_for_people(&json!({ "reports": [failed] }));
        assert!(text.lines().nth(1).unwrap().ends_with("2 ms          -  unix:/m  the link broke"), "{text}");
    }

    #[test]
    fn status_for_people() {
        let mut document =
            json!({"name": "web", "uuid": "u", "status": "in-doubt", "cpus": 2, "migration": {}});
        assert_eq!(
            for_people(&document),
            "name       web (u)\nstatus     in-doubt\nvCPUs      2\nmigration  none\n"
        );
        let latency = json!({"p50_us": 20, "p99_us": 300, "max_us": 4000});
        let pager = json!({"pages": 256, "pages_left": 128, "faults": 7, "fault_latency": latency});
        document["migration"]["report"] = json!({"page_bytes": 4096, "on_demand": pager});
        let shown = for_people(&document);
        assert!(shown.contains("512 KiB of 1 MiB") && shown.contains("99 % up to 300 us"), "{shown}");
        document["migration"] = json!({"status": "active", "report": {"progress_percent": 43, "eta_ms": 11_200, "ended_at_unix_ms": null}});
        assert!(for_people(&document).ends_with("migration  active: 43 %, about 12 s left\n"));
        let doubt = json!({"asked": 3, "answer": "none", "advice": "look there"});
        document["migration"] = json!({"status": "in-doubt", "error-desc": "closed", "doubt": doubt});
        let shown = for_people(&document);
        assert!(shown.contains("asked 3 times") && shown.contains("look there\n"), "{shown}");
        assert!(shown.ends_with(&format!("{RESOLVE}\n")), "{shown}");
        document["migration"] = json!({"status": "failed", "error-desc": "no route"});
        assert!(for_people(&document).ends_with("migration  failed: no route\n"));
    }
}
