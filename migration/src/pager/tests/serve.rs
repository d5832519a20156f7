//! A provider that answers later, as the source of a post-copy does.

use std::os::fd::{AsRawFd, FromRawFd};
use std::sync::mpsc::Sender;

use vm_memory::{FileOffset, GuestRegionMmap, MmapRegion};

use super::*;

/// Tells what is wanted, and brings nothing.
struct Asked(Mutex<Sender<Wanted>>);

impl PageProvider for Asked {
    fn wanted(&self, wanted: Wanted, _: &Placer) -> Result<(), ProviderError> {
        Ok(self.0.lock().unwrap().send(wanted)?)
    }
}

struct Later {
    ram: GuestRam,
    pager: Pager,
    asked: Receiver<Wanted>,
    end: Receiver<Ending>,
}

fn filled(byte: u8, pages: u64) -> Vec<u8> {
    vec![byte; (pages * PAGE_BYTES) as usize]
}

/// All of memory holds 1, and what is named is missing.
fn start_in(ram: GuestRam, missing: &[(usize, Range<u64>)]) -> Option<Later> {
    for (region, pages) in PAGES.into_iter().enumerate() {
        ram.write_slice(&filled(1, pages), address(region, 0)).unwrap();
    }
    let mut set = DirtyBitmap::new(PAGES);
    for (region, pages) in missing {
        pages.clone().for_each(|page| set.set(*region, page));
    }
    let ((ask, asked), (tell, end)) = (channel(), channel());
    let provider = Arc::new(Asked(Mutex::new(ask)));
    let pager = Pager::serve(&ram, &set, missing, provider, Box::new(move |ending| drop(tell.send(ending))));
    match pager {
        Ok(pager) => Some(Later { ram, pager, asked, end }),
        Err(PagerError::Unavailable { remedy }) => {
            skip(&format!("no userfaultfd: {remedy}"));
            None
        }
        Err(other) => panic!("{other}"),
    }
}

fn plain() -> GuestRam {
    let bytes = PAGES.map(|pages| (pages * PAGE_BYTES) as usize);
    GuestRam::from_ranges(&[(GuestAddress(0), bytes[0]), (HIGH, bytes[1])]).unwrap()
}

/// A file in memory, as a guest's may be.
fn shared() -> GuestRam {
    // SAFETY: the name is a C string; nothing else of ours is touched.
    let fd = unsafe { libc::memfd_create(c"pager-test".as_ptr(), libc::MFD_CLOEXEC) };
    assert!(fd.as_raw_fd() >= 0);
    // SAFETY: the kernel has just made it for us.
    let file = unsafe { std::fs::File::from_raw_fd(fd) };
    file.set_len(PAGES.iter().sum::<u64>() * PAGE_BYTES).unwrap();
    let region = |start, first: u64, pages: u64| {
        let offset = FileOffset::new(file.try_clone().unwrap(), first * PAGE_BYTES);
        let mapping = MmapRegion::from_file(offset, (pages * PAGE_BYTES) as usize).unwrap();
        GuestRegionMmap::new(mapping, start).unwrap()
    };
    let regions = vec![region(GuestAddress(0), 0, PAGES[0]), region(HIGH, PAGES[0], PAGES[1])];
    GuestRam::from_regions(regions).unwrap()
}

fn first(ram: &GuestRam, region: usize, page: u64) -> u8 {
    ram.read_obj(address(region, page)).unwrap()
}

