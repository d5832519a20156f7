//! Requests against real files.

use std::io::{Read, Seek};
use std::os::unix::fs::FileExt;

use super::*;
use crate::Stateful;
use crate::virtio::mmio::MmioDevice;
use crate::virtio::testing::{ALL_FEATURES, Buffer, DATA, Driver, available, used_ring};

const SECTORS: u64 = 2048;
const OK: u8 = 0;
const IOERR: u8 = 1;
const UNSUPPORTED: u8 = 2;
/// Where the driver puts headers; each request has a kibibyte, status at its end.
const HEADERS: u64 = DATA;
const BUFFERS: u64 = DATA + 0x2_0000;

fn file() -> File {
    let file = tempfile::tempfile().unwrap();
    file.set_len(SECTORS * 512 + 100).unwrap();
    file
}

fn disk_on(file: &File, read_only: bool) -> Blk {
    let id = "tern-disk-0".to_owned();
    Blk::new(file.try_clone().unwrap(), BlkConfig { read_only, id }).unwrap()
}

fn content(file: &File) -> Vec<u8> {
    let mut bytes = Vec::new();
    let mut file = file.try_clone().unwrap();
    file.rewind().unwrap();
    file.read_to_end(&mut bytes).unwrap();
    bytes
}

fn sector(number: u64) -> Vec<u8> {
    (0..512).map(|at| (number * 7 + at) as u8).collect()
}

/// Adds a request, without a kick: the `slot`-th header and status.
fn request(driver: &mut Driver<Blk>, slot: u64, kind: u32, first: u64, data: &[Buffer]) -> u16 {
    let header = HEADERS + slot * 1024;
    driver.put(header, &[&kind.to_le_bytes()[..], &[0; 4], &first.to_le_bytes()].concat());
    driver.put(header + 1000, &[0xee]);
    let chain = [&[(header, 16, false)], data, &[(header + 1000, 1, true)]].concat();
    driver.add(QUEUE, &chain)
}

fn status(driver: &Driver<Blk>, slot: u64) -> u8 {
    driver.bytes(HEADERS + slot * 1024 + 1000, 1)[0]
}

/// One request, to its end: status and used length.
fn one(driver: &mut Driver<Blk>, kind: u32, first: u64, data: &[Buffer]) -> (u8, u32) {
    request(driver, 0, kind, first, data);
    driver.kick(QUEUE);
    let used = driver.wait_used(QUEUE, 1);
    assert!(driver.interrupted());
    (status(driver, 0), used[0].1)
}

#[test]
fn many_requests_at_a_time_all_reach_the_file() {
    let file = file();
    let mut driver = Driver::started(disk_on(&file, false), ALL_FEATURES);
    assert_eq!(u64::from(driver.read(0x100)), SECTORS);
    for slot in 0..40 {
        driver.put(BUFFERS + slot * 512, &sector(slot));
        request(&mut driver, slot, VIRTIO_OUT, slot * 3, &[(BUFFERS + slot * 512, 512, false)]);
    }
    driver.kick(QUEUE);
    let mut used = driver.wait_used(QUEUE, 40);
    used.sort_unstable();
    assert!(used.iter().enumerate().all(|(slot, used)| *used == (slot as u16 * 3, 1)));
    assert!((0..40).all(|slot| status(&driver, slot) == OK));
    assert_eq!(one(&mut driver, 4, 0, &[]), (OK, 1));
    let bytes = content(&file);
    for slot in 0..40usize {
        assert_eq!(bytes[slot * 3 * 512..][..512], sector(slot as u64));
    }
    // Back, in pieces that are no sectors, and behind a header that is in pieces, too.
    driver.put(BUFFERS, &[0; 1024]);
    let header = [&0u32.to_le_bytes()[..], &[0; 4], &3u64.to_le_bytes()].concat();
    driver.put(HEADERS, &header);
    let pieces =
        [(HEADERS, 7, false), (HEADERS + 7, 9, false), (BUFFERS, 500, true), (BUFFERS + 500, 13, true)];
    driver.add(QUEUE, &pieces);
    driver.kick(QUEUE);
    assert_eq!(driver.wait_used(QUEUE, 1)[0].1, 513);
    assert_eq!(driver.bytes(BUFFERS, 513), [sector(1), vec![OK]].concat());
}

