//! Takes a batch of pages off a channel: first all records are checked, then the data is received, what is raw
//! directly into guest memory. What is encoded goes to a decoder.

use std::sync::Arc;
use std::sync::atomic::AtomicU32;
use std::sync::atomic::Ordering::Relaxed;

use super::batch::{PageRecord, RECORD_BYTES};
use super::compress::GROUP_PAGES_MAX;
use super::decoder::{Coded, Decoder, Item, Received};
use super::encode::Encoding;
use super::guest::RamView;
use super::job::Tally;
use super::pool::Pool;
use super::proof::{MemoryProof, PageBytes, zeroed};
use crate::channel::span::InSpan;
use crate::error::{MigrationError, ProtocolError};
use crate::known::KnownIndex;
use crate::vm::PAGE_BYTES;
use crate::wire::{Header, Wire};

const FRAME: &str = "pages";

/// What all channels of a migration share.
#[derive(Debug)]
pub(crate) struct Incoming {
    pub(crate) ram: Arc<RamView>,
    /// If both sides compare.
    pub(crate) proof: Option<Arc<MemoryProof>>,
    /// In which round each page came last, where that matters.
    pub(crate) rounds: Option<PageRounds>,
    /// Pages that needn't be sent, if the source was told of some.
    pub(crate) known: Option<Arc<KnownIndex>>,
    /// Encodings that were agreed.
    pub(crate) encodings: u64,
    pub(crate) tally: Tally,
}

/// The round in which each page came last.
#[derive(Debug)]
pub(crate) struct PageRounds {
    /// 0: not yet; else the round and 1.
    regions: Vec<Box<[AtomicU32]>>,
}

impl PageRounds {
    pub(crate) fn new(ram: &RamView) -> Self {
        Self { regions: ram.region_pages().map(zeroed).collect() }
    }

    /// The page comes in this round; returns in which it came before. A page that comes twice in one round is an error: two
    /// channels could have it at once, and which is newer nobody knows.
    fn take(&self, region: u16, page: u64, round: u32) -> Result<Option<u32>, ProtocolError> {
        let slots = self.regions.get(usize::from(region));
        let slot = slots.and_then(|slots| slots.get(usize::try_from(page).ok()?));
        let before = slot.map_or(0, |slot| slot.swap(round.wrapping_add(1), Relaxed));
        if before == round.wrapping_add(1) && before != 0 {
            return Err(ProtocolError::PageTwice { region, page, round });
        }
        Ok(before.checked_sub(1))
    }
}

/// Receives batches from one channel.
#[derive(Debug)]
pub(crate) struct PageReceiver {
    shared: Arc<Incoming>,
    channel: usize,
    decoding: Decoding,
    records: Vec<PageRecord>,
    copy: Box<PageBytes>,
}

/// Who decodes.
#[derive(Debug)]
pub(crate) enum Decoding {
    /// This thread.
    Here(Box<Decoder>),
    /// Others.
    There(Arc<Pool<Coded, MigrationError>>),
}

impl PageReceiver {
    pub(crate) fn new(shared: &Arc<Incoming>, channel: usize, decoding: Decoding) -> Self {
        let records = Vec::with_capacity(super::BATCH_PAGES_MAX);
        Self {
            shared: Arc::clone(shared),
            channel,
            decoding,
            records,
            copy: Box::new([0; PAGE_BYTES as usize]),
        }
    }

    /// Receives the batch whose header and records `wire` has just received. Returns how many pages it has.
    pub(crate) fn receive(&mut self, header: &Header, wire: &mut Wire) -> Result<u64, MigrationError> {
        let Incoming { ram, encodings, .. } = &*self.shared;
        let data_bytes = u64::from(header.length.saturating_sub(header.head));
        check(ram, *encodings, wire.payload(), data_bytes, &mut self.records)?;
        let mut coded = self.take_apart(header.epoch)?;
        self.receive_data(wire, &mut coded)?;
        self.shared.tally.add(self.channel, &self.records);
        let pages = self.records.len() as u64;
        if !coded.items.is_empty() {
            match &mut self.decoding {
                Decoding::Here(decoder) => decoder.decode(&coded)?,
                Decoding::There(pool) => pool.put(coded)?,
            }
        }
        self.records.retain(|record| matches!(record.encoding, Encoding::Zero | Encoding::Raw));
        if let Some(proof) = &self.shared.proof {
            proof.add(&self.shared.ram, &self.records, &mut self.copy)?;
        }
        Ok(pages)
    }

