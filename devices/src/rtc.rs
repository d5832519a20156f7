//! The CMOS real-time clock (MC146818): the host's wall clock, plus what the guest made of it.
//!
//! State is the *offset* from the host's clock, so that a migration moves no time: the destination's host
//! knows the time as well. The clock doesn't interrupt; guests time themselves by LAPIC and kvm-clock.

use std::time::{SystemTime, UNIX_EPOCH};

use tern_schema::record;

use crate::{BusDevice, RestoreError, Stateful};

mod date;

use date::{Date, to_u8};

const INDEX: u64 = 0;
const DATA: u64 = 1;
const CMOS_BYTES: usize = 128;

const SECONDS: u8 = 0x00;
const MINUTES: u8 = 0x02;
const HOURS: u8 = 0x04;
const WEEKDAY: u8 = 0x06;
const DAY: u8 = 0x07;
const MONTH: u8 = 0x08;
const YEAR: u8 = 0x09;
const STATUS_A: u8 = 0x0a;
const STATUS_B: u8 = 0x0b;
const STATUS_C: u8 = 0x0c;
const STATUS_D: u8 = 0x0d;
const CENTURY: u8 = 0x32;

/// 32.768 kHz time base.
const STATUS_A_RUNNING: u8 = 0x26;
/// The guest holds the clock to set it.
const STATUS_B_SET: u8 = 0x80;
const STATUS_B_BINARY: u8 = 0x04;
const STATUS_B_24_HOURS: u8 = 0x02;
/// Battery good.
const STATUS_D_VALID: u8 = 0x80;
const HOURS_PM: u8 = 0x80;

/// Sizes of memory where PC firmware leaves them.
const EXTENDED_KIB_OLD: usize = 0x17;
const EXTENDED_KIB: usize = 0x30;
const ABOVE_16_MIB: usize = 0x34;
const ABOVE_4_GIB: usize = 0x5b;
/// BIOS data: base memory in KiB.
const BASE_KIB: usize = 0x15;

/// Guests can set the years 1900 to 8999; an offset beyond them is nonsense.
const OFFSET_MAX_SECONDS: u64 = 7_000 * 366 * 86_400;

record! {
    /// Saved state of [`Rtc`].
    pub struct RtcV1 = "rtc" 1 {
        /// Register selected by the index port, 0 to 127.
        [1] index: u8,
        /// Guest's clock minus host's clock.
        [2] offset_seconds: i64,
        /// Status register A.
        [3] status_a: u8,
        /// Status register B.
        [4] status_b: u8,
        /// The bytes behind the clock, addresses 0x0e to 0x7f.
        [5] memory: Vec<u8>,
        /// What the clock registers show while the guest holds the clock to set it.
        [6] held: Option<HeldClockV1>,
    }
}

record! {
    /// A clock that is held. Its date need not exist: the guest writes one register after the other.
    pub struct HeldClockV1 {
        /// Year, century included.
        [1] year: u16,
        /// 1 to 12.
        [2] month: u8,
        /// 1 to 31.
        [3] day: u8,
        /// 0 to 23.
        [4] hour: u8,
        /// 0 to 59.
        [5] minute: u8,
        /// 0 to 59.
        [6] second: u8,
    }
}

/// First CMOS byte that is plain memory.
const MEMORY_START: usize = 0x0e;

/// The CMOS clock and memory.
#[derive(Debug)]
pub struct Rtc {
    index: u8,
    offset_seconds: i64,
    status_a: u8,
    status_b: u8,
    memory: [u8; CMOS_BYTES],
    held: Option<Date>,
}

impl Rtc {
    /// A clock that shows the host's time (UTC), with the sizes of guest memory below and above 4 GiB.
    pub fn new(below_4g_bytes: u64, above_4g_bytes: u64) -> Self {
        Self {
            index: 0,
            offset_seconds: 0,
            status_a: STATUS_A_RUNNING,
            status_b: STATUS_B_24_HOURS,
            memory: memory_sizes(below_4g_bytes, above_4g_bytes),
            held: None,
        }
    }

