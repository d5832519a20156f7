//! All that this build can save, in the order of [`sections`](crate::sections): for descriptions, golden bytes and
//! tools. Needs no machine and no KVM.
//!
//! A section that is saved anywhere and isn't here fails `vmm/tests/golden.rs`.

use std::fmt::Debug;

#[cfg(feature = "next")]
use tern_devices::next::{AcpiPmV1, I8042V1, RtcV2 as RtcNewest, UptimeV1};
#[cfg(not(feature = "next"))]
use tern_devices::{AcpiPmV1, I8042V1, RtcV1 as RtcNewest};
use tern_devices::{BalloonV1, BlkV1, ConsoleV1, NetV1, RngV1, SerialV1, VmGenIdV1};
use tern_migration::snapshot::{Description, Index};
use tern_migration::{VmFacts, stream};
use tern_schema::{FieldInfo, Record, Rewrite, Section, SectionVersion, Walked, walk};

use crate::configuration::ConfigurationV1;
use crate::kvm::{ClockV1, IoapicV1, PicV1, PitV1};
use crate::platform::PlatformV1;
use crate::vcpu::VcpuV1;

/// Which machines have a part.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Machines {
    /// Every one.
    All,
    /// Those that are configured so.
    Configured,
}

/// One section.
#[derive(Debug, Clone)]
pub struct CatalogSection {
    /// Its name.
    pub name: &'static str,
    /// Which machines have it.
    pub machines: Machines,
    /// Every version that this build reads and writes, the oldest first.
    pub versions: Vec<SectionVersion>,
}

/// A record that crosses a wire or is in a file, and is no section.
#[derive(Debug, Clone)]
pub struct CatalogRecord {
    /// Its name here.
    pub name: String,
    /// The struct's name.
    pub record: &'static str,
    /// Its fields in order of declaration.
    pub fields: &'static [FieldInfo],
    /// Reads one and writes it again.
    pub rewrite: Rewrite,
}

/// All sections.
pub fn sections() -> Vec<CatalogSection> {
    use Machines::{All, Configured};
    vec![
        section::<VcpuV1>(All),
        section::<ClockV1>(All),
        section::<PitV1>(All),
        section::<PicV1>(All),
        section::<IoapicV1>(All),
        section::<SerialV1>(All),
        section::<I8042V1>(All),
        section::<RtcNewest>(All),
        section::<AcpiPmV1>(All),
        #[cfg(feature = "next")]
        section::<UptimeV1>(All),
        section::<VmGenIdV1>(All),
        section::<BlkV1>(Configured),
        section::<NetV1>(Configured),
        section::<RngV1>(Configured),
        section::<ConsoleV1>(Configured),
        section::<BalloonV1>(Configured),
    ]
}

/// All records that are no sections: what the two sides tell each other of their machines, what else is in a file,
/// and the messages.
pub fn records() -> Vec<CatalogRecord> {
    let mut records = vec![
        record::<VmFacts>("handshake-vm-facts"),
        record::<PlatformV1>("handshake-platform-v1"),
        record::<Description>("snapshot-description"),
        record::<ConfigurationV1>("snapshot-configuration-v1"),
        record::<Index>("snapshot-index"),
    ];
    records.extend(stream::messages().into_iter().map(|message| CatalogRecord {
        name: format!("message-{}", message.frame),
        record: message.record,
        fields: message.fields,
        rewrite: message.rewrite,
    }));
    records
}

fn section<S: Section>(machines: Machines) -> CatalogSection {
    CatalogSection { name: S::NAME, machines, versions: SectionVersion::all::<S>() }
}

fn record<R: Record + Debug>(name: &str) -> CatalogRecord {
    CatalogRecord {
        name: name.to_owned(),
        record: R::RECORD,
        fields: R::fields(),
        rewrite: tern_schema::rewrite::<R>,
    }
}

/// One version of one section, if this build knows it.
pub fn find(name: &str, version: u16) -> Option<SectionVersion> {
    let section = sections().into_iter().find(|section| section.name == name)?;
    section.versions.into_iter().find(|known| known.version == version)
}

/// Walks over a section's body with its description, or without one if this build doesn't know it.
pub fn walk_section<'a>(name: &str, version: u16, body: &'a [u8]) -> Walked<'a> {
    find(name, version)
        .map_or_else(|| walk("unknown section", &[], body), |known| walk(known.record, known.fields, body))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_section_is_listed_once_with_versions_that_follow_each_other() {
        let sections = sections();
        let mut names: Vec<_> = sections.iter().map(|section| section.name).collect();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), sections.len());
        for CatalogSection { name, versions, .. } in sections {
            assert!(versions.iter().all(|version| version.name == name), "{name} follows another section");
            assert!(versions.is_sorted_by(|older, newer| older.version + 1 == newer.version));
        }
    }

    #[test]
    fn a_body_is_walked_by_its_description() {
        let golden = [0x08, 0x01];
        let known = walk_section("i8042", 1, &golden);
        assert!(known.items[0].info.is_some());
        let unknown = walk_section("i8042", 99, &golden);
        assert!(unknown.items[0].info.is_none() && unknown.items[0].label() == "#1");
    }
}
