//! The clock as guests set and read it, and its state.

use super::*;
use proptest::prelude::*;

fn read(rtc: &mut Rtc, index: u8) -> u8 {
    rtc.write(INDEX, &[index]);
    let mut byte = [0];
    rtc.read(DATA, &mut byte);
    byte[0]
}

fn write(rtc: &mut Rtc, index: u8, value: u8) {
    rtc.write(INDEX, &[index]);
    rtc.write(DATA, &[value]);
}

fn set(rtc: &mut Rtc, registers: [(u8, u8); 7]) {
    write(rtc, STATUS_B, STATUS_B_SET | STATUS_B_24_HOURS);
    for (index, value) in registers {
        write(rtc, index, value);
    }
    write(rtc, STATUS_B, STATUS_B_24_HOURS);
}

#[test]
fn a_clock_set_register_by_register_runs_on_from_there_and_keeps_its_offset() {
    let mut rtc = Rtc::new(64 << 20, 0);
    // By way of "31 February", which must not carry over into March.
    let written = [
        (CENTURY, 0x20),
        (DAY, 0x31),
        (MONTH, 0x02),
        (DAY, 0x28),
        (YEAR, 0x31),
        (HOURS, 0x13),
        (MINUTES, 0x10),
    ];
    set(&mut rtc, written);
    for (index, value) in written.into_iter().skip(2) {
        assert_eq!(read(&mut rtc, index), value, "register {index:#x}");
    }
    let saved = rtc.save();
    let mut destination = Rtc::new(64 << 20, 0);
    destination.restore(saved.clone()).unwrap();
    assert_eq!(destination.save(), saved);
    assert_eq!(read(&mut destination, YEAR), 0x31);
    destination.reset();
    assert_eq!(read(&mut destination, YEAR), 0x31, "a reset keeps the clock");
}

#[test]
fn hours_in_all_four_encodings() {
    let mut rtc = Rtc::new(64 << 20, 0);
    for (mode, midnight, noon, evening) in
        [(2, 0, 0x12, 0x23), (6, 0, 12, 23), (0, 0x12, 0x92, 0x91), (4, 12, 0x8c, 0x8b)]
    {
        for (hour, expected) in [(0, midnight), (12, noon), (23, evening)] {
            write(&mut rtc, STATUS_B, mode | STATUS_B_SET);
            write(&mut rtc, HOURS, expected);
            assert_eq!(rtc.date().hour, hour, "mode {mode}");
            assert_eq!(read(&mut rtc, HOURS), expected, "mode {mode}");
        }
    }
}

#[test]
fn memory_sizes_are_where_firmware_leaves_them() {
    let mut rtc = Rtc::new(3 << 30, 5 << 30);
    let mut word = |low, high| u64::from(read(&mut rtc, low)) | u64::from(read(&mut rtc, high)) << 8;
    assert_eq!(word(0x15, 0x16), 640);
    assert_eq!(word(0x30, 0x31), 0xffff);
    assert_eq!(word(0x34, 0x35) << 16, (3 << 30) - (16 << 20));
    assert_eq!(word(0x5c, 0x5d) << 24, 5 << 30);
}

proptest! {
    #[test]
    fn any_access_leaves_a_legal_state(accesses: Vec<(bool, u64, Vec<u8>)>, pairs: Vec<(u8, u8)>) {
        let mut rtc = Rtc::new(64 << 20, 0);
        for (index, value) in pairs {
            write(&mut rtc, index, value);
            read(&mut rtc, index);
        }
        for (write, offset, mut data) in accesses {
            if write { rtc.write(offset % 4, &data) } else { rtc.read(offset % 4, &mut data) }
        }
        prop_assert!(rtc.check(&rtc.save()).is_ok());
    }

    #[test]
    fn any_state_is_taken_whole_or_refused(
        index: u8, offset_seconds: i64, status_a: u8, status_b: u8,
        held: Option<(u16, u8, u8, u8)>, length in 0x71usize..0x74,
    ) {
        let mut rtc = Rtc::new(64 << 20, 0);
        let before = rtc.save();
        let held = held.map(|(year, month, day, hour)| HeldClockV1 {
            year, month, day, hour, minute: 0, second: 0,
        });
        let memory = vec![7; length];
        let saved = RtcV1 { index, offset_seconds, status_a, status_b, memory, held };
        let taken = rtc.restore(saved.clone()).is_ok();
        prop_assert_eq!(rtc.save(), if taken { saved } else { before });
        for index in 0..0x80 {
            read(&mut rtc, index);
        }
        rtc.reset();
    }
}
