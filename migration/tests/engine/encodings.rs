//! Every encoding, with any number of threads: what arrives is the guest, whatever it writes meanwhile.

use std::sync::Arc;

use serde_json::json;
use tern_migration::fake::{FakeGuest, FakeVm, LogMode, Options};
use tern_migration::{Control, LiveParameters, Observer, Parameters, Side, Status};

use crate::harness::{Ends, LOG_MODES, assert_moved, control, on_threads, pair, run};

/// Parameters of this text, as QMP has them.
pub fn parameters(changes: &serde_json::Value) -> LiveParameters {
    LiveParameters::new(Parameters::default().merged(changes.as_object().unwrap()).unwrap())
}

pub fn xbzrle(on: bool) -> serde_json::Value {
    json!([{"capability": "xbzrle", "state": on}])
}

fn moved(options: &Options, live: &LiveParameters) -> Ends {
    let mut source = FakeVm::booted(options.clone()).unwrap();
    source.start_writer();
    let destination = FakeVm::new(options.clone()).unwrap();
    run(source, destination, pair(), live, [several_rounds(live), control(Side::Destination)])
}

/// Lets the guest be stopped in the fifth round only, so that there is something to send changes of.
struct Later(LiveParameters, Option<FakeGuest>);

impl Observer for Later {
    fn status(&self, _: Status) {}
    fn pass(&self, pass: u32) {
        let limit_ms = if pass < 5 { 0 } else { 10_000 };
        self.0.merge(json!({"downtime-limit": limit_ms}).as_object().unwrap()).unwrap();
        // Some that the guest writes again, and some that it doesn't.
        if let Some(guest) = &self.1 {
            assert!((0..5).chain(45..50).all(|page| guest.zero_page(0, page)));
        }
    }
}

pub fn several_rounds(live: &LiveParameters) -> Arc<Control> {
    Control::new(Side::Source, Box::new(Later(live.clone(), None))).unwrap()
}

/// Pages that were sent in this encoding; both sides say the same.
pub fn pages(ends: &Ends, name: &str) -> u64 {
    let [near, far] = [&ends.source_report, &ends.destination_report].map(|report| {
        report.encodings.iter().find(|count| count.name == name).map(|count| (count.pages, count.bytes))
    });
    assert_eq!(near, far, "{name}");
    near.map_or(0, |(pages, _)| pages)
}

#[test]
fn each_encoding_with_any_number_of_threads() {
    let mut cases = Vec::new();
    for method in ["none", "lz4", "zstd", "zlib"] {
        for deltas in [false, true] {
            for threads in [1, 2, 7] {
                for log in LOG_MODES {
                    cases.push((method, deltas, threads, log));
                }
            }
        }
    }
    on_threads(&cases, |(method, deltas, threads, log)| {
        let what = format!("{method}, deltas {deltas}, {threads} threads, {log:?}");
        let options =
            Options { log: *log, region_pages: vec![70, 900], working_set_pages: 300, ..Options::default() };
        let live = parameters(&json!({
            "compress": method, "compress-threads": threads, "capabilities": xbzrle(*deltas),
        }));
        let ends = moved(&options, &live);
        assert_moved(&ends, true);
        assert_eq!(ends.source_report.pages.sent(), ends.destination_report.pages.sent(), "{what}");
        if *method != "none" {
            assert!(pages(&ends, method) > 0, "{what}");
        }
        if *deltas {
            assert!(pages(&ends, "xbzrle") > 0, "{what}");
            assert!(ends.source_report.xbzrle.is_some_and(|counts| counts.hits > 0), "{what}");
        }
        let near = ends.source_report.proof.and_then(|proof| proof.memory);
        assert!(near.is_some() && near == ends.destination_report.proof.and_then(|proof| proof.memory));
    });
}

#[test]
fn a_page_that_became_zero_is_an_update_like_any_other() {
    for changes in [json!({"compress": "zstd"}), json!({"compress": "lz4", "capabilities": xbzrle(true)})] {
        for log in [LogMode::Plain, LogMode::Manual { initially_set: false }] {
            let options = Options { log, touched_every: 1, ..Options::default() };
            let mut source = FakeVm::booted(options.clone()).unwrap();
            let live = parameters(&changes);
            let observer = Later(live.clone(), Some(source.guest()));
            source.start_writer();
            let destination = FakeVm::new(options).unwrap();
            let controls =
                [Control::new(Side::Source, Box::new(observer)).unwrap(), control(Side::Destination)];
            let ends = run(source, destination, pair(), &live, controls);
            assert_moved(&ends, true);
            // From the second round on.
            assert!(pages(&ends, "zero") >= 4 * 5);
            let received = ends.destination.unwrap().vm;
            assert!((45..50).all(|page| received.page(0, page).iter().all(|byte| *byte == 0)));
        }
    }
}
