//! The 64-bit Linux boot protocol's structures in guest memory: `boot_params` and identity page tables
//! (Linux' `Documentation/arch/x86/boot.rst`, "64-bit Boot Protocol").

use linux_loader::loader::bootparam::{boot_e820_entry, boot_params, setup_header};
use vm_memory::{ByteValued, GuestMemoryBackend};

use super::memory_map::MapEntry;
use super::registers::{Entry, Protocol, write_gdt};
use super::{BootError, HandOver, write};
use crate::layout;

const BOOT_FLAG: u16 = 0xaa55;
/// "HdrS".
const HEADER_MAGIC: u32 = 0x5372_6448;
/// A loader without a number of its own.
const LOADER_UNDEFINED: u8 = 0xff;
/// What every x86-64 kernel accepts.
const KERNEL_ALIGNMENT_BYTES: u32 = 0x100_0000;

/// Page table bits: present and writable, and a page instead of a table.
const PRESENT_WRITABLE: u64 = 0x3;
const LARGE: u64 = 0x80;
const LARGE_PAGE_BYTES: u64 = 2 << 20;

/// Writes zero page, page tables and GDT.
pub(super) fn write_boot_params<M: GuestMemoryBackend>(
    memory: &M,
    hand_over: &HandOver,
    entry_gpa: u64,
) -> Result<Entry, BootError> {
    let initrd = hand_over.initrd.clone().unwrap_or(0..0);
    let mut params = boot_params {
        hdr: setup_header {
            boot_flag: BOOT_FLAG,
            header: HEADER_MAGIC,
            type_of_loader: LOADER_UNDEFINED,
            cmd_line_ptr: layout::CMDLINE as u32,
            cmdline_size: hand_over.cmdline_bytes as u32,
            kernel_alignment: KERNEL_ALIGNMENT_BYTES,
            // Below 3 GiB, so 32 bits do.
            ramdisk_image: initrd.start as u32,
            ramdisk_size: (initrd.end - initrd.start) as u32,
            ..setup_header::default()
        },
        acpi_rsdp_addr: layout::ACPI_RSDP,
        ..boot_params::default()
    };
    fill_e820(&mut params, &hand_over.map)?;
    write(memory, layout::BOOT_PARAMS, params.as_slice(), "boot_params")?;
    write_page_tables(memory)?;
    write_gdt(memory, Protocol::Linux64)?;
    Ok(Entry {
        protocol: Protocol::Linux64,
        rip: entry_gpa,
        rsp: layout::BOOT_STACK,
        rbx: 0,
        rsi: layout::BOOT_PARAMS,
    })
}

fn fill_e820(params: &mut boot_params, map: &[MapEntry]) -> Result<(), BootError> {
    let mut table = params.e820_table;
    if map.len() > table.len() {
        let [bytes, room_bytes] =
            [map.len(), table.len()].map(|entries| (entries * size_of::<boot_e820_entry>()) as u64);
        return Err(BootError::TableTooLarge { table: "the E820 memory map", bytes, room_bytes });
    }
    for (slot, entry) in table.iter_mut().zip(map) {
        *slot = boot_e820_entry { addr: entry.start, size: entry.bytes, r#type: entry.kind as u32 };
    }
    params.e820_table = table;
    params.e820_entries = map.len() as u8;
    Ok(())
}

/// Identity-maps [`layout::BOOT_MAPPED_BYTES`] with 2 MiB pages; 1 GiB pages are not on every CPU.
fn write_page_tables<M: GuestMemoryBackend>(memory: &M) -> Result<(), BootError> {
    let structure = "the boot page tables";
    write(memory, layout::BOOT_PML4, &(layout::BOOT_PDPT | PRESENT_WRITABLE).to_le_bytes(), structure)?;
    write(memory, layout::BOOT_PDPT, &(layout::BOOT_PD | PRESENT_WRITABLE).to_le_bytes(), structure)?;
    let directory: Vec<u8> = (0..layout::BOOT_MAPPED_BYTES / LARGE_PAGE_BYTES)
        .flat_map(|page| ((page * LARGE_PAGE_BYTES) | LARGE | PRESENT_WRITABLE).to_le_bytes())
        .collect();
    write(memory, layout::BOOT_PD, &directory, structure)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::boot::memory_map::entries;
    use crate::boot::testing::{ram, read, u32_at, u64_at};

    #[test]
    fn zero_page_has_the_documented_offsets() {
        let memory = ram(64 << 20);
        let hand_over =
            HandOver { map: entries(&memory), cmdline_bytes: 9, initrd: Some(0x3ff_0000..0x3ff_1234) };
        let entry = write_boot_params(&memory, &hand_over, 0x100_0000).unwrap();
        assert_eq!((entry.rip, entry.rsi, entry.rsp), (0x100_0000, 0x7000, 0x8ff0));

        let page = read(&memory, entry.rsi, 4096);
        assert_eq!(u64_at(&page, 0x70), layout::ACPI_RSDP);
        assert_eq!(page[0x1fe..0x200], [0x55, 0xaa]);
        assert_eq!(&page[0x202..0x206], b"HdrS");
        assert_eq!(page[0x210], 0xff);
        assert_eq!((u32_at(&page, 0x218), u32_at(&page, 0x21c)), (0x3ff_0000, 0x1234));
        assert_eq!((u32_at(&page, 0x228), u32_at(&page, 0x238)), (0x2_0000, 9));
        assert_eq!(page[0x1e8], 4);
        let third = &page[0x2d0 + 2 * 20..];
        assert_eq!((u64_at(third, 0), u64_at(third, 8), u32_at(third, 16)), (0x10_0000, 63 << 20, 1));
    }

    #[test]
    fn page_tables_map_one_to_one() {
        let memory = ram(2 << 20);
        write_page_tables(&memory).unwrap();
        for address in [0_u64, 0x7000, 0x100_0000, layout::BOOT_MAPPED_BYTES - 1] {
            let pml4 = u64_at(&read(&memory, layout::BOOT_PML4 + (address >> 39) * 8, 8), 0);
            let pdpt = u64_at(&read(&memory, (pml4 & !0xfff) + (address >> 30 & 511) * 8, 8), 0);
            let page = u64_at(&read(&memory, (pdpt & !0xfff) + (address >> 21 & 511) * 8, 8), 0);
            assert_eq!(page & 0x83, 0x83);
            assert_eq!(page & !0x1f_ffff, address & !0x1f_ffff);
        }
    }
}
