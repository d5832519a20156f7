//! The newest content of a page wins, whatever channel, thread and encoding carries it: any guest, sent in any way. Each of its
//! writes has a number of its own, so older content is other content.

use proptest::prelude::*;
use serde_json::json;
use tern_migration::Side;
use tern_migration::fake::{FakeVm, Options};

use crate::channels::{NONE, Ran, run_from};
use crate::encodings::{parameters, several_rounds, xbzrle};
use crate::harness::{LOG_MODES, assert_moved, control};

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, ..ProptestConfig::default() })]
    #[test]
    fn the_newest_content_of_each_page_arrives(
        region_pages in prop::collection::vec(2u64..700, 1..4),
        (log, channels, threads) in (0usize..4, 1u32..9, 1u32..6),
        (method, deltas, known) in (prop::sample::select(vec!["none", "lz4", "zstd", "zlib"]), any::<bool>(), any::<bool>()),
        (writes_per_call, working_set_pages, touched_every) in (0u32..60, 1u64..600, 1usize..5),
    ) {
        let options = Options {
            region_pages, log: LOG_MODES[log], writes_per_call, working_set_pages, touched_every, ..Options::default()
        };
        let live = parameters(&json!({
            "channels": channels, "compress": method, "compress-threads": threads, "capabilities": xbzrle(deltas),
        }));
        let mut source = FakeVm::booted(options.clone()).unwrap();
        let before = known.then(|| source.visited().0);
        source.start_writer();
        let controls = [several_rounds(&live), control(Side::Destination)];
        let Ran { ends, .. } = run_from(source, &options, before.as_ref(), &live, NONE, controls);
        assert_moved(&ends, true);
    }
}
