//! What a vCPU's page tables map in the upper half of the address space, where kernels live (Intel SDM volume 3,
//! 5.5: 4-level and 5-level paging). The tables are the guest's: what makes no sense is passed over.

use tern_migration::PAGE_BYTES;
use tern_migration::snapshot::{RegionPlace, SnapshotFile};

use super::elf::{Segment, SegmentKind};
use crate::vcpu::VcpuV1;

const ENTRIES: u64 = 512;
const PRESENT: u64 = 1;
const LARGE: u64 = 1 << 7;
/// Bits 12 to 51.
const ADDRESS: u64 = 0x000f_ffff_ffff_f000;
const CR0_PAGING: u64 = 1 << 31;
const CR4_LA57: u64 = 1 << 12;
const EFER_LONG_MODE: u64 = 1 << 10;
/// Tables that are read at most: 4 GiB of memory in pages of 4 KiB, and a guest that has laid a trap ends there.
const TABLES_MAX: usize = 4096;

/// A range of virtual addresses that stands for a range of physical ones.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Mapping {
    virtual_address: u64,
    physical_address: u64,
    bytes: u64,
}

impl Mapping {
    /// As a program header, if it is inside one region of memory.
    pub(super) fn segment(&self, regions: &[RegionPlace], offsets: &[u64]) -> Option<Segment> {
        let Self { virtual_address, physical_address, bytes } = *self;
        let (place, offset) = regions.iter().zip(offsets).find(|(place, _)| self.is_in(place))?;
        let offset = offset + (physical_address - place.gpa);
        Some(Segment { kind: SegmentKind::Load, offset, virtual_address, physical_address, bytes })
    }

    fn is_in(&self, place: &RegionPlace) -> bool {
        let end = self.physical_address.checked_add(self.bytes);
        self.physical_address >= place.gpa
            && end.is_some_and(|end| end <= place.gpa.saturating_add(place.pages.saturating_mul(PAGE_BYTES)))
    }
}

/// All mappings of the upper half, in order, neighbours joined. None where the vCPU isn't in long mode.
pub(super) fn upper_half(snapshot: &SnapshotFile, vcpu: &VcpuV1) -> Vec<Mapping> {
    let sregs = &vcpu.sregs;
    if sregs.cr0 & CR0_PAGING == 0 || sregs.efer & EFER_LONG_MODE == 0 {
        return Vec::new();
    }
    let levels = if sregs.cr4 & CR4_LA57 != 0 { 5 } else { 4 };
    let read = |gpa| page(snapshot, gpa);
    let mut walk = Walk { read: &read, levels, tables: 0, found: Vec::new() };
    walk.table(sregs.cr3 & ADDRESS, levels, 0);
    // A mapping that leaves a region shows nothing: what is there isn't memory.
    let memory = |mapping: &Mapping| snapshot.layout().regions.iter().any(|place| mapping.is_in(place));
    walk.found.into_iter().filter(memory).collect()
}

fn page(snapshot: &SnapshotFile, gpa: u64) -> Option<[u8; PAGE_BYTES as usize]> {
    let mut bytes = [0; PAGE_BYTES as usize];
    let (region, page) = snapshot.layout().regions.iter().enumerate().find_map(|(region, place)| {
        let page = gpa.checked_sub(place.gpa)? / PAGE_BYTES;
        (page < place.pages).then_some((region, page))
    })?;
    snapshot.read_page(region, page, &mut bytes).ok()?;
    Some(bytes)
}

struct Walk<'r> {
    read: &'r dyn Fn(u64) -> Option<[u8; PAGE_BYTES as usize]>,
    levels: u32,
    tables: usize,
    found: Vec<Mapping>,
}

impl Walk<'_> {
    fn table(&mut self, gpa: u64, level: u32, above: u64) {
        if self.tables >= TABLES_MAX {
            return;
        }
        self.tables += 1;
        let Some(bytes) = (self.read)(gpa) else { return };
        let shift = 12 + 9 * (level - 1);
        // Of the top table the second half alone.
        let first = if level == self.levels { ENTRIES / 2 } else { 0 };
        for (index, entry) in (0u64..).zip(bytes.as_chunks::<8>().0) {
            let entry = u64::from_le_bytes(*entry);
            if index < first || entry & PRESENT == 0 {
                continue;
            }
            let address = above | index << shift;
            if level == 1 || (level <= 3 && entry & LARGE != 0) {
                let bytes = 1 << shift;
                self.add(address, entry & ADDRESS & !(bytes - 1), bytes);
            } else {
                self.table(entry & ADDRESS, level - 1, address);
            }
        }
    }

    fn add(&mut self, address: u64, physical_address: u64, bytes: u64) {
        let virtual_address = address | u64::MAX << (12 + 9 * self.levels);
        if let Some(last) = self.found.last_mut()
            && last.virtual_address.checked_add(last.bytes) == Some(virtual_address)
            && last.physical_address.checked_add(last.bytes) == Some(physical_address)
        {
            last.bytes += bytes;
            return;
        }
        self.found.push(Mapping { virtual_address, physical_address, bytes });
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use super::*;

    fn table(entries: &[(usize, u64)]) -> [u8; 4096] {
        let mut bytes = [0; 4096];
        for (index, entry) in entries {
            bytes[index * 8..index * 8 + 8].copy_from_slice(&entry.to_le_bytes());
        }
        bytes
    }

    fn walk(tables: &HashMap<u64, [u8; 4096]>) -> Vec<Mapping> {
        let read = |gpa: u64| tables.get(&gpa).copied();
        let mut walk = Walk { read: &read, levels: 4, tables: 0, found: Vec::new() };
        walk.table(0x1000, 4, 0);
        walk.found
    }

    #[test]
    fn pages_of_all_sizes_are_found_and_neighbours_joined() {
        let tables = HashMap::from([
            (0x1000, table(&[(0, 0x9000 | PRESENT), (511, 0x2000 | PRESENT)])),
            (0x2000, table(&[(510, 0x3000 | PRESENT), (511, 0x4000_0000 | PRESENT | LARGE)])),
            (0x3000, table(&[(0, 0x4000 | PRESENT), (8, 0x20_0000 | PRESENT | LARGE)])),
            (0x4000, table(&[(0, 0x7000 | PRESENT), (1, 0x8000 | PRESENT), (2, 0x6000 | PRESENT)])),
        ]);
        let mapping =
            |virtual_address, physical_address, bytes| Mapping { virtual_address, physical_address, bytes };
        assert_eq!(
            walk(&tables),
            [
                mapping(0xffff_ffff_8000_0000, 0x7000, 0x2000),
                mapping(0xffff_ffff_8000_2000, 0x6000, 0x1000),
                mapping(0xffff_ffff_8100_0000, 0x20_0000, 0x20_0000),
                mapping(0xffff_ffff_c000_0000, 0x4000_0000, 0x4000_0000),
            ]
        );
    }

    #[test]
    fn a_table_that_is_its_own_child_ends() {
        let tables = HashMap::from([(0x1000, table(&[(256, 0x1000 | PRESENT), (511, 0x1000 | PRESENT)]))]);
        assert!(walk(&tables).len() < 4096);
    }
}
