//! The pager over plain memory: who touches it gets the source's pages, whoever is first.

#![allow(unsafe_code, reason = "the page map is asked about memory by its address")]

use std::collections::HashSet;
use std::error::Error;
use std::ops::Range;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, channel};
use std::sync::{Arc, Condvar, Mutex};

use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryRegion};

use super::*;
use crate::vm::PAGE_BYTES;

#[path = "../../tests/skip/mod.rs"]
mod skip;
use skip::skip;

mod serve;

const HIGH: GuestAddress = GuestAddress(1 << 32);

/// One page of 16 is zero; region 1 has a long zero run behind its first 128 pages.
fn is_zero(region: usize, page: u64) -> bool {
    page % 16 == 3 || (region == 1 && page >= 128)
}

fn word(region: usize, page: u64) -> u64 {
    if is_zero(region, page) { 0 } else { (region as u64) << 32 | page << 8 | 1 }
}

#[derive(Default)]
struct Pattern {
    bad: Option<(usize, u64)>,
    /// Closed: nobody gets a page ahead.
    gate: Option<Arc<(Mutex<bool>, Condvar)>>,
    asked: Mutex<HashSet<(usize, u64)>>,
}

impl PageSource for Pattern {
    fn fetch(
        &self,
        region: usize,
        pages: Range<u64>,
        into: &mut [u8],
    ) -> Result<Fetched, Box<dyn Error + Send + Sync>> {
        self.asked.lock().unwrap().insert((region, pages.start));
        if let (Some(gate), true) = (&self.gate, pages.end - pages.start > 1) {
            let open = gate.0.lock().unwrap();
            drop(gate.1.wait_while(open, |open| !*open).unwrap());
        }
        if self.bad == Some((region, pages.start)) {
            return Err("pages.snap: hash 0x1, computed 0x2".into());
        }
        let run = |zero| {
            let bad = |page: &u64| self.bad == Some((region, *page));
            pages.clone().take_while(|page| is_zero(region, *page) == zero && !bad(page)).count() as u64
        };
        if is_zero(region, pages.start) {
            return Ok(Fetched::Zero(run(true)));
        }
        let count = run(false).min(into.len() as u64 / PAGE_BYTES);
        for (chunk, page) in
            into.as_chunks_mut::<{ PAGE_BYTES as usize }>().0.iter_mut().zip(pages).take(count as usize)
        {
            chunk.fill(0);
            chunk[..8].copy_from_slice(&word(region, page).to_le_bytes());
            chunk[4088..].copy_from_slice(&word(region, page).to_le_bytes());
        }
        Ok(Fetched::Content(count))
    }
}

struct Setup {
    ram: GuestRam,
    pager: Pager,
    end: Receiver<Ending>,
}

const PAGES: [u64; 2] = [300, 2000];

/// None, and said so, where userfaultfd may not be used.
fn start(source: Pattern) -> Option<Setup> {
    let ram = GuestRam::from_ranges(&[
        (GuestAddress(0), (PAGES[0] * PAGE_BYTES) as usize),
        (HIGH, (PAGES[1] * PAGE_BYTES) as usize),
    ]);
    let ram = ram.unwrap();
    ram.write_obj(7u64, GuestAddress(0)).unwrap();
    let (sender, end) = channel();
    let tell = Box::new(move |ending| drop(sender.send(ending)));
    match Pager::start(&ram, &[(0, 0..1)], Arc::new(source), tell) {
        Ok(pager) => Some(Setup { ram, pager, end }),
        Err(PagerError::Unavailable { remedy }) => {
            skip(&format!("no userfaultfd: {remedy}"));
            None
        }
        Err(other) => panic!("{other}"),
    }
}

fn address(region: usize, page: u64) -> GuestAddress {
    GuestAddress(if region == 0 { 0 } else { HIGH.0 } + page * PAGE_BYTES)
}

fn read(ram: &GuestRam, region: usize, page: u64) -> [u64; 2] {
    let at = address(region, page);
    [ram.read_obj(at).unwrap(), ram.read_obj(GuestAddress(at.0 + 4088)).unwrap()]
}

