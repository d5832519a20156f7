//! A snapshot as a source of pages: for the pager, and for a destination that knows it.

use std::error::Error;
use std::ops::Range;
use std::path::PathBuf;
use std::sync::Arc;

use super::{PageEntry, SnapshotError, SnapshotFile};
use crate::pager::{Fetched, PageSource};
use crate::vm::PAGE_BYTES;

/// Entries that are looked up at once behind a batch of zero pages: about a block of the table.
const LOOK_PAGES: u64 = 340;

/// The pages of a file, each verified when it is asked for.
#[derive(Debug)]
pub(crate) struct SnapshotPages {
    pub(crate) path: PathBuf,
    pub(crate) snapshot: Arc<SnapshotFile>,
}

impl PageSource for SnapshotPages {
    fn fetch(
        &self,
        region: usize,
        pages: Range<u64>,
        into: &mut [u8],
    ) -> Result<Fetched, Box<dyn Error + Send + Sync>> {
        let named = |source| SnapshotError::In { path: self.path.clone(), source: Box::new(source) };
        Ok(self.bring(region, pages, into).map_err(named)?)
    }
}

impl SnapshotPages {
    fn bring(&self, region: usize, pages: Range<u64>, into: &mut [u8]) -> Result<Fetched, SnapshotError> {
        let room = (into.len() as u64 / PAGE_BYTES).max(1);
        let mut entries = Vec::new();
        let batch = pages.start..pages.end.min(pages.start.saturating_add(room));
        self.snapshot.entries(region, batch.clone(), &mut entries)?;
        let zero = leading(&entries, true);
        if zero == 0 {
            let stored = leading(&entries, false);
            let entries = entries.get(..stored).unwrap_or_default();
            let bytes = into.get_mut(..stored.saturating_mul(PAGE_BYTES as usize)).unwrap_or_default();
            self.snapshot.read_stored(region, pages.start, entries, bytes)?;
            return Ok(Fetched::Content(stored as u64));
        }
        let mut end = pages.start + zero as u64;
        // A zero run may be far longer than the room for content.
        while end >= batch.end && end < pages.end {
            let look = end..pages.end.min(end.saturating_add(LOOK_PAGES));
            entries.clear();
            self.snapshot.entries(region, look.clone(), &mut entries)?;
            end += leading(&entries, true) as u64;
            if end < look.end {
                break;
            }
        }
        Ok(Fetched::Zero(end - pages.start))
    }
}

fn leading(entries: &[PageEntry], zero: bool) -> usize {
    entries.iter().take_while(|entry| entry.is_zero() == zero).count()
}
