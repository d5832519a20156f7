//! The schema of a build as a document: what it can save, and what its machines look like. Two of them can be
//! compared ([`diff`]); the one of each release is kept in `vmm/golden/`.

pub mod diff;
mod show;

use std::io;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use tern_schema::{FieldInfo, Kind, Presence};
use thiserror::Error;

pub use show::{show, show_diff};

use crate::catalog::{self, CatalogSection, Machines};
use crate::machine_profile::{self, MachineProfile};

/// Version of the document.
pub const FORMAT: u32 = 1;
/// Longest document that is read: this build's has less than a tenth of a MiB.
pub(crate) const DUMP_MAX_BYTES: u64 = 16 << 20;

/// Why a document can't be read.
#[derive(Debug, Error)]
pub enum SchemaError {
    /// The file.
    #[error("{} can't be read", path.display())]
    Read {
        /// Its path.
        path: PathBuf,
        /// The host's reason.
        #[source]
        source: io::Error,
    },
    /// It is too long to be one.
    #[error("{} is longer than {max} bytes; this is no dump of a schema", path.display())]
    TooLong {
        /// Its path.
        path: PathBuf,
        /// The limit.
        max: u64,
    },
    /// It is no such document.
    #[error("{} is no dump of a schema; `tern schema dump --json` makes one", path.display())]
    Parse {
        /// Its path.
        path: PathBuf,
        /// What is wrong with it.
        #[source]
        source: serde_json::Error,
    },
    /// It is of another format.
    #[error("{} has format {found}, this tern reads {FORMAT}; compare with the newer of the two terns", path.display())]
    Format {
        /// Its path.
        path: PathBuf,
        /// Its format.
        found: u32,
    },
}

/// The whole document.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Dump {
    /// Version of the document itself.
    pub format: u32,
    /// The tern that it describes.
    pub tern_version: String,
    /// What guests see of their machines.
    pub profiles: Vec<ProfileDump>,
    /// What is saved, in order.
    pub sections: Vec<SectionDump>,
    /// Other records that cross a wire.
    pub records: Vec<RecordDump>,
}

/// A machine profile.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProfileDump {
    /// Its name.
    pub name: String,
    /// What it fixes.
    pub pins: Vec<PinDump>,
}

/// One fact that a profile fixes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PinDump {
    /// What.
    pub what: String,
    /// How.
    pub value: String,
}

/// A section.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SectionDump {
    /// Its name.
    pub name: String,
    /// Has every machine this part?
    pub in_every_machine: bool,
    /// May a machine without this part pass over it?
    pub optional: bool,
    /// What is read and written, the oldest first.
    pub versions: Vec<VersionDump>,
}

/// One version of a section.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct VersionDump {
    /// Its number.
    pub version: u16,
    /// The saved struct's name.
    pub record: String,
    /// Its fields.
    pub fields: Vec<FieldDump>,
}

/// A record outside the sections.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RecordDump {
    /// Its name.
    pub name: String,
    /// The struct's name.
    pub record: String,
    /// Its fields.
    pub fields: Vec<FieldDump>,
}

/// One field.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FieldDump {
    /// Number on the wire.
    pub number: u32,
    /// Name.
    pub name: String,
    /// What it holds: `u8` to `u64`, `i64`, `bool`, `bytes`, `bytes[N]`, `text`, `u64 list`, or a record's name.
    pub kind: String,
    /// How often it occurs.
    pub presence: PresenceDump,
    /// May a reader that doesn't know it pass over it?
    pub skippable: bool,
    /// Its unit, if its name has one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub unit: Option<String>,
    /// What it means.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub doc: String,
    /// The fields of a record.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub fields: Vec<Self>,
}

/// How often a field occurs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum PresenceDump {
    /// Exactly once.
    Required,
    /// At most once.
    Optional,
    /// At most once, a record: only if the state differs from its default.
    Subsection,
    /// Any number of times.
    Repeated,
}

