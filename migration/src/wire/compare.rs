//! Do the two machines fit together? What the engine itself compares: one list, from which a refusal takes what
//! differs, and a check beforehand shows all.

use std::fmt::Write as _;

use tern_schema::ChosenVersion;

use super::handshake::readable;
use crate::error::MigrationError;
use crate::vm::{Aspect, PAGE_BYTES, SectionOffer, VmFacts};

/// Most differences that a refusal lists.
const DIFFERENCES_MAX: usize = 16;
/// The section that each vCPU has: told by vCPU, and not at all if their number differs.
const VCPU: &str = "vcpu";

/// All that was compared, and how the sections will be written if it fits.
#[derive(Debug, Default)]
pub(crate) struct Compared {
    pub(crate) aspects: Vec<Aspect>,
    /// For each section that both sides have, the newest version that both can do.
    pub(crate) chosen: Vec<ChosenVersion>,
}

/// Compares what both sides say of themselves.
pub(crate) fn compare(source: &VmFacts, page_bytes: u32, destination: &VmFacts) -> Compared {
    let (theirs, ours) = (page_bytes.to_string(), PAGE_BYTES.to_string());
    let page = Aspect::equal("page-size", "page size in bytes", theirs, ours, "use the same release");
    let (theirs, ours) = (readable(&source.profile), readable(&destination.profile));
    let remedy = "start the destination with the source's profile";
    let profile = Aspect::equal("profile", "machine profile", theirs, ours, remedy);
    let (theirs, ours) = (source.cpus.to_string(), destination.cpus.to_string());
    let cpus = Aspect::equal("cpus", "vCPUs", theirs, ours, "start the destination with the source's --cpus");
    let remedy = "start the destination with the source's --memory";
    let mut memory = Aspect::equal("memory-layout", "memory", layout(source), layout(destination), remedy);
    if source.memory != destination.memory && memory.is_ok() {
        // More regions than the texts show.
        memory.remedy = Some(remedy.to_owned());
    }
    let mut compared = Compared { aspects: vec![page, profile, cpus, memory], chosen: Vec::new() };
    compared.sections(source, destination);
    compared
}

/// The refusal of a guest that doesn't fit: its code is the first difference's.
pub(crate) fn refusal(aspects: &[Aspect]) -> Option<MigrationError> {
    let found: Vec<&Aspect> = aspects.iter().filter(|aspect| !aspect.is_ok()).collect();
    let code = found.first()?.code.clone();
    let mut texts: Vec<String> = found.iter().take(DIFFERENCES_MAX).map(|aspect| aspect.text()).collect();
    let more = found.len().saturating_sub(DIFFERENCES_MAX);
    if more > 0 {
        texts.push(format!("and {more} more differences"));
    }
    Some(MigrationError::Refused { code, text: texts.join("\n") })
}

impl Compared {
    fn sections(&mut self, source: &VmFacts, destination: &VmFacts) {
        let counted = source.cpus == destination.cpus;
        let of = |all: &'_ [SectionOffer]| -> Vec<SectionOffer> {
            all.iter().filter(|section| counted || section.name != VCPU).cloned().collect()
        };
        let (theirs, ours) = (of(&source.sections), of(&destination.sections));
        let before = self.aspects.len();
        for section in &theirs {
            match ours.iter().find(|ours| same(ours, section)) {
                Some(ours) => self.versions(section, ours),
                None => self.aspects.push(only_at_source(section)),
            }
        }
        let only_here = ours.iter().filter(|ours| !theirs.iter().any(|theirs| same(theirs, ours)));
        self.aspects.extend(only_here.map(only_at_destination));
        if self.aspects.iter().skip(before).all(Aspect::is_ok) {
            let count = |sections: &[SectionOffer]| format!("has {}", sections.len());
            let (theirs, ours) = (count(&theirs), count(&ours));
            self.aspects.insert(before, Aspect::fits("sections", "parts of the machine", theirs, ours));
        }
    }

    /// The newest version that both sides can do.
    fn versions(&mut self, theirs: &SectionOffer, ours: &SectionOffer) {
        let (oldest, newest) = (oldest(theirs).max(oldest(ours)), theirs.version.min(ours.version));
        if oldest <= newest {
            let SectionOffer { name, instance, .. } = ours;
            self.chosen.push(ChosenVersion { name: name.clone(), instance: *instance, version: newest });
        } else {
            let remedy = "use releases that are closer to each other";
            let aspect = Aspect::differs("section-version", &part(ours), range(theirs), range(ours), remedy);
            self.aspects.push(aspect);
        }
    }
}

