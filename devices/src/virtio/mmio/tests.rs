//! The transport, tested with the simplest device behind it; and every device under any abuse.

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

/// What an unruly driver may do.
#[derive(Debug, Clone)]
enum Abuse {
    Register(u64, u32),
    Odd(u64, Vec<u8>),
    Descriptor(usize, u16, u64, u32, u16, u16),
    Available(usize, u16, u16),
    Memory(u64, u64),
    Run,
    Pause,
    Resume,
}

fn abuse() -> impl Strategy<Value = Vec<Abuse>> {
    let register = (0u64..0x110).prop_map(|register| register & !3);
    let value = prop_oneof![any::<u32>(), 0u32..16, Just(0xb), Just(0xf), Just(0x4000)];
    let address = prop_oneof![any::<u64>(), DATA..RAM_BYTES as u64, Just(0x1_0000), Just(0x1_0010)];
    let length = prop_oneof![any::<u32>(), 0u32..2000, Just(16), Just(512)];
    let index = prop_oneof![any::<u16>(), 0u16..4];
    let queue = 0usize..2;
    let one = prop_oneof![
        1 => (register, value).prop_map(|(r, v)| Abuse::Register(r, v)),
        1 => (any::<u64>(), any::<Vec<u8>>()).prop_map(|(o, data)| Abuse::Odd(o, data)),
        4 => (queue.clone(), 0u16..4, address.clone(), length, 0u16..8, index.clone())
            .prop_map(|(q, i, a, l, f, n)| Abuse::Descriptor(q, i, a, l, f, n)),
        2 => (queue, 0u16..8, index).prop_map(|(q, i, head)| Abuse::Available(q, i, head)),
        1 => (address, any::<u64>()).prop_map(|(a, v)| Abuse::Memory(a, v)),
        3 => Just(Abuse::Run),
        1 => Just(Abuse::Pause),
        2 => Just(Abuse::Resume),
    ];
    prop::collection::vec(one, 0..60)
}

fn suffer<D: VirtioDevice>(driver: &mut Driver<D>, steps: &[Abuse]) {
    for step in steps {
        match step {
            Abuse::Register(register, value) => {
                driver.write(*register, *value);
                driver.read(*register);
            }
            Abuse::Odd(offset, data) => {
                driver.transport.write(*offset, data);
                driver.transport.read(*offset, &mut data.clone());
            }
            Abuse::Descriptor(queue, index, gpa, bytes, flags, next) => {
                driver.describe(*queue, *index, *gpa, *bytes, *flags, *next);
            }
            Abuse::Available(queue, index, head) => {
                let at = available(*queue) + 4 + 2 * u64::from(*index);
                driver.ram.write_obj(*head, GuestAddress(at)).unwrap();
                driver.ram.write_obj(index + 1, GuestAddress(available(*queue) + 2)).unwrap();
                driver.write(0x50, u32::try_from(*queue).unwrap());
            }
            // Outside of memory there is nothing to write to.
            Abuse::Memory(gpa, value) => drop(driver.ram.write_obj(*value, GuestAddress(*gpa))),
            Abuse::Run => driver.run(),
            Abuse::Pause => driver.transport.pause(),
            Abuse::Resume => driver.transport.resume(),
        }
    }
}

/// Abuses a device, then moves it: whatever state it is in must travel, or be refused with a reason.
fn abused<D: VirtioDevice>(make: impl Fn() -> D, steps: &[Abuse], started: bool) -> Result<(), TestCaseError>
where
    D::Saved: PartialEq + std::fmt::Debug + Clone,
{
    let mut driver = if started { Driver::started(make(), ALL_FEATURES) } else { Driver::new(make()) };
    suffer(&mut driver, steps);
    driver.transport.pause();
    let saved = driver.transport.save();
    prop_assert!(driver.transport.check(&saved).is_ok());
    let mut destination = driver.moved_to(make());
    // Another file, size and name alike: see `make`.
    prop_assert!(destination.transport.restore(saved.clone()).is_ok());
    prop_assert_eq!(destination.transport.save(), saved);
    destination.transport.resume();
    suffer(&mut destination, steps);
    destination.transport.reset();
    Ok(())
}

/// Restores states in which bytes were changed.
fn mutated<D: VirtioDevice>(make: impl Fn() -> D, changes: &[(usize, u8)]) -> Result<(), TestCaseError>
where
    D::Saved: PartialEq + std::fmt::Debug + Clone,
{
    let mut driver = Driver::started(make(), ALL_FEATURES);
    driver.transport.pause();
    let mut bytes = encode_record(&driver.transport.save());
    for (at, value) in changes {
        let at = at % bytes.len();
        bytes[at] = *value;
    }
    let Ok(saved) = decode_record::<D::Saved>(&bytes) else { return Ok(()) };
    let before = driver.transport.save();
    let taken = driver.transport.restore(saved.clone()).is_ok();
    prop_assert_eq!(driver.transport.save(), if taken { saved } else { before });
    driver.transport.resume();
    driver.run();
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(192))]

    #[test]
    fn no_driver_harms_the_rng(steps in abuse(), started: bool) {
        abused(rng, &steps, started)?;
    }

    #[test]
    fn no_driver_harms_the_console(steps in abuse(), started: bool) {
        abused(console, &steps, started)?;
    }

    #[test]
    fn no_driver_harms_the_disk(steps in abuse(), started: bool) {
        abused(blk, &steps, started)?;
    }

    #[test]
    fn no_driver_harms_the_network(steps in abuse(), started: bool) {
        abused(net, &steps, started)?;
    }

    #[test]
    fn no_state_harms_a_device(changes: Vec<(usize, u8)>) {
        let changes = &changes[..changes.len().min(3)];
        mutated(rng, changes)?;
        mutated(console, changes)?;
        mutated(blk, changes)?;
        mutated(net, changes)?;
    }

    #[test]
    fn random_rings_are_harmless(words in prop::collection::vec(any::<u64>(), 512), index: u16) {
        let memory = ram();
        for (at, word) in (0u64..).zip(&words) {
            memory.write_obj(*word, GuestAddress(table(0) + 8 * (at % 256))).unwrap();
            memory.write_obj(*word, GuestAddress(available(0) + 8 * (at / 2))).unwrap();
        }
        let mut driver = Driver::with_ram(blk(), memory);
        driver.negotiate(ALL_FEATURES);
        driver.set_up_queues();
        driver.ram.write_obj(index % 129, GuestAddress(available(0) + 2)).unwrap();
        driver.write(0x70, 0xf);
        driver.run();
        driver.transport.pause();
        prop_assert!(driver.transport.check(&driver.transport.save()).is_ok());
    }
}
