//! Records and sections as parts of the tree.

use serde_json::{Value, json};
use tern_schema::{FieldInfo, Item, Record, Seen, Sum, SurveyedSection, Walked, survey, walk};

use super::{Node, Wanted};
use crate::catalog;
use crate::configuration::ConfigurationV1;
use crate::platform::PlatformV1;

/// Byte strings that are records of the VMM's own, which the engine carries without looking: record, field.
type Carried = (&'static str, &'static str, fn() -> (&'static str, &'static [FieldInfo]));

fn description<R: Record>() -> (&'static str, &'static [FieldInfo]) {
    (R::RECORD, R::fields())
}

const CARRIED: [Carried; 2] = [
    ("VmFacts", "platform", description::<PlatformV1>),
    ("Description", "configuration", description::<ConfigurationV1>),
];

/// The machine's state, or the beginning of it.
pub(super) fn sections(bytes: &[u8], wanted: &Wanted) -> Node {
    let found = survey(bytes);
    let chosen =
        |section: &&SurveyedSection<'_>| wanted.section.as_ref().is_none_or(|name| *name == section.name);
    let mut node = Node::with("state", bytes.len()).counting("bytes");
    node.problem = found.damage.map(|(at, error)| format!("at byte {at}: {error}"));
    node.children = found.sections.iter().filter(chosen).map(section).collect();
    if let (Some(wanted), true, None) = (&wanted.section, node.children.is_empty(), &node.problem) {
        let mut names: Vec<&str> = found.sections.iter().map(|section| section.name.as_str()).collect();
        names.dedup();
        node.problem = Some(format!("there is no section {wanted}, but {}", names.join(", ")));
    }
    node
}

fn section(found: &SurveyedSection<'_>) -> Node {
    let SurveyedSection { name, instance, version, optional, body, missing_bytes, sum, .. } = found;
    let known = catalog::find(name, *version);
    let walked = catalog::walk_section(name, *version, body);
    let about = match (&known, optional) {
        (Some(known), false) => known.record.to_owned(),
        (Some(known), true) => format!("{}, may be passed over", known.record),
        (None, false) => "not known to this build, which would refuse it".to_owned(),
        (None, true) => "not known to this build, which would pass over it".to_owned(),
    };
    let damaged = match sum {
        Sum::Fails { found, computed } => Some(format!("checksum {found:#010x}, computed {computed:#010x}")),
        Sum::Unknown => Some(format!("{missing_bytes} bytes are cut off")),
        Sum::Holds => None,
    };
    let record = known.as_ref().map_or("", |known| known.record);
    let mut node = record_node(format!("{name}/{instance} version {version}"), record, &walked);
    (node.about, node.problem) = (Some(about), damaged.or(node.problem));
    node
}

/// A record whose description is known.
pub(super) fn record(
    name: impl Into<String>,
    record: &'static str,
    fields: &'static [FieldInfo],
    bytes: &[u8],
) -> Node {
    record_node(name, record, &walk(record, fields, bytes))
}

fn record_node(name: impl Into<String>, record: &str, walked: &Walked<'_>) -> Node {
    let Walked { items, missing, damage } = walked;
    let mut node = Node::new(name);
    node.children = items.iter().map(|item| field(record, item)).collect();
    node.problem = match damage {
        Some((at, error)) => Some(format!("at byte {at}: {error}")),
        None if !missing.is_empty() => Some(format!("missing: {}", missing.join(", "))),
        None => None,
    };
    node
}

fn field(record: &str, item: &Item<'_>) -> Node {
    let name = item.info.map_or("", |info| info.name);
    let carried = CARRIED.iter().find(|(outer, field, _)| *outer == record && *field == name);
    let mut node = match (&item.value, carried) {
        (Seen::Bytes(bytes), Some((_, _, described))) => {
            let (inner, fields) = described();
            self::record(item.label(), inner, fields, bytes)
        }
        (Seen::Record(walked), _) => {
            let inner = match item.info.map(|info| info.kind) {
                Some(tern_schema::Kind::Record(name, _)) => name,
                _ => "",
            };
            record_node(item.label(), inner, walked)
        }
        (value, _) => Node { value: Some(plain(value)), ..Node::new(item.label()) },
    };
    let counted = name.starts_with("pages_").then_some("pages");
    node.unit = item.info.and_then(FieldInfo::unit).or(counted);
    node.about = item.info.map(|info| meaning(info.doc)).filter(|doc| !doc.is_empty());
    if item.info.is_none() {
        node.about = Some("not known to this build".to_owned());
    }
    node.problem = item.problem.as_ref().map(ToString::to_string).or(node.problem);
    node
}

/// A comment of the source as one text.
fn meaning(doc: &str) -> String {
    doc.lines().map(str::trim).collect::<Vec<_>>().join(" ").trim().to_owned()
}

fn plain(value: &Seen<'_>) -> Value {
    match value {
        Seen::Unsigned(value) => json!(value),
        Seen::Signed(value) => json!(value),
        Seen::Bool(value) => json!(value),
        Seen::Text(text) => json!(text),
        Seen::Words(words) => json!(words),
        Seen::Bytes(bytes) => json!(hex(bytes)),
        Seen::Record(_) => Value::Null,
    }
}

pub(super) fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write;
    bytes.iter().fold(String::with_capacity(bytes.len() * 2), |mut out, byte| {
        let _ = write!(out, "{byte:02x}");
        out
    })
}