fn same(one: &SectionOffer, other: &SectionOffer) -> bool {
    one.name == other.name && one.instance == other.instance
}

fn oldest(section: &SectionOffer) -> u16 {
    section.oldest.unwrap_or(section.version)
}

fn range(section: &SectionOffer) -> String {
    match (oldest(section), section.version) {
        (oldest, newest) if oldest == newest => format!("has version {newest}"),
        (oldest, newest) => format!("has versions {oldest} to {newest}"),
    }
}

/// What a person calls that part of the machine.
fn part(section: &SectionOffer) -> String {
    let SectionOffer { name, instance, .. } = section;
    if name == VCPU { format!("vCPU {instance}") } else { format!("{}/{instance}", readable(name)) }
}

fn only_at_source(section: &SectionOffer) -> Aspect {
    let (has, name) = (range(section), part(section));
    if section.optional == Some(true) {
        return Aspect::fits("section-missing", &name, has, "does without it");
    }
    let remedy = "start the destination with the source's devices, or take a release there that knows it";
    Aspect::differs("section-missing", &name, has, "has none", remedy)
}

fn only_at_destination(section: &SectionOffer) -> Aspect {
    let (has, name) = (range(section), part(section));
    if section.optional == Some(true) {
        return Aspect::fits("section-missing", &name, "has none", has);
    }
    let remedy = "start the destination without that device";
    Aspect::differs("section-missing", &name, "has none", has, remedy)
}

fn layout(facts: &VmFacts) -> String {
    let total: u64 = facts.memory.iter().map(|r| r.length_bytes).fold(0, u64::saturating_add);
    let [region] = facts.memory.as_slice() else {
        let mut out = format!("{} in {} regions (", size(total), facts.memory.len());
        for (index, region) in facts.memory.iter().take(DIFFERENCES_MAX).enumerate() {
            let comma = if index == 0 { "" } else { ", " };
            let _ = write!(out, "{comma}{} at {:#x}", size(region.length_bytes), region.gpa);
        }
        return out + ")";
    };
    format!("{} at {:#x}", size(total), region.gpa)
}

