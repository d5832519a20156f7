//! The sections of a machine, and the record of each section in each version: all that `catalog` knows.

use tern_schema::{Rewrite, StateSet, Walked};
use tern_vmm::catalog;

use super::{Target, Verdict};
use crate::corpus::golden;
use crate::sections::{self, Section};

pub(super) fn targets() -> Vec<Target> {
    let seeds = || vec![sections::write(&golden_sections())];
    let mut targets = vec![
        Target::new("state", "all sections, as they are", (4096, 128), state, seeds),
        Target::new(
            "state-sealed",
            "all sections, their checksums made right, each then read",
            (64 << 10, 256),
            |bytes| state(&sections::write(&sections::parse(bytes))),
            seeds,
        ),
    ];
    for section in catalog::sections() {
        let versions = section
            .versions
            .into_iter()
            .map(|version| (format!("{}-v{}", section.name, version.version), version));
        targets.extend(versions.map(|(name, version)| {
            let walk = move |body: &[u8]| drop(catalog::walk_section(version.name, version.version, body));
            record(name, version.rewrite, walk)
        }));
    }
    targets.extend(catalog::records().into_iter().map(|found| {
        let walk = move |body: &[u8]| drop::<Walked<'_>>(tern_schema::walk(found.record, found.fields, body));
        record(found.name.to_owned(), found.rewrite, walk)
    }));
    targets
}

/// What is taken is written, and read again as the same; all bytes can be walked over, for `tern inspect`.
fn record(golden_name: String, rewrite: Rewrite, walk: impl Fn(&[u8]) + Send + Sync + 'static) -> Target {
    let run = move |bytes: &[u8]| {
        walk(bytes);
        Verdict::accepted(comes_back(rewrite, bytes))
    };
    let name = format!("record-{golden_name}");
    // A record's text, which is made of it here, is much longer than its bytes.
    Target::new(name, "a record, from its golden bytes", (64 << 10, 2048), run, move || golden(&golden_name))
}

fn comes_back(rewrite: Rewrite, bytes: &[u8]) -> bool {
    let Ok((written, text)) = rewrite(bytes) else { return false };
    let again = rewrite(&written);
    assert!(again.as_ref() == Ok(&(written, text)), "a record has changed: {again:x?}");
    true
}

/// Is it a set of sections, each of which this build reads?
fn state(bytes: &[u8]) -> Verdict {
    let Ok(set) = StateSet::decode(bytes) else { return Verdict::Refused };
    let mut written = Vec::new();
    set.encode(&mut written);
    let again = StateSet::decode(&written);
    assert!(again.is_ok_and(|again| again.sections() == set.sections()), "a state has changed");
    let read = set.sections().iter().map(|section| {
        drop(catalog::walk_section(&section.name, section.version, &section.body));
        let known = catalog::find(&section.name, section.version);
        known.is_some_and(|known| comes_back(known.rewrite, &section.body))
    });
    // All of them, also behind one that is not read.
    let unread = read.filter(|read| !read).count();
    Verdict::accepted(unread == 0)
}

/// The newest version of each section.
fn golden_sections() -> Vec<Section> {
    let newest = catalog::sections().into_iter().filter_map(|section| section.versions.into_iter().last());
    let sections = newest.filter_map(|known| {
        let body = golden(&format!("{}-v{}", known.name, known.version)).pop()?;
        Some(Section::new(known.name, 0, known.version, body))
    });
    sections.collect()
}
