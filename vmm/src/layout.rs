//! The guest-physical address map, ports and interrupt lines: the one home of each constant.
//!
//! ```text
//! 0x0000_6000  boot GDT, hvm_start_info, module list, PVH memory map    (one page)
//! 0x0000_7000  boot_params, the "zero page" of the 64-bit Linux protocol
//! 0x0000_8ff0  boot stack, growing down
//! 0x0000_9000  PML4, PDPT, page directory: the first GiB, identity mapped
//! 0x0002_0000  kernel command line
//! 0x0009_fc00  MP floating pointer and table    -- from here to 1 MiB: reserved in the memory map
//! 0x000e_0000  RSDP, then the other ACPI tables
//! 0x000f_f008  VM generation ID, in a page of its own
//! 0x0010_0000  kernel; the initrd ends where RAM below 3 GiB ends
//! 0xc000_0000  the 32-bit hole, without RAM: virtio-mmio, IOAPIC, LAPIC, KVM's own pages
//! 0x1_0000_0000  RAM that did not fit below the hole
//! ```

use vm_memory::GuestAddress;

/// Small pages, the unit in which everything here is placed.
pub const PAGE_BYTES: u64 = 0x1000;

/// Boot GDT: null, code, data, TSS.
pub const BOOT_GDT: u64 = 0x6000;
/// `hvm_start_info` of the PVH protocol.
pub const PVH_START_INFO: u64 = 0x6100;
/// `hvm_modlist_entry` of the initrd.
pub const PVH_MODULES: u64 = 0x6180;
/// `hvm_memmap_table_entry` array, up to [`BOOT_PARAMS`].
pub const PVH_MEMORY_MAP: u64 = 0x6200;
/// `struct boot_params` ("zero page") of the Linux protocol.
pub const BOOT_PARAMS: u64 = 0x7000;
/// Initial stack pointer for the Linux protocol.
pub const BOOT_STACK: u64 = 0x8ff0;
/// Page-map level 4 of the boot page tables.
pub const BOOT_PML4: u64 = 0x9000;
/// Page-directory-pointer table of the boot page tables.
pub const BOOT_PDPT: u64 = 0xa000;
/// Page directory of the boot page tables: 512 pages of 2 MiB.
pub const BOOT_PD: u64 = 0xb000;
/// How much the boot page tables map: a 64-bit Linux entry must lie below.
pub const BOOT_MAPPED_BYTES: u64 = 1 << 30;

/// Where the command line is, with its final NUL.
pub const CMDLINE: u64 = 0x2_0000;
/// Longest command line without its NUL: Linux' x86 `COMMAND_LINE_SIZE` is 2048 with it.
pub const CMDLINE_MAX_BYTES: usize = 2047;

/// MP floating pointer, in the last KiB of base memory, where the MP specification (4) lets kernels look.
pub const MP_TABLE: u64 = 0x9_fc00;
/// First byte that the MP table may not use.
pub const MP_TABLE_END: u64 = 0xe_0000;
/// First reserved byte below 1 MiB.
pub const LOW_RAM_END: u64 = MP_TABLE;
/// RSDP: the first place of the BIOS area that kernels scan (ACPI 6.5, 5.2.5.1).
pub const ACPI_RSDP: u64 = 0xe_0000;
/// First ACPI table after the RSDP. 64-byte aligned, as the FACS asks.
pub const ACPI_TABLES: u64 = 0xe_0040;
/// First byte that ACPI tables may not use.
pub const ACPI_TABLES_END: u64 = 0xf_f000;
/// The VM generation ID: at a multiple of 8, as its specification asks, and not of 16, where kernels look for the
/// signatures of firmware tables. Reserved in the memory map, and nothing else is in its page.
pub const VM_GENERATION_ID: u64 = 0xf_f008;

/// Kernels load here and above.
pub const KERNEL_START: u64 = 0x10_0000;

/// Where RAM stops and the 32-bit hole begins.
pub const HOLE_START: u64 = 0xc000_0000;
/// Where RAM goes on after the hole.
pub const HOLE_END: u64 = 0x1_0000_0000;

/// First virtio-mmio device.
pub const VIRTIO_MMIO: u64 = 0xd000_0000;
/// Size of one virtio-mmio device's registers, and the distance between two.
pub const VIRTIO_MMIO_BYTES: u64 = 0x1000;
/// Interrupt lines of the virtio-mmio devices, in order. The ISA numbers come first, since a kernel without an
/// IOAPIC driver has no others; 12 and 13 (mouse, FPU) last among them. 0 timer, 1 keyboard, 2 cascade, 3 and 4
/// serial, 8 RTC and 9 SCI are taken.
pub const VIRTIO_GSIS: [u32; 17] = [5, 6, 7, 10, 11, 14, 15, 12, 13, 16, 17, 18, 19, 20, 21, 22, 23];

/// IOAPIC registers, where KVM's in-kernel irqchip has them.
pub const IOAPIC: u64 = 0xfec0_0000;
/// Pins of KVM's IOAPIC.
pub const IOAPIC_PINS: u32 = 24;
/// Local APIC registers at reset.
pub const LAPIC: u64 = 0xfee0_0000;
/// Argument of `KVM_SET_IDENTITY_MAP_ADDR`: one page for KVM itself.
pub const KVM_IDENTITY_MAP: u64 = 0xfffb_c000;
/// Argument of `KVM_SET_TSS_ADDR`: three pages for KVM itself.
pub const KVM_TSS: u64 = 0xfffb_d000;
/// What `KVM_IDENTITY_MAP` and `KVM_TSS` take together.
pub const KVM_PAGES_BYTES: u64 = 4 * PAGE_BYTES;

