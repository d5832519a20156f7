//! Makes batches of pages: each thread that sends has one, with its own buffers and contexts.
//!
//! ```text
//! job -> zero? -> delta to what the destination has? -> known there from before? -> group of pages that is worth compressing? -> raw
//! ```
//!
//! A page that is sent as it is goes from guest memory to the socket without a copy, unless something has to agree on its
//! content: then it is copied once, and the copy is what is hashed, cached, encoded and sent.

use std::fmt;
use std::io;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Instant;

use super::batch::{Batch, PageRecord};
use super::cache::{CacheCounts, PageCache};
use super::compress::GROUP_PAGES_MAX;
use super::encode::{BASE_BYTES, Encoding};
use super::group::{Auto, Compression, GroupEncoder};
use super::guest::RamView;
use super::job::Job;
use super::known::{DIGEST_BYTES, KnownSet};
use super::proof::{MemoryProof, PageBytes, page_hash};
use super::xbzrle::{self, Encoded};
use crate::channel::span::OutSpan;
use crate::error::MigrationError;
use crate::stats::XbzrleReport;
use crate::vm::PAGE_BYTES;

const PAGE: usize = PAGE_BYTES as usize;

/// What all encoders of a migration share.
#[derive(Debug)]
pub(crate) struct Outgoing {
    pub(crate) ram: Arc<RamView>,
    /// If the other end wants to compare.
    pub(crate) proof: Option<Arc<MemoryProof>>,
    /// What the destination has, if deltas were agreed.
    pub(crate) cache: Option<PageCache>,
    /// Pages that had changed too much for a delta.
    pub(crate) overflows: AtomicU64,
    /// Pages that the destination has in a file.
    pub(crate) known: Option<KnownSet>,
    /// How groups are compressed, if they are.
    pub(crate) compression: Option<Compression>,
}

impl Outgoing {
    /// What has become of deltas.
    pub(crate) fn deltas(&self) -> Option<XbzrleReport> {
        let CacheCounts { hits, misses, evictions, refusals } = self.cache.as_ref()?.counts();
        Some(XbzrleReport { hits, misses, evictions, refusals, overflows: self.overflows.load(Relaxed) })
    }

    /// What chooses how to compress, if something does.
    pub(crate) fn auto(&self) -> Option<&Auto> {
        match &self.compression {
            Some(Compression::Auto(auto)) => Some(auto),
            _ => None,
        }
    }

    /// Does content have to be copied before it is sent?
    fn copies(&self) -> bool {
        self.cache.is_some() || self.known.is_some() || self.compression.is_some()
    }
}

/// Makes batches.
pub(crate) struct Encoder {
    shared: Arc<Outgoing>,
    groups: Option<GroupEncoder>,
    records: Vec<PageRecord>,
    /// Where each record's data is.
    places: Vec<Place>,
    /// Copies of pages that are sent as they are, or in a group.
    plain: Vec<u8>,
    /// Deltas and compressed groups.
    coded: Vec<u8>,
    /// The group that is being collected: its records.
    group: Vec<usize>,
    copy: Box<PageBytes>,
}

/// Where data is.
#[derive(Debug, Clone)]
enum Place {
    Nowhere,
    Guest,
    Plain(Range<usize>),
    Coded(Range<usize>),
}

impl Encoder {
    pub(crate) fn new(shared: &Arc<Outgoing>) -> Result<Self, MigrationError> {
        let groups = shared.compression.as_ref().map(GroupEncoder::new).transpose();
        let failed = |error| MigrationError::Thread { action: "compress", source: io::Error::other(error) };
        let groups = groups.map_err(failed)?;
        Ok(Self {
            shared: Arc::clone(shared),
            groups,
            records: Vec::new(),
            places: Vec::new(),
            plain: Vec::new(),
            coded: Vec::new(),
            group: Vec::with_capacity(GROUP_PAGES_MAX),
            copy: Box::new([0; PAGE]),
        })
    }

    /// Encodes all pages of a job.
    pub(crate) fn encode(&mut self, job: &Job) -> Result<(), MigrationError> {
        self.clear();
        let shared = Arc::clone(&self.shared);
        if !shared.copies() {
            job.pages().try_for_each(|(region, page)| self.add_uncopied(&shared, region, page))?;
            // Just before they are sent: then they are in the cache for that.
            return shared
                .proof
                .as_ref()
                .map_or(Ok(()), |proof| proof.add(&shared.ram, &self.records, &mut self.copy));
        }
        job.pages().try_for_each(|(region, page)| self.add_copied(&shared, job, region, page))?;
        self.close_group(&shared, job.live);
        Ok(())
    }

    fn clear(&mut self) {
        self.records.clear();
        self.places.clear();
        self.plain.clear();
        self.coded.clear();
        self.group.clear();
    }

    fn push(&mut self, region: u16, page: u64, encoding: Encoding, data_bytes: usize, place: Place) {
        self.records.push(PageRecord { region, page, encoding, data_bytes: data_bytes as u32 });
        self.places.push(place);
    }

    fn add_uncopied(&mut self, shared: &Outgoing, region: u16, page: u64) -> Result<(), MigrationError> {
        if shared.ram.is_zero(region.into(), page)? {
            self.push(region, page, Encoding::Zero, 0, Place::Nowhere);
        } else {
            self.push(region, page, Encoding::Raw, PAGE, Place::Guest);
        }
        Ok(())
    }

