//! Long instructions that a stop falls into: REP MOVS over pages, and port I/O of one byte and of strings.

#![allow(unsafe_code, reason = "each vCPU has buffers of its own in static memory")]

use super::hold::differ;
use crate::cpu;
use crate::page::{Random, Wrong};
use crate::serial;

const BUFFER_BYTES: usize = 16 << 10;
/// Of which so much is copied in ring 0, at some 7 MB/s where that is interpreted.
const RING_0_BYTES: usize = 6 << 10;
const CPUS: usize = crate::options::MAX_CPUS as usize;

#[repr(C, align(4096))]
struct Buffers([[u8; BUFFER_BYTES]; 3]);

static mut BUFFERS: [Buffers; CPUS] = [const { Buffers([[0; BUFFER_BYTES]; 3]) }; CPUS];

/// This vCPU's buffers: from, to by ring 3, to by ring 0.
fn buffers(cpu: u32) -> &'static mut [[u8; BUFFER_BYTES]; 3] {
    // SAFETY: each vCPU asks for its own only, and lets go of it before it asks again.
    unsafe { &mut (*(&raw mut BUFFERS[cpu as usize])).0 }
}

/// Copies over page ends, in ring 3 and in ring 0, `times` over.
pub(crate) fn copies(cpu: u32, times: u32, random: &mut Random) -> Result<(), Wrong> {
    let [from, native, interpreted] = buffers(cpu);
    for _ in 0..times {
        for bytes in from.chunks_exact_mut(8) {
            bytes.copy_from_slice(&random.next().to_le_bytes());
        }
        cpu::copy(from, native);
        same("rep_movs_ring_3", from, native)?;
    }
    // Begins just before a page's end.
    let at = 4096 - 64;
    cpu::copy_in_ring_0(&from[at..at + RING_0_BYTES], &mut interpreted[at..at + RING_0_BYTES]);
    same("rep_movs_ring_0", &from[at..at + RING_0_BYTES], &interpreted[at..at + RING_0_BYTES])
}

fn same(field: &'static str, expected: &[u8], found: &[u8]) -> Result<(), Wrong> {
    for (expected, found) in expected.iter().zip(found) {
        differ(field, u64::from(*expected), u64::from(*found))?;
    }
    Ok(())
}

/// Writes to the serial port's scratch register, and reads it: bytes and strings. The caller has the port.
pub(crate) fn ports(random: &mut Random) -> Result<(), Wrong> {
    for _ in 0..4 {
        let value = random.next() as u8;
        cpu::outb(serial::SCRATCH, value);
        differ("port_byte", u64::from(value), u64::from(cpu::inb(serial::SCRATCH)))?;
    }
    let text = random.next().to_le_bytes();
    cpu::out_string(serial::SCRATCH, &text);
    let mut back = [!text[7]; 8];
    cpu::in_string(serial::SCRATCH, &mut back);
    same("port_string", &[text[7]; 8], &back)
}