/// First serial port.
pub const SERIAL_PORT: u16 = 0x3f8;
/// Registers of a serial port.
pub const SERIAL_PORT_COUNT: u8 = 8;
/// Interrupt of the first serial port.
pub const SERIAL_GSI: u32 = 4;
/// CMOS RTC: index port, then data port.
pub const RTC_PORT: u16 = 0x70;
/// Interrupt of the CMOS RTC.
pub const RTC_GSI: u32 = 8;
/// i8042 data port.
pub const I8042_DATA_PORT: u16 = 0x60;
/// i8042 status and command port.
pub const I8042_COMMAND_PORT: u16 = 0x64;
/// The i8042 command that pulls the CPU's reset line.
pub const I8042_RESET: u8 = 0xfe;
/// ACPI PM1a event block: status (u16), then enable (u16).
pub const PM1A_EVENT_PORT: u16 = 0x600;
/// Bytes of the PM1a event block.
pub const PM1A_EVENT_PORT_COUNT: u8 = 4;
/// ACPI PM1a control register (u16).
pub const PM1A_CONTROL_PORT: u16 = 0x604;
/// Bytes of the PM1a control register.
pub const PM1A_CONTROL_PORT_COUNT: u8 = 2;
/// ACPI general-purpose event block 0: status (u8), then enable (u8). Its event 0 tells of a changed VM generation ID.
pub const GPE0_PORT: u16 = 0x608;
/// Bytes of the general-purpose event block.
pub const GPE0_PORT_COUNT: u8 = 2;
/// `SLP_TYP` of soft-off: power-off is a write of `S5_SLEEP_TYPE << 10 | 1 << 13` to PM1a control.
pub const S5_SLEEP_TYPE: u8 = 5;
/// The ACPI interrupt. Edge-triggered here, as irqfd delivers it; the MADT says so.
pub const SCI_GSI: u32 = 9;

/// Most vCPUs: 8-bit APIC ids without the broadcast id 255, and one id left for the IOAPIC.
pub const MAX_CPUS: u8 = 254;
/// Least guest memory: the boot structures below 1 MiB and something to load above.
pub const MIN_MEMORY_BYTES: u64 = 2 << 20;

/// A virtio-mmio device's place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct VirtioSlot {
    /// Guest-physical address of its registers.
    pub gpa: u64,
    /// Bytes of its registers.
    pub len: u64,
    /// Its interrupt line, edge-triggered.
    pub gsi: u32,
}

/// The place of the `index`-th virtio-mmio device, or none when the interrupt lines are used up.
pub fn virtio_slot(index: usize) -> Option<VirtioSlot> {
    let gsi = *VIRTIO_GSIS.get(index)?;
    let gpa = VIRTIO_MMIO + index as u64 * VIRTIO_MMIO_BYTES;
    Some(VirtioSlot { gpa, len: VIRTIO_MMIO_BYTES, gsi })
}

/// RAM of a guest with `memory_bytes`, split around the 32-bit hole: (start, bytes).
pub fn ram_regions(memory_bytes: u64) -> Vec<(GuestAddress, usize)> {
    let below = memory_bytes.min(HOLE_START);
    let mut regions = vec![(GuestAddress(0), below as usize)];
    if memory_bytes > below {
        regions.push((GuestAddress(HOLE_END), (memory_bytes - below) as usize));
    }
    regions
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn small_memory_is_one_region() {
        assert_eq!(ram_regions(64 << 20), [(GuestAddress(0), 64 << 20)]);
        assert_eq!(ram_regions(HOLE_START), [(GuestAddress(0), HOLE_START as usize)]);
    }

    #[test]
    fn large_memory_goes_around_the_hole() {
        let regions = ram_regions(HOLE_START + 4096);
        assert_eq!(regions, [(GuestAddress(0), HOLE_START as usize), (GuestAddress(HOLE_END), 4096)]);
    }

    #[test]
    fn virtio_lines_are_distinct_and_free() {
        let mut lines = VIRTIO_GSIS.to_vec();
        lines.extend([0, 1, 2, 3, SERIAL_GSI, RTC_GSI, SCI_GSI]);
        lines.sort_unstable();
        assert_eq!(lines, (0..IOAPIC_PINS).collect::<Vec<_>>());
    }

    #[test]
    fn virtio_slots_stay_in_the_hole() {
        assert_eq!(virtio_slot(0), Some(VirtioSlot { gpa: 0xd000_0000, len: 0x1000, gsi: 5 }));
        let last = virtio_slot(VIRTIO_GSIS.len() - 1).unwrap();
        assert!(last.gpa + last.len <= IOAPIC);
        assert_eq!(virtio_slot(VIRTIO_GSIS.len()), None);
    }

    #[test]
    fn areas_below_one_mib_do_not_overlap() {
        let starts = [
            BOOT_GDT,
            PVH_START_INFO,
            PVH_MODULES,
            PVH_MEMORY_MAP,
            BOOT_PARAMS,
            BOOT_STACK,
            BOOT_PML4,
            BOOT_PDPT,
            BOOT_PD,
            CMDLINE,
            MP_TABLE,
            ACPI_RSDP,
            ACPI_TABLES,
            ACPI_TABLES_END,
            VM_GENERATION_ID,
            KERNEL_START,
        ];
        assert!(starts.is_sorted());
        assert!(CMDLINE + (CMDLINE_MAX_BYTES as u64) < LOW_RAM_END);
    }
}
