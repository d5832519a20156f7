//! Reads a snapshot: what it says of the machine at once, its pages one by one or in runs, each verified.

use std::fs::{File, OpenOptions};
use std::ops::Range;
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};
use std::path::Path;

use tern_schema::StateSet;

use super::slot::{SLOT_PAGES, SlotDecoders, slot_pages};
use super::table::{self, BLOCK_BYTES, BLOCK_PAGES};
use super::{Description, Index, Layout, Outline, PageEntry, ReadAt, RegionPlace, SnapshotError, source};
use crate::ram::Encoding;
use crate::ram::proof::{self, PageBytes};
use crate::vm::{PAGE_BYTES, VmFacts};

const PAGE: usize = PAGE_BYTES as usize;

/// A snapshot whose head, description, index and state are in order. Its pages and their tables are looked at when
/// they are asked for, by any number of threads.
#[derive(Debug)]
pub struct Snapshot<S> {
    source: S,
    description: Description,
    layout: Layout,
    index: Index,
    state: Vec<u8>,
    decoders: SlotDecoders,
}

/// A snapshot in a file.
pub type SnapshotFile = Snapshot<File>;

impl SnapshotFile {
    /// Opens a file. Errors name the file, and what to do.
    pub fn open(path: &Path) -> Result<Self, SnapshotError> {
        open(path).and_then(Self::parse).map_err(|source| in_file(path, source))
    }

    /// The file, such as to map it.
    pub fn file(&self) -> &File {
        &self.source
    }
}

impl Outline {
    /// What can be said of a file, whole or not.
    pub fn of_file(path: &Path) -> Result<Self, SnapshotError> {
        open(path).map(|file| Self::read(&file)).map_err(|source| in_file(path, source))
    }
}

fn in_file(path: &Path, source: SnapshotError) -> SnapshotError {
    SnapshotError::In { path: path.to_owned(), source: Box::new(source) }
}

/// Opens a regular file. Without blocking: opening a pipe that nobody writes would wait for ever.
fn open(path: &Path) -> Result<File, SnapshotError> {
    let opened = OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK | libc::O_CLOEXEC).open(path);
    let file = match opened {
        Ok(file) => file,
        // A socket can't be opened at all.
        Err(source) => {
            let kind = path.metadata().ok().and_then(|found| other_kind(found.file_type()));
            return Err(
                kind.map_or(SnapshotError::Open { source }, |kind| SnapshotError::NotRegular { kind })
            );
        }
    };
    let found = file.metadata().map_err(|source| SnapshotError::Open { source })?;
    other_kind(found.file_type()).map_or(Ok(file), |kind| Err(SnapshotError::NotRegular { kind }))
}

/// What a path is if it is no regular file.
pub(super) fn other_kind(found: std::fs::FileType) -> Option<&'static str> {
    let kinds = [
        (found.is_dir(), "a folder"),
        (found.is_symlink(), "a symbolic link"),
        (found.is_fifo(), "a pipe"),
        (found.is_socket(), "a socket"),
        (found.is_block_device(), "a block device"),
        (found.is_char_device(), "a character device"),
    ];
    kinds.into_iter().find_map(|(is, kind)| is.then_some(kind))
}

impl<S: ReadAt> Snapshot<S> {
    /// Reads head, description, index and state, and compares their checksums and the length.
    pub fn parse(source: S) -> Result<Self, SnapshotError> {
        let (description, layout, index, state) = Outline::read(&source).whole()?;
        Ok(Self { source, description, layout, index, state, decoders: SlotDecoders::default() })
    }

    /// The machine, the VMM's configuration of it.
    pub fn description(&self) -> &Description {
        &self.description
    }

    /// The machine as it described itself.
    pub fn facts(&self) -> &VmFacts {
        &self.description.facts
    }

    /// The VMM's record of the options that the machine was made with.
    pub fn configuration(&self) -> &[u8] {
        &self.description.configuration
    }

    /// What was known at the end of the save.
    pub fn index(&self) -> &Index {
        &self.index
    }