impl Dump {
    /// That of this build.
    pub fn of_this_build() -> Self {
        let records = catalog::records().into_iter().map(|record| RecordDump {
            name: record.name.to_owned(),
            record: record.record.to_owned(),
            fields: fields(record.fields),
        });
        Self {
            format: FORMAT,
            tern_version: env!("CARGO_PKG_VERSION").to_owned(),
            profiles: machine_profile::PROFILES.iter().map(profile).collect(),
            sections: catalog::sections().into_iter().map(section).collect(),
            records: records.collect(),
        }
    }

    /// Reads one from a file.
    pub fn read(path: &Path) -> Result<Self, SchemaError> {
        use std::io::Read;
        let failed = |source| SchemaError::Read { path: path.to_owned(), source };
        let mut text = String::new();
        let file = std::fs::File::open(path).map_err(failed)?;
        file.take(DUMP_MAX_BYTES + 1).read_to_string(&mut text).map_err(failed)?;
        if text.len() as u64 > DUMP_MAX_BYTES {
            return Err(SchemaError::TooLong { path: path.to_owned(), max: DUMP_MAX_BYTES });
        }
        Self::parse(path, &text)
    }

    /// Reads one from text; `path` is for errors.
    pub fn parse(path: &Path, text: &str) -> Result<Self, SchemaError> {
        let failed = |source| SchemaError::Parse { path: path.to_owned(), source };
        let dump: Self = serde_json::from_str(text).map_err(failed)?;
        if dump.format != FORMAT {
            return Err(SchemaError::Format { path: path.to_owned(), found: dump.format });
        }
        Ok(dump)
    }
}

fn profile(profile: &MachineProfile) -> ProfileDump {
    let pins = (profile.pins)().into_iter();
    let pins = pins.map(|pin| PinDump { what: pin.what.to_owned(), value: pin.value });
    ProfileDump { name: profile.name.to_owned(), pins: pins.collect() }
}

fn section(section: CatalogSection) -> SectionDump {
    let CatalogSection { name, machines, versions } = section;
    let optional = versions.last().is_some_and(|version| version.optional);
    let versions = versions.into_iter().map(|version| VersionDump {
        version: version.version,
        record: version.record.to_owned(),
        fields: fields(version.fields),
    });
    let in_every_machine = machines == Machines::All;
    SectionDump { name: name.to_owned(), in_every_machine, optional, versions: versions.collect() }
}

fn fields(infos: &[FieldInfo]) -> Vec<FieldDump> {
    let one = |info: &FieldInfo| FieldDump {
        number: info.number,
        name: info.name.to_owned(),
        kind: info.kind.to_string(),
        presence: match info.presence {
            _ if info.is_subsection() => PresenceDump::Subsection,
            Presence::Required => PresenceDump::Required,
            Presence::Optional => PresenceDump::Optional,
            Presence::Repeated => PresenceDump::Repeated,
        },
        skippable: info.skippable,
        unit: info.unit().map(str::to_owned),
        doc: info.doc.lines().map(str::trim).collect::<Vec<_>>().join(" "),
        fields: match info.kind {
            Kind::Record(_, inner) => fields(inner()),
            _ => Vec::new(),
        },
    };
    infos.iter().map(one).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_dump_is_read_as_it_was_written() {
        let dump = Dump::of_this_build();
        let text = serde_json::to_string(&dump).unwrap();
        assert_eq!(Dump::parse(Path::new("-"), &text).unwrap(), dump);
        assert!((text.len() as u64) < DUMP_MAX_BYTES / 10);
    }

    #[test]
    fn other_files_and_formats_are_refused_by_name() {
        let error = Dump::parse(Path::new("a.json"), "{}").unwrap_err();
        assert!(error.to_string().contains("a.json is no dump"), "{error}");
        let newer = serde_json::to_string(&Dump { format: 7, ..Dump::of_this_build() }).unwrap();
        let error = Dump::parse(Path::new("a.json"), &newer).unwrap_err();
        assert!(error.to_string().contains("format 7"), "{error}");
    }

    #[test]
    fn every_field_says_what_it_means() {
        fn check(place: &str, fields: &[FieldDump]) {
            for field in fields {
                assert!(!field.doc.is_empty(), "{place}.{} has no comment", field.name);
                check(&format!("{place}.{}", field.name), &field.fields);
            }
        }
        for section in Dump::of_this_build().sections {
            section.versions.iter().for_each(|version| check(&section.name, &version.fields));
        }
    }
}
