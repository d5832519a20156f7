//! This build against the last released schemas: guests and files must move both ways.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

use std::path::{Path, PathBuf};

use tern_vmm::schema::diff::diff;
use tern_vmm::schema::{Dump, show_diff};

fn released() -> Vec<PathBuf> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("golden");
    let files = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    files.filter(|path| path.extension().is_some_and(|ending| ending == "json")).collect()
}

#[test]
fn this_build_is_compatible_with_every_release() {
    let released = released();
    assert!(!released.is_empty(), "the schemas of releases are gone from vmm/golden/");
    for path in released {
        let found = diff(&Dump::read(&path).unwrap(), &Dump::of_this_build());
        assert!(
            found.is_compatible(),
            "{}: see migration/schema/COMPATIBILITY.md\n{}",
            path.display(),
            show_diff(&found)
        );
    }
}

#[test]
fn a_build_that_lost_a_section_or_reused_a_number_is_found() {
    let path = released().remove(0);
    let old = Dump::read(&path).unwrap();
    let mut lost = Dump::of_this_build();
    lost.sections.retain(|section| section.name != "serial");
    assert!(!diff(&old, &lost).is_compatible());
    let mut reused = Dump::of_this_build();
    reused.sections[0].versions[0].fields[0].name = "another_meaning".into();
    assert!(!diff(&old, &reused).is_compatible());
}
