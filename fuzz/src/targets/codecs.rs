//! What a page's content is written as: deltas and compressed blocks. How they come in a batch is the business of
//! target `pages`; in post-copy, of those here.

use tern_migration::fuzzing;

use super::{Target, Verdict};

/// Contexts of a method for both ways, a group of pages twice, and the blocks.
const BLOCK: (usize, usize) = (2 << 20, 64);

pub(super) fn targets() -> Vec<Target> {
    let delta = Target::new(
        "delta",
        "a delta of a page",
        (32 << 10, 4),
        |bytes| Verdict::accepted(fuzzing::delta(bytes)),
        fuzzing::deltas,
    );
    let block = |method: &'static str| {
        Target::new(
            format!("block-{method}"),
            "a byte that says how many pages, and a block that should be so many",
            BLOCK,
            move |bytes| Verdict::accepted(fuzzing::block(method, bytes)),
            move || fuzzing::blocks(method),
        )
    };
    let postcopy = [
        Target::new(
            "postcopy-missing",
            "the pages that are missing, as one frame",
            (64 << 10, 4),
            |bytes| Verdict::accepted(fuzzing::page_set(bytes)),
            fuzzing::page_sets,
        ),
        Target::new(
            "postcopy-request",
            "a question for pages",
            (64 << 10, 4),
            |bytes| Verdict::accepted(fuzzing::request(bytes)),
            fuzzing::requests,
        ),
        Target::new(
            "postcopy-pages",
            "pages that were missing, behind their checksum",
            // Contexts of all methods, and a batch of groups.
            (8 << 20, 64),
            |bytes| Verdict::accepted(fuzzing::page_in(bytes)),
            fuzzing::page_ins,
        ),
    ];
    [delta].into_iter().chain(fuzzing::methods().map(block)).chain(postcopy).collect()
}
