//! Schemas and their differences, for people.

use std::fmt::Write;

use super::diff::{Difference, Effect};
use super::{Dump, FieldDump, PresenceDump, SectionDump};

/// A schema as text.
pub fn show(dump: &Dump) -> String {
    let mut out = format!("tern {}\n", dump.tern_version);
    for profile in &dump.profiles {
        let _ = writeln!(out, "\nmachine profile {}", profile.name);
        for pin in &profile.pins {
            let _ = writeln!(out, "  {:<18} {}", pin.what, pin.value);
        }
    }
    dump.sections.iter().for_each(|section| show_section(&mut out, section));
    for record in &dump.records {
        let _ = writeln!(out, "\nrecord {} ({})", record.name, record.record);
        show_fields(&mut out, 1, &record.fields);
    }
    out
}

fn show_section(out: &mut String, section: &SectionDump) {
    let machines = if section.in_every_machine { "every machine" } else { "if configured" };
    let flags = if section.optional { "optional" } else { "mandatory" };
    for version in &section.versions {
        let (name, number, record) = (&section.name, version.version, &version.record);
        let _ = writeln!(out, "\nsection {name} version {number} ({record}): {flags}, {machines}");
        show_fields(out, 1, &version.fields);
    }
}

fn show_fields(out: &mut String, depth: usize, fields: &[FieldDump]) {
    for field in fields {
        let presence = match field.presence {
            PresenceDump::Required => "",
            PresenceDump::Optional => ", optional",
            PresenceDump::Subsection => ", subsection",
            PresenceDump::Repeated => ", repeated",
        };
        let skippable = if field.skippable { ", may be skipped" } else { "" };
        let unit = field.unit.as_ref().map(|unit| format!(" [{unit}]")).unwrap_or_default();
        let (indent, number, name, kind) = ("  ".repeat(depth), field.number, &field.name, &field.kind);
        let head = format!("{indent}{number:>3} {name}: {kind}{unit}{presence}{skippable}");
        let _ = writeln!(out, "{head:<52} {}", field.doc);
        show_fields(out, depth + 2, &field.fields);
    }
}

/// A comparison as text.
pub fn show_diff(difference: &Difference) -> String {
    let Difference { old, new, old_to_new, new_to_old, changes } = difference;
    let verdict = |effect| match effect {
        Effect::Fine => "every guest moves",
        Effect::Conditional => "guests move, but for those named below",
        Effect::Breaks => "NOT COMPATIBLE",
    };
    let mut out = format!("old (tern {old}) to new (tern {new}): {}\n", verdict(*old_to_new));
    let _ = writeln!(out, "new (tern {new}) to old (tern {old}): {}", verdict(*new_to_old));
    for change in changes {
        let mark = match (change.old_to_new, change.new_to_old) {
            (Effect::Breaks, Effect::Breaks) => "breaks both ways",
            (Effect::Breaks, _) => "breaks old to new",
            (_, Effect::Breaks) => "breaks new to old",
            (Effect::Fine, Effect::Fine) => "fine",
            _ => "limits",
        };
        let _ = writeln!(out, "  {mark}: {} {}", change.place, change.text);
    }
    out
}
