//! The transport, tested with the simplest device behind it; and every device under any abuse (`abuse`).

use std::fs::File;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixDatagram;

use proptest::prelude::*;
use tern_schema::{decode_record, encode_record};
use vm_memory::{Bytes, GuestAddress};

use super::*;
use crate::virtio::testing::{
    ALL_FEATURES, DATA, Driver, INDIRECT, NEXT, RAM_BYTES, WRITE, available, ram, table,
};
use crate::{Blk, BlkConfig, BytePort, Console, Net, NetConfig, PortTarget, RestoreError, Rng, Stateful};

mod abuse;

const QUEUE: usize = 0;
const NEEDS_RESET_AT_WORK: u32 = 0x4f;

fn rng() -> Rng {
    Rng::new().unwrap()
}

fn console() -> Console {
    Console::new(BytePort::new(PortTarget::Null).unwrap())
}

fn blk() -> Blk {
    let file = tempfile::tempfile().unwrap();
    file.set_len(1 << 20).unwrap();
    Blk::new(file, BlkConfig::default()).unwrap()
}

fn net() -> Net {
    let (near, far) = UnixDatagram::pair().unwrap();
    // Frames of all kinds wait for the guest, some of them none at all.
    for bytes in [1, 12, 25, 26, 100, 1526, 3000, 65_000, 64] {
        far.send(&vec![7; bytes]).unwrap();
    }
    Net::new(File::from(OwnedFd::from(near)), NetConfig { mac: [2, 0, 0, 0, 0, 1] }).unwrap()
}

#[test]
fn registers_say_what_the_device_is() {
    let mut driver = Driver::new(rng());
    assert_eq!([0, 4, 8].map(|register| driver.read(register)), [0x7472_6976, 2, 4]);
    driver.write(0x14, 1);
    assert_eq!(driver.read(0x10), 1, "VIRTIO_F_VERSION_1");
    driver.write(0x14, 2);
    assert_eq!(driver.read(0x10), 0);
    assert_eq!(driver.read(0x34), 64);
    driver.write(0x30, 1);
    assert_eq!(driver.read(0x34), 0, "there is no such queue");
    assert_eq!(driver.read(0xb0), u32::MAX, "there is no shared memory");
    // Only whole registers.
    let mut byte = [0xee];
    driver.transport.read(0, &mut byte);
    assert_eq!(byte, [0]);
}

#[test]
fn features_are_agreed_on_once_and_only_those_on_offer() {
    let mut driver = Driver::new(rng());
    driver.write(0x70, 3);
    driver.write(0x70, 0xb);
    assert_eq!(driver.read(0x70), 3, "without VERSION_1 there is no agreement");
    driver.write(0x24, 1);
    driver.write(0x20, 1 | 1 << 5);
    driver.write(0x70, 0xb);
    assert_eq!(driver.read(0x70), 3, "bit 37 is not on offer");
    driver.write(0x20, 1);
    driver.write(0x70, 0xf);
    assert_eq!(driver.read(0x70), 0xf);
    driver.write(0x20, 0);
    assert_eq!(driver.transport.save().transport.driver_features, VERSION_1);
    driver.write(0x70, 0);
    let mut fresh = Driver::new(rng());
    assert_eq!(driver.transport.save(), fresh.transport.save());
    assert_eq!(fresh.read(0x70), 0);
}

#[test]
fn both_kinds_of_kick_work_and_used_buffers_interrupt() {
    for mask in [VERSION_1, ALL_FEATURES] {
        let mut driver = Driver::started(rng(), mask);
        driver.add(QUEUE, &[(DATA, 64, true)]);
        driver.kick(QUEUE);
        assert_eq!(driver.used(QUEUE), Some((0, 64)));
        assert_ne!(driver.bytes(DATA, 64), [0; 64]);
        assert!(driver.interrupted());
        assert_eq!(driver.read(0x60), 1);
        driver.write(0x64, 1);
        assert_eq!(driver.read(0x60), 0);
        // An ioeventfd.
        driver.add(QUEUE, &[(DATA, 64, true)]);
        driver.transport.queue_events()[QUEUE].write(1).unwrap();
        assert_eq!(driver.wait_used(QUEUE, 1), [(1, 64)]);
    }
}