fn check_all(ram: &GuestRam) {
    for (region, pages) in PAGES.into_iter().enumerate() {
        for page in 0..pages {
            assert_eq!(read(ram, region, page), [word(region, page); 2], "page {page} of region {region}");
        }
    }
}

#[test]
fn who_touches_a_page_gets_it() {
    let Some(Setup { ram, pager, end }) = start(Pattern::default()) else { return };
    assert_eq!(read(&ram, 1, 70), [word(1, 70); 2]);
    assert_eq!(read(&ram, 0, 0), [word(0, 0); 2], "what memory held before is gone");
    assert_eq!(read(&ram, 0, 3), [0; 2]);
    ram.write_obj(99u64, address(0, 19)).unwrap();
    assert_eq!(read(&ram, 0, 19), [99, 0], "a zero page, written");
    // One thread serves them in turn: when it serves this, it has counted the others.
    assert_eq!(read(&ram, 1, 1999), [0; 2]);
    let report = pager.report();
    assert_eq!((report.pages, report.faults, report.total_us), (2300, 5, None));
    assert!((4..6).contains(&report.pages_by_fault) && (2..4).contains(&report.pages_zero), "{report:?}");
    assert_eq!(report.pages_left, 2300 - report.pages_by_fault);
    let mut missing = Vec::new();
    pager.missing(0, 0..40, &mut missing);
    assert_eq!(missing, [1..3, 4..19, 20..40]);
    assert!(!pager.is_complete());
    check_all_but(&ram, (0, 19));
    assert!(matches!(end.recv().unwrap(), Ending::Complete), "the last fault ends it");
}

fn check_all_but(ram: &GuestRam, but: (usize, u64)) {
    for (region, pages) in PAGES.into_iter().enumerate() {
        for page in (0..pages).filter(|page| (region, *page) != but) {
            assert_eq!(read(ram, region, page), [word(region, page); 2], "page {page} of region {region}");
        }
    }
}

#[test]
fn everything_comes_by_itself() {
    let Some(Setup { ram, pager, end }) = start(Pattern::default()) else { return };
    pager.prefetch().unwrap();
    assert!(matches!(end.recv().unwrap(), Ending::Complete));
    let report = pager.report();
    assert_eq!((report.pages_left, report.pages_by_prefetch, report.faults), (0, 2300, 0));
    assert!(report.total_us.is_some());
    drop(pager);
    check_all(&ram);
}

#[test]
fn readers_writers_and_the_prefetcher_race_and_nothing_is_lost() {
    for round in 0..20u64 {
        let Some(Setup { ram, pager, end }) = start(Pattern::default()) else { return };
        let ram = &ram;
        std::thread::scope(|scope| {
            for thread in 0..4u64 {
                scope.spawn(move || {
                    // Each visits all pages in an order of its own; one of them writes them.
                    for step in 0..PAGES[1] {
                        let page = (step * 7 + thread * 501 + round) % PAGES[1];
                        if thread == 0 {
                            ram.write_obj(page, GuestAddress(address(1, page).0 + 8)).unwrap();
                        }
                        assert_eq!(read(ram, 1, page), [word(1, page); 2]);
                    }
                });
            }
            pager.prefetch().unwrap();
        });
        assert!(matches!(end.recv().unwrap(), Ending::Complete));
        check_all(ram);
        for page in 0..PAGES[1] {
            let written: u64 = ram.read_obj(GuestAddress(address(1, page).0 + 8)).unwrap();
            assert_eq!(written, page, "a write was overwritten");
        }
    }
}

#[test]
fn faults_overtake_the_prefetcher() {
    let gate = Arc::new((Mutex::new(false), Condvar::new()));
    let source = Pattern { gate: Some(Arc::clone(&gate)), ..Pattern::default() };
    let Some(Setup { ram, pager, end }) = start(source) else { return };
    pager.prefetch().unwrap();
    // The prefetcher stands at the gate: these come all the same.
    for page in [299, 5, 100] {
        assert_eq!(read(&ram, 0, page), [word(0, page); 2]);
    }
    *gate.0.lock().unwrap() = true;
    gate.1.notify_all();
    assert!(matches!(end.recv().unwrap(), Ending::Complete));
    assert!(pager.report().faults >= 3);
}

