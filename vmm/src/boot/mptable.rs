//! The MP table (Intel MultiProcessor Specification 1.4) for kernels without ACPI.
//!
//! ```text
//! 0x9fc00  floating pointer --> header, processors, ISA bus, IOAPIC, interrupts, local interrupts
//! ```
//! Every IOAPIC pin is an edge-triggered ISA interrupt of its own number. That holds for the timer too: KVM's
//! default routing brings GSI 0 to pin 0, not to pin 2 as PC firmware does.

use vm_memory::GuestMemoryBackend;

use super::{BootError, write};
use crate::layout;

const FLOATING_POINTER_BYTES: u64 = 16;
const SPEC_REVISION: u8 = 4;
/// Version of KVM's local APIC and IOAPIC as their registers read.
const LAPIC_VERSION: u8 = 0x14;
const IOAPIC_VERSION: u8 = 0x11;

const ENTRY_PROCESSOR: u8 = 0;
const ENTRY_BUS: u8 = 1;
const ENTRY_IOAPIC: u8 = 2;
const ENTRY_INTERRUPT: u8 = 3;
const ENTRY_LOCAL_INTERRUPT: u8 = 4;

const INTERRUPT_VECTORED: u8 = 0;
const INTERRUPT_NMI: u8 = 1;
const INTERRUPT_EXTINT: u8 = 3;
/// Polarity and trigger as the bus has it; ISA: active high, edge.
const AS_THE_BUS: u16 = 0;
const ISA_BUS_ID: u8 = 0;
const ALL_LAPICS: u8 = 0xff;

const CPU_ENABLED: u8 = 1;
const CPU_BOOT: u8 = 2;
/// Family 6, and the two features that the specification has bits for and every x86-64 CPU has: FPU, APIC.
const CPU_SIGNATURE: u32 = 0x600;
const CPU_FEATURES: u32 = 1 | 1 << 9;

/// Writes floating pointer and configuration table for `cpus` processors with APIC ids from 0.
pub(super) fn write_table<M: GuestMemoryBackend>(memory: &M, cpus: u8) -> Result<(), BootError> {
    let table_gpa = layout::MP_TABLE + FLOATING_POINTER_BYTES;
    let mut bytes = floating_pointer(table_gpa as u32).to_vec();
    bytes.extend(configuration(cpus));
    let room_bytes = layout::MP_TABLE_END - layout::MP_TABLE;
    if bytes.len() as u64 > room_bytes {
        return Err(BootError::TableTooLarge {
            table: "the MP table",
            bytes: bytes.len() as u64,
            room_bytes,
        });
    }
    write(memory, layout::MP_TABLE, &bytes, "the MP table")
}

/// Section 4.1. Feature bytes are zero: a configuration table, and no IMCR.
fn floating_pointer(table_gpa: u32) -> [u8; FLOATING_POINTER_BYTES as usize] {
    let mut bytes = [0; FLOATING_POINTER_BYTES as usize];
    bytes[0..4].copy_from_slice(b"_MP_");
    bytes[4..8].copy_from_slice(&table_gpa.to_le_bytes());
    bytes[8] = 1; // In paragraphs of 16 bytes.
    bytes[9] = SPEC_REVISION;
    bytes[10] = checksum(&bytes);
    bytes
}

/// Sections 4.2 and 4.3.
fn configuration(cpus: u8) -> Vec<u8> {
    let entries = entries(cpus);
    let count = entries.len() as u16;
    let entries: Vec<u8> = entries.concat();
    let mut table = b"PCMP".to_vec();
    table.extend((HEADER_BYTES as u16 + entries.len() as u16).to_le_bytes());
    table.extend([SPEC_REVISION, 0]);
    table.extend(b"TERN    ");
    table.extend(b"TERN-VM     ");
    table.extend([0; 6]); // No OEM table: pointer and size.
    table.extend(count.to_le_bytes());
    table.extend((layout::LAPIC as u32).to_le_bytes());
    table.extend([0; 4]); // No extended table: length, checksum, reserved.
    table.extend(entries);
    table[7] = checksum(&table);
    table
}

const HEADER_BYTES: usize = 44;