    /// Where pages are.
    pub fn layout(&self) -> &Layout {
        &self.layout
    }

    /// Is each page that has data in the file there as it is in memory? Then a region can be mapped from
    /// [`RegionPlace::data_offset`].
    pub fn is_mappable(&self) -> bool {
        let plain = 1 << Encoding::Zero as u8 | 1 << Encoding::Raw as u8;
        self.index.encodings & !plain == 0
    }

    /// The machine's state.
    pub fn state(&self) -> Result<StateSet, SnapshotError> {
        Ok(StateSet::decode(&self.state)?)
    }

    /// The bytes of the machine's state, as a connection would carry them.
    pub fn state_bytes(&self) -> &[u8] {
        &self.state
    }

    /// Where a region is.
    pub fn region(&self, region: usize) -> Result<&RegionPlace, SnapshotError> {
        self.layout.regions.get(region).ok_or(SnapshotError::NoSuchPage { region, page: 0, pages: 0 })
    }

    /// Places of some pages, checked.
    fn place(&self, region: usize, pages: &Range<u64>) -> Result<&RegionPlace, SnapshotError> {
        let place = self.region(region)?;
        if pages.start <= pages.end && pages.end <= place.pages {
            return Ok(place);
        }
        let page = pages.end.saturating_sub(1).max(pages.start);
        Err(SnapshotError::NoSuchPage { region, page, pages: place.pages })
    }

    /// What the file says of a page: one read of 4 KiB.
    pub fn page(&self, region: usize, page: u64) -> Result<PageEntry, SnapshotError> {
        let mut out = Vec::new();
        self.entries(region, page..page.saturating_add(1), &mut out)?;
        out.pop().ok_or(SnapshotError::NoSuchPage { region, page, pages: 0 })
    }

    /// Appends what the file says of these pages to `out`.
    pub fn entries(
        &self,
        region: usize,
        pages: Range<u64>,
        out: &mut Vec<PageEntry>,
    ) -> Result<(), SnapshotError> {
        let place = self.place(region, &pages)?;
        let mut found = Vec::with_capacity(BLOCK_PAGES as usize);
        for block in pages.start / BLOCK_PAGES..pages.end.div_ceil(BLOCK_PAGES) {
            let covered = place.block_pages(block);
            let mut bytes = [0; BLOCK_BYTES];
            source::read_exact(&self.source, "page table", place.block_offset(block), &mut bytes)?;
            found.clear();
            table::decode_block(&bytes, (region, block), covered.end - covered.start, &mut found)?;
            let wanted = covered.zip(&found).filter(|(page, _)| pages.contains(page));
            out.extend(wanted.map(|(_, entry)| *entry));
        }
        Ok(())
    }

    /// One page's bytes, verified.
    pub fn read_page(&self, region: usize, page: u64, out: &mut PageBytes) -> Result<(), SnapshotError> {
        let entry = self.page(region, page)?;
        self.read_stored(region, page, &[entry], out)
    }

    /// Bytes of these pages, verified. `out` has as many bytes as they have, or else that is an error.
    pub fn read_pages(&self, region: usize, pages: Range<u64>, out: &mut [u8]) -> Result<(), SnapshotError> {
        let mut entries = Vec::new();
        self.entries(region, pages.clone(), &mut entries)?;
        self.read_stored(region, pages.start, &entries, out)
    }

