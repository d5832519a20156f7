//! `tern capabilities`: what a migration may use on this machine and with that destination, and why not the rest.

use std::fmt::Write;

use clap::Args;
use serde_json::{Value, json};

use super::vm::ControlArgs;
use super::{Exit, Failure, check, print, print_json};
use crate::config::check_uri;

pub(super) const EXAMPLES: &str = "\
Examples:
  tern capabilities --control /tmp/a.sock
  tern capabilities --control /tmp/a.sock unix:/tmp/m.sock
  tern capabilities --control /tmp/a.sock --json | jq '.to_peer[] | select(.legal | not)'";

#[derive(Debug, Args)]
pub struct CapabilitiesArgs {
    #[command(flatten)]
    control: ControlArgs,
    /// A destination, where a tern waits with --incoming: it is asked as by `tern migrate --check`
    #[arg(value_name = "URI", value_parser = uri)]
    uri: Option<String>,
    /// Print the lists as JSON
    #[arg(long)]
    json: bool,
}

fn uri(text: &str) -> Result<String, String> {
    if text.starts_with("file:") {
        return Err("a file can't be asked: what a save may use is listed without an address".to_owned());
    }
    check_uri(text).map_err(|error| error.to_string())?;
    Ok(text.to_owned())
}

/// Asks the destination, if one was named, and shows the lists.
pub(super) fn run(args: &CapabilitiesArgs) -> Result<Exit, Failure> {
    let mut client = args.control.connect()?;
    let mut arguments = json!({});
    if let Some(uri) = &args.uri {
        check::ask(&mut client, json!({ "uri": uri }))?;
        arguments = json!({ "uri": uri });
    }
    let answer = client.execute("query-migrate-features", arguments)?;
    if args.json { print_json(&answer) } else { print(&table(&answer)) }
}

fn rows(answer: &Value, key: &str) -> Vec<Value> {
    answer[key].as_array().cloned().unwrap_or_default()
}

fn text<'a>(value: &'a Value, key: &str) -> &'a str {
    value[key].as_str().unwrap_or_default()
}

fn mark(row: &Value) -> &'static str {
    match (row["legal"] == true, row["effect"].is_string()) {
        (true, false) => "yes",
        (true, true) => "idle",
        (false, _) => "NO",
    }
}

/// The lists for people.
fn table(answer: &Value) -> String {
    let (peer, file) = (rows(answer, "to_peer"), rows(answer, "to_file"));
    let width = peer.iter().map(|row| text(row, "feature").chars().count()).max().unwrap_or(0);
    let mut out = String::new();
    // Writing to a string doesn't fail.
    let _ = writeln!(out, "{:<width$}  kind        destination  file", "feature");
    for (there, kept) in peer.iter().zip(&file) {
        let (name, kind) = (text(there, "feature"), text(there, "kind"));
        let _ = writeln!(out, "{name:<width$}  {kind:<10}  {:<11}  {}", mark(there), mark(kept));
        let same = ["reason", "remedy"].iter().all(|key| there[*key] == kept[*key]);
        for (row, whose) in [(there, if same { "" } else { "destination: " }), (kept, "file: ")] {
            if row["reason"].is_string() && !(same && whose == "file: ") {
                let _ = writeln!(out, "     -> {whose}{}: {}", text(row, "reason"), text(row, "remedy"));
            }
        }
    }
    out.push_str("\nAll others go together, but:\n");
    for pair in rows(answer, "combinations") {
        let others = match pair["with"].as_str() {
            Some(with) => format!("with {with}"),
            None => {
                let names = rows(&pair, "without");
                format!("without {}", names.iter().filter_map(Value::as_str).collect::<Vec<_>>().join(" or "))
            }
        };
        let _ = writeln!(
            out,
            "  {} {others}: {}; {}",
            text(&pair, "feature"),
            text(&pair, "reason"),
            text(&pair, "remedy")
        );
    }
    out
}

#[cfg(test)]
mod tests {
    use tern_migration::Parameters;
    use tern_migration::config::legal::{Scene, combinations, to_file, to_peer};

    use super::*;

    #[test]
    fn each_feature_has_a_line_and_what_is_not_legal_a_reason() {
        let parameters = Parameters::default();
        let scene = Scene { parameters: &parameters, uri: None, here: &[], peer: None };
        let shown = table(&json!({
            "to_peer": to_peer(&scene), "to_file": to_file(&scene), "combinations": combinations(),
        }));
        for (name, marks) in
            [("xbzrle", "capability  yes          NO"), ("direct-io", "parameter   NO           yes")]
        {
            let line = shown.lines().find(|line| line.starts_with(name) && line.contains(marks));
            assert!(line.is_some(), "{name} in\n{shown}");
        }
        assert!(shown.contains("-> file: a file keeps the latest of each page"), "{shown}");
        assert!(shown.contains("tls-creds with tls-psk: "), "{shown}");
        assert!(shown.contains("compress-level without compress: it does nothing alone"), "{shown}");
    }

    #[test]
    fn a_file_is_not_asked() {
        assert!(uri("file:/a").unwrap_err().contains("can't be asked"));
        assert_eq!(uri("tcp:b:1").unwrap(), "tcp:b:1");
    }
}
