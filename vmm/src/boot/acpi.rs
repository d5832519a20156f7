//! ACPI tables for a machine without PCI: RSDP, XSDT, FADT, FACS, MADT, DSDT (ACPI 6.5, chapter 5).
//!
//! ```text
//! RSDP --> XSDT --+--> FADT --+--> FACS
//!                 |           '--> DSDT: serial port, RTC, VM generation ID, virtio-mmio devices, \_S5
//!                 '--> MADT: local APICs, IOAPIC, the SCI's trigger mode, NMI pins
//! ```

mod dsdt;

use acpi_tables::Aml;
use acpi_tables::facs::FACS;
use acpi_tables::fadt::{FADTBuilder, Flags};
use acpi_tables::gas::{AccessSize, AddressSpace, GAS};
use acpi_tables::madt::{EnabledStatus, IoApic, ProcessorLocalApic};
use acpi_tables::rsdp::Rsdp;
use acpi_tables::sdt::Sdt;
use acpi_tables::xsdt::XSDT;
use vm_memory::GuestMemoryBackend;

use super::{BootError, write};
use crate::layout::{self, VirtioSlot};

const OEM_ID: [u8; 6] = *b"TERN  ";
const OEM_TABLE_ID: [u8; 8] = *b"TERN-VM ";
const OEM_REVISION: u32 = 1;
/// Length of the header that tables share.
const HEADER_BYTES: u32 = 36;

/// What the tables describe, beside what is the same in every machine.
#[derive(Clone, Copy, Debug)]
pub struct AcpiConfig<'a> {
    /// vCPUs, with APIC ids from 0.
    pub cpus: u8,
    /// The virtio-mmio devices.
    pub virtio: &'a [VirtioSlot],
}

/// Tables being placed one after the other, from [`layout::ACPI_TABLES`] on.
#[derive(Default)]
struct Area {
    bytes: Vec<u8>,
}

impl Area {
    /// Appends `table`, 64-byte aligned as the FACS must be; answers its guest-physical address.
    fn place(&mut self, table: &dyn Aml) -> u64 {
        self.bytes.resize(self.bytes.len().next_multiple_of(64), 0);
        let gpa = layout::ACPI_TABLES + self.bytes.len() as u64;
        table.to_aml_bytes(&mut self.bytes);
        gpa
    }
}

/// Writes all tables; kernels find the RSDP at [`layout::ACPI_RSDP`].
pub(super) fn write_tables<M: GuestMemoryBackend>(
    memory: &M,
    config: &AcpiConfig<'_>,
) -> Result<(), BootError> {
    let mut area = Area::default();
    let facs_gpa = area.place(&FACS::new());
    let dsdt_gpa = area.place(&dsdt::dsdt(config.virtio));
    let mut xsdt = XSDT::new(OEM_ID, OEM_TABLE_ID, OEM_REVISION);
    xsdt.add_entry(area.place(&fadt(facs_gpa, dsdt_gpa)));
    xsdt.add_entry(area.place(&madt(config.cpus)));
    let xsdt_gpa = area.place(&xsdt);

    let bytes = area.bytes.len() as u64;
    let room_bytes = layout::ACPI_TABLES_END - layout::ACPI_TABLES;
    if bytes > room_bytes {
        return Err(BootError::TableTooLarge { table: "ACPI", bytes, room_bytes });
    }
    let mut rsdp = Vec::new();
    Rsdp::new(OEM_ID, xsdt_gpa).to_aml_bytes(&mut rsdp);
    write(memory, layout::ACPI_RSDP, &rsdp, "the ACPI RSDP")?;
    write(memory, layout::ACPI_TABLES, &area.bytes, "the ACPI tables")
}

/// IAPC_BOOT_ARCH: serial port and RTC are there, VGA is not. The bit for an 8042 stays clear: the port is only
/// a reset line here, and a kernel that searched it for a keyboard would wait for answers that don't come.
const BOOT_ARCH: u16 = 1 << 0 | 1 << 2;

fn io_register(port: u16, bits: u8, access: AccessSize) -> GAS {
    GAS::new(AddressSpace::SystemIo, bits, 0, access, u64::from(port))
}

