//! All of a file's pages, by a few threads: read into memory, or only compared with their hashes.

#![allow(unsafe_code, reason = "lseek(2) for data and holes has no safe wrapper in std")]

use std::num::NonZeroUsize;
use std::ops::Range;
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread::Builder;

use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryRegion};

use super::watch::Watch;
use crate::error::MigrationError;
use crate::ram::RamView;
use crate::snapshot::{PageEntry, SnapshotError, SnapshotFile};
use crate::vm::{GuestRam, PAGE_BYTES};

const PAGE: usize = PAGE_BYTES as usize;
/// What a thread takes at once: four blocks of the page table.
const CHUNK_PAGES: u64 = 4 * 340;
/// What is read at once: it stays in the cache until it is copied.
const PIECE_PAGES: usize = 64;
/// More threads than that only wait for memory.
const THREADS_MAX: usize = 4;

/// What was found.
#[derive(Debug, Default, Clone, Copy)]
pub(super) struct Tally {
    /// Sum of the pages' hashes.
    hash: u64,
    /// Pages with content.
    pub(super) stored: u64,
    /// Zero pages.
    pub(super) zero: u64,
}

impl Tally {
    fn count(&mut self, entries: &[PageEntry]) {
        let zero = entries.iter().filter(|entry| entry.is_zero()).count() as u64;
        self.zero += zero;
        self.stored += entries.len() as u64 - zero;
        self.hash = entries.iter().fold(self.hash, |sum, entry| sum.wrapping_add(entry.hash));
    }

    fn add(&mut self, other: Self) {
        self.hash = self.hash.wrapping_add(other.hash);
        self.stored += other.stored;
        self.zero += other.zero;
    }
}

/// Reads all pages into `ram`, which is all zero.
pub(super) fn read_all(
    snapshot: &SnapshotFile,
    ram: &GuestRam,
    watch: &Watch<'_>,
    named: impl Fn(SnapshotError) -> SnapshotError + Sync,
) -> Result<Tally, MigrationError> {
    let starts: Vec<u64> = ram.iter().map(|region| region.start_addr().0).collect();
    let place = |view: &RamView, region: usize, first: u64, bytes: &[u8]| {
        let end = first.saturating_add(bytes.len() as u64 / PAGE_BYTES);
        let outside = || MigrationError::Memory {
            region,
            offset_bytes: first.saturating_mul(PAGE_BYTES),
            end_bytes: end.saturating_mul(PAGE_BYTES),
        };
        view.populate(&view.in_span(region, first..end)?);
        let start = starts.get(region).ok_or_else(outside)?;
        let gpa = GuestAddress(start.saturating_add(first.saturating_mul(PAGE_BYTES)));
        ram.write_slice(bytes, gpa).map_err(|_| outside())
    };
    let work = |region, pages: Range<u64>, buffer: &mut [u8], entries: &[PageEntry]| {
        let (view, mut first) = (RamView::new(ram), pages.start);
        for run in entries.chunk_by(|one, next| one.is_zero() == next.is_zero()) {
            let content = run.first().is_some_and(|entry| !entry.is_zero());
            for piece in run.chunks(PIECE_PAGES) {
                if content {
                    let bytes = buffer.get_mut(..piece.len() * PAGE).unwrap_or_default();
                    snapshot.read_stored(region, first, piece, bytes).map_err(&named)?;
                    place(&view, region, first, bytes)?;
                }
                first = first.saturating_add(piece.len() as u64);
            }
        }
        Ok(())
    };
    all(snapshot, watch, &named, work)
}

/// Compares all pages as a mapping of the file shows them with what was saved.
pub(super) fn verify_all(
    snapshot: &SnapshotFile,
    watch: &Watch<'_>,
    named: impl Fn(SnapshotError) -> SnapshotError + Sync,
) -> Result<Tally, MigrationError> {
    let work = |region, pages: Range<u64>, buffer: &mut [u8], entries: &[PageEntry]| {
        let mut first = pages.start;
        for piece in entries.chunks(PIECE_PAGES) {
            verify_piece(snapshot, region, first, piece, buffer).map_err(&named)?;
            first = first.saturating_add(piece.len() as u64);
        }
        Ok(())
    };
    all(snapshot, watch, &named, work)
}

