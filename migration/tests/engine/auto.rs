//! `compress=auto`: what it chooses is what is sent, and it says why.

use serde_json::json;
use tern_migration::Side;
use tern_migration::fake::{FakeVm, Options};

use crate::encodings::{parameters, several_rounds};
use crate::harness::{assert_moved, control, pair, run};

#[test]
fn the_choice_is_used_and_told() {
    for (threads, deltas) in [(1, false), (4, true)] {
        let options = Options { region_pages: vec![70, 900], working_set_pages: 100, ..Options::default() };
        let live = parameters(&json!({
            // What binds then is no matter of how fast this host is.
            "compress": "auto", "max-bandwidth": 4_000_000, "compress-threads": threads,
            "capabilities": [{"capability": "xbzrle", "state": deltas}],
        }));
        let mut source = FakeVm::booted(options.clone()).unwrap();
        source.start_writer();
        let destination = FakeVm::new(options).unwrap();
        let ends =
            run(source, destination, pair(), &live, [several_rounds(&live), control(Side::Destination)]);
        assert_moved(&ends, true);
        let count = |name| {
            let counts = ends.destination_report.encodings.iter();
            counts.filter(|count| count.name == name).map(|count| count.pages).sum::<u64>()
        };
        assert!(count("lz4") + count("zstd") > 0, "{:?}", ends.destination_report.encodings);
        let reason = ends.source_report.compression.unwrap();
        assert!(reason.contains("; pages a second: raw ") && reason.contains(", zstd 1 "), "{reason}");
        // About the last round, unless nothing was left for that.
        assert!(["the guest is stopped", "binds"].iter().any(|why| reason.contains(why)), "{reason}");
        assert_eq!(ends.destination_report.compression, None);
    }
}