    /// Bytes of the pages from `first` on, one for each of `entries` (from [`Self::entries`]), verified. Raw pages
    /// next to each other are read at once.
    pub fn read_stored(
        &self,
        region: usize,
        first: u64,
        entries: &[PageEntry],
        out: &mut [u8],
    ) -> Result<(), SnapshotError> {
        let pages = first..first.saturating_add(entries.len() as u64);
        let place = self.place(region, &pages)?;
        let (places, rest) = out.as_chunks_mut::<PAGE>();
        if places.len() != entries.len() || !rest.is_empty() {
            let (found, expected) = (out.len() as u64, entries.len() as u64 * PAGE_BYTES);
            return Err(SnapshotError::Mismatch { part: "pages", field: "buffer's length", found, expected });
        }
        let mut done = 0usize;
        for run in entries.chunk_by(|one, next| one.encoding == next.encoding) {
            let bytes = places.get_mut(done..done.saturating_add(run.len())).unwrap_or_default();
            let start = first.saturating_add(done as u64);
            let Some(entry) = run.first() else { continue };
            match entry.kind()? {
                Encoding::Zero => bytes.as_flattened_mut().fill(0),
                Encoding::Raw => {
                    let offset = place.page_offset(start);
                    source::read_exact(&self.source, "page", offset, bytes.as_flattened_mut())?;
                    let mut pages = (start..).zip(run).zip(bytes);
                    pages.try_for_each(|((page, entry), bytes)| self.verify(region, page, entry, bytes))?;
                }
                _ => self.read_compressed(region, start, run, bytes)?,
            }
            done = done.saturating_add(run.len());
        }
        Ok(())
    }

    /// Pages that are compressed with others, and those needn't be among these.
    fn read_compressed(
        &self,
        region: usize,
        first: u64,
        entries: &[PageEntry],
        out: &mut [PageBytes],
    ) -> Result<(), SnapshotError> {
        let place = self.region(region)?;
        let mut wanted: Vec<_> = (first..).zip(entries).zip(out).collect();
        for part in wanted.chunk_by_mut(|one, next| one.0.0 / SLOT_PAGES == next.0.0 / SLOT_PAGES) {
            let Some(slot) = part.first().map(|((page, _), _)| page / SLOT_PAGES) else { continue };
            let mut decoder = self.decoders.take(region, slot);
            if !decoder.holds(region, slot) {
                let mut all = Vec::with_capacity(SLOT_PAGES as usize);
                self.entries(region, slot_pages(place, slot), &mut all)?;
                decoder.read(&self.source, place, (region, slot), &all)?;
            }
            for ((page, entry), bytes) in part {
                match decoder.page((*page % SLOT_PAGES) as usize) {
                    Some(content) => bytes.copy_from_slice(content),
                    None => bytes.fill(0),
                }
                self.verify(region, *page, entry, bytes)?;
            }
            self.decoders.give_back(decoder);
        }
        Ok(())
    }

    /// Is this what was saved of the page? For bytes that came another way, such as through a mapping.
    pub fn verify(
        &self,
        region: usize,
        page: u64,
        entry: &PageEntry,
        bytes: &PageBytes,
    ) -> Result<(), SnapshotError> {
        let computed = content_hash(region, page, bytes);
        if computed == entry.hash {
            return Ok(());
        }
        let gpa = self.region(region)?.gpa.saturating_add(page.saturating_mul(PAGE_BYTES));
        Err(SnapshotError::PageHash { region, page, gpa, found: entry.hash, computed })
    }

    /// The sum of all page hashes in the tables, against the one in the index. Reads all tables, no page.
    pub fn verify_tables(&self) -> Result<(), SnapshotError> {
        let (mut computed, mut entries) = (0u64, Vec::new());
        for (region, place) in self.layout.regions.iter().enumerate() {
            for block in 0..place.blocks() {
                entries.clear();
                self.entries(region, place.block_pages(block), &mut entries)?;
                computed = entries.iter().fold(computed, |sum, entry| sum.wrapping_add(entry.hash));
            }
        }
        let found = self.index.ram_hash;
        if computed == found {
            return Ok(());
        }
        Err(SnapshotError::Proof { part: "guest's memory", found, computed })
    }
}

/// Hash of a page of any content.
pub(super) fn content_hash(region: usize, page: u64, bytes: &PageBytes) -> u64 {
    // A region's number is below 1024.
    let region = u16::try_from(region).unwrap_or(u16::MAX);
    let zero = bytes.as_chunks().0.iter().all(|word| u128::from_ne_bytes(*word) == 0);
    if zero { 0 } else { proof::page_hash(region, page, bytes) }
}
