//! The order in which a round sends its chunks: those with many pages that are written all the time come last. They
//! are cleared and read last too (mode manual-clear), so the guest has the least time to write them again before the
//! log is read.

use super::DirtyBitmap;

const WORD_PAGES: u64 = u64::BITS as u64;

/// Pages of a region that are sent together.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Chunk {
    /// Number of the region.
    pub region: usize,
    /// Its first page.
    pub start: u64,
}

/// The chunks of `pending` that have dirty pages, in order.
pub fn dirty_chunks(pending: &DirtyBitmap, chunk_pages: u64) -> Vec<Chunk> {
    let chunk_groups = (chunk_pages / WORD_PAGES).max(1) as usize;
    let mut chunks = Vec::new();
    for region in 0..pending.regions() {
        let mut group = 0;
        while let Some(found) = pending.next_dirty_group(region, group) {
            let first = found / chunk_groups * chunk_groups;
            chunks.push(Chunk { region, start: first as u64 * WORD_PAGES });
            group = first + chunk_groups;
        }
    }
    chunks
}

/// The same, hot ones last: by the number of pages that are dirty now and were in the round before.
pub fn hot_last(pending: &DirtyBitmap, before: &DirtyBitmap, chunk_pages: u64) -> Vec<Chunk> {
    let mut chunks = dirty_chunks(pending, chunk_pages);
    chunks.sort_by_cached_key(|Chunk { region, start }| {
        let groups = (start / WORD_PAGES) as usize..((start + chunk_pages) / WORD_PAGES) as usize;
        pending.count_common(before, *region, groups)
    });
    chunks
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn what_is_written_all_the_time_comes_last() {
        let (mut now, mut before) = (DirtyBitmap::new([1000]), DirtyBitmap::new([1000]));
        (0..64).for_each(|page| before.set(0, page));
        (0..20).for_each(|page| now.set(0, page));
        (300..364).for_each(|page| now.set(0, page));
        now.set(0, 999);
        before.set(0, 999);
        let starts = |chunks: Vec<Chunk>| chunks.iter().map(|chunk| chunk.start).collect::<Vec<_>>();
        assert_eq!(starts(hot_last(&now, &before, 128)), [256, 896, 0]);
        assert_eq!(starts(dirty_chunks(&now, 128)), [0, 256, 896]);
    }

    proptest! {
        #[test]
        fn each_dirty_page_is_in_one_chunk(
            pages in prop::collection::btree_set(0u64..3000, 0..60),
            before in prop::collection::btree_set(0u64..3000, 0..60),
            chunk_pages in prop::sample::select(vec![64u64, 128, 2048]),
        ) {
            let bitmap = |pages: &std::collections::BTreeSet<u64>| {
                let mut dirty = DirtyBitmap::new([1000, 2000]);
                pages.iter().for_each(|page| dirty.set(usize::from(*page >= 1000), page % 1000 + page / 2000 * 1000));
                dirty
            };
            let (now, before) = (bitmap(&pages), bitmap(&before));
            let mut left = now.clone();
            for Chunk { region, start } in hot_last(&now, &before, chunk_pages) {
                let mut runs = Vec::new();
                left.take_runs(region, (start / 64) as usize..((start + chunk_pages) / 64) as usize, &mut runs);
                prop_assert!(!runs.is_empty(), "a clean chunk");
            }
            prop_assert_eq!(left.count(), 0);
        }
    }
}
