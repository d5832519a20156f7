//! Decodes pages on their way into a destination: compressed groups, deltas to what is there already, and pages that are in
//! a file.

use std::fmt;
use std::ops::Range;
use std::sync::Arc;
use std::time::Instant;

use super::compress::{Decompressor, GROUP_BYTES_MAX, method_of};
use super::encode::{BASE_BYTES, ENCODINGS, Encoding};
use super::known::PageDigest;
use super::proof::{PageBytes, page_hash};
use super::receive::Incoming;
use super::xbzrle;
use crate::error::{MigrationError, ProtocolError};
use crate::vm::PAGE_BYTES;

const PAGE: usize = PAGE_BYTES as usize;

/// Pages of a batch that have to be decoded, with their data.
#[derive(Debug, Default)]
pub(crate) struct Coded {
    pub(crate) items: Vec<Item>,
    pages: Vec<Received>,
    pub(crate) data: Vec<u8>,
}

/// One block of data, and the pages that are in it.
#[derive(Debug)]
pub(crate) struct Item {
    encoding: Encoding,
    data: Range<usize>,
    /// Places in the list of pages.
    pages: Vec<usize>,
}

/// A page that has come.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Received {
    pub(crate) region: u16,
    pub(crate) page: u64,
    /// The round in which it came before, if it did.
    pub(crate) before: Option<u32>,
}

impl Item {
    pub(crate) fn data_bytes(&self) -> usize {
        self.data.len()
    }
}

impl Coded {
    /// Adds a page whose data is behind all others'; without data it belongs to its encoding's latest block.
    pub(crate) fn add(&mut self, encoding: Encoding, data_bytes: usize, page: Received) {
        let place = self.pages.len();
        self.pages.push(page);
        if data_bytes == 0
            && let Some(item) = self.items.iter_mut().rfind(|item| item.encoding == encoding)
        {
            item.pages.push(place);
            return;
        }
        let start = self.items.last().map_or(0, |item| item.data.end);
        self.items.push(Item { encoding, data: start..start + data_bytes, pages: vec![place] });
    }
}

/// Decodes. One for each thread.
pub(crate) struct Decoder {
    shared: Arc<Incoming>,
    /// By encoding.
    decompressors: [Option<Box<dyn Decompressor>>; ENCODINGS.len()],
    /// Pages of a group.
    out: Vec<u8>,
    page: Box<PageBytes>,
}

impl Decoder {
    /// With what the agreed encodings need.
    pub(crate) fn new(shared: &Arc<Incoming>) -> Result<Self, MigrationError> {
        let mut decompressors = [const { None }; ENCODINGS.len()];
        let rows = ENCODINGS.iter().zip(&mut decompressors);
        for (row, place) in rows.filter(|(row, _)| row.groups && shared.encodings & row.encoding.bit() != 0) {
            let made = method_of(row.encoding as u8).map(|method| (method.decompressor)());
            let failed =
                |error| MigrationError::Thread { action: "decompress", source: std::io::Error::other(error) };
            *place = made.transpose().map_err(failed)?;
        }
        let out = vec![0; GROUP_BYTES_MAX];
        Ok(Self { shared: Arc::clone(shared), decompressors, out, page: Box::new([0; PAGE]) })
    }

    /// Decodes all of it into guest memory.
    pub(crate) fn decode(&mut self, coded: &Coded) -> Result<(), MigrationError> {
        for item in &coded.items {
            let data = coded.data.get(item.data.clone()).unwrap_or_default();
            let pages = item.pages.iter().filter_map(|place| coded.pages.get(*place).copied());
            match item.encoding {
                Encoding::Xbzrle => {
                    for page in pages {
                        self.delta(page, data)?;
                    }
                }
                Encoding::Known => {
                    for page in pages {
                        self.known(page, data)?;
                    }
                }
                encoding => self.group(encoding, data, pages, item.pages.len())?,
            }
        }
        Ok(())
    }

    fn delta(&mut self, received: Received, data: &[u8]) -> Result<(), MigrationError> {
        let Received { region, page, before } = received;
        let (base, delta) = data.split_first_chunk::<BASE_BYTES>().unwrap_or((&[0; BASE_BYTES], &[]));
        let base = u32::from_le_bytes(*base);
        if before != Some(base) {
            return Err(ProtocolError::LostBase { region, page, base, found: before }.into());
        }
        self.shared.ram.read(region.into(), page, &mut self.page)?;
        // Without a delta it is as it was.
        if !delta.is_empty() {
            let failed = |error: xbzrle::DeltaError| undecodable(Encoding::Xbzrle, region, page, &error);
            xbzrle::decode(delta, &mut self.page).map_err(failed)?;
            self.shared.ram.write(region.into(), page, &self.page)?;
        }
        hash(&self.shared, region, page, &self.page);
        Ok(())
    }

    fn known(&mut self, received: Received, data: &[u8]) -> Result<(), MigrationError> {
        let Received { region, page, .. } = received;
        let failed = |reason: &str| undecodable(Encoding::Known, region, page, &reason);
        let name = data.first_chunk().ok_or_else(|| failed("its hash is too short"))?;
        let known = self.shared.known.as_ref().ok_or_else(|| failed("nothing is known here"))?;
        known.read_page(PageDigest::from_bytes(*name), (region, page), &mut self.page)?;
        self.shared.ram.write(region.into(), page, &self.page)?;
        hash(&self.shared, region, page, &self.page);
        Ok(())
    }

    fn group(
        &mut self,
        encoding: Encoding,
        data: &[u8],
        pages: impl Iterator<Item = Received> + Clone,
        count: usize,
    ) -> Result<(), MigrationError> {
        let Self { shared, decompressors, out, .. } = self;
        let first = pages.clone().next().map_or((0, 0), |page| (page.region, page.page));
        let failed = |error: &dyn fmt::Display| undecodable(encoding, first.0, first.1, error);
        let out = out.get_mut(..count * PAGE).ok_or_else(|| failed(&"a group has too many pages"))?;
        let decompressor = decompressors.get_mut(encoding as usize).and_then(Option::as_mut);
        let decompressor = decompressor.ok_or_else(|| failed(&"it was not agreed"))?;
        decompressor.decompress(data, out).map_err(|error| failed(&error))?;
        for (Received { region, page, .. }, content) in pages.zip(out.as_chunks::<PAGE>().0) {
            shared.ram.write(region.into(), page, content)?;
            hash(shared, region, page, content);
        }
        Ok(())
    }
}

fn hash(shared: &Incoming, region: u16, page: u64, content: &PageBytes) {
    if let Some(proof) = &shared.proof {
        let started = Instant::now();
        proof.set(region, page, page_hash(region, page, content));
        proof.spent(started);
    }
}

fn undecodable(encoding: Encoding, region: u16, page: u64, reason: &dyn fmt::Display) -> ProtocolError {
    ProtocolError::Undecodable { encoding: encoding.info().name, region, page, reason: reason.to_string() }
}

impl fmt::Debug for Decoder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Decoder").field("shared", &self.shared).finish_non_exhaustive()
    }
}
