//! The tree for people: a line a part, records of plain values on one line.

use std::fmt::Write;

use serde_json::Value;

use super::Node;

/// Longest text of a byte string or list; the rest is told by its length.
const VALUE_MAX_CHARS: usize = 64;
/// A record of so many plain values fits on a line.
const LINE_FIELDS_MAX: usize = 8;
/// Numbers below this read best in decimal, even without a unit.
const DECIMAL_BELOW: u64 = 1024;

/// All parts, each below what it is in.
pub fn show(node: &Node) -> String {
    let mut out = String::new();
    add(node, 0, &mut out);
    out
}

fn add(node: &Node, depth: usize, out: &mut String) {
    let _ = write!(out, "{:indent$}{}", "", node.name, indent = depth * 2);
    if let Some(value) = value(node) {
        let _ = write!(out, " {value}");
    }
    let on_a_line = fits_a_line(node);
    if on_a_line {
        let field = |child: &Node| format!("{} {}", child.name, value(child).unwrap_or_default());
        let _ = write!(out, ": {}", node.children.iter().map(field).collect::<Vec<_>>().join(", "));
    }
    // What a field means is its name's business; of a section or file it says what it is.
    if let (Some(about), false) = (&node.about, node.children.is_empty() || on_a_line) {
        let _ = write!(out, "  ({})", first_sentence(about));
    }
    if let Some(problem) = &node.problem {
        let _ = write!(out, "  !! {problem}");
    }
    out.push('\n');
    if !on_a_line {
        node.children.iter().for_each(|child| add(child, depth + 1, out));
    }
}

fn first_sentence(about: &str) -> String {
    let words = about.split_whitespace().collect::<Vec<_>>().join(" ");
    let end = words.find(". ").unwrap_or(words.len());
    words.get(..end).unwrap_or_default().trim_end_matches('.').to_owned()
}

fn fits_a_line(node: &Node) -> bool {
    let plain =
        |child: &Node| child.children.is_empty() && child.problem.is_none() && !child.name.contains('#');
    (1..=LINE_FIELDS_MAX).contains(&node.children.len()) && node.children.iter().all(plain)
}

fn value(node: &Node) -> Option<String> {
    let value = match node.value.as_ref()? {
        Value::Number(number) => match number.as_u64() {
            Some(number) if node.unit.is_none() && number >= DECIMAL_BELOW => format!("{number:#x}"),
            _ => number.to_string(),
        },
        Value::String(text) if node.about.is_some() && is_hex(text) => {
            shortened(&pairs(text), text.len() / 2)
        }
        Value::String(text) => format!("{text:?}"),
        Value::Array(words) => {
            let list: Vec<String> = words.iter().map(word).collect();
            shortened(&format!("[{}]", list.join(" ")), words.len())
        }
        other => other.to_string(),
    };
    Some(node.unit.map_or_else(|| value.clone(), |unit| format!("{value} {unit}")))
}

fn word(value: &Value) -> String {
    value.as_u64().map_or_else(|| value.to_string(), |word| format!("{word:#x}"))
}

fn is_hex(text: &str) -> bool {
    text.len() >= 8 && text.len().is_multiple_of(2) && text.bytes().all(|byte| byte.is_ascii_hexdigit())
}

/// A byte string that can't be taken for a number: `0b 01 03`.
fn pairs(hex: &str) -> String {
    hex.as_bytes().chunks(2).map(String::from_utf8_lossy).collect::<Vec<_>>().join(" ")
}

/// The beginning of a long text, and how many parts it has.
fn shortened(text: &str, parts: usize) -> String {
    match text.get(..VALUE_MAX_CHARS) {
        Some(start) if text.len() > VALUE_MAX_CHARS => format!("{start}... ({parts} in all)"),
        _ => text.to_owned(),
    }
}
