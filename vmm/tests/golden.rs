//! Golden bytes: what each shipped version of a section looks like, kept as files for ever.
//!
//! A file of `golden/` has the bytes of one section's body in hex, and behind it, in lines that begin with `#`,
//! what they mean. The test reads the bytes with the code of today, writes them again and prints them: number,
//! type, order and meaning of a field can't change unnoticed. A file is never edited; a new version, and a
//! version that has got an optional field, gets a new one, and the older file stays as `NAME-before-FIELD.hex`.
//! Which sections and versions there are, [`tern_vmm::catalog`] says.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};

use tern_schema::{DecodeError, FieldInfo, Kind, Presence, Rewrite, Writer, walk};
use tern_vmm::catalog;

/// One shipped layout.
struct Row {
    /// File name without its ending.
    file: String,
    fields: &'static [FieldInfo],
    rewrite: Rewrite,
}

/// All that ships: every version of every section, and what else crosses a wire.
fn rows() -> Vec<Row> {
    let versions = catalog::sections().into_iter().flat_map(|section| section.versions);
    let versions = versions.map(|version| Row {
        file: format!("{}-v{}", version.name, version.version),
        fields: version.fields,
        rewrite: version.rewrite,
    });
    let records = catalog::records().into_iter();
    let records = records.map(|record| Row {
        file: record.name.to_owned(),
        fields: record.fields,
        rewrite: record.rewrite,
    });
    versions.chain(records).collect()
}

/// The whole text of a file for these bytes, by way of the record.
fn text(row: &Row, bytes: &[u8]) -> Result<String, DecodeError> {
    let (bytes, values) = (row.rewrite)(bytes)?;
    let mut text = String::new();
    for line in bytes.chunks(32) {
        line.iter().for_each(|byte| write!(text, "{byte:02x}").unwrap());
        text.push('\n');
    }
    values.lines().for_each(|line| writeln!(text, "# {line}").unwrap());
    Ok(text)
}

fn bytes(text: &str) -> Vec<u8> {
    let hex: String = text.lines().filter(|line| !line.starts_with('#')).collect();
    let pairs = hex.as_bytes().chunks(2);
    pairs.map(|pair| u8::from_str_radix(str::from_utf8(pair).unwrap(), 16).unwrap()).collect()
}

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("golden")
}

/// A record with every field there, each with a value of its own: what a new file holds.
fn fill(fields: &[FieldInfo], next: &mut u64, out: &mut Writer<'_>) {
    for field in fields {
        let times = if field.presence == Presence::Repeated { 2 } else { 1 };
        for _ in 0..times {
            *next += 1;
            let (number, optional, value) = (field.number, field.skippable, *next);
            let run =
                |count: usize| (value..).take(count).map(|value| value.to_le_bytes()[0]).collect::<Vec<_>>();
            match field.kind {
                Kind::Unsigned(bits) => out.integer(number, optional, (value << 56 | value) >> (64 - bits)),
                Kind::Signed => out.integer(number, optional, value << 40 | 1),
                Kind::Bool => out.integer(number, optional, 1),
                Kind::Bytes => out.bytes(number, optional, &run(5)),
                Kind::Fixed(count) => out.bytes(number, optional, &run(count)),
                Kind::Text => out.bytes(number, optional, format!("text {value}").as_bytes()),
                Kind::Words => out.bytes(number, optional, &run(32)),
                Kind::Record(_, inner) => out.record(number, optional, |out| fill(inner(), next, out)),
            }
        }
    }
}

fn new_file(row: &Row) -> String {
    let mut filled = Vec::new();
    fill(row.fields, &mut 0, &mut Writer::new(&mut filled));
    text(row, &filled).unwrap()
}

fn how_to_add(row: &Row) -> String {
    format!(
        "To add it, write this to vmm/golden/{}.hex, and never edit it again:\n{}",
        row.file,
        new_file(row)
    )
}

/// The names of the files that have bytes, without their ending.
fn files() -> Vec<String> {
    let names =
        fs::read_dir(folder()).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
    names.filter_map(|name| name.strip_suffix(".hex").map(str::to_owned)).collect()
}

