//! Compares two schemas by the law of `migration/schema/COMPATIBILITY.md`: what each change means for guests and
//! files that move from one to the other, and why.

use std::collections::BTreeSet;

use serde::Serialize;

use Effect::{Breaks, Conditional, Fine};

use super::{Dump, FieldDump, PresenceDump, ProfileDump, RecordDump, SectionDump, VersionDump};

/// What a change means for one direction. Ordered: the worst of several is the greatest.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Effect {
    /// Nothing.
    Fine,
    /// What uses it is refused with a reason, and everything else moves.
    Conditional,
    /// Guests or files are refused, or would go wrong.
    Breaks,
}

/// One difference.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Change {
    /// Where, such as `section vcpu version 1, msrs.index`.
    pub place: String,
    /// What changed, and what follows from it.
    pub text: String,
    /// For guests and files that go from the older one to the newer one.
    pub old_to_new: Effect,
    /// For those that go back.
    pub new_to_old: Effect,
}

/// All differences of two schemas.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Difference {
    /// The older one's tern.
    pub old: String,
    /// The newer one's tern.
    pub new: String,
    /// The worst of all changes.
    pub old_to_new: Effect,
    /// The worst of all changes.
    pub new_to_old: Effect,
    /// The changes.
    pub changes: Vec<Change>,
}

impl Difference {
    /// Does every guest that uses nothing new move both ways?
    pub fn is_compatible(&self) -> bool {
        self.old_to_new.max(self.new_to_old) < Breaks
    }
}

/// Compares.
pub fn diff(old: &Dump, new: &Dump) -> Difference {
    let mut changes = Vec::new();
    by_name(
        &old.profiles,
        &new.profiles,
        |p| &p.name,
        |name, old, new| profile(name, old, new, &mut changes),
    );
    by_name(
        &old.sections,
        &new.sections,
        |s| &s.name,
        |name, old, new| section(name, old, new, &mut changes),
    );
    by_name(&old.records, &new.records, |r| &r.name, |name, old, new| record(name, old, new, &mut changes));
    let worst = |effect: fn(&Change) -> Effect| changes.iter().map(effect).max().unwrap_or(Fine);
    let (old_to_new, new_to_old) = (worst(|change| change.old_to_new), worst(|change| change.new_to_old));
    let (old, new) = (old.tern_version.clone(), new.tern_version.clone());
    Difference { old, new, old_to_new, new_to_old, changes }
}

/// Pairs what has the same name; what only one side has comes alone. In the newer one's order, what is gone last.
fn by_name<T>(
    old: &[T],
    new: &[T],
    name: fn(&T) -> &String,
    mut pair: impl FnMut(&str, Option<&T>, Option<&T>),
) {
    for item in new {
        pair(name(item), old.iter().find(|other| name(other) == name(item)), Some(item));
    }
    for item in old.iter().filter(|item| !new.iter().any(|other| name(other) == name(item))) {
        pair(name(item), Some(item), None);
    }
}

fn note(changes: &mut Vec<Change>, place: String, effects: (Effect, Effect), text: impl Into<String>) {
    let (old_to_new, new_to_old) = effects;
    changes.push(Change { place, text: text.into(), old_to_new, new_to_old });
}

fn profile(name: &str, old: Option<&ProfileDump>, new: Option<&ProfileDump>, changes: &mut Vec<Change>) {
    let place = |what: &str| format!("profile {name}{what}");
    let (old, new) = match (old, new) {
        (Some(old), Some(new)) => (old, new),
        (None, _) => {
            let text = "is new: guests that are started with it can't go to the older tern";
            return note(changes, place(""), (Fine, Conditional), text);
        }
        (_, None) => {
            let text = "is gone: the newer tern takes no guest that was started with it";
            return note(changes, place(""), (Breaks, Fine), text);
        }
    };
    by_name(
        &old.pins,
        &new.pins,
        |pin| &pin.what,
        |what, old, new| {
            let place = place(&format!(", {what}"));
            match (old, new) {
                (Some(old), Some(new)) if old.value != new.value => {
                    let text = format!(
                        "was \"{}\" and is \"{}\": a guest would find another machine; make a new profile",
                        old.value, new.value
                    );
                    note(changes, place, (Breaks, Breaks), text);
                }
                (None, Some(new)) => {
                    let text = format!(
                        "is new (\"{}\"): a guest that found it here does without it on the older tern",
                        new.value
                    );
                    note(changes, place, (Fine, Conditional), text);
                }
                (Some(old), None) => {
                    let text = format!(
                        "is gone (\"{}\"): a guest that uses it breaks; make a new profile",
                        old.value
                    );
                    note(changes, place, (Breaks, Breaks), text);
                }
                _ => {}
            }
        },
    );
}

