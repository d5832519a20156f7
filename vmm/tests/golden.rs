//! Golden bytes: what each shipped version of a section looks like, kept as files for ever.
//!
//! A file of `golden/` has the bytes of one section's body in hex, and behind it, in lines that begin with `#`,
//! what they mean. The test reads the bytes with the code of today, writes them again and prints them: number,
//! type, order and meaning of a field can't change unnoticed. A file is never edited; a new version, and a
//! version that has got an optional field, gets a new one.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

use std::fmt::{Debug, Write as _};
use std::fs;
use std::path::{Path, PathBuf};

use tern_devices::{AcpiPmV1, BlkV1, ConsoleV1, I8042V1, NetV1, RngV1, RtcV1, SerialV1};
use tern_migration::VmFacts;
use tern_schema::{FieldInfo, Kind, Presence, Reader, Record, Section, Writer};
use tern_schema::{decode_record, encode_record};
use tern_vmm::kvm::{ClockV1, IoapicV1, PicV1, PitV1};
use tern_vmm::platform::PlatformV1;
use tern_vmm::vcpu::VcpuV1;

/// One shipped layout.
struct Row {
    /// File name without its ending.
    file: String,
    fields: &'static [FieldInfo],
    /// The whole text of a file for these bytes, by way of the record.
    text: fn(&[u8]) -> Result<String, tern_schema::DecodeError>,
}

fn section<S: Section + Debug>() -> Row {
    record::<S>(&format!("{}-v{}", S::NAME, S::VERSION))
}

fn record<R: Record + Debug>(file: &str) -> Row {
    Row { file: file.to_owned(), fields: R::fields(), text: |bytes| Ok(text(&decode_record::<R>(bytes)?)) }
}

/// All that ships. The facts are what the handshake compares.
fn rows() -> Vec<Row> {
    vec![
        section::<VcpuV1>(),
        section::<ClockV1>(),
        section::<PitV1>(),
        section::<PicV1>(),
        section::<IoapicV1>(),
        section::<SerialV1>(),
        section::<I8042V1>(),
        section::<RtcV1>(),
        section::<AcpiPmV1>(),
        section::<BlkV1>(),
        section::<NetV1>(),
        section::<RngV1>(),
        section::<ConsoleV1>(),
        record::<VmFacts>("handshake-vm-facts"),
        record::<PlatformV1>("handshake-platform-v1"),
    ]
}

fn text<R: Record + Debug>(record: &R) -> String {
    let mut text = String::new();
    for line in encode_record(record).chunks(32) {
        line.iter().for_each(|byte| write!(text, "{byte:02x}").unwrap());
        text.push('\n');
    }
    format!("{record:#?}").lines().for_each(|line| writeln!(text, "# {line}").unwrap());
    text
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
    (row.text)(&filled).unwrap()
}

fn how_to_add(row: &Row) -> String {
    format!(
        "To add it, write this to vmm/golden/{}.hex, and never edit it again:\n{}",
        row.file,
        new_file(row)
    )
}

#[test]
fn golden_bytes_are_read_and_written_again_as_they_were() {
    for row in rows() {
        let path = folder().join(format!("{}.hex", row.file));
        let Ok(golden) = fs::read_to_string(&path) else {
            panic!("{} has no golden bytes.\n{}", row.file, how_to_add(&row));
        };
        let again = (row.text)(&bytes(&golden));
        let again = again.unwrap_or_else(|error| panic!("{} is not read any more: {error}", path.display()));
        assert_eq!(
            again, golden,
            "{} changed; a shipped version never does: make a new version, and add its golden bytes",
            row.file
        );
    }
}

#[test]
fn golden_bytes_have_every_field() {
    for row in rows() {
        let golden = bytes(&fs::read_to_string(folder().join(format!("{}.hex", row.file))).unwrap());
        let (mut reader, mut found) = (Reader::new(&golden), Vec::new());
        while let Some(field) = reader.field().unwrap() {
            found.push(field.number);
        }
        for field in row.fields {
            assert!(
                found.contains(&field.number),
                "{} was made before the field {} was. Keep it as {}-before-{}.hex with a row of its own.\n{}",
                row.file,
                field.name,
                row.file,
                field.name,
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
        } else if path.extension().is_some_and(|ending| ending == "rs") {
            for line in fs::read_to_string(&path).unwrap().lines() {
                let Some((_, rest)) =
                    line.trim().strip_prefix("pub struct ").and_then(|l| l.split_once(" = \""))
                else {
                    continue;
                };
                let (name, version) = rest.split_once("\" ").unwrap();
                out.push(format!("{name}-v{}", version.trim_end_matches(" {")));
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
            "{section} has no row in vmm/tests/golden.rs: add one, run this test again, and it shows the bytes"
        );
    }
    for entry in fs::read_dir(folder()).unwrap() {
        let name = entry.unwrap().file_name().into_string().unwrap();
        assert!(
            rows.iter().any(|row| format!("{}.hex", row.file) == name),
            "{name} has no row that reads it"
        );
    }
}
