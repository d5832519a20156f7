//! Pages of a fake guest as a destination knows them from before.

use std::error::Error;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use super::FakeVm;
use crate::known::{KnownPages, KnownSource};
use crate::pager::{Fetched, PageSource};
use crate::vm::PAGE_BYTES;

/// A copy of a guest's memory, which something may change once it is known.
struct Copy {
    regions: Vec<Vec<u8>>,
    changed: Arc<AtomicBool>,
}

impl PageSource for Copy {
    fn fetch(
        &self,
        region: usize,
        pages: Range<u64>,
        into: &mut [u8],
    ) -> Result<Fetched, Box<dyn Error + Send + Sync>> {
        let start = (pages.start * PAGE_BYTES) as usize;
        let memory = self.regions.get(region).and_then(|memory| memory.get(start..));
        let page =
            memory.and_then(|memory| memory.get(..PAGE_BYTES as usize)).ok_or("there is no such page")?;
        if page.iter().all(|byte| *byte == 0) {
            return Ok(Fetched::Zero(1));
        }
        into.iter_mut().zip(page).for_each(|(to, from)| *to = *from);
        if let (true, Some(first)) = (self.changed.load(Ordering::SeqCst), into.first_mut()) {
            *first ^= 1;
        }
        Ok(Fetched::Content(1))
    }
}

impl FakeVm {
    /// What a destination knows that this guest has visited, and what changes all of it there.
    pub fn visited(&self) -> (Arc<KnownPages>, Arc<AtomicBool>) {
        let regions = self.shared.region_pages.iter().enumerate();
        let memory =
            |(region, pages): (usize, &u64)| (0..*pages).flat_map(|page| self.page(region, page)).collect();
        let changed = Arc::new(AtomicBool::new(false));
        let copy = Copy { regions: regions.map(memory).collect(), changed: Arc::clone(&changed) };
        let source = KnownSource {
            name: "a copy of the fake's memory".to_owned(),
            regions: self.shared.region_pages.clone(),
            pages: Arc::new(copy),
        };
        (KnownPages::of(vec![source]), changed)
    }
}
