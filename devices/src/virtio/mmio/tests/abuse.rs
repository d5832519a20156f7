//! Every device under any abuse: unruly drivers, mutated states, random rings.

use super::*;

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
