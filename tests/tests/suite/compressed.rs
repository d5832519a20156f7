//! A real guest in a compressed file: saved while it runs, smaller than raw, and back by every way that such a file allows.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::process::{Command, Output};

use tern_migration::snapshot::SnapshotFile;
use tern_tests::binary::tern_binary;
use tern_tests::{PulseLog, Tern, TernBuilder, kvm_or_skip};

use crate::restore::modes;
use crate::save::{save, text};

fn tern(words: &[&str], file: &Path) -> Output {
    Command::new(tern_binary()).args(words).arg(file).output().unwrap()
}

#[test]
fn a_compressed_guest_comes_back_by_every_way_but_a_mapping() {
    if !kvm_or_skip() {
        return;
    }
    let source = Tern::pulse("ws=8M rate=2000 content=text interval=50").start();
    source.wait_beats(1, 3);
    let folder = tempfile::tempdir().unwrap();
    let file = |name: &str| folder.path().join(name);
    let saved = |name: &str, more: &[&str]| {
        let output = save(&source, &file(name), &[&["--then", "run"], more].concat());
        assert!(output.status.success(), "{}", text(&output));
        fs::metadata(file(name)).unwrap().blocks()
    };
    let raw = saved("raw", &[]);
    for method in ["lz4", "zstd", "zlib", "auto"] {
        let compressed = saved(method, &["--compress", method]);
        assert!(compressed < raw, "{method}: {compressed} of {raw} blocks");
        let inspected = tern(&["inspect", "--verify"], &file(method));
        assert!(inspected.status.success(), "{}", text(&inspected));
    }
    let last = file("zstd");
    assert!(!SnapshotFile::open(&last).unwrap().is_mappable());
    let output = save(&source, &last, &["--compress", "zstd", "--compress-level", "3"]);
    assert!(output.status.success(), "{}", text(&output));
    let told = source.serial().text();

    let core = file("core");
    let dumped = tern(&["dump", "--elf", core.to_str().unwrap()], &last);
    assert!(dumped.status.success(), "{}", text(&dumped));
    let refused = tern(&["restore", "--mode", "mapped"], &last);
    let said = text(&refused);
    assert!(!refused.status.success() && said.contains("use --mode eager or on-demand"), "{said}");
    for mode in modes().into_iter().filter(|mode| *mode != "mapped") {
        let guest = TernBuilder::restore(&last).flag("--mode").flag(mode).start();
        guest.wait_beats(1, 3);
        PulseLog::read(&(told.clone() + &guest.serial().text()));
        // And onward from there, at once: on demand most of its memory is still in the first file.
        let again = file("again");
        let output = save(&guest, &again, &["--compress", "lz4"]);
        assert!(output.status.success(), "{}", text(&output));
        let told = told.clone() + &guest.serial().text();
        let onward = TernBuilder::restore(&again).start();
        onward.wait_beats(1, 3);
        PulseLog::read(&(told + &onward.serial().text()));
    }
}