#[test]
fn a_long_queue_is_done_in_turns() {
    let mut driver = Driver::started(rng(), ALL_FEATURES);
    for round in 0..20 {
        for _ in 0..64 {
            driver.add(QUEUE, &[(DATA, 1, true)]);
        }
        driver.kick(QUEUE);
        assert_eq!(driver.wait_used(QUEUE, 64).len(), 64, "round {round}");
    }
}

#[test]
fn a_paused_device_touches_nothing_and_a_resumed_one_needs_no_kick() {
    let mut driver = Driver::started(rng(), ALL_FEATURES);
    driver.transport.pause();
    driver.interrupted();
    driver.add(QUEUE, &[(DATA, 64, true)]);
    driver.kick(QUEUE);
    driver.run();
    assert_eq!(driver.used(QUEUE), None);
    assert_eq!(driver.bytes(DATA, 64), [0; 64]);
    let saved = driver.transport.save();

    let mut destination = driver.moved_to(rng());
    destination.transport.restore(saved.clone()).unwrap();
    assert_eq!(destination.transport.save(), saved);
    destination.run();
    assert_eq!(destination.used(QUEUE), None, "restored devices are paused");
    destination.transport.resume();
    assert_eq!(destination.used(QUEUE), Some((0, 64)));
    assert!(destination.interrupted());
}

#[test]
fn an_interrupt_that_was_lost_on_the_way_comes_again() {
    let mut source = Driver::started(rng(), ALL_FEATURES);
    source.add(QUEUE, &[(DATA, 64, true)]);
    source.kick(QUEUE);
    source.transport.pause();
    let mut destination = source.moved_to(rng());
    destination.transport.restore(source.transport.save()).unwrap();
    destination.transport.resume();
    assert!(destination.interrupted());
    assert_eq!(destination.read(0x60), 1);
    assert_eq!(destination.used(QUEUE), Some((0, 64)));
}

#[test]
fn a_queue_that_cannot_be_is_refused() {
    for (register, value) in [(0x38, 0), (0x38, 3), (0x38, 128), (0x38, 0x1_0000)] {
        let mut driver = Driver::new(rng());
        driver.negotiate(ALL_FEATURES);
        driver.write(register, value);
        assert!(driver.transport.needs_reset(), "{register:#x} = {value}");
        assert!(!driver.interrupted(), "nobody is at work yet");
    }
    for (register, value) in [(0x80, 0xffff_fff0), (0x94, 1), (0xa0, 0x40_0000 - 8)] {
        let mut driver = Driver::new(rng());
        driver.negotiate(ALL_FEATURES);
        driver.write(register, value);
        driver.write(0x44, 1);
        assert_eq!(driver.read(0x44), 0);
        assert!(driver.transport.needs_reset(), "{register:#x} = {value:#x}");
        driver.write(0x70, 0);
        assert!(!driver.transport.needs_reset());
    }
}

/// Sets something up that no driver may do, and makes it available.
type Fault = fn(&mut Driver<Rng>);