fn section(name: &str, old: Option<&SectionDump>, new: Option<&SectionDump>, changes: &mut Vec<Change>) {
    let place = format!("section {name}");
    let (old, new) = match (old, new) {
        (Some(old), Some(new)) => (old, new),
        (None, Some(only)) => {
            let (effect, text) = alone(only, "the older tern");
            return note(changes, place, effect, format!("is new; {text}"));
        }
        (Some(only), None) => {
            let ((forward, back), text) = alone(only, "the newer tern");
            return note(changes, place, (back, forward), format!("is gone; {text}"));
        }
        (None, None) => return,
    };
    if old.optional != new.optional {
        let now = if new.optional { "optional" } else { "mandatory" };
        let text = format!("is {now} now: it matters to terns that don't have this part at all");
        note(changes, place.clone(), (Fine, Fine), text);
    }
    if old.in_every_machine != new.in_every_machine && !(old.optional && new.optional) {
        let text = if new.in_every_machine {
            "is in every machine now: one that was configured without it can't come or go"
        } else {
            "is no longer in every machine: one without it can't go to the older tern"
        };
        note(changes, place.clone(), (Conditional, Conditional), text);
    }
    versions(&place, &old.versions, &new.versions, changes);
}

/// A section that only one side has: the effects (to the side that has it, to the one that hasn't).
fn alone(section: &SectionDump, without: &str) -> ((Effect, Effect), String) {
    match (section.optional, section.in_every_machine) {
        (true, _) => ((Fine, Fine), format!("it is optional, and {without} is not sent it")),
        (false, false) => {
            ((Fine, Conditional), format!("machines that have it are refused by {without}, others move"))
        }
        (false, true) => {
            ((Breaks, Breaks), format!("every machine has it and {without} refuses it; make it optional"))
        }
    }
}

fn versions(place: &str, old: &[VersionDump], new: &[VersionDump], changes: &mut Vec<Change>) {
    let numbers = |list: &[VersionDump]| list.iter().map(|v| v.version).collect::<BTreeSet<_>>();
    let (old_numbers, new_numbers) = (numbers(old), numbers(new));
    let common: BTreeSet<u16> = old_numbers.intersection(&new_numbers).copied().collect();
    let shown = |numbers: &BTreeSet<u16>| numbers.iter().map(u16::to_string).collect::<Vec<_>>().join(", ");
    if common.is_empty() {
        let (old, new) = (shown(&old_numbers), shown(&new_numbers));
        let text =
            format!("was version {old} and is {new}: no version in common; keep the older one readable");
        return note(changes, place.to_owned(), (Breaks, Breaks), text);
    }
    for number in new_numbers.difference(&old_numbers) {
        let text = format!(
            "is new: to the older tern the section goes as version {}; a state that this has no place for is \
             refused by name",
            common.last().copied().unwrap_or_default()
        );
        note(changes, format!("{place} version {number}"), (Fine, Conditional), text);
    }
    for number in old_numbers.difference(&new_numbers) {
        let place = format!("{place} version {number}");
        if Some(number) == old_numbers.last() {
            let text = "is gone, and the older tern's files have it: they can't be read any more";
            note(changes, place, (Breaks, Fine), text);
        } else {
            note(
                changes,
                place,
                (Conditional, Fine),
                "is gone: files of still older terns can't be read any more",
            );
        }
    }
    for number in common {
        let of = |list: &[VersionDump]| list.iter().find(|v| v.version == number).map(|v| v.fields.clone());
        let (old, new) = (of(old).unwrap_or_default(), of(new).unwrap_or_default());
        fields(&format!("{place} version {number}"), "", &old, &new, changes);
    }
}