#[test]
fn golden_bytes_are_read_and_written_again_as_they_were() {
    for row in rows() {
        let path = folder().join(format!("{}.hex", row.file));
        let Ok(golden) = fs::read_to_string(&path) else {
            panic!("{} has no golden bytes.\n{}", row.file, how_to_add(&row));
        };
        let again = text(&row, &bytes(&golden));
        let again = again.unwrap_or_else(|error| panic!("{} is not read any more: {error}", path.display()));
        assert_eq!(
            again, golden,
            "{} changed; a shipped version never does: make a new version, and add its golden bytes",
            row.file
        );
    }
}

#[test]
fn bytes_from_before_a_field_was_added_are_read_and_written_as_they_were() {
    for row in rows() {
        let older = format!("{}-before-", row.file);
        for file in files().iter().filter(|file| file.starts_with(&older)) {
            let golden = bytes(&fs::read_to_string(folder().join(format!("{file}.hex"))).unwrap());
            let (again, _) = (row.rewrite)(&golden).unwrap_or_else(|error| panic!("{file}: {error}"));
            assert_eq!(again, golden, "{file}: a state without the new field is not written as it was");
        }
    }
}

/// The first field, nested ones included, that no item of `walked` holds; with the names that lead to it.
fn absent(fields: &[FieldInfo], found: &BTreeSet<String>, prefix: &str) -> Option<String> {
    fields.iter().find_map(|field| {
        let path = format!("{prefix}{}", field.name);
        match field.kind {
            _ if !found.contains(&path) => Some(path),
            Kind::Record(_, inner) => absent(inner(), found, &format!("{path}.")),
            _ => None,
        }
    })
}

#[test]
fn golden_bytes_have_every_field() {
    for row in rows() {
        let Ok(golden) = fs::read_to_string(folder().join(format!("{}.hex", row.file))) else {
            panic!("{} has no golden bytes.\n{}", row.file, how_to_add(&row));
        };
        let golden = bytes(&golden);
        let mut found = BTreeSet::new();
        walk("golden", row.fields, &golden).visit(&mut |path, _| {
            let without_positions = path.split('.').map(|part| part.split('[').next().unwrap());
            found.insert(without_positions.collect::<Vec<_>>().join("."));
        });
        if let Some(path) = absent(row.fields, &found, "") {
            let field = path.rsplit('.').next().unwrap();
            panic!(
                "{0} was made before the field {path} was. Rename it to {0}-before-{field}.hex.\n{1}",
                row.file,
                how_to_add(&row)
            );
        }
    }
}

/// The `= "name" version` of each record that is a section, below `folder`.
fn declared(folder: &Path, out: &mut Vec<String>) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            declared(&path, out);
        } else if path.ends_with("next.rs") {
            // The stand-in for the next version: nothing of it ships.
        } else if path.extension().is_some_and(|ending| ending == "rs") {
            for line in fs::read_to_string(&path).unwrap().lines() {
                let Some((_, rest)) =
                    line.trim().strip_prefix("pub struct ").and_then(|l| l.split_once(" = \""))
                else {
                    continue;
                };
                let (name, version) = rest.split_once("\" ").unwrap();
                let version = version.trim_start_matches("optional ").split(' ').next().unwrap();
                out.push(format!("{name}-v{version}"));
            }
        }
    }
}

#[test]
fn every_section_has_golden_bytes() {
    let crate_folder = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut sections = Vec::new();
    declared(&crate_folder.join("src"), &mut sections);
    declared(&crate_folder.join("../devices/src"), &mut sections);
    assert!(sections.len() >= 13, "only {sections:?} found: are they declared otherwise now?");
    let rows = rows();
    for section in sections {
        assert!(
            rows.iter().any(|row| row.file == section),
            "{section} is not in vmm/src/catalog.rs: add it, run this test again, and it shows the bytes"
        );
    }
    for file in files() {
        let known = |row: &Row| file == row.file || file.starts_with(&format!("{}-before-", row.file));
        assert!(rows.iter().any(known), "{file}.hex belongs to nothing that this build reads");
    }
}
