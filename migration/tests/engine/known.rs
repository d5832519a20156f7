//! Pages that the destination knows from an earlier visit aren't sent, and whatever is wrong with them costs no guest.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use serde_json::json;
use tern_migration::channel::Uri;
use tern_migration::fake::{Direction, FakeVm, Fault, LogMode, Options};
use tern_migration::known::KnownPages;
use tern_migration::source::{Outcome, migrate_to};
use tern_migration::{LiveParameters, MigrationError, Parameters, Side};

use crate::channels::{Damage, NONE, Ran, options, run_from, several};
use crate::encodings::{pages, several_rounds};
use crate::harness::{LOG_MODES, PATIENT, assert_invariant, assert_moved, control, on_threads};

/// A guest that writes on since it was seen last.
fn again(options: &Options) -> (FakeVm, Arc<KnownPages>) {
    let mut source = FakeVm::booted(options.clone()).unwrap();
    let (known, _) = source.visited();
    source.start_writer();
    (source, known)
}

fn ran(options: &Options, live: &LiveParameters, damage: Damage) -> Ran {
    let (source, known) = again(options);
    let controls = [several_rounds(live), control(Side::Destination)];
    run_from(source, options, Some(&known), live, damage, controls)
}

#[test]
fn with_any_number_of_channels_and_beside_each_encoding() {
    let mut cases = Vec::new();
    for channels in [1, 2, 7] {
        for method in ["none", "lz4", "zstd", "zlib"] {
            for deltas in [false, true] {
                cases.extend(LOG_MODES.map(|log| (channels, method, deltas, log)));
            }
        }
    }
    on_threads(&cases, |(channels, method, deltas, log)| {
        let what = format!("{channels} channels, {method}, deltas {deltas}, {log:?}");
        let live = several(*channels, method, *deltas);
        let Ran { ends, .. } = ran(&options(*log), &live, NONE);
        assert_moved(&ends, true);
        // What it wrote on is not known any more, and most it has left alone.
        assert!(pages(&ends, "known") > 100, "{what}: {:?}", ends.source_report.encodings);
        if *deltas {
            assert!(pages(&ends, "xbzrle") > 0, "{what}");
        }
        let (near, far) = (&ends.source_report, &ends.destination_report);
        assert_eq!((&near.bytes, &near.encodings), (&far.bytes, &far.encodings), "{what}");
        assert!(near.warnings.is_empty() && far.warnings.is_empty(), "{what}");
    });
}

#[test]
fn a_guest_that_has_not_written_comes_by_name_alone() {
    let options = Options { writes_per_call: 0, ..options(LogMode::Plain) };
    let source = FakeVm::booted(options.clone()).unwrap();
    let (known, _) = source.visited();
    let live = several(1, "none", false);
    let controls = [control(Side::Source), control(Side::Destination)];
    let Ran { ends, .. } = run_from(source, &options, Some(&known), &live, NONE, controls);
    assert_moved(&ends, true);
    let report = &ends.source_report;
    // All that were touched but the one that saving the state writes.
    let named = pages(&ends, "known");
    assert!(named >= 490 && report.pages.raw <= 1, "{:?}", report.encodings);
    assert!(report.bytes.page_data <= 4096 + named * 16, "{:?}", report.bytes);
}

#[test]
fn nothing_known_costs_nothing() {
    let options = options(LogMode::Plain);
    let empty = FakeVm::new(options.clone()).unwrap();
    let (nothing, _) = empty.visited();
    let live = several(2, "none", false);
    let source = FakeVm::booted(options.clone()).unwrap();
    let controls = [control(Side::Source), control(Side::Destination)];
    let Ran { ends, .. } = run_from(source, &options, Some(&nothing), &live, NONE, controls);
    assert_moved(&ends, true);
    assert_eq!(pages(&ends, "known"), 0);
}