const VIRTIO_OUT: u32 = 1;
const VIRTIO_IN: u32 = 0;

#[test]
fn everything_that_the_device_writes_is_marked_dirty_for_a_migration() {
    use vm_memory::GuestMemoryBackend;
    use vm_memory::bitmap::Bitmap;
    let file = file();
    file.write_all_at(&sector(9), 0).unwrap();
    let mut driver = Driver::started(disk_on(&file, false), ALL_FEATURES);
    let data = BUFFERS + 0x1_0000;
    request(&mut driver, 0, VIRTIO_IN, 0, &[(data, 512, true)]);
    let ram = driver.ram.clone();
    let region = GuestMemoryBackend::iter(&ram).next().unwrap();
    (**region).bitmap().reset();
    driver.kick(QUEUE);
    assert_eq!(driver.wait_used(QUEUE, 1), [(0, 513)]);
    assert_eq!(driver.bytes(data, 512), sector(9));
    let written = [used_ring(QUEUE), HEADERS, data].map(|gpa| gpa >> 12);
    for page in 0..crate::virtio::testing::RAM_BYTES as u64 >> 12 {
        // The driver itself has written `used_event`, behind the available ring.
        let expected = written.contains(&page) || page == available(QUEUE) >> 12;
        assert_eq!((**region).bitmap().dirty_at((page << 12) as usize), expected, "page {page:#x}");
    }
}

#[test]
fn impossible_requests_fail_alone() {
    let file = file();
    let mut driver = Driver::started(disk_on(&file, false), ALL_FEATURES);
    let read = |bytes| [(BUFFERS, bytes, true)];
    let write = |bytes| [(BUFFERS, bytes, false)];
    assert_eq!(one(&mut driver, VIRTIO_IN, SECTORS, &read(512)), (IOERR, 1));
    assert_eq!(one(&mut driver, VIRTIO_IN, SECTORS - 1, &read(1024)), (IOERR, 1));
    assert_eq!(one(&mut driver, VIRTIO_IN, u64::MAX, &read(512)), (IOERR, 1));
    assert_eq!(one(&mut driver, VIRTIO_IN, 0, &read(511)), (IOERR, 1));
    assert_eq!(one(&mut driver, VIRTIO_OUT, SECTORS - 1, &write(1024)), (IOERR, 1));
    assert_eq!(one(&mut driver, 99, 0, &read(512)), (UNSUPPORTED, 1));
    assert_eq!(one(&mut driver, VIRTIO_IN, SECTORS - 1, &read(512)), (OK, 513));
    assert_eq!(content(&file), vec![0; SECTORS as usize * 512 + 100]);
    assert_eq!(one(&mut driver, 8, 0, &[(BUFFERS, 20, true)]), (OK, 21));
    assert_eq!(driver.bytes(BUFFERS, 20), b"tern-disk-0\0\0\0\0\0\0\0\0\0");
}

#[test]
fn a_read_only_disk_is_not_written() {
    let file = file();
    let mut driver = Driver::started(disk_on(&file, true), ALL_FEATURES);
    driver.put(BUFFERS, &[7; 512]);
    assert_eq!(one(&mut driver, VIRTIO_OUT, 0, &[(BUFFERS, 512, false)]), (IOERR, 1));
    let range = [0u64.to_le_bytes(), 8u64.to_le_bytes()].concat();
    driver.put(BUFFERS, &range);
    for kind in [11, 13] {
        assert_eq!(one(&mut driver, kind, 0, &[(BUFFERS, 16, false)]), (IOERR, 1));
    }
    assert_eq!(content(&file), vec![0; SECTORS as usize * 512 + 100]);
}

