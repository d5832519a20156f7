//! The PVH boot protocol's structures in guest memory (Xen's `public/arch-x86/hvm/start_info.h`, version 1).

use linux_loader::loader::elf::start_info::{hvm_memmap_table_entry, hvm_modlist_entry, hvm_start_info};
use vm_memory::{ByteValued, GuestMemoryBackend};

use super::memory_map::MapEntry;
use super::registers::{Entry, Protocol, write_gdt};
use super::{BootError, HandOver, write};
use crate::layout;

const START_MAGIC: u32 = 0x336e_c578;
const VERSION_WITH_MEMORY_MAP: u32 = 1;

/// Writes start info, module list, memory map and GDT.
pub(super) fn write_start_info<M: GuestMemoryBackend>(
    memory: &M,
    hand_over: &HandOver,
    entry_gpa: u64,
) -> Result<Entry, BootError> {
    let mut info = hvm_start_info {
        magic: START_MAGIC,
        version: VERSION_WITH_MEMORY_MAP,
        cmdline_paddr: layout::CMDLINE,
        rsdp_paddr: layout::ACPI_RSDP,
        memmap_paddr: layout::PVH_MEMORY_MAP,
        memmap_entries: hand_over.map.len() as u32,
        ..hvm_start_info::default()
    };
    if let Some(initrd) = &hand_over.initrd {
        let module = hvm_modlist_entry {
            paddr: initrd.start,
            size: initrd.end - initrd.start,
            ..hvm_modlist_entry::default()
        };
        write(memory, layout::PVH_MODULES, module.as_slice(), "the PVH module list")?;
        info.modlist_paddr = layout::PVH_MODULES;
        info.nr_modules = 1;
    }
    write_memory_map(memory, &hand_over.map)?;
    write(memory, layout::PVH_START_INFO, info.as_slice(), "hvm_start_info")?;
    write_gdt(memory, Protocol::Pvh)?;
    Ok(Entry { protocol: Protocol::Pvh, rip: entry_gpa, rsp: 0, rbx: layout::PVH_START_INFO, rsi: 0 })
}

fn write_memory_map<M: GuestMemoryBackend>(memory: &M, map: &[MapEntry]) -> Result<(), BootError> {
    let line = |entry: &MapEntry| hvm_memmap_table_entry {
        addr: entry.start,
        size: entry.bytes,
        type_: entry.kind as u32,
        reserved: 0,
    };
    let bytes: Vec<u8> = map.iter().flat_map(|entry| line(entry).as_slice().to_vec()).collect();
    let room_bytes = layout::BOOT_PARAMS - layout::PVH_MEMORY_MAP;
    if bytes.len() as u64 > room_bytes {
        let table = "the PVH memory map";
        return Err(BootError::TableTooLarge { table, bytes: bytes.len() as u64, room_bytes });
    }
    write(memory, layout::PVH_MEMORY_MAP, &bytes, "the PVH memory map")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::boot::memory_map::entries;
    use crate::boot::testing::{ram, read, u32_at, u64_at};

    #[test]
    fn start_info_points_to_everything() {
        let memory = ram(64 << 20);
        let hand_over =
            HandOver { map: entries(&memory), cmdline_bytes: 5, initrd: Some(0x3ff_0000..0x3ff_1234) };
        let entry = write_start_info(&memory, &hand_over, 0x10_0010).unwrap();
        assert_eq!((entry.rip, entry.rbx), (0x10_0010, layout::PVH_START_INFO));

        let info = read(&memory, entry.rbx, 56);
        assert_eq!((u32_at(&info, 0), u32_at(&info, 4), u32_at(&info, 12)), (START_MAGIC, 1, 1));
        assert_eq!((u64_at(&info, 24), u64_at(&info, 32)), (layout::CMDLINE, layout::ACPI_RSDP));
        let module = read(&memory, u64_at(&info, 16), 32);
        assert_eq!((u64_at(&module, 0), u64_at(&module, 8)), (0x3ff_0000, 0x1234));
        assert_eq!(u32_at(&info, 48), 4);
        let map = read(&memory, u64_at(&info, 40), 4 * 24);
        assert_eq!((u64_at(&map, 48), u64_at(&map, 56), u32_at(&map, 64)), (0x10_0000, 63 << 20, 1));
    }

    #[test]
    fn without_initrd_there_is_no_module() {
        let memory = ram(64 << 20);
        let hand_over = HandOver { map: entries(&memory), cmdline_bytes: 0, initrd: None };
        let entry = write_start_info(&memory, &hand_over, 0x10_0010).unwrap();
        let info = read(&memory, entry.rbx, 56);
        assert_eq!((u32_at(&info, 12), u64_at(&info, 16)), (0, 0));
    }
}
