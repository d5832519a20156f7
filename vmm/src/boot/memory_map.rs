//! Which guest-physical ranges are RAM and which are reserved, as both boot protocols tell the kernel.

use vm_memory::{Address, GuestMemoryBackend, GuestMemoryRegion};

use super::BootError;
use crate::layout;

/// Kind of a range, with the number that E820 and PVH share for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub(super) enum MapKind {
    Ram = 1,
    Reserved = 2,
}

/// One line of the memory map.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct MapEntry {
    pub(super) start: u64,
    pub(super) bytes: u64,
    pub(super) kind: MapKind,
}

/// RAM in which kernel and initrd are placed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct LowRam {
    /// First address after the RAM that begins at 0 and ends at the hole at the latest.
    pub(super) end: u64,
    /// All RAM of the guest.
    pub(super) total_bytes: u64,
}

impl LowRam {
    /// # Errors
    /// The guest has less than [`layout::MIN_MEMORY_BYTES`].
    pub(super) fn of<M: GuestMemoryBackend>(memory: &M) -> Result<Self, BootError> {
        let mut end = 0;
        let mut total_bytes = 0_u64;
        for region in memory.iter() {
            total_bytes = total_bytes.saturating_add(region.len());
            // Regions come sorted; several may follow each other without a gap.
            if region.start_addr().raw_value() == end {
                end = end.saturating_add(region.len()).min(layout::HOLE_START);
            }
        }
        if end < layout::MIN_MEMORY_BYTES {
            return Err(BootError::TooLittleMemory {
                what: "the smallest guest".to_owned(),
                needed_bytes: layout::MIN_MEMORY_BYTES,
                given_bytes: end,
            });
        }
        Ok(Self { end, total_bytes })
    }
}

/// The memory map of `memory`: its regions without the tables' area below 1 MiB, and KVM's own pages.
pub(super) fn entries<M: GuestMemoryBackend>(memory: &M) -> Vec<MapEntry> {
    let reserved_end = layout::KERNEL_START;
    let reserved_bytes = reserved_end - layout::LOW_RAM_END;
    let mut map = vec![
        MapEntry { start: 0, bytes: layout::LOW_RAM_END, kind: MapKind::Ram },
        MapEntry { start: layout::LOW_RAM_END, bytes: reserved_bytes, kind: MapKind::Reserved },
    ];
    for region in memory.iter() {
        let end = region.start_addr().raw_value().saturating_add(region.len());
        let start = region.start_addr().raw_value().max(reserved_end);
        if end > start {
            map.push(MapEntry { start, bytes: end - start, kind: MapKind::Ram });
        }
    }
    map.push(MapEntry {
        start: layout::KVM_IDENTITY_MAP,
        bytes: layout::KVM_PAGES_BYTES,
        kind: MapKind::Reserved,
    });
    map.sort_unstable_by_key(|entry| entry.start);
    map
}

#[cfg(test)]
mod tests {
    use vm_memory::GuestAddress;

    use super::*;
    use crate::boot::testing::ram;

    #[test]
    fn map_of_a_small_guest() {
        let expected = [
            MapEntry { start: 0, bytes: 0x9_fc00, kind: MapKind::Ram },
            MapEntry { start: 0x9_fc00, bytes: 0x6_0400, kind: MapKind::Reserved },
            MapEntry { start: 0x10_0000, bytes: 0x3f0_0000, kind: MapKind::Ram },
            MapEntry { start: 0xfffb_c000, bytes: 0x4000, kind: MapKind::Reserved },
        ];
        assert_eq!(entries(&ram(64 << 20)), expected);
    }

    #[test]
    fn map_of_a_guest_beyond_the_hole() {
        let map = entries(&ram((3 << 30) + (1 << 20)));
        let above = MapEntry { start: 1 << 32, bytes: 1 << 20, kind: MapKind::Ram };
        assert_eq!(map.last(), Some(&above));
        assert!(map.windows(2).all(|pair| pair[0].start + pair[0].bytes <= pair[1].start));
    }

    #[test]
    fn low_ram_joins_regions_and_stops_at_the_hole() {
        let ranges = [(GuestAddress(0), 4 << 20), (GuestAddress(4 << 20), 4 << 20)];
        let memory = vm_memory::GuestMemoryMmap::<()>::from_ranges(&ranges).unwrap();
        assert_eq!(LowRam::of(&memory).unwrap(), LowRam { end: 8 << 20, total_bytes: 8 << 20 });
        let large = LowRam::of(&ram((3 << 30) + (1 << 20))).unwrap();
        assert_eq!(large, LowRam { end: 3 << 30, total_bytes: (3 << 30) + (1 << 20) });
    }

    #[test]
    fn tiny_memory_is_refused_with_both_figures() {
        let text = LowRam::of(&ram(1 << 20)).unwrap_err().to_string();
        assert!(text.contains("2097152") && text.contains("1048576"), "{text}");
    }
}
