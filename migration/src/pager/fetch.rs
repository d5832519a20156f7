//! A source that is asked and answers at once, such as a file.

use std::ops::Range;
use std::sync::{Arc, Mutex, PoisonError};

use super::order::Place;
use super::{
    BATCH_PAGES, Cause, Content, Fetched, PageProvider, PageSource, PagerError, Placer, ProviderError, Wanted,
};
use crate::vm::PAGE_BYTES;

/// Brings pages from a [`PageSource`]: by the fault thread one at a time, by the prefetcher in batches.
pub(super) struct Fetching {
    pub(super) source: Arc<dyn PageSource>,
    /// The newest fault that the prefetcher hasn't heard of.
    pub(super) newest_fault: Mutex<Option<Place>>,
    /// The fault thread's.
    buffer: Mutex<Vec<u8>>,
}

impl Fetching {
    pub(super) fn new(source: Arc<dyn PageSource>) -> Self {
        Self { source, newest_fault: Mutex::new(None), buffer: Mutex::new(buffer()) }
    }

    /// Brings the first pages of `pages`; returns how many.
    pub(super) fn bring(
        &self,
        placer: &Placer,
        region: usize,
        pages: Range<u64>,
        buffer: &mut [u8],
        cause: Cause,
    ) -> Result<u64, PagerError> {
        let page = pages.start;
        let lost = |source| PagerError::Page { region, page, source };
        let asked = pages.end - pages.start;
        let fetched = self.source.fetch(region, pages, buffer).map_err(lost)?;
        let (count, most) = match fetched {
            Fetched::Zero(count) => (count, asked),
            Fetched::Content(count) => (count, asked.min(buffer.len() as u64 / PAGE_BYTES)),
        };
        if count == 0 || count > most {
            return Err(lost(format!("its source answered with {count} pages, 1 to {most} were due").into()));
        }
        let content = match fetched {
            Fetched::Zero(_) => Content::Zero,
            Fetched::Content(count) => {
                Content::Bytes(buffer.get(..(count * PAGE_BYTES) as usize).unwrap_or_default())
            }
        };
        placer.place(region, page..page + count, content, cause)?;
        Ok(count)
    }
}

impl PageProvider for Fetching {
    fn wanted(&self, wanted: Wanted, placer: &Placer) -> Result<(), ProviderError> {
        let Wanted { region, page, .. } = wanted;
        let mut buffer = self.buffer.lock().unwrap_or_else(PoisonError::into_inner);
        self.bring(placer, region, page..page + 1, &mut buffer, Cause::Wanted)?;
        *self.newest_fault.lock().unwrap_or_else(PoisonError::into_inner) = Some((region, page));
        Ok(())
    }
}

/// Room for what a source brings at once.
pub(super) fn buffer() -> Vec<u8> {
    vec![0; BATCH_PAGES * PAGE_BYTES as usize]
}
