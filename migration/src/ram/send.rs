//! Collects pages into batches and sends them.

use std::time::Instant;

use super::batch::{BATCH_PAGES_MAX, Batch, PageRecord, RECORD_BYTES};
use super::encode::Encoding;
use super::guest::RamView;
use super::proof::MemoryProof;
use crate::channel::span::OutSpan;
use crate::error::MigrationError;
use crate::source::carrier::Carrier;
use crate::stats::{Bytes, Pages};
use crate::vm::PAGE_BYTES;

/// Pages whose dirty bits are cleared at once, just before they are read. A multiple of 64.
pub(crate) const CHUNK_PAGES: u64 = 2048;

/// A batch that is being filled. Its buffers are made once.
#[derive(Debug)]
pub(crate) struct PageSender<'r> {
    ram: &'r RamView,
    records: Vec<PageRecord>,
    /// If the other end wants to compare.
    pub(crate) proof: Option<MemoryProof>,
    data: Vec<OutSpan<'r>>,
    pages: Pages,
    data_bytes: usize,
}

/// What a batch was.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Sent {
    pub(crate) pages: Pages,
    pub(crate) bytes: Bytes,
    /// How long the sending took.
    pub(crate) busy_us: u64,
}

impl<'r> PageSender<'r> {
    pub(crate) fn new(ram: &'r RamView, hashes: bool) -> Self {
        Self {
            ram,
            records: Vec::with_capacity(BATCH_PAGES_MAX),
            proof: hashes.then(|| MemoryProof::new(ram.region_pages())),
            data: Vec::with_capacity(BATCH_PAGES_MAX),
            pages: Pages::default(),
            data_bytes: 0,
        }
    }

    /// Pages in the batch.
    pub(crate) fn len(&self) -> usize {
        self.records.len()
    }

    /// Adds a page, which must be dirty no more: a write from now on marks it again.
    pub(crate) fn add(&mut self, region: u16, page: u64) -> Result<(), MigrationError> {
        let zero = self.ram.is_zero(region.into(), page)?;
        let (encoding, data_bytes) =
            if zero { (Encoding::Zero, 0) } else { (Encoding::Raw, PAGE_BYTES as u32) };
        self.records.push(PageRecord { region, page, encoding, data_bytes });
        if zero {
            self.pages.zero += 1;
            return Ok(());
        }
        self.pages.raw += 1;
        self.data_bytes += PAGE_BYTES as usize;
        let span = self.ram.out_span(region.into(), page..page + 1)?;
        if !self.data.last_mut().is_some_and(|last| last.join(&span)) {
            self.data.push(span);
        }
        Ok(())
    }

    /// Sends the batch.
    pub(crate) fn flush(&mut self, carrier: &mut dyn Carrier) -> Result<Sent, MigrationError> {
        if self.len() == 0 {
            return Ok(Sent::default());
        }
        // Just before the carrier reads them: then they are in the cache for it.
        if let Some(proof) = &mut self.proof {
            proof.add(self.ram, &self.records)?;
        }
        let started = Instant::now();
        let Self { records, data, data_bytes, .. } = self;
        let result = carrier.pages(&mut Batch { records, data, data_bytes: *data_bytes });
        let busy_us = started.elapsed().as_micros() as u64;
        let bytes = Bytes {
            page_data: self.data_bytes as u64,
            page_records: (self.records.len() * RECORD_BYTES) as u64,
            ..Bytes::default()
        };
        let pages = self.pages;
        self.clear();
        result.map(|()| Sent { pages, bytes, busy_us })
    }

    fn clear(&mut self) {
        self.records.clear();
        self.data.clear();
        self.pages = Pages::default();
        self.data_bytes = 0;
    }
}
