use super::*;
use crate::schema::PinDump;

fn field(number: u32, name: &str, kind: &str, presence: PresenceDump, skippable: bool) -> FieldDump {
    let (name, kind) = (name.to_owned(), kind.to_owned());
    FieldDump { number, name, kind, presence, skippable, unit: None, doc: String::new(), fields: Vec::new() }
}

fn version(number: u16, fields: Vec<FieldDump>) -> VersionDump {
    VersionDump { version: number, record: format!("PartV{number}"), fields }
}

/// A section with one required field.
fn part() -> SectionDump {
    let word = field(1, "word", "u64", PresenceDump::Required, false);
    let versions = vec![version(1, vec![word])];
    SectionDump { name: "part".into(), in_every_machine: true, optional: false, versions }
}

fn dump(sections: Vec<SectionDump>) -> Dump {
    let pins = vec![PinDump { what: "ram".into(), value: "from 0".into() }];
    let profiles = vec![ProfileDump { name: "tern-1".into(), pins }];
    Dump { format: 1, tern_version: "1.0.0".into(), profiles, sections, records: Vec::new() }
}

/// What `edit` of the only section means, and in which words.
fn after(edit: impl FnOnce(&mut SectionDump)) -> (Effect, Effect, String) {
    let mut new = part();
    edit(&mut new);
    outcome(&dump(vec![part()]), &dump(vec![new]))
}

fn outcome(old: &Dump, new: &Dump) -> (Effect, Effect, String) {
    let Difference { old_to_new, new_to_old, changes, .. } = diff(old, new);
    let texts: Vec<_> = changes.iter().map(|change| format!("{} {}", change.place, change.text)).collect();
    (old_to_new, new_to_old, texts.join("\n"))
}

fn add(presence: PresenceDump, skippable: bool) -> (Effect, Effect, String) {
    after(|section| section.versions[0].fields.push(field(2, "extra", "u8", presence, skippable)))
}

#[test]
fn a_schema_is_compatible_with_itself() {
    let this = Dump::of_this_build();
    let same = diff(&this, &this);
    assert!(same.changes.is_empty() && same.is_compatible(), "{same:?}");
}

#[test]
fn a_new_field_is_judged_by_presence_and_mark() {
    assert_eq!(add(PresenceDump::Optional, true).0, Fine);
    assert_eq!(add(PresenceDump::Optional, true).1, Fine);
    let (forward, back, text) = add(PresenceDump::Subsection, false);
    assert_eq!((forward, back), (Fine, Conditional));
    assert!(text.contains("section part version 1, extra is new (field 2)"), "{text}");
    assert_eq!(add(PresenceDump::Required, false).0, Breaks, "an older state doesn't have it");
    assert_eq!(add(PresenceDump::Required, false).1, Breaks, "the older tern doesn't know it");
    let (forward, back, _) = add(PresenceDump::Required, true);
    assert_eq!((forward, back), (Breaks, Fine));
}

#[test]
fn a_field_that_is_gone_is_the_same_the_other_way_round() {
    let gone = |presence, skippable| {
        let mut old = part();
        old.versions[0].fields.push(field(2, "extra", "u8", presence, skippable));
        let (forward, back, text) = outcome(&dump(vec![old]), &dump(vec![part()]));
        assert!(text.contains("never use its number again"), "{text}");
        (forward, back)
    };
    assert_eq!(gone(PresenceDump::Optional, true), (Fine, Fine));
    assert_eq!(gone(PresenceDump::Optional, false), (Conditional, Fine));
    assert_eq!(gone(PresenceDump::Required, false), (Breaks, Breaks));
}

#[test]
fn a_number_keeps_its_meaning_and_type() {
    let (forward, back, text) = after(|section| section.versions[0].fields[0].name = "other".into());
    assert_eq!((forward, back), (Breaks, Breaks));
    assert!(text.contains("part version 1, other was word"), "{text}");
    let (forward, _, text) = after(|section| section.versions[0].fields[0].kind = "u32".into());
    assert!(forward == Breaks && text.contains("was u64 and is u32"), "{text}");
    let optional =
        |section: &mut SectionDump| section.versions[0].fields[0].presence = PresenceDump::Optional;
    let (forward, back, _) = after(optional);
    assert_eq!((forward, back), (Fine, Breaks), "the older tern needs it always");
}

#[test]
fn nested_fields_are_compared() {
    let nested = |inner: Vec<FieldDump>| {
        let mut outer = field(1, "points", "PointV1", PresenceDump::Repeated, false);
        outer.fields = inner;
        let mut section = part();
        section.versions[0].fields = vec![outer];
        dump(vec![section])
    };
    let x = field(1, "x", "u8", PresenceDump::Required, false);
    let y = field(2, "y", "u8", PresenceDump::Required, false);
    let (forward, _, text) = outcome(&nested(vec![x.clone()]), &nested(vec![x, y]));
    assert!(forward == Breaks && text.contains("part version 1, points.y is new"), "{text}");
}

#[test]
fn versions_need_one_in_common_and_the_files_version() {
    let (forward, back, text) = after(|section| section.versions.push(version(2, Vec::new())));
    assert_eq!((forward, back), (Fine, Conditional));
    assert!(text.contains("goes as version 1"), "{text}");
    let (forward, back, text) = after(|section| section.versions = vec![version(2, Vec::new())]);
    assert_eq!((forward, back), (Breaks, Breaks));
    assert!(text.contains("no version in common"), "{text}");
    let mut two = part();
    two.versions.push(version(2, Vec::new()));
    let (forward, back, text) = outcome(&dump(vec![two]), &dump(vec![part()]));
    assert_eq!((forward, back), (Breaks, Fine));
    assert!(text.contains("files"), "{text}");
}

#[test]
fn a_new_section_depends_on_who_has_it() {
    let with = |optional, in_every_machine| {
        let extra = SectionDump { name: "extra".into(), optional, in_every_machine, ..part() };
        let (forward, back, _) = outcome(&dump(vec![part()]), &dump(vec![part(), extra]));
        (forward, back)
    };
    assert_eq!(with(true, true), (Fine, Fine));
    assert_eq!(with(false, false), (Fine, Conditional));
    assert_eq!(with(false, true), (Breaks, Breaks));
    let extra = SectionDump { name: "extra".into(), in_every_machine: false, ..part() };
    let (forward, back, text) = outcome(&dump(vec![part(), extra]), &dump(vec![part()]));
    assert_eq!((forward, back), (Conditional, Fine));
    assert!(text.contains("extra is gone"), "{text}");
}

#[test]
fn a_profile_never_changes() {
    let mut new = dump(vec![part()]);
    new.profiles[0].pins[0].value = "from 1".into();
    let (forward, back, text) = outcome(&dump(vec![part()]), &new);
    assert_eq!((forward, back), (Breaks, Breaks));
    assert!(text.contains("tern-1, ram was \"from 0\""), "{text}");
    new = dump(vec![part()]);
    new.profiles.push(ProfileDump { name: "tern-2".into(), pins: Vec::new() });
    assert_eq!(outcome(&dump(vec![part()]), &new).1, Conditional);
    assert_eq!(outcome(&new, &dump(vec![part()])).0, Breaks);
}
