//! The DSDT: devices that a kernel cannot find by itself, and how to power off.

use acpi_tables::Aml;
use acpi_tables::aml::{
    Device, EISAName, IO, Interrupt, Memory32Fixed, Method, Name, Notify, Package, Path, ResourceTemplate,
    Scope,
};
use acpi_tables::sdt::Sdt;

use super::{HEADER_BYTES, OEM_ID, OEM_REVISION, OEM_TABLE_ID};
use crate::layout::{self, VirtioSlot};

/// From 2 on, AML integers have 64 bits.
const REVISION: u8 = 2;
/// What the kernel's virtio-mmio driver binds to.
const VIRTIO_MMIO_HID: &str = "LNRO0005";

pub(super) fn dsdt(virtio: &[VirtioSlot]) -> impl Aml + use<> {
    let mut body = Vec::new();
    let mut devices = vec![serial(), rtc(), generation_id()];
    devices.extend(virtio.iter().enumerate().map(|(index, slot)| virtio_mmio(index, slot)));
    let devices = devices.iter().map(|device| device as &dyn Aml).collect();
    Scope::new(Path::new("\\_SB_"), devices).to_aml_bytes(&mut body);
    generation_changed().to_aml_bytes(&mut body);
    let sleep = Package::new(vec![&layout::S5_SLEEP_TYPE, &0_u8, &0_u8, &0_u8]);
    Name::new(Path::new("\\_S5_"), &sleep).to_aml_bytes(&mut body);

    let mut dsdt = Sdt::new(*b"DSDT", HEADER_BYTES, REVISION, OEM_ID, OEM_TABLE_ID, OEM_REVISION);
    dsdt.append_slice(&body);
    dsdt
}

fn serial() -> DeviceAml {
    let ports = IO::new(layout::SERIAL_PORT, layout::SERIAL_PORT, 1, layout::SERIAL_PORT_COUNT);
    DeviceAml::new("COM1", &EISAName::new("PNP0501"), 0, &[&ports, &edge(layout::SERIAL_GSI)])
}

/// Without an interrupt: drivers fall back to line 8 by themselves where there is a PIC.
fn rtc() -> DeviceAml {
    let ports = IO::new(layout::RTC_PORT, layout::RTC_PORT, 1, 2);
    DeviceAml::new("RTC0", &EISAName::new("PNP0B00"), 0, &[&ports])
}

/// Where the VM generation ID is, as Microsoft's specification has it: `ADDR` is the address's low and high half. The
/// first compatible ID is the specification's; the other, short enough for the ACPI standard, came with Hyper-V.
fn generation_id() -> DeviceAml {
    let gpa = layout::VM_GENERATION_ID;
    let mut bytes = Vec::new();
    let hid = Name::new(Path::new("_HID"), &"TERN0001");
    let cid = Name::new(Path::new("_CID"), &Package::new(vec![&"VM_Gen_Counter", &"VMGENCTR"]));
    let ddn = Name::new(Path::new("_DDN"), &"VM_Gen_Counter");
    let (low, high) = (gpa as u32, (gpa >> 32) as u32);
    let place = Name::new(Path::new("ADDR"), &Package::new(vec![&low, &high]));
    Device::new(Path::new("VGEN"), vec![&hid, &cid, &ddn, &place]).to_aml_bytes(&mut bytes);
    DeviceAml(bytes)
}

/// Event 0 of the general-purpose event block, edge-triggered: the VM generation ID has changed.
fn generation_changed() -> DeviceAml {
    let (device, changed) = (Path::new("\\_SB_.VGEN"), 0x80_u8);
    let notify = Notify::new(&device, &changed);
    let event = Method::new(Path::new("_E00"), 0, false, vec![&notify]);
    let mut bytes = Vec::new();
    Scope::new(Path::new("\\_GPE"), vec![&event]).to_aml_bytes(&mut bytes);
    DeviceAml(bytes)
}

fn virtio_mmio(index: usize, slot: &VirtioSlot) -> DeviceAml {
    // All slots lie in the 32-bit hole.
    let registers = Memory32Fixed::new(true, slot.gpa as u32, slot.len as u32);
    DeviceAml::new(&format!("V{index:03X}"), &VIRTIO_MMIO_HID, index, &[&registers, &edge(slot.gsi)])
}

/// Consumer, edge-triggered, active high, not shared: what irqfd delivers.
fn edge(gsi: u32) -> Interrupt {
    Interrupt::new(true, true, false, false, gsi)
}

/// A finished device object: `acpi_tables` builds from references, which a list of devices cannot hold.
struct DeviceAml(Vec<u8>);

impl DeviceAml {
    fn new(name: &str, hid: &dyn Aml, unit: usize, resources: &[&dyn Aml]) -> Self {
        let mut bytes = Vec::new();
        let hid = Name::new(Path::new("_HID"), hid);
        let uid = Name::new(Path::new("_UID"), &unit);
        let crs = Name::new(Path::new("_CRS"), &ResourceTemplate::new(resources.to_vec()));
        Device::new(Path::new(name), vec![&hid, &uid, &crs]).to_aml_bytes(&mut bytes);
        Self(bytes)
    }
}

impl Aml for DeviceAml {
    fn to_aml_bytes(&self, sink: &mut dyn acpi_tables::AmlSink) {
        sink.vec(&self.0);
    }
}