    /// Machine reset: a battery keeps clock and memory, only index and modes fall back.
    pub fn reset(&mut self) {
        self.write_status_b(STATUS_B_24_HOURS);
        let Self { index, offset_seconds: _, status_a, status_b: _, memory: _, held: _ } = self;
        (*index, *status_a) = (0, STATUS_A_RUNNING);
    }

    fn date(&self) -> Date {
        self.held.unwrap_or_else(|| Date::from_seconds(host_seconds().saturating_add(self.offset_seconds)))
    }

    fn set_date(&mut self, date: Date) {
        match &mut self.held {
            Some(held) => *held = date,
            None => self.offset_seconds = date.to_seconds().saturating_sub(host_seconds()),
        }
    }

    fn read_register(&self) -> u8 {
        let date = self.date();
        match self.index {
            SECONDS => self.encode(date.second),
            MINUTES => self.encode(date.minute),
            HOURS => self.encode_hour(date.hour),
            WEEKDAY => self.encode(date.weekday),
            DAY => self.encode(date.day),
            MONTH => self.encode(date.month),
            YEAR => self.encode(to_u8(date.year.rem_euclid(100))),
            CENTURY => self.encode(to_u8(date.year.div_euclid(100))),
            STATUS_A => self.status_a,
            STATUS_B => self.status_b,
            STATUS_C => 0,
            STATUS_D => STATUS_D_VALID,
            index => self.memory.get(usize::from(index)).copied().unwrap_or(0),
        }
    }

    fn write_register(&mut self, value: u8) {
        let mut date = self.date();
        match self.index {
            SECONDS => date.second = self.decode(value).min(59),
            MINUTES => date.minute = self.decode(value).min(59),
            HOURS => date.hour = self.decode_hour(value),
            DAY => date.day = self.decode(value).clamp(1, 31),
            MONTH => date.month = self.decode(value).clamp(1, 12),
            YEAR => date.year = date.year.div_euclid(100) * 100 + i64::from(self.decode(value).min(99)),
            CENTURY => date.year = i64::from(self.decode(value).clamp(19, 89)) * 100 + date.year % 100,
            STATUS_A => return self.status_a = value & 0x7f,
            STATUS_B => return self.write_status_b(value),
            WEEKDAY | STATUS_C | STATUS_D => return,
            index => {
                if let Some(byte) = self.memory.get_mut(usize::from(index)) {
                    *byte = value;
                }
                return;
            }
        }
        self.set_date(date);
    }

    fn write_status_b(&mut self, value: u8) {
        if value & STATUS_B_SET != 0 {
            self.held = Some(self.date());
        } else if let Some(date) = self.held.take() {
            self.set_date(date);
        }
        self.status_b = value;
    }

    fn encode(&self, value: u8) -> u8 {
        if self.status_b & STATUS_B_BINARY != 0 { value } else { ((value / 10) << 4) | (value % 10) }
    }

    fn decode(&self, value: u8) -> u8 {
        if self.status_b & STATUS_B_BINARY != 0 {
            return value;
        }
        (value >> 4).min(9) * 10 + (value & 0xf).min(9)
    }

    fn encode_hour(&self, hour: u8) -> u8 {
        if self.status_b & STATUS_B_24_HOURS != 0 {
            return self.encode(hour);
        }
        let pm = if hour >= 12 { HOURS_PM } else { 0 };
        self.encode((hour + 11) % 12 + 1) | pm
    }

    fn decode_hour(&self, value: u8) -> u8 {
        if self.status_b & STATUS_B_24_HOURS != 0 {
            return self.decode(value).min(23);
        }
        let pm = if value & HOURS_PM != 0 { 12 } else { 0 };
        self.decode(value & !HOURS_PM) % 12 + pm
    }
}