/// A size as people say it: exact, whatever its unit.
fn size(bytes: u64) -> String {
    let units = [(30, "GiB"), (20, "MiB"), (10, "KiB")];
    let whole = |shift: &u32| bytes >> shift << shift == bytes && bytes >> shift != 0;
    match units.iter().find(|(shift, _)| whole(shift)) {
        Some((shift, unit)) => format!("{} {unit}", bytes >> shift),
        None => format!("{bytes} bytes"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::vm::MemoryRegion;

    fn section(name: &str, instance: u32, oldest: u16, version: u16) -> SectionOffer {
        let oldest = (oldest != version).then_some(oldest);
        SectionOffer { name: name.into(), instance, version, oldest, optional: None }
    }

    fn facts() -> VmFacts {
        VmFacts {
            name: "a".into(),
            profile: "tern-1".into(),
            tern_version: "1".into(),
            cpus: 2,
            memory: vec![MemoryRegion { gpa: 0, length_bytes: 1 << 20 }],
            sections: vec![
                section("vcpu", 0, 1, 1),
                section("vcpu", 1, 1, 1),
                section("serial", 0, 1, 1),
                section("rtc", 0, 2, 4),
            ],
            platform: Vec::new(),
        }
    }

    fn text(source: &VmFacts, page_bytes: u32, destination: &VmFacts) -> Option<(String, String)> {
        let error = refusal(&compare(source, page_bytes, destination).aspects)?;
        let MigrationError::Refused { code, text } = error else { panic!("{error}") };
        Some((code, text))
    }

    #[test]
    fn equal_machines_fit_and_say_so_for_each_aspect() {
        let compared = compare(&facts(), 4096, &facts());
        let names: Vec<_> = compared.aspects.iter().map(|aspect| aspect.name.as_str()).collect();
        let expected = ["page size in bytes", "machine profile", "vCPUs", "memory", "parts of the machine"];
        assert_eq!(names, expected);
        assert!(refusal(&compared.aspects).is_none());
        assert_eq!(compared.chosen.len(), 4);
    }

    #[test]
    fn each_difference_is_named_with_both_values_as_people_say_them() {
        let mut destination = facts();
        destination.memory[0].length_bytes = 3 << 30;
        destination.sections[1].version = 2;
        destination.sections[2].name = "net".into();
        let (code, text) = text(&facts(), 16384, &destination).unwrap();
        assert_eq!(code, "page-size");
        for part in [
            "page size in bytes: source 16384, destination 4096; use",
            "memory: source 1 MiB at 0x0, destination 3 GiB at 0x0; start",
            "vCPU 1: source has version 1, destination has version 2; use releases",
            "serial/0: source has version 1, destination has none; start",
            "net/0: source has none, destination has version 1; start the destination without",
        ] {
            assert!(text.contains(part), "{part} is not in {text}");
        }
    }

    #[test]
    fn another_machine_profile_is_refused_with_both_names() {
        let mut destination = facts();
        destination.profile = "tern-2".into();
        let (code, text) = text(&facts(), 4096, &destination).unwrap();
        assert_eq!(code, "profile");
        assert!(text.contains("machine profile: source tern-1, destination tern-2; start"), "{text}");
    }

    #[test]
    fn another_number_of_vcpus_is_one_difference() {
        let mut destination = facts();
        (destination.cpus, destination.sections) = (1, destination.sections.split_off(1));
        let (code, text) = text(&facts(), 4096, &destination).unwrap();
        assert_eq!((code.as_str(), text.lines().count()), ("cpus", 1), "{text}");
        assert!(text.starts_with("vCPUs: source 2, destination 1; start"), "{text}");
    }

    #[test]
    fn the_newest_common_version_is_chosen() {
        let choose = |oldest, version| {
            let mut destination = facts();
            destination.sections[3] = section("rtc", 0, oldest, version);
            let compared = compare(&facts(), 4096, &destination);
            let chosen = compared.chosen.iter().find(|chosen| chosen.name == "rtc");
            (chosen.map(|chosen| chosen.version), refusal(&compared.aspects).map(|error| error.text()))
        };
        for ((oldest, version), chosen) in [((1, 9), 4), ((4, 5), 4), ((1, 2), 2), ((3, 3), 3)] {
            assert_eq!(choose(oldest, version), (Some(chosen), None));
        }
        for (oldest, version) in [(5, 6), (1, 1)] {
            let (chosen, refused) = choose(oldest, version);
            assert_eq!(chosen, None);
            assert!(refused.unwrap().contains("rtc/0: source has versions 2 to 4, destination has version"));
        }
        // A peer whose range makes no sense has none in common.
        assert_eq!(choose(9, 3).0, None);
    }

    #[test]
    fn what_is_optional_may_be_missing() {
        let mut more = facts();
        more.sections.push(SectionOffer { optional: Some(true), ..section("hints", 0, 1, 1) });
        for (source, destination) in [(&more, &facts()), (&facts(), &more)] {
            let compared = compare(source, 4096, destination);
            assert!(refusal(&compared.aspects).is_none());
            assert_eq!(compared.chosen.len(), 4);
            assert!(compared.aspects.iter().any(|aspect| aspect.name == "hints/0"));
        }
    }

    #[test]
    fn a_long_list_is_cut() {
        let mut destination = facts();
        destination.sections.extend((0..40).map(|n| section("net", n, 1, 1)));
        let (_, text) = text(&facts(), 4096, &destination).unwrap();
        assert_eq!(text.lines().count(), 17);
        assert!(text.ends_with("and 24 more differences"), "{text}");
    }
}
