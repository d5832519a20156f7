//! A connection with a relay in its middle that understands frames and does damage to one of them.

use std::io::{self, Read, Write};
use std::net::Shutdown;
use std::ops::Range;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use crate::channel::Connection;
use crate::control::Control;
use crate::wire::{HEADER_BYTES, Header, MAGIC};

/// Which way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Direction {
    /// From the source.
    ToDestination,
    /// From the destination.
    ToSource,
}

/// What happens to a message. Message 0 is the eight bytes at the start, message n the n-th frame.
#[derive(Debug, Clone)]
pub enum Fault {
    /// Nothing.
    None,
    /// The connection ends before it.
    CutBefore,
    /// The connection ends in the middle of it.
    CutInside,
    /// One bit of its header or message is flipped; which one follows from the number.
    Flip(usize),
    /// One bit of its page data is flipped, which no checksum of a frame covers. Does nothing to others.
    FlipData(usize),
    /// One bit of its message is flipped, and its checksum made right for that.
    Forge(usize),
    /// Noise in its place.
    Garbage,
    /// Its second half is missing, and the stream goes on.
    Truncate,
    /// It comes twice.
    Double,
    /// Nothing comes any more, and the connection stays open.
    Stall,
    /// Somebody cancels before it is delivered.
    Cancel(Arc<Control>),
}

/// A connection whose message number `at` in `direction` suffers `fault`; the counters say how many
/// messages went to the destination and to the source.
pub fn relay(
    direction: Direction,
    at: u32,
    fault: Fault,
) -> io::Result<(Connection, Connection, [Arc<AtomicU32>; 2])> {
    let (source, source_inner) = UnixStream::pair()?;
    let (destination, destination_inner) = UnixStream::pair()?;
    let counters: [Arc<AtomicU32>; 2] = [Arc::default(), Arc::default()];
    let ways = [
        (Direction::ToDestination, source_inner.try_clone()?, destination_inner.try_clone()?),
        (Direction::ToSource, destination_inner, source_inner),
    ];
    for ((way, from, to), counter) in ways.into_iter().zip(&counters) {
        let fault = if way == direction { fault.clone() } else { Fault::None };
        let pump = Pump { from, to, at, fault, counter: Arc::clone(counter) };
        std::thread::spawn(move || pump.run());
    }
    Ok((Connection::from_stream(source), Connection::from_stream(destination), counters))
}

struct Pump {
    from: UnixStream,
    to: UnixStream,
    at: u32,
    fault: Fault,
    counter: Arc<AtomicU32>,
}

impl Pump {
    /// Until either end is closed; an error is how that shows.
    fn run(mut self) {
        let mut number = 0;
        while let Ok(unit) = self.read_unit(number) {
            let hit = number == self.at;
            number += 1;
            self.counter.store(number, Ordering::SeqCst);
            let passed = if hit { self.damage(&unit) } else { self.to.write_all(&unit) };
            if passed.is_err() {
                break;
            }
        }
        // The other end may still say something.
        let _ = self.to.shutdown(Shutdown::Write);
        let _ = io::copy(&mut self.from, &mut io::sink());
    }

    fn read_unit(&mut self, number: u32) -> io::Result<Vec<u8>> {
        let mut unit = vec![0; if number == 0 { MAGIC.len() } else { HEADER_BYTES }];
        self.from.read_exact(&mut unit)?;
        if number > 0 {
            let length = unit.get(12..16).and_then(|b| b.first_chunk()).map_or(0, |b| u32::from_le_bytes(*b));
            // The engine's own limits hold for what it sends.
            assert!(length <= 64 << 20, "a frame of {length} bytes was sent");
            unit.resize(HEADER_BYTES + length as usize, 0);
            self.from.read_exact(unit.get_mut(HEADER_BYTES..).unwrap_or_default())?;
        }
        Ok(unit)
    }

    fn damage(&mut self, unit: &[u8]) -> io::Result<()> {
        let half = unit.get(..unit.len() / 2).unwrap_or_default();
        match &self.fault {
            Fault::None => self.to.write_all(unit),
            Fault::CutBefore => self.cut(),
            Fault::CutInside => self.to.write_all(half).and_then(|()| self.cut()),
            Fault::Flip(bit) => self.to.write_all(&flipped(unit, *bit)),
            Fault::FlipData(bit) => self.to.write_all(&flipped_data(unit, *bit)),
            Fault::Forge(bit) => self.to.write_all(&forged(unit, *bit)),
            Fault::Garbage => {
                let noise = (0..unit.len().max(64)).map(|n| (n * 197 + 91) as u8).collect::<Vec<_>>();
                self.to.write_all(&noise)
            }
            Fault::Truncate => self.to.write_all(half),
            Fault::Double => self.to.write_all(unit).and_then(|()| self.to.write_all(unit)),
            Fault::Stall => io::copy(&mut self.from, &mut io::sink()).map(drop),
            Fault::Cancel(control) => {
                control.cancel();
                self.to.write_all(unit)
            }
        }
    }

    fn cut(&self) -> io::Result<()> {
        self.to.shutdown(Shutdown::Both)?;
        self.from.shutdown(Shutdown::Both)
    }
}

/// Flips a bit of what the checksum covers: page data, which the guest may be writing, has none.
fn flipped(unit: &[u8], bit: usize) -> Vec<u8> {
    flipped_within(unit, 0..covered(unit), bit)
}

fn flipped_data(unit: &[u8], bit: usize) -> Vec<u8> {
    flipped_within(unit, covered(unit)..unit.len(), bit)
}

fn forged(unit: &[u8], bit: usize) -> Vec<u8> {
    let mut damaged = flipped_within(unit, HEADER_BYTES.min(unit.len())..covered(unit), bit);
    if let Some(Ok(header)) = unit.first_chunk().map(Header::read) {
        header.seal(damaged.get_mut(..covered(unit)).unwrap_or_default());
    }
    damaged
}

fn covered(unit: &[u8]) -> usize {
    let head = unit.get(16..20).and_then(|b| b.first_chunk()).map_or(0, |b| u32::from_le_bytes(*b) as usize);
    if unit.len() == MAGIC.len() { unit.len() } else { HEADER_BYTES + head }
}

fn flipped_within(unit: &[u8], bytes: Range<usize>, bit: usize) -> Vec<u8> {
    let mut damaged = unit.to_vec();
    let place = damaged.get_mut(bytes).unwrap_or_default();
    if !place.is_empty() {
        let bit = bit % (place.len() * 8);
        place.iter_mut().skip(bit / 8).take(1).for_each(|byte| *byte ^= 1 << (bit % 8));
    }
    damaged
}