#[test]
fn a_bad_page_is_told_and_its_waiter_never_sees_anything() {
    let Some(Setup { ram, pager, end }) = start(Pattern { bad: Some((0, 5)), ..Pattern::default() }) else {
        return;
    };
    let seen = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            read(&ram, 0, 5);
            seen.store(true, Ordering::SeqCst);
        });
        let Ending::Failed(error) = end.recv().unwrap() else { panic!("it can't be complete") };
        assert_eq!(error.to_string(), "nothing was placed from page 5 of memory region 0 on");
        assert!(error.source().unwrap().to_string().contains("hash 0x1, computed 0x2"));
        // Others are still served.
        assert_eq!(read(&ram, 0, 6), [word(0, 6); 2]);
        assert!(!seen.load(Ordering::SeqCst), "the waiter waits");
        assert!(!pager.placer.0.placed.get(0, 5));
        // In a process this ends with the process; here, by giving the memory up.
        drop(pager);
    });
}

#[test]
fn a_bad_page_that_nobody_waits_for_is_told_too() {
    let Some(Setup { pager, end, .. }) = start(Pattern { bad: Some((1, 40)), ..Pattern::default() }) else {
        return;
    };
    pager.prefetch().unwrap();
    assert!(matches!(end.recv().unwrap(), Ending::Failed(PagerError::Page { region: 1, page: 40, .. })));
    assert!(!pager.is_complete());
}

/// Answers with more pages than it was asked for.
struct Liar(Fetched);

impl PageSource for Liar {
    fn fetch(&self, _: usize, _: Range<u64>, _: &mut [u8]) -> Result<Fetched, Box<dyn Error + Send + Sync>> {
        Ok(self.0)
    }
}

#[test]
fn a_source_that_answers_wrongly_is_refused() {
    for answer in [Fetched::Zero(0), Fetched::Content(0), Fetched::Content(65), Fetched::Zero(u64::MAX)] {
        let ram = GuestRam::from_ranges(&[(GuestAddress(0), 1 << 20)]).unwrap();
        let (sender, end) = channel();
        let tell = Box::new(move |ending| drop(sender.send(ending)));
        let pager = match Pager::start(&ram, &[], Arc::new(Liar(answer)), tell) {
            Ok(pager) => pager,
            Err(PagerError::Unavailable { remedy }) => return skip(&format!("no userfaultfd: {remedy}")),
            Err(other) => panic!("{other}"),
        };
        pager.prefetch().unwrap();
        let Ending::Failed(error) = end.recv().unwrap() else { panic!("{answer:?} was taken") };
        assert!(error.source().unwrap().to_string().contains("1 to"), "{answer:?}");
    }
}

#[test]
fn dropping_it_early_ends_its_threads() {
    let Some(Setup { pager, end, .. }) = start(Pattern::default()) else { return };
    drop(pager);
    assert!(end.recv().is_err(), "nothing is told: it neither completed nor failed");
}

#[test]
fn zero_runs_take_no_memory() {
    let Some(Setup { ram, pager, end }) = start(Pattern::default()) else { return };
    pager.prefetch().unwrap();
    assert!(matches!(end.recv().unwrap(), Ending::Complete));
    let region = ram.iter().nth(1).unwrap();
    let mut present = vec![0u8; PAGES[1] as usize];
    // SAFETY: a mapping of that many pages, and a byte for each.
    let asked = unsafe { libc::mincore(region.as_ptr().cast(), region.len() as usize, present.as_mut_ptr()) };
    assert_eq!(asked, 0);
    assert!(present[256..1900].iter().all(|page| page & 1 == 0), "a zero run has memory");
    assert!(present[0] & 1 == 1);
}