/// Firmware's notes on the amount of memory, for guests that read them in place of the memory map.
fn memory_sizes(below_4g_bytes: u64, above_4g_bytes: u64) -> [u8; CMOS_BYTES] {
    let mut memory = [0; CMOS_BYTES];
    let mut put = |at: usize, count: usize, value: u64| {
        let value = value.min((1 << (8 * count)) - 1);
        for (byte, from) in memory.iter_mut().skip(at).take(count).zip(value.to_le_bytes()) {
            *byte = from;
        }
    };
    let extended_kib = below_4g_bytes.saturating_sub(1 << 20) >> 10;
    put(BASE_KIB, 2, 640);
    put(EXTENDED_KIB_OLD, 2, extended_kib);
    put(EXTENDED_KIB, 2, extended_kib);
    put(ABOVE_16_MIB, 2, below_4g_bytes.saturating_sub(16 << 20) >> 16);
    put(ABOVE_4_GIB, 3, above_4g_bytes >> 16);
    memory
}

fn host_seconds() -> i64 {
    match SystemTime::now().duration_since(UNIX_EPOCH) {
        Ok(since) => i64::try_from(since.as_secs()).unwrap_or(0),
        // A host clock before 1970 is broken; show 1970.
        Err(_) => 0,
    }
}

impl BusDevice for Rtc {
    fn read(&mut self, offset: u64, data: &mut [u8]) {
        data.fill(0);
        let [byte] = data else { return };
        match offset {
            INDEX => *byte = self.index,
            DATA => *byte = self.read_register(),
            _ => {}
        }
    }

    fn write(&mut self, offset: u64, data: &[u8]) {
        match (offset, data) {
            // Bit 7 masks NMIs, of which there are none.
            (INDEX, &[index]) => self.index = index & 0x7f,
            (DATA, &[value]) => self.write_register(value),
            _ => {}
        }
    }
}

impl Stateful for Rtc {
    type Saved = RtcV1;

    fn save(&self) -> RtcV1 {
        let Self { index, offset_seconds, status_a, status_b, memory, held } = self;
        RtcV1 {
            index: *index,
            offset_seconds: *offset_seconds,
            status_a: *status_a,
            status_b: *status_b,
            memory: memory.iter().skip(MEMORY_START).copied().collect(),
            held: held.map(Date::save),
        }
    }

    fn check(&self, saved: &RtcV1) -> Result<(), RestoreError> {
        let RtcV1 { index, offset_seconds, status_a, status_b, memory, held } = saved;
        let offset = offset_seconds.unsigned_abs();
        let held_by_b = status_b & STATUS_B_SET != 0;
        let date_is_legal = held.as_ref().is_none_or(Date::is_legal);
        let fields = [
            (*index <= 0x7f, "index", u64::from(*index), "at most 0x7f"),
            (*status_a <= 0x7f, "status_a", u64::from(*status_a), "bit 7 is never set"),
            (offset <= OFFSET_MAX_SECONDS, "offset_seconds", offset, "at most 7000 years"),
            (held.is_some() == held_by_b, "held", held_by_b.into(), "there exactly while status B says so"),
            (date_is_legal, "held", 1, "each register within its own range"),
            (memory.len() == CMOS_BYTES - MEMORY_START, "memory", memory.len() as u64, "0x72 bytes"),
        ];
        match fields.into_iter().find(|(legal, ..)| !legal) {
            Some((_, field, found, expected)) => {
                Err(RestoreError::Field { record: "RtcV1", field, found, expected })
            }
            None => Ok(()),
        }
    }

    fn restore(&mut self, saved: RtcV1) -> Result<(), RestoreError> {
        self.check(&saved)?;
        let RtcV1 { index, offset_seconds, status_a, status_b, memory, held } = saved;
        (self.index, self.offset_seconds) = (index, offset_seconds);
        (self.status_a, self.status_b) = (status_a, status_b);
        self.held = held.map(|saved| Date::restore(&saved));
        for (byte, from) in self.memory.iter_mut().skip(MEMORY_START).zip(memory) {
            *byte = from;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