fn record(name: &str, old: Option<&RecordDump>, new: Option<&RecordDump>, changes: &mut Vec<Change>) {
    // A record that one side doesn't have is compared where it is carried: by the field that holds it.
    if let (Some(old), Some(new)) = (old, new) {
        fields(&format!("record {name}"), "", &old.fields, &new.fields, changes);
    }
}

/// Two lists of fields of one layout. `path` leads to them, with a dot at its end.
fn fields(place: &str, path: &str, old: &[FieldDump], new: &[FieldDump], changes: &mut Vec<Change>) {
    for field in new {
        let at = format!("{place}, {path}{}", field.name);
        match old.iter().find(|other| other.number == field.number) {
            Some(before) => same_number(place, path, before, field, changes),
            None => {
                let (effect, text) = only_one_has(field, "the older tern");
                note(changes, at, effect, format!("is new (field {}): {text}", field.number));
            }
        }
    }
    for field in old.iter().filter(|field| !new.iter().any(|other| other.number == field.number)) {
        let ((forward, back), text) = only_one_has(field, "the newer tern");
        let text = format!("is gone (field {}): {text}; never use its number again", field.number);
        note(changes, format!("{place}, {path}{}", field.name), (back, forward), text);
    }
}

/// A field that one side doesn't know: the effects (to the side that knows it, to the other).
fn only_one_has(field: &FieldDump, without: &str) -> ((Effect, Effect), String) {
    let required = field.presence == PresenceDump::Required;
    let to_knower = if required { Breaks } else { Fine };
    let (to_other, passes) = match (field.skippable, required) {
        (true, _) => (Fine, format!("{without} passes over it")),
        (false, true) => (Breaks, format!("{without} refuses it")),
        (false, false) => (Conditional, format!("{without} refuses a guest that uses it, others move")),
    };
    let absent = if required { "; a state without it is refused here: make it optional" } else { "" };
    ((to_knower, to_other), passes + absent)
}

fn same_number(place: &str, path: &str, old: &FieldDump, new: &FieldDump, changes: &mut Vec<Change>) {
    let at = format!("{place}, {path}{}", new.name);
    let FieldDump { number, .. } = *new;
    if old.name != new.name {
        let text = format!(
            "was {} (field {number}): a number stands for one meaning for ever; give the new meaning a new number",
            old.name
        );
        return note(changes, at, (Breaks, Breaks), text);
    }
    let nested = |field: &FieldDump| !field.fields.is_empty();
    if old.kind != new.kind && !(nested(old) && nested(new)) {
        let text = format!("was {} and is {}: make a new version, or a new field", old.kind, new.kind);
        return note(changes, at, (Breaks, Breaks), text);
    }
    if old.presence != new.presence {
        let effects = presence_change(old.presence, new.presence);
        let text = format!(
            "was {} and is {}: one side writes what the other refuses; make a new version",
            word(old.presence),
            word(new.presence)
        );
        note(changes, at, effects, text);
    } else if old.skippable != new.skippable {
        let now = if new.skippable { "may be passed over now" } else { "may not be passed over any more" };
        note(changes, at, (Fine, Fine), format!("{now}: it matters to terns that don't know it"));
    }
    fields(place, &format!("{path}{}.", new.name), &old.fields, &new.fields, changes);
}

/// How often a field may occur, as (at least, at most more than once).
fn presence_change(old: PresenceDump, new: PresenceDump) -> (Effect, Effect) {
    let bounds = |presence| match presence {
        PresenceDump::Required => (true, false),
        PresenceDump::Optional | PresenceDump::Subsection => (false, false),
        PresenceDump::Repeated => (false, true),
    };
    // Does `reader` refuse something that `writer` writes?
    let effect = |writer, reader| {
        let ((always, many), (needed, takes_many)) = (bounds(writer), bounds(reader));
        if (needed && !always) || (many && !takes_many) { Breaks } else { Fine }
    };
    (effect(old, new), effect(new, old))
}

fn word(presence: PresenceDump) -> &'static str {
    match presence {
        PresenceDump::Required => "required",
        PresenceDump::Optional => "optional",
        PresenceDump::Subsection => "a subsection",
        PresenceDump::Repeated => "repeated",
    }
}

#[cfg(test)]
mod tests;
