//! Replays every corpus. A target's first inputs are made by its own code, so a change of a format shows here as an
//! input that is refused, and its remedy is one command.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

use std::collections::BTreeSet;
use std::fs;

use tern_fuzz::{Target, Verdict, corpus, memory, targets};

fn run(target: &Target, bytes: &[u8], what: &str) -> Verdict {
    let (verdict, most) = memory::most_bytes(|| target.run(bytes));
    let allowed = target.allowed_bytes(bytes.len());
    assert!(most <= allowed, "{what}: {most} bytes were held, {allowed} are allowed");
    verdict
}

#[test]
fn every_corpus_is_survived() {
    for target in targets::all() {
        let Target { name, .. } = target;
        let inputs = corpus::inputs(name).unwrap_or_default();
        assert!(!inputs.is_empty(), "{name} has no corpus: scripts/fuzz seeds");
        let mut verdicts = [0, 0];
        for (path, bytes) in &inputs {
            verdicts[usize::from(run(target, bytes, &path.display().to_string()) == Verdict::Accepted)] += 1;
        }
        let [refused, accepted] = verdicts;
        assert!(accepted > 0, "{name}: nothing of its corpus is taken any more: scripts/fuzz seeds");
        assert!(refused > 0, "{name}: nothing of its corpus is refused, so it tests one way only");
        let bytes: usize = inputs.iter().map(|(_, bytes)| bytes.len()).sum();
        assert!(
            bytes <= corpus::MAX_BYTES && inputs.len() <= corpus::MAX_FILES,
            "{name}: {} files of {bytes} bytes are too much for the tree",
            inputs.len()
        );
    }
}

#[test]
fn the_first_inputs_are_taken() {
    for target in targets::all() {
        let seeds = target.seeds();
        assert!(!seeds.is_empty(), "{} has no first input", target.name);
        for (number, seed) in seeds.iter().enumerate() {
            let what = format!("{}, seed {number}", target.name);
            assert_eq!(run(target, seed, &what), Verdict::Accepted, "{what} of {} bytes", seed.len());
        }
    }
}

#[test]
fn names_are_unique_and_every_folder_has_a_target() {
    let names: BTreeSet<&str> = targets::all().iter().map(|target| target.name.as_str()).collect();
    assert_eq!(names.len(), targets::all().len());
    for entry in fs::read_dir(corpus::folder().join("corpus")).unwrap() {
        let name = entry.unwrap().file_name().into_string().unwrap();
        assert!(names.contains(name.as_str()), "corpus/{name} belongs to no target");
    }
}