    /// Makes zero what is zero, and lists what has to be decoded.
    fn take_apart(&self, round: u32) -> Result<Coded, MigrationError> {
        let mut coded = Coded::default();
        for record in &self.records {
            let PageRecord { region, page, encoding, data_bytes } = *record;
            let before =
                self.shared.rounds.as_ref().map_or(Ok(None), |rounds| rounds.take(region, page, round))?;
            match encoding {
                Encoding::Zero => self.shared.ram.make_zero(region.into(), page)?,
                Encoding::Raw => {}
                _ => coded.add(encoding, data_bytes as usize, Received { region, page, before }),
            }
        }
        Ok(coded)
    }

    /// Raw pages into guest memory, all else into a buffer.
    fn receive_data(&self, wire: &mut Wire, coded: &mut Coded) -> Result<(), MigrationError> {
        coded.data.resize(coded.items.iter().map(Item::data_bytes).sum(), 0);
        let mut buffer = coded.data.as_mut_slice();
        let mut data: Vec<InSpan<'_>> = Vec::with_capacity(self.records.len());
        for record in self.records.iter().filter(|record| record.data_bytes > 0) {
            let span = if record.encoding == Encoding::Raw {
                self.shared.ram.in_span(record.region.into(), record.page..record.page + 1)?
            } else {
                let (piece, rest) =
                    buffer.split_at_mut_checked(record.data_bytes as usize).unwrap_or_default();
                buffer = rest;
                InSpan::buffer(piece)
            };
            if !data.last_mut().is_some_and(|last| last.join(&span)) {
                data.push(span);
            }
        }
        if coded.items.is_empty() {
            data.iter().for_each(|span| self.shared.ram.populate(span));
        }
        wire.receive_data(&mut data)
    }
}

/// Region, page, encoding, groups, and that the lengths add up. Pages of a batch rise, so none occurs twice.
pub(crate) fn check(
    ram: &RamView,
    encodings: u64,
    bytes: &[u8],
    expected: u64,
    out: &mut Vec<PageRecord>,
) -> Result<(), ProtocolError> {
    out.clear();
    let (records, rest) = bytes.as_chunks::<RECORD_BYTES>();
    let mismatch = |field, found, expected| ProtocolError::Mismatch { frame: FRAME, field, found, expected };
    let limit = |field, found, max| ProtocolError::Limit { frame: FRAME, field, found, max };
    if records.is_empty() || !rest.is_empty() {
        return Err(mismatch("covered length", bytes.len() as u64, RECORD_BYTES as u64));
    }
    let (mut data_bytes, mut before) = (0, None);
    // Pages of each encoding's latest group.
    let mut groups = [0; u8::BITS as usize];
    for record in records {
        let record = PageRecord::get(record)?;
        let PageRecord { region, page, encoding, .. } = record;
        let pages = ram.pages(region.into()).ok_or_else(|| {
            let regions = ram.region_pages().count() as u64;
            limit("region", region.into(), regions.saturating_sub(1))
        })?;
        if page >= pages {
            return Err(limit("page", page, pages.saturating_sub(1)));
        }
        if before.is_some_and(|before| before >= (region, page)) {
            return Err(limit("page order", page, pages));
        }
        before = Some((region, page));
        if encodings & encoding.bit() == 0 {
            return Err(mismatch("encodings that were agreed", encodings, encodings | encoding.bit()));
        }
        if let (true, Some(group)) = (encoding.info().groups, groups.get_mut(encoding as usize)) {
            *group = if record.data_bytes > 0 { 1 } else { *group + 1 };
            let begun = record.data_bytes > 0 || *group > 1;
            if !begun || *group > GROUP_PAGES_MAX {
                let most = if begun { GROUP_PAGES_MAX as u64 } else { 0 };
                return Err(limit("pages of a group", *group as u64, most));
            }
        }
        data_bytes += u64::from(record.data_bytes);
        out.push(record);
    }
    if data_bytes != expected {
        return Err(mismatch("data length", expected, data_bytes));
    }
    Ok(())
}