#[test]
fn what_is_missing_is_asked_for_once_and_comes_from_another_thread() {
    for ram in [plain(), shared()] {
        let Some(Later { ram, pager, asked, end }) = start_in(ram, &[(0, 10..20), (1, 700..710)]) else {
            return;
        };
        assert_eq!((first(&ram, 0, 9), first(&ram, 1, 710)), (1, 1), "what isn't missing stays");
        let placer = pager.placer();
        std::thread::scope(|scope| {
            let two = [(); 2].map(|()| scope.spawn(|| first(&ram, 0, 12)));
            let other = scope.spawn(|| ram.write_obj(9u8, address(1, 703)).unwrap());
            let mut heard = [asked.recv().unwrap(), asked.recv().unwrap()];
            heard.sort_by_key(|wanted| wanted.region);
            assert_eq!(
                heard.map(|wanted| (wanted.region, wanted.page, wanted.is_write)),
                [(0, 12, false), (1, 703, true)]
            );
            let mut waiting = placer.waiting();
            waiting.sort_unstable();
            assert_eq!(waiting, [(0, 12), (1, 703)]);
            let bytes = filled(7, 4);
            assert_eq!(placer.place(0, 10..14, Content::Bytes(&bytes), Cause::Wanted).unwrap(), 4);
            assert_eq!(placer.place(1, 703..704, Content::Zero, Cause::Wanted).unwrap(), 1);
            assert!(two.into_iter().all(|thread| thread.join().unwrap() == 7));
            other.join().unwrap();
        });
        assert_eq!(placer.waiting(), []);
        assert!(asked.try_recv().is_err(), "nothing is asked for twice");
        assert_eq!(
            (first(&ram, 1, 703), ram.read_obj::<u8>(GuestAddress(address(1, 703).0 + 1)).unwrap()),
            (9, 0)
        );
        // The same pages again, among others: those that are there stay.
        assert_eq!(placer.place(0, 10..20, Content::Bytes(&filled(8, 10)), Cause::Ahead).unwrap(), 6);
        assert_eq!([10, 13, 14, 19].map(|page| first(&ram, 0, page)), [7, 7, 8, 8]);
        assert_eq!(placer.place(0, 8..10, Content::Bytes(&filled(8, 2)), Cause::Ahead).unwrap(), 0);
        assert_eq!(first(&ram, 0, 9), 1);
        assert!(placer.is_missing(1, 700) && !placer.is_missing(1, 703) && placer.left() == 9);
        assert_eq!(placer.place(1, 700..710, Content::Bytes(&filled(5, 10)), Cause::Ahead).unwrap(), 9);
        assert!(matches!(end.recv().unwrap(), Ending::Complete));
        assert_eq!([700, 703, 709].map(|page| first(&ram, 1, page)), [5, 9, 5]);
        let report = pager.report();
        assert_eq!((report.pages, report.pages_left, report.pages_duplicate), (20, 0, 7));
        assert_eq!((report.pages_by_fault, report.pages_by_prefetch), (5, 15));
        assert!((2..=3).contains(&report.faults), "{report:?}");
        assert_eq!(report.fault_classes.iter().map(|class| class.count).sum::<u64>(), report.faults);
    }
}

#[test]
fn who_is_named_a_vcpu_is_seen_to_wait() {
    let Some(Later { ram, pager, asked, .. }) = start_in(plain(), &[(0, 10..20)]) else { return };
    let (tell, thread) = channel();
    let (go, gone) = channel::<()>();
    std::thread::scope(|scope| {
        let ram = &ram;
        scope.spawn(move || {
            // SAFETY: takes nothing.
            tell.send(unsafe { libc::gettid() }).unwrap();
            gone.recv().unwrap();
            first(ram, 0, 15)
        });
        pager.name_vcpus(&[u64::try_from(thread.recv().unwrap()).unwrap()]);
        go.send(()).unwrap();
        asked.recv().unwrap();
        std::thread::sleep(std::time::Duration::from_millis(2));
        pager.placer().place(0, 15..16, Content::Bytes(&filled(3, 1)), Cause::Wanted).unwrap();
    });
    let BlockedReport { vcpus_us, all_us } = pager.report().blocked;
    assert!(vcpus_us == [all_us] && all_us >= 2000, "{vcpus_us:?} {all_us}");
}