#[test]
fn errors_of_the_host_become_errors_of_the_disk() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("disk");
    let writable = File::create(&path).unwrap();
    writable.set_len(SECTORS * 512).unwrap();
    // Opened for reading, but shown as writable: each write is an EBADF.
    let mut driver = Driver::started(disk_on(&File::open(&path).unwrap(), false), ALL_FEATURES);
    assert_eq!(one(&mut driver, VIRTIO_OUT, 0, &[(BUFFERS, 512, false)]), (IOERR, 1));
    assert_eq!(one(&mut driver, VIRTIO_IN, 0, &[(BUFFERS, 512, true)]), (OK, 513));
    // And somebody cuts the file.
    writable.set_len(512).unwrap();
    assert_eq!(one(&mut driver, VIRTIO_IN, 1, &[(BUFFERS, 512, true)]), (IOERR, 1));
    assert!(!driver.transport.needs_reset());
}

#[test]
fn discarded_and_zeroed_sectors_read_as_zeros() {
    let file = file();
    file.write_all_at(&[7; 256 * 512], 0).unwrap();
    let mut driver = Driver::started(disk_on(&file, false), ALL_FEATURES);
    let range = |sector: u64, sectors: u32, flags: u32| {
        [&sector.to_le_bytes()[..], &sectors.to_le_bytes(), &flags.to_le_bytes()].concat()
    };
    let mut ask = |kind, ranges: &[Vec<u8>]| {
        let bytes = ranges.concat();
        driver.put(BUFFERS, &bytes);
        one(&mut driver, kind, 0, &[(BUFFERS, bytes.len() as u32, false)]).0
    };
    assert_eq!(ask(13, &[range(8, 8, 0), range(32, 8, 1)]), OK);
    assert_eq!(ask(11, &[range(64, 64, 0)]), OK);
    assert_eq!(ask(13, &[range(0, 1, 2)]), UNSUPPORTED);
    assert_eq!(ask(11, &[range(0, 1, 1)]), UNSUPPORTED);
    assert_eq!(ask(13, &[range(0, 1, 0), range(SECTORS - 1, 2, 0)]), IOERR);
    assert_eq!(ask(13, &[range(u64::MAX, 1, 0)]), IOERR);
    assert_eq!(ask(13, &[range(0, u32::MAX, 0)]), IOERR);
    assert_eq!(ask(13, &vec![range(0, 1, 0); 17]), IOERR);
    assert_eq!(ask(13, &[vec![0; 15]]), IOERR);
    let bytes = content(&file);
    for sector in 0..256 {
        let zero = (8..16).contains(&sector) || (32..40).contains(&sector) || (64..128).contains(&sector);
        assert_eq!(bytes[sector * 512], if zero { 0 } else { 7 }, "sector {sector}");
    }
    assert_eq!(bytes.len() as u64, SECTORS * 512 + 100, "the file keeps its size");
}

#[test]
fn a_pause_completes_what_is_under_way_and_the_guest_goes_on_elsewhere() {
    let file = file();
    let mut source = Driver::started(disk_on(&file, false), ALL_FEATURES);
    for slot in 0..30 {
        source.put(BUFFERS + slot * 512, &sector(slot));
        request(&mut source, slot, VIRTIO_OUT, slot, &[(BUFFERS + slot * 512, 512, false)]);
    }
    source.transport.queue_events()[QUEUE].write(1).unwrap();
    crate::EventSource::ready(&mut source.transport, 0);
    source.transport.pause();
    // Ten more that the device never sees on this side.
    for slot in 30..40 {
        source.put(BUFFERS + slot * 512, &sector(slot));
        request(&mut source, slot, VIRTIO_OUT, slot, &[(BUFFERS + slot * 512, 512, false)]);
    }
    let saved = source.transport.save();
    assert_eq!(saved.transport.queues[0].next_available, 30);
    assert_eq!(saved.transport.queues[0].next_used, 30);
    source.kick(QUEUE);
    assert_eq!(source.transport.save(), saved);

    let other = Blk::new(file.try_clone().unwrap(), BlkConfig::default()).unwrap();
    let mut destination = source.moved_to(other);
    destination.transport.restore(saved.clone()).unwrap();
    assert_eq!(destination.transport.save(), saved, "with the disk's name");
    destination.transport.resume();
    assert_eq!(destination.wait_used(QUEUE, 40).len(), 40);
    assert!((0..40).all(|slot| status(&destination, slot) == OK));
    assert_eq!(content(&file)[..40 * 512], (0..40).flat_map(sector).collect::<Vec<_>>());
}