fn entries(cpus: u8) -> Vec<Vec<u8>> {
    let ioapic_id = cpus; // The first id that no local APIC has.
    let mut entries: Vec<Vec<u8>> = (0..cpus).map(processor).collect();
    let mut bus = vec![ENTRY_BUS, ISA_BUS_ID];
    bus.extend(b"ISA   ");
    entries.push(bus);
    let mut ioapic = vec![ENTRY_IOAPIC, ioapic_id, IOAPIC_VERSION, CPU_ENABLED];
    ioapic.extend((layout::IOAPIC as u32).to_le_bytes());
    entries.push(ioapic);
    let pins = 0..layout::IOAPIC_PINS as u8;
    entries.extend(pins.map(|pin| interrupt(ENTRY_INTERRUPT, INTERRUPT_VECTORED, pin, ioapic_id, pin)));
    entries.push(interrupt(ENTRY_LOCAL_INTERRUPT, INTERRUPT_EXTINT, 0, ALL_LAPICS, 0));
    entries.push(interrupt(ENTRY_LOCAL_INTERRUPT, INTERRUPT_NMI, 0, ALL_LAPICS, 1));
    entries
}

fn processor(apic_id: u8) -> Vec<u8> {
    let boot = if apic_id == 0 { CPU_BOOT } else { 0 };
    let mut entry = vec![ENTRY_PROCESSOR, apic_id, LAPIC_VERSION, CPU_ENABLED | boot];
    entry.extend(CPU_SIGNATURE.to_le_bytes());
    entry.extend(CPU_FEATURES.to_le_bytes());
    entry.extend([0; 8]);
    entry
}

/// ISA interrupt `irq` arrives at `pin` of the IOAPIC or local APIC `apic_id`.
fn interrupt(entry: u8, kind: u8, irq: u8, apic_id: u8, pin: u8) -> Vec<u8> {
    let [low, high] = AS_THE_BUS.to_le_bytes();
    vec![entry, kind, low, high, ISA_BUS_ID, irq, apic_id, pin]
}

/// The byte that makes all sum up to zero.
fn checksum(bytes: &[u8]) -> u8 {
    bytes.iter().fold(0_u8, |sum, byte| sum.wrapping_add(*byte)).wrapping_neg()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::boot::testing::{ram, read, u16_at, u32_at};

    fn sum(bytes: &[u8]) -> u8 {
        bytes.iter().fold(0, |sum, byte| sum.wrapping_add(*byte))
    }

    /// Walks the table as a kernel does; answers its entries.
    fn walk(cpus: u8) -> Vec<Vec<u8>> {
        let memory = ram(2 << 20);
        write_table(&memory, cpus).unwrap();
        let pointer = read(&memory, layout::MP_TABLE, 16);
        assert_eq!((&pointer[..4], sum(&pointer)), (&b"_MP_"[..], 0));
        let table_gpa = u64::from(u32_at(&pointer, 4));
        let header = read(&memory, table_gpa, HEADER_BYTES);
        let table = read(&memory, table_gpa, usize::from(u16_at(&header, 4)));
        assert_eq!((&table[..4], sum(&table), u32_at(&table, 36)), (&b"PCMP"[..], 0, 0xfee0_0000));

        let mut rest = &table[HEADER_BYTES..];
        let mut entries = Vec::new();
        while let Some(kind) = rest.first() {
            let (entry, after) = rest.split_at(if *kind == ENTRY_PROCESSOR { 20 } else { 8 });
            entries.push(entry.to_vec());
            rest = after;
        }
        assert_eq!(entries.len(), usize::from(u16_at(&header, 34)));
        entries
    }

    #[test]
    fn one_boot_processor_among_all() {
        let entries = walk(4);
        let cpus: Vec<_> =
            entries.iter().filter(|entry| entry[0] == 0).map(|entry| (entry[1], entry[3])).collect();
        assert_eq!(cpus, [(0, 3), (1, 1), (2, 1), (3, 1)]);
    }

    #[test]
    fn every_pin_has_its_own_interrupt() {
        let entries = walk(2);
        let ioapic = entries.iter().find(|entry| entry[0] == ENTRY_IOAPIC).unwrap();
        let pins: Vec<_> = entries.iter().filter(|entry| entry[0] == ENTRY_INTERRUPT).collect();
        for (number, entry) in pins.iter().enumerate() {
            assert_eq!(entry[4..], [ISA_BUS_ID, number as u8, ioapic[1], number as u8]);
        }
        assert_eq!(pins.len(), 24);
        assert_eq!(u32_at(ioapic, 4), 0xfec0_0000);
    }

    #[test]
    fn local_pins_are_extint_and_nmi() {
        let entries = walk(1);
        assert_eq!(entries[entries.len() - 2], [4, 3, 0, 0, 0, 0, 0xff, 0]);
        assert_eq!(entries[entries.len() - 1], [4, 1, 0, 0, 0, 0, 0xff, 1]);
    }

    #[test]
    fn most_processors_fit() {
        assert_eq!(walk(layout::MAX_CPUS).len(), 254 + 1 + 1 + 24 + 2);
    }
}