#[test]
fn what_was_never_touched_is_zero_between_missing_pages() {
    let ram = plain();
    let missing = [(0, 5..6), (0, 40..41)];
    let Some(Later { ram, pager, asked, end }) = start_in(ram, &missing) else { return };
    // Given up behind the pager's back: what lies between two missing pages is watched too.
    let region = ram.iter().next().unwrap();
    // SAFETY: inside the mapping; nobody has a Rust reference to it.
    let dropped = unsafe {
        libc::madvise(region.as_ptr().wrapping_add(20 * 4096).cast(), 2 * 4096, libc::MADV_DONTNEED)
    };
    assert_eq!(dropped, 0);
    assert_eq!(first(&ram, 0, 20), 0);
    ram.write_obj(4u8, address(0, 21)).unwrap();
    assert_eq!(first(&ram, 0, 21), 4);
    assert!(asked.try_recv().is_err());
    pager.placer().place(0, 5..6, Content::Zero, Cause::Ahead).unwrap();
    pager.placer().place(0, 40..41, Content::Zero, Cause::Ahead).unwrap();
    assert!(matches!(end.recv().unwrap(), Ending::Complete));
    assert_eq!([4, 5, 40, 41].map(|page| first(&ram, 0, page)), [1, 0, 0, 1]);
}

#[test]
fn what_is_not_in_memory_is_refused() {
    let Some(Later { pager, .. }) = start_in(plain(), &[(0, 5..6)]) else { return };
    let placer = pager.placer();
    for (region, pages) in [(2, 0..1), (0, 299..301), (0, 7..7), (1, u64::MAX - 1..u64::MAX)] {
        let placed = placer.place(region, pages.clone(), Content::Zero, Cause::Wanted);
        assert!(matches!(placed, Err(PagerError::Outside { .. })), "{region} {pages:?}");
    }
    for bytes in [0, 1, 4095, 4097, 8192] {
        let placed = placer.place(0, 5..6, Content::Bytes(&vec![1; bytes]), Cause::Wanted);
        assert!(matches!(placed, Err(PagerError::Outside { .. })), "{bytes} bytes");
    }
    assert_eq!(placer.left(), 1);
}

#[test]
fn where_nothing_is_missing_it_ends_at_once() {
    let Some(Later { pager, end, ram, .. }) = start_in(plain(), &[]) else { return };
    assert!(matches!(end.recv().unwrap(), Ending::Complete));
    assert!(pager.is_complete() && first(&ram, 1, 4) == 1);
}

#[test]
fn four_lanes_place_everything_between_them_while_the_guest_reads() {
    let Some(Later { ram, pager, asked, end }) = start_in(plain(), &[(0, 0..300), (1, 0..2000)]) else {
        return;
    };
    let placer = pager.placer();
    std::thread::scope(|scope| {
        let ram = &ram;
        for reader in 0..3u64 {
            scope.spawn(move || {
                for step in 0..2000u64 {
                    let page = (step * 7 + reader * 333) % 2000;
                    assert_eq!(first(ram, 1, page), if page % 16 == 3 { 0 } else { (page % 251) as u8 + 1 });
                }
            });
        }
        let bring = |placer: &Placer, region, page: u64, cause| {
            let bytes = filled((page % 251) as u8 + 1, 1);
            let content = if page % 16 == 3 { Content::Zero } else { Content::Bytes(&bytes) };
            placer.place(region, page..page + 1, content, cause).unwrap();
        };
        for lane in 0..3usize {
            let placer = placer.clone();
            scope.spawn(move || {
                for (region, pages) in PAGES.into_iter().enumerate() {
                    (0..pages).filter(|page| page % 3 == lane as u64).for_each(|page| {
                        bring(&placer, region, page, Cause::Ahead);
                    });
                }
            });
        }
        let ended = loop {
            match asked.recv_timeout(std::time::Duration::from_millis(20)) {
                Ok(wanted) => bring(&placer, wanted.region, wanted.page, Cause::Wanted),
                Err(_) => {
                    if let Ok(ended) = end.try_recv() {
                        break ended;
                    }
                }
            }
        };
        assert!(matches!(ended, Ending::Complete));
    });
    let report = pager.report();
    assert_eq!(report.pages_by_fault + report.pages_by_prefetch, 2300, "{report:?}");
}