#[test]
fn a_reset_forgets_what_is_under_way() {
    let file = file();
    let mut driver = Driver::started(disk_on(&file, false), ALL_FEATURES);
    for slot in 0..30 {
        request(&mut driver, slot, VIRTIO_IN, 0, &[(BUFFERS + slot * 512, 512, true)]);
    }
    driver.kick(QUEUE);
    driver.write(0x70, 0);
    while driver.used(QUEUE).is_some() {}
    // Nothing is written to memory that the guest uses otherwise now.
    driver.put(BUFFERS, &[0xaa; 30 * 512]);
    driver.run();
    std::thread::sleep(std::time::Duration::from_millis(5));
    assert_eq!(driver.bytes(BUFFERS, 30 * 512), [0xaa; 30 * 512]);
    assert_eq!(driver.used(QUEUE), None);
}

#[test]
fn more_requests_at_a_time_than_the_queue_has_entries_break_the_device() {
    let file = file();
    let mut driver = Driver::new(disk_on(&file, false));
    driver.negotiate(ALL_FEATURES);
    driver.set_up_queues();
    let head = request(&mut driver, 0, VIRTIO_IN, 0, &[(BUFFERS, 512, true)]);
    (0..127).for_each(|_| driver.offer(QUEUE, head));
    // A disk of its own, whose threads haven't been started: nothing completes.
    let mut stuck = disk_on(&file, false);
    let mut queues = driver.transport.queues();
    stuck.process_queue(QUEUE, &mut queues).unwrap();
    assert_eq!(stuck.under_way, 128);
    driver.offer(QUEUE, head);
    let mut queues = driver.transport.queues();
    let error = stuck.process_queue(QUEUE, &mut queues).unwrap_err();
    assert!(matches!(error, Broken::TooMany { max: 128, .. }), "{error}");
    stuck.reset();
    assert_eq!(stuck.under_way, 0);
}

#[test]
fn what_the_host_fails_is_counted_and_what_is_under_way_is_waited_for() {
    let file = file();
    let mut driver = Driver::new(disk_on(&file, false));
    driver.negotiate(ALL_FEATURES);
    driver.set_up_queues();
    // A disk of its own, whose threads haven't been started: nothing completes.
    let mut stuck = disk_on(&file, false);
    let activity = stuck.activity();
    activity.wait_for_present();
    request(&mut driver, 0, VIRTIO_IN, 0, &[(BUFFERS, 512, true)]);
    file.set_len(0).unwrap();
    stuck.process_queue(QUEUE, &mut driver.transport.queues()).unwrap();
    let waits = activity.clone();
    let waiting = std::thread::spawn(move || waits.wait_for_present());
    assert_eq!(activity.failures(), DiskFailures::default());
    assert!(!waiting.is_finished());
    stuck.activate(ALL_FEATURES).unwrap();
    waiting.join().unwrap();
    let DiskFailures { count, latest } = activity.failures();
    assert!(count == 1 && latest.as_ref().unwrap().contains("Read"), "{latest:?}");
}

#[test]
fn another_disk_is_refused_with_both_values() {
    let source = Driver::started(disk_on(&file(), false), ALL_FEATURES);
    let saved = source.transport.save();
    let small = tempfile::tempfile().unwrap();
    small.set_len(512).unwrap();
    let destination = Driver::new(disk_on(&small, false));
    let text = destination.transport.check(&saved).unwrap_err().to_string();
    assert!(text.contains("2048") && text.contains(" 1 "), "{text}");
    let destination = Driver::new(disk_on(&file(), true));
    assert!(matches!(
        destination.transport.check(&saved),
        Err(RestoreError::Differs { what: "read-only", .. })
    ));
}
