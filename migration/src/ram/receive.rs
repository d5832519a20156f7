//! Puts a batch of pages where it belongs: first all records are checked, then the data is received
//! directly into guest memory.

use super::batch::{PageRecord, RECORD_BYTES};
use super::encode::Encoding;
use super::guest::RamView;
use super::proof::MemoryProof;
use crate::channel::span::InSpan;
use crate::error::{MigrationError, ProtocolError};
use crate::stats::{Bytes, Pages};
use crate::wire::{Header, Wire};

const FRAME: &str = "pages";

/// Receives batches into one machine's memory.
#[derive(Debug)]
pub(crate) struct PageReceiver<'r> {
    ram: &'r RamView,
    records: Vec<PageRecord>,
    /// Where the data of the batch goes; only its room lasts.
    data: Vec<InSpan<'r>>,
    /// If both sides compare.
    pub(crate) proof: Option<MemoryProof>,
}

impl<'r> PageReceiver<'r> {
    pub(crate) fn new(ram: &'r RamView, hashes: bool) -> Self {
        let proof = hashes.then(|| MemoryProof::new(ram.region_pages()));
        let most = super::BATCH_PAGES_MAX;
        Self { ram, records: Vec::with_capacity(most), data: Vec::with_capacity(most), proof }
    }

    /// Receives the batch whose header and records `wire` has just received.
    pub(crate) fn receive(
        &mut self,
        header: &Header,
        wire: &mut Wire,
    ) -> Result<(Pages, Bytes), MigrationError> {
        self.check(header, wire.payload())?;
        let mut pages = Pages::default();
        let data = &mut self.data;
        data.clear();
        for record in &self.records {
            let region = usize::from(record.region);
            match record.encoding {
                Encoding::Zero => {
                    pages.zero += 1;
                    self.ram.make_zero(region, record.page)?;
                }
                Encoding::Raw => {
                    pages.raw += 1;
                    let span = self.ram.in_span(region, record.page..record.page + 1)?;
                    if !data.last_mut().is_some_and(|last| last.join(&span)) {
                        data.push(span);
                    }
                }
            }
        }
        data.iter().for_each(|span| self.ram.populate(span));
        wire.receive_data(data)?;
        if let Some(proof) = &mut self.proof {
            proof.add(self.ram, &self.records)?;
        }
        let (page_data, page_records) = (u64::from(header.length - header.head), u64::from(header.head));
        Ok((pages, Bytes { page_data, page_records, ..Bytes::default() }))
    }

    /// Region, page, encoding, and that the lengths add up. Pages of a batch rise, so none occurs twice.
    fn check(&mut self, header: &Header, bytes: &[u8]) -> Result<(), ProtocolError> {
        self.records.clear();
        let (records, rest) = bytes.as_chunks::<RECORD_BYTES>();
        let mismatch =
            |field, found, expected| ProtocolError::Mismatch { frame: FRAME, field, found, expected };
        if records.is_empty() || !rest.is_empty() {
            return Err(mismatch("covered length", bytes.len() as u64, RECORD_BYTES as u64));
        }
        let mut data_bytes = 0;
        let mut before = None;
        for record in records {
            let record = PageRecord::get(record)?;
            let limit = |field, found, max| ProtocolError::Limit { frame: FRAME, field, found, max };
            let pages = self.ram.pages(record.region.into()).ok_or_else(|| {
                let regions = self.ram.region_pages().count() as u64;
                limit("region", record.region.into(), regions.saturating_sub(1))
            })?;
            if record.page >= pages {
                return Err(limit("page", record.page, pages.saturating_sub(1)));
            }
            let place = (record.region, record.page);
            if before.is_some_and(|before| before >= place) {
                return Err(limit("page order", record.page, pages));
            }
            before = Some(place);
            data_bytes += u64::from(record.data_bytes);
            self.records.push(record);
        }
        let expected = u64::from(header.length - header.head);
        if data_bytes != expected {
            return Err(mismatch("data length", expected, data_bytes));
        }
        Ok(())
    }
}