    fn add_copied(
        &mut self,
        shared: &Outgoing,
        job: &Job,
        region: u16,
        page: u64,
    ) -> Result<(), MigrationError> {
        if shared.ram.is_zero(region.into(), page)? {
            if let Some(cache) = &shared.cache {
                cache.forget(region, page);
            }
            if let Some(proof) = &shared.proof {
                proof.set(region, page, 0);
            }
            self.push(region, page, Encoding::Zero, 0, Place::Nowhere);
            return Ok(());
        }
        shared.ram.read(region.into(), page, &mut self.copy)?;
        if let Some(proof) = &shared.proof {
            let started = Instant::now();
            proof.set(region, page, page_hash(region, page, &self.copy));
            proof.spent(started);
        }
        // A delta comes first: its base is at hand, and the cache learns what is sent whatever it is sent as.
        if self.add_delta(shared, job.round, region, page) || self.add_known(shared, region, page) {
            return Ok(());
        }
        let start = self.plain.len();
        self.plain.extend_from_slice(&*self.copy);
        if self.groups.is_some() {
            self.group.push(self.records.len());
        }
        self.push(region, page, Encoding::Raw, PAGE, Place::Plain(start..start + PAGE));
        if self.group.len() == GROUP_PAGES_MAX {
            self.close_group(shared, job.live);
        }
        Ok(())
    }

    /// Only what has changed, if what the destination has is known and that is shorter.
    fn add_delta(&mut self, shared: &Outgoing, round: u32, region: u16, page: u64) -> bool {
        let Some(cache) = &shared.cache else { return false };
        let (coded, copy) = (&mut self.coded, &*self.copy);
        let start = coded.len();
        let encoded = cache.exchange((region, page), round, copy, |base| {
            coded.extend_from_slice(&base.round.to_le_bytes());
            coded.resize(start + PAGE, 0);
            xbzrle::encode(base.content, copy, coded.get_mut(start + BASE_BYTES..).unwrap_or_default())
        });
        let bytes = match encoded {
            Some(Encoded::Same) => BASE_BYTES,
            Some(Encoded::Bytes(bytes)) => BASE_BYTES + bytes,
            overflow @ (Some(Encoded::Overflow) | None) => {
                shared.overflows.fetch_add(u64::from(overflow.is_some()), Relaxed);
                coded.truncate(start);
                return false;
            }
        };
        coded.truncate(start + bytes);
        self.push(region, page, Encoding::Xbzrle, bytes, Place::Coded(start..start + bytes));
        true
    }

    /// Only its name, if the destination has it.
    fn add_known(&mut self, shared: &Outgoing, region: u16, page: u64) -> bool {
        let Some(name) = shared.known.as_ref().and_then(|known| known.name(&self.copy)) else { return false };
        let start = self.coded.len();
        self.coded.extend_from_slice(&name);
        self.push(region, page, Encoding::Known, DIGEST_BYTES, Place::Coded(start..start + DIGEST_BYTES));
        true
    }

    /// Compresses the pages that were collected; if that is not worth it they stay raw.
    fn close_group(&mut self, shared: &Outgoing, live: bool) {
        let (Some(compression), Some(groups)) = (&shared.compression, &mut self.groups) else { return };
        let start = self.coded.len();
        let first = self.plain.len().saturating_sub(self.group.len() * PAGE);
        let pages = self.plain.get(first..).unwrap_or_default();
        if !pages.is_empty()
            && !self.group.is_empty()
            && let Some(encoding) = groups.compress(compression, pages, live, &mut self.coded)
        {
            let mut block = start..self.coded.len();
            for at in &self.group {
                if let (Some(record), Some(place)) = (self.records.get_mut(*at), self.places.get_mut(*at)) {
                    (record.encoding, record.data_bytes) = (encoding, block.len() as u32);
                    *place = Place::Coded(block.clone());
                }
                // The data is the first one's.
                block.start = block.end;
            }
            self.plain.truncate(first);
        }
        self.group.clear();
    }

    /// Time that it took since this was last asked to try out methods of compression.
    pub(crate) fn take_trials_us(&mut self) -> u64 {
        self.groups.as_mut().map_or(0, GroupEncoder::take_trials_us)
    }

    /// What was encoded last.
    pub(crate) fn records(&self) -> &[PageRecord] {
        &self.records
    }

    /// The same with its data.
    pub(crate) fn batch(&self) -> Result<Batch<'_>, MigrationError> {
        let mut data: Vec<OutSpan<'_>> = Vec::with_capacity(self.records.len());
        for (record, place) in self.records.iter().zip(&self.places) {
            let span = match place {
                Place::Nowhere => continue,
                Place::Guest => {
                    self.shared.ram.out_span(record.region.into(), record.page..record.page + 1)?
                }
                Place::Plain(range) => OutSpan::bytes(self.plain.get(range.clone()).unwrap_or_default()),
                Place::Coded(range) => OutSpan::bytes(self.coded.get(range.clone()).unwrap_or_default()),
            };
            if !data.last_mut().is_some_and(|last| last.join(&span)) {
                data.push(span);
            }
        }
        let data_bytes = data.iter().map(OutSpan::len).sum();
        Ok(Batch { records: &self.records, data, data_bytes })
    }
}

impl fmt::Debug for Encoder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Encoder").field("shared", &self.shared).finish_non_exhaustive()
    }
}