#[test]
fn every_fault_ends_in_needs_reset_and_a_reset_mends_it() {
    let faults: &[(&str, Fault)] = &[
        ("loop", |d| {
            d.describe(QUEUE, 0, DATA, 8, NEXT | WRITE, 1);
            d.describe(QUEUE, 1, DATA, 8, NEXT | WRITE, 0);
            d.offer(QUEUE, 0);
        }),
        ("next leaves the table", |d| {
            d.describe(QUEUE, 0, DATA, 8, NEXT | WRITE, 64);
            d.offer(QUEUE, 0);
        }),
        ("head leaves the table", |d| d.offer(QUEUE, 64)),
        ("readable behind writable", |d| {
            d.describe(QUEUE, 0, DATA, 8, NEXT | WRITE, 1);
            d.describe(QUEUE, 1, DATA, 8, 0, 0);
            d.offer(QUEUE, 0);
        }),
        ("buffer leaves memory", |d| {
            d.add(QUEUE, &[(RAM_BYTES as u64 - 4, 8, true)]);
        }),
        ("buffer at the end of the world", |d| {
            d.add(QUEUE, &[(u64::MAX - 3, 8, true)]);
        }),
        ("huge buffer", |d| {
            d.add(QUEUE, &[(DATA, u32::MAX, true)]);
        }),
        ("more buffers than any request has", |d| {
            // A table far behind the rings, in which each entry points to the next.
            for index in 0..1200u16 {
                d.describe(QUEUE, 0x2000 + index, DATA, 1, NEXT | WRITE, index + 1);
            }
            d.describe(QUEUE, 0, table(QUEUE) + 0x2000 * 16, 16 * 1200, INDIRECT, 0);
            d.offer(QUEUE, 0);
        }),
        ("index jumps", |d| d.ram.write_obj(65u16, GuestAddress(available(QUEUE) + 2)).unwrap()),
        ("indirect table of an odd length", |d| {
            d.describe(QUEUE, 0, DATA, 17, INDIRECT, 0);
            d.offer(QUEUE, 0);
        }),
        ("empty indirect table", |d| {
            d.describe(QUEUE, 0, DATA, 0, INDIRECT, 0);
            d.offer(QUEUE, 0);
        }),
        ("indirect table outside memory", |d| {
            d.describe(QUEUE, 0, RAM_BYTES as u64, 16, INDIRECT, 0);
            d.offer(QUEUE, 0);
        }),
        ("indirect in indirect", |d| {
            // The queue's own table serves as the indirect one.
            d.describe(QUEUE, 0, table(QUEUE), 16, INDIRECT, 0);
            d.offer(QUEUE, 0);
        }),
        ("indirect loop over a large table", |d| {
            d.describe(QUEUE, 0, table(QUEUE) + 16, 16 * 0xffff, INDIRECT, 0);
            d.describe(QUEUE, 1, DATA, 1, NEXT | WRITE, 0);
            d.offer(QUEUE, 0);
        }),
    ];
    for (name, fault) in faults {
        let mut driver = Driver::started(rng(), ALL_FEATURES);
        driver.interrupted();
        fault(&mut driver);
        driver.kick(QUEUE);
        assert_eq!(driver.read(0x70), NEEDS_RESET_AT_WORK, "{name}");
        assert_eq!(driver.read(0x60), 2, "{name}");
        assert!(driver.interrupted(), "{name}");
        driver.run();
        assert_eq!(driver.used(QUEUE), None, "{name}");
        // This state travels, too.
        let saved = driver.transport.save();
        let mut destination = driver.moved_to(rng());
        destination.transport.restore(saved.clone()).unwrap();
        destination.transport.resume();
        assert_eq!(destination.transport.save(), saved, "{name}");
        driver.write(0x70, 0);
        assert_eq!(driver.transport.save(), Driver::new(rng()).transport.save(), "{name}");
    }
}

#[test]
fn buffers_of_no_length_are_passed_over() {
    let mut driver = Driver::started(rng(), ALL_FEATURES);
    driver.add(QUEUE, &[(0, 0, true), (DATA, 5, true), (0, 0, true), (DATA + 5, 5, true)]);
    driver.kick(QUEUE);
    assert_eq!(driver.used(QUEUE), Some((0, 10)));
}

/// Makes a state impossible.
type Damage = fn(&mut VirtioMmioV1);

#[test]
fn impossible_states_are_refused_and_change_nothing() {
    let mut driver = Driver::started(rng(), ALL_FEATURES);
    driver.transport.pause();
    let good = driver.transport.save();
    let faults: &[(&str, Damage)] = &[
        ("status bit", |s| s.status |= 0x10),
        ("no features", |s| s.status = 7),
        ("no driver", |s| s.status = 0xc),
        ("foreign feature", |s| s.driver_features |= 1 << 50),
        ("legacy", |s| s.driver_features &= !VERSION_1),
        ("interrupt", |s| s.interrupt_status = 4),
        ("queues", |s| s.queues.clear()),
        ("more queues", |s| s.queues.push(s.queues[0].clone())),
        ("size", |s| s.queues[0].size = 0),
        ("size", |s| s.queues[0].size = 128),
        ("size", |s| s.queues[0].size = 63),
        ("table", |s| s.queues[0].descriptors_gpa += 8),
        ("table", |s| s.queues[0].descriptors_gpa = u64::MAX - 15),
        ("available", |s| s.queues[0].available_gpa = 1 << 40),
        ("used", |s| s.queues[0].used_gpa = RAM_BYTES as u64 - 4),
        ("index", |s| s.queues[0].next_available = s.queues[0].next_used.wrapping_add(65)),
    ];
    for (name, fault) in faults {
        let mut bad = good.clone();
        fault(&mut bad.transport);
        let error = driver.transport.restore(bad).unwrap_err();
        assert!(matches!(error, RestoreError::Field { .. } | RestoreError::Queue { .. }), "{name}: {error}");
        assert_eq!(driver.transport.save(), good, "{name}");
    }
}