fn fadt(facs_gpa: u64, dsdt_gpa: u64) -> impl Aml {
    let mut fadt = FADTBuilder::new(OEM_ID, OEM_TABLE_ID, OEM_REVISION)
        .firmware_ctrl_64(facs_gpa)
        .dsdt_64(dsdt_gpa)
        .flag(Flags::Wbinvd)
        .flag(Flags::ProcC1)
        // A set bit says that there is no fixed-feature sleep button and no RTC wake; the power button is one.
        .flag(Flags::SlpButton)
        .flag(Flags::FixRtc)
        .flag(Flags::ResetRegSup);
    fadt.sci_int = (layout::SCI_GSI as u16).into();
    // No SMI command port: the machine is in ACPI mode from the start.
    fadt.pm1a_evt_blk = u32::from(layout::PM1A_EVENT_PORT).into();
    fadt.pm1_evt_len = layout::PM1A_EVENT_PORT_COUNT;
    fadt.x_pm1a_evt_blk =
        io_register(layout::PM1A_EVENT_PORT, 8 * layout::PM1A_EVENT_PORT_COUNT, AccessSize::WordAccess);
    fadt.pm1a_cnt_blk = u32::from(layout::PM1A_CONTROL_PORT).into();
    fadt.pm1_cnt_len = layout::PM1A_CONTROL_PORT_COUNT;
    fadt.x_pm1a_cnt_blk =
        io_register(layout::PM1A_CONTROL_PORT, 8 * layout::PM1A_CONTROL_PORT_COUNT, AccessSize::WordAccess);
    fadt.gpe0_blk = u32::from(layout::GPE0_PORT).into();
    fadt.gpe0_blk_len = layout::GPE0_PORT_COUNT;
    fadt.x_gpe0_blk = io_register(layout::GPE0_PORT, 8 * layout::GPE0_PORT_COUNT, AccessSize::ByteAccess);
    // Above these latencies C2 and C3 do not exist (5.2.9).
    fadt.p_lvl2_lat = 101.into();
    fadt.p_lvl3_lat = 1001.into();
    fadt.iapc_boot_arch = BOOT_ARCH.into();
    fadt.reset_reg = io_register(layout::I8042_COMMAND_PORT, 8, AccessSize::ByteAccess);
    fadt.reset_value = layout::I8042_RESET;
    fadt.finalize()
}

const MADT_REVISION: u8 = 4;
/// Flag: two 8259s are there too.
const PCAT_COMPAT: u32 = 1;
/// MPS INTI flags: active high, edge-triggered (5.2.12.5).
const ACTIVE_HIGH_EDGE: u16 = 1 | 1 << 2;

/// ISA interrupts are IOAPIC pins of the same number, the timer's too, as KVM routes them by default. Only the SCI,
/// by the book level-triggered and active low, needs an override.
fn madt(cpus: u8) -> impl Aml {
    let mut madt = Sdt::new(*b"APIC", HEADER_BYTES, MADT_REVISION, OEM_ID, OEM_TABLE_ID, OEM_REVISION);
    let mut body = Vec::new();
    body.extend((layout::LAPIC as u32).to_le_bytes());
    body.extend(PCAT_COMPAT.to_le_bytes());
    for apic_id in 0..cpus {
        ProcessorLocalApic::new(apic_id, apic_id, EnabledStatus::Enabled).to_aml_bytes(&mut body);
    }
    IoApic::new(cpus, layout::IOAPIC as u32, 0).to_aml_bytes(&mut body);
    body.extend(source_override(layout::SCI_GSI, ACTIVE_HIGH_EDGE));
    body.extend(LAPIC_NMI);
    madt.append_slice(&body);
    madt
}

/// Interrupt source override (5.2.12.5) of an ISA interrupt that keeps its number.
fn source_override(gsi: u32, flags: u16) -> Vec<u8> {
    let mut bytes = vec![2, 10, 0, gsi as u8];
    bytes.extend(gsi.to_le_bytes());
    bytes.extend(flags.to_le_bytes());
    bytes
}

/// Local APIC NMI (5.2.12.7): LINT1 of all processors, as the bus has it.
const LAPIC_NMI: [u8; 6] = [4, 6, 0xff, 0, 0, 1];

#[cfg(test)]
mod tests;