fn verify_piece(
    snapshot: &SnapshotFile,
    region: usize,
    first: u64,
    entries: &[PageEntry],
    buffer: &mut [u8],
) -> Result<(), SnapshotError> {
    let offset = snapshot.region(region)?.page_offset(first);
    let length = entries.len() * PAGE;
    // What was never written needn't be read; a page that should be zero, and has data, is.
    if entries.iter().all(PageEntry::is_zero) && is_hole(snapshot, offset, length as u64) {
        return Ok(());
    }
    let bytes = buffer.get_mut(..length).unwrap_or_default();
    let failed = |source| SnapshotError::Read { part: "page", offset, bytes: length, source };
    snapshot.file().read_exact_at(bytes, offset).map_err(failed)?;
    for ((page, entry), bytes) in (first..).zip(entries).zip(bytes.as_chunks().0) {
        snapshot.verify(region, page, entry, bytes)?;
    }
    Ok(())
}

/// Is there nothing in the file? False where that can't be known.
fn is_hole(snapshot: &SnapshotFile, offset: u64, length: u64) -> bool {
    let Ok(from) = i64::try_from(offset) else { return false };
    // SAFETY: no memory is involved. The file's position is used by nobody.
    let next = unsafe { libc::lseek(snapshot.file().as_raw_fd(), from, libc::SEEK_DATA) };
    match u64::try_from(next) {
        Ok(data) => data >= offset.saturating_add(length),
        // Behind the last data of the file.
        Err(_) => std::io::Error::last_os_error().raw_os_error() == Some(libc::ENXIO),
    }
}

/// Does `work` for each chunk of all regions, and compares the sum of the hashes with the one saved.
fn all(
    snapshot: &SnapshotFile,
    watch: &Watch<'_>,
    named: &(impl Fn(SnapshotError) -> SnapshotError + Sync),
    work: impl Fn(usize, Range<u64>, &mut [u8], &[PageEntry]) -> Result<(), MigrationError> + Sync,
) -> Result<Tally, MigrationError> {
    let mut chunks = Vec::new();
    for (region, place) in snapshot.layout().regions.iter().enumerate() {
        let starts = (0..place.pages).step_by(CHUNK_PAGES as usize);
        chunks.extend(starts.map(|start| (region, start..place.pages.min(start + CHUNK_PAGES))));
    }
    let (next, failed) = (AtomicUsize::new(0), AtomicBool::new(false));
    let turn = || {
        let (mut buffer, mut entries, mut tally) =
            (vec![0; PIECE_PAGES * PAGE], Vec::new(), Tally::default());
        while let Some((region, pages)) = chunks.get(next.fetch_add(1, Ordering::Relaxed)) {
            if watch.is_cancelled() {
                return Err(Fault::Other(MigrationError::Cancelled));
            }
            if failed.load(Ordering::Relaxed) {
                break;
            }
            entries.clear();
            let found = snapshot.entries(*region, pages.clone(), &mut entries).map_err(Fault::File);
            let done = found
                .and_then(|()| work(*region, pages.clone(), &mut buffer, &entries).map_err(Fault::Other));
            if let Err(fault) = done {
                failed.store(true, Ordering::Relaxed);
                return Err(fault);
            }
            tally.count(&entries);
            watch.done(entries.len() as u64);
        }
        Ok(tally)
    };
    let threads = std::thread::available_parallelism().map_or(1, NonZeroUsize::get).min(THREADS_MAX);
    let mut sum = Tally::default();
    for result in in_threads(threads, Builder::new, &turn) {
        match result {
            Ok(tally) => sum.add(tally),
            Err(Fault::File(error)) => return Err(named(error).into()),
            Err(Fault::Other(error)) => return Err(error),
        }
    }
    let (found, computed) = (snapshot.index().ram_hash, sum.hash);
    if found != computed {
        return Err(named(SnapshotError::Proof { part: "guest's memory", found, computed }).into());
    }
    Ok(sum)
}

/// Does `turn` in so many threads, this one among them; in fewer, if the host has no more.
fn in_threads<T: Send>(threads: usize, make: fn() -> Builder, turn: &(impl Fn() -> T + Sync)) -> Vec<T> {
    std::thread::scope(|scope| {
        let start = |_| make().name("restore".into()).spawn_scoped(scope, turn).ok();
        let started: Vec<_> = (1..threads).map_while(start).collect();
        let own = turn();
        let joined = started.into_iter().map(|thread| match thread.join() {
            Ok(result) => result,
            Err(panic) => std::panic::resume_unwind(panic),
        });
        std::iter::once(own).chain(joined).collect()
    })
}

enum Fault {
    File(SnapshotError),
    Other(MigrationError),
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_host_without_threads_reads_with_the_one_there_is() {
        let done = AtomicUsize::new(0);
        let turn = || done.fetch_add(1, Ordering::Relaxed);
        // No host has room for such a stack.
        let refused = || Builder::new().stack_size(usize::MAX >> 2);
        assert_eq!(in_threads(4, refused, &turn), [0]);
        assert_eq!(in_threads(4, Builder::new, &turn).len(), 4);
    }
}
