//! Parts of tern's engine alone.

use std::hint::black_box;
use std::time::Instant;

use tern_migration::is_zero_slice;

use crate::plan::{Pair, Plan};
use crate::table::{Figure, Group};

const PAGE_BYTES: usize = 4096;
/// Larger than any cache, and small enough for every one.
const PLACES: [(&str, usize); 2] =
    [("zero scan, from memory", 256 << 20), ("zero scan, from cache", 256 << 10)];
/// Bytes looked at in one run.
const SCANNED_BYTES: usize = 1 << 30;

#[derive(Clone)]
#[repr(align(4096))]
struct Page([u8; PAGE_BYTES]);

/// How fast zero pages are found. QEMU's own way can't be measured from outside.
pub fn measure(plan: &Plan) -> Group {
    let figures = PLACES.map(|(name, bytes)| {
        // Written once, or the kernel would lend one page of zeroes for all of them.
        let mut pages = vec![Page([1; PAGE_BYTES]); bytes / PAGE_BYTES];
        pages.iter_mut().for_each(|page| page.0.fill(0));
        let mut pair = Pair::default();
        pair.tern.0 = (0..plan.runs).map(|_| scan_gib_per_s(&pages)).collect();
        Figure::new(name, "GiB/s", pair, None)
    });
    let setting = "one thread of tern's engine".to_owned();
    Group { name: "engine", setting, figures: figures.to_vec(), notes: Vec::new() }
}

fn scan_gib_per_s(pages: &[Page]) -> f64 {
    let passes = SCANNED_BYTES / size_of_val(pages);
    let begin = Instant::now();
    for _ in 0..passes {
        assert!(black_box(pages).iter().all(|page| is_zero_slice(&page.0)), "a page of zeroes isn't one");
    }
    let scanned_gib = (passes * size_of_val(pages)) as f64 / f64::from(1 << 30);
    scanned_gib / begin.elapsed().as_secs_f64()
}