#[test]
fn a_file_that_has_changed_ends_the_attempt_and_not_the_guest() {
    for channels in [1, 3] {
        let options = options(LogMode::Manual { initially_set: true });
        let source = FakeVm::booted(options.clone()).unwrap();
        let (known, changed) = source.visited();
        changed.store(true, Ordering::SeqCst);
        let live = several(channels, "none", false);
        let controls = [control(Side::Source), control(Side::Destination)];
        let Ran { ends, .. } = run_from(source, &options, Some(&known), &live, NONE, controls);
        let failed = ends.destination.as_ref().unwrap_err();
        assert!(matches!(failed.error, MigrationError::KnownChanged { .. }), "{}", failed.error.text());
        let Outcome::Failed(error) = &ends.source.outcome else { panic!("{:?}", ends.source.outcome) };
        for text in [failed.error.text(), error.text()] {
            let words = ["a copy of the fake's memory", "its content is another", "--known"];
            assert!(words.iter().all(|word| text.contains(word)), "{text}");
        }
        assert_invariant(ends, &options, "a changed file");
    }
}

#[test]
fn every_fault_at_every_message() {
    let mut cases = Vec::new();
    for channel in [0, 2] {
        let live = several(3, "lz4", true);
        let counted = ran(&options(LogMode::Plain), &live, Damage { channel, ..NONE });
        assert_moved(&counted.ends, true);
        for (way, count) in [Direction::ToDestination, Direction::ToSource].into_iter().zip(counted.messages)
        {
            for fault in [Fault::CutInside, Fault::Flip(77), Fault::Forge(131), Fault::Garbage, Fault::Double]
            {
                let damage = |at| Damage { channel, way, at, fault: fault.clone(), timeout: PATIENT };
                cases.extend((0..count.min(40)).map(damage));
            }
        }
    }
    let damaged = AtomicU32::new(0);
    on_threads(&cases, |damage| {
        let options = options(LogMode::Plain);
        let Ran { ends, .. } = ran(&options, &several(3, "lz4", true), damage.clone());
        damaged.fetch_add(u32::from(!matches!(ends.source.outcome, Outcome::Completed)), Ordering::SeqCst);
        assert_invariant(ends, &options, &format!("{damage:?}"));
    });
    assert!(damaged.load(Ordering::SeqCst) > 20);
}

#[test]
fn pages_of_files_are_known_and_what_is_no_file_is_not() {
    let folder = tempfile::tempdir().unwrap();
    let options = Options { writes_per_call: 0, ..options(LogMode::Plain) };
    for compress in ["none", "zstd"] {
        let path = folder.path().join(compress);
        let live = LiveParameters::new(Parameters { compress, ..Parameters::default() });
        let saved = migrate_to(
            FakeVm::booted(options.clone()).unwrap(),
            &Uri::File { path: path.clone() },
            &live,
            &control(Side::Source),
        );
        assert!(matches!(saved.outcome, Outcome::Saved { .. }), "{:?}", saved.outcome);
        let mut guest = saved.vm;
        guest.set_running(true);
        let (tell, told) = std::sync::mpsc::channel();
        // Twice the same is known once.
        let files = [path.clone(), path];
        let ended = move |text: Result<&str, &str>| {
            tell.send(text.map(str::to_owned).map_err(str::to_owned)).unwrap()
        };
        let known = KnownPages::open(&files, ended).unwrap();
        let text = told.recv_timeout(Duration::from_secs(60)).unwrap().unwrap();
        assert!(text.contains(": 492 different pages"), "{text}");
        assert_eq!(known.progress_percent(), 100);
        let live = several(2, "none", false);
        let controls = [control(Side::Source), control(Side::Destination)];
        let Ran { ends, .. } = run_from(guest, &options, Some(&known), &live, NONE, controls);
        assert_moved(&ends, true);
        assert!(pages(&ends, "known") >= 489, "{:?}", ends.source_report.encodings);
    }
    let disk = folder.path().join("disk");
    std::fs::write(&disk, [0; 4096]).unwrap();
    let error = KnownPages::open(&[disk], |_| ()).unwrap_err();
    assert!(std::error::Error::source(&error).is_some() || error.to_string().contains("disk"), "{error:?}");
}

#[test]
fn files_are_named_with_commas_between_them() {
    let parameters = Parameters::default().merged(json!({"known": "/a,/b"}).as_object().unwrap()).unwrap();
    assert_eq!(parameters.known_files(), ["/a", "/b"].map(std::path::PathBuf::from));
    assert!(Parameters::default().known_files().is_empty());
}
