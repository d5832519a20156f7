//! Addresses of guest pages in this process, with their bounds checked.

#![allow(unsafe_code, reason = "guest memory is reached by address: it changes while it is read")]

use std::ops::Range;

use vm_memory::{GuestMemoryBackend, GuestMemoryRegion};

use super::proof::PageBytes;
use super::zero;
use crate::channel::span::{InSpan, OutSpan};
use crate::error::MigrationError;
use crate::vm::{GuestRam, PAGE_BYTES};

/// A shorter span isn't worth a system call.
const POPULATE_LEAST_BYTES: usize = 16 * PAGE_BYTES as usize;

/// What one load reads: twice as much at once is half the time of a copy.
#[cfg(target_arch = "x86_64")]
type Word = std::arch::x86_64::__m128i;
#[cfg(not(target_arch = "x86_64"))]
type Word = u64;

/// All regions of a guest's memory. Keeps them mapped.
#[derive(Debug)]
pub(crate) struct RamView {
    regions: Vec<Region>,
    _mapped: GuestRam,
}

#[derive(Debug)]
struct Region {
    host: *mut u8,
    pages: u64,
}

// SAFETY: the addresses are of a mapping that `_mapped` keeps, and what is there is only reached as memory that others
// write at any time.
unsafe impl Send for RamView {}
// SAFETY: as above; two threads never write one page at once.
unsafe impl Sync for RamView {}

impl RamView {
    pub(crate) fn new(ram: &GuestRam) -> Self {
        let mapped = ram.clone();
        let region =
            |r: &vm_memory::GuestRegionMmap<_>| Region { host: r.as_ptr(), pages: r.len() / PAGE_BYTES };
        Self { regions: mapped.iter().map(region).collect(), _mapped: mapped }
    }

    /// Number of pages of each region.
    pub(crate) fn region_pages(&self) -> impl Iterator<Item = u64> + '_ {
        self.regions.iter().map(|region| region.pages)
    }

    pub(crate) fn pages(&self, region: usize) -> Option<u64> {
        self.regions.get(region).map(|region| region.pages)
    }

    /// Pages to send as they are.
    pub(crate) fn out_span(&self, region: usize, pages: Range<u64>) -> Result<OutSpan<'_>, MigrationError> {
        let (address, len) = self.locate(region, pages)?;
        // SAFETY: `locate` has checked the bounds, and `self` keeps the mapping.
        Ok(unsafe { OutSpan::guest(address, len) })
    }

    /// Pages to fill with what is received.
    pub(crate) fn in_span(&self, region: usize, pages: Range<u64>) -> Result<InSpan<'_>, MigrationError> {
        let (address, len) = self.locate(region, pages)?;
        // SAFETY: `locate` has checked the bounds, and `self` keeps the mapping.
        Ok(unsafe { InSpan::guest(address, len) })
    }

    pub(crate) fn is_zero(&self, region: usize, page: u64) -> Result<bool, MigrationError> {
        let (address, len) = self.locate(region, page..page + 1)?;
        // SAFETY: `locate` has checked the bounds; mappings begin at a page, and a page is 32 x 128 bytes.
        Ok(unsafe { zero::is_zero(address, len) })
    }

    /// Copies a page that a guest may be writing. If it does, the copy is some mixture, and the page is dirty again.
    pub(crate) fn read(&self, region: usize, page: u64, to: &mut PageBytes) -> Result<(), MigrationError> {
        let (address, _) = self.locate(region, page..page + 1)?;
        let (from, to) = (address.cast_const().cast::<Word>(), to.as_mut_ptr().cast::<Word>());
        for index in 0..PAGE_BYTES as usize / size_of::<Word>() {
            // SAFETY: both are pages, of which this is one word; `locate` has checked the bounds, and mappings begin
            // at a page. No Rust reference to guest memory exists.
            unsafe { to.add(index).write_unaligned(from.add(index).read_volatile()) };
        }
        Ok(())
    }

    /// Puts a page where it belongs.
    pub(crate) fn write(&self, region: usize, page: u64, content: &PageBytes) -> Result<(), MigrationError> {
        let (address, len) = self.locate(region, page..page + 1)?;
        // SAFETY: `locate` has checked the bounds, and `content` is a page of ours. No Rust reference to guest memory
        // exists.
        unsafe { address.copy_from_nonoverlapping(content.as_ptr(), len) };
        Ok(())
    }

    /// Makes a page zero. One that is zero is only read: an untouched page stays without memory of its own.
    pub(crate) fn make_zero(&self, region: usize, page: u64) -> Result<(), MigrationError> {
        if self.is_zero(region, page)? {
            return Ok(());
        }
        let (address, len) = self.locate(region, page..page + 1)?;
        // SAFETY: `locate` has checked the bounds. No Rust reference to guest memory exists.
        unsafe { address.write_bytes(0, len) };
        Ok(())
    }

    /// Gets memory for a span in one go: half the cost of a fault a page while the socket is read.
    pub(crate) fn populate(&self, span: &InSpan<'_>) {
        if span.len() >= POPULATE_LEAST_BYTES {
            // SAFETY: a span is mapped guest memory. It gets memory behind it, and its content stays. A
            // kernel before 5.14 refuses, and the pages are faulted in one by one.
            unsafe { libc::madvise(span.address().cast(), span.len(), libc::MADV_POPULATE_WRITE) };
        }
    }

    fn locate(&self, region: usize, pages: Range<u64>) -> Result<(*mut u8, usize), MigrationError> {
        let found = self.regions.get(region).filter(|r| pages.start < pages.end && pages.end <= r.pages);
        let Some(found) = found else {
            let (offset_bytes, end_bytes) =
                (pages.start.saturating_mul(PAGE_BYTES), pages.end.saturating_mul(PAGE_BYTES));
            return Err(MigrationError::Memory { region, offset_bytes, end_bytes });
        };
        // Both are inside a mapping, so they fit into a usize.
        let offset = (pages.start * PAGE_BYTES) as usize;
        Ok((found.host.wrapping_add(offset), ((pages.end - pages.start) * PAGE_BYTES) as usize))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use vm_memory::{Bytes, GuestAddress};

    #[test]
    fn pages_outside_a_region_do_not_exist() {
        let regions = [(GuestAddress(0), 4 * 4096), (GuestAddress(1 << 32), 8 * 4096)];
        let ram = GuestRam::from_ranges(&regions).unwrap();
        let view = RamView::new(&ram);
        assert_eq!(view.region_pages().collect::<Vec<_>>(), [4, 8]);
        assert_eq!(view.out_span(0, 1..4).unwrap().len(), 3 * 4096);
        for (region, pages) in [(0, 3..5), (0, 4..5), (2, 0..1), (1, u64::MAX - 1..u64::MAX), (0, 2..2)] {
            view.out_span(region, pages.clone()).unwrap_err();
            view.in_span(region, pages).unwrap_err();
        }
        ram.write_obj(7u8, GuestAddress((1 << 32) + 4096 + 5)).unwrap();
        assert!(view.is_zero(1, 0).unwrap() && !view.is_zero(1, 1).unwrap());
        let mut copy = [1; 4096];
        view.read(1, 1, &mut copy).unwrap();
        assert!(copy.iter().enumerate().all(|(at, byte)| *byte == if at == 5 { 7 } else { 0 }));
        view.read(1, 8, &mut copy).unwrap_err();
        view.make_zero(1, 1).unwrap();
        assert!(view.is_zero(1, 1).unwrap());
    }
}
