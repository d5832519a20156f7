//! Machine profiles: what a guest sees of its machine whatever tern runs it, by name.
//!
//! A profile is never changed once it has shipped. A tern that wants to show guests another machine gets a
//! new row, and keeps the old ones for the guests that were started with them.

use crate::layout;

/// One machine, as a guest sees it.
#[derive(Debug, Clone, Copy)]
pub struct MachineProfile {
    /// Its name, such as `tern-1`.
    pub name: &'static str,
    /// What it fixes, and how.
    pub pins: fn() -> Vec<Pin>,
}

/// One fact that a profile fixes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pin {
    /// What.
    pub what: &'static str,
    /// How.
    pub value: String,
}

/// All profiles; the last one is what new guests get.
pub const PROFILES: [MachineProfile; 1] = [TERN_1];

/// The profile of new guests.
pub const CURRENT: MachineProfile = TERN_1;

const TERN_1: MachineProfile = MachineProfile { name: "tern-1", pins: tern_1 };

/// Taken from the constants that the machine is made of, so that none of them can change unnoticed.
fn tern_1() -> Vec<Pin> {
    let (hole, ram_again) = (layout::HOLE_START, layout::HOLE_END);
    let (pins, ioapic, lapic) = (layout::IOAPIC_PINS, layout::IOAPIC, layout::LAPIC);
    let gsis = layout::VIRTIO_GSIS.map(|gsi| gsi.to_string()).join(" ");
    let rows = [
        ("vcpus", format!("1 to {}", layout::MAX_CPUS)),
        ("ram", format!("from 0 up to {hole:#x}, the rest from {ram_again:#x}")),
        (
            "interrupts",
            format!("KVM's two 8259 and PIT, IOAPIC of {pins} pins at {ioapic:#x}, LAPIC at {lapic:#x}"),
        ),
        ("serial", ports(layout::SERIAL_PORT, layout::SERIAL_PORT_COUNT, Some(layout::SERIAL_GSI))),
        ("i8042", format!("ports {:#x} and {:#x}", layout::I8042_DATA_PORT, layout::I8042_COMMAND_PORT)),
        ("rtc", ports(layout::RTC_PORT, 2, Some(layout::RTC_GSI))),
        (
            "acpi-pm1a-event",
            ports(layout::PM1A_EVENT_PORT, layout::PM1A_EVENT_PORT_COUNT, Some(layout::SCI_GSI)),
        ),
        ("acpi-pm1a-control", ports(layout::PM1A_CONTROL_PORT, layout::PM1A_CONTROL_PORT_COUNT, None)),
        ("acpi-gpe0", ports(layout::GPE0_PORT, layout::GPE0_PORT_COUNT, Some(layout::SCI_GSI))),
        ("vm-generation-id", format!("at {:#x}", layout::VM_GENERATION_ID)),
        (
            "virtio-mmio",
            format!("{:#x} bytes each from {:#x}", layout::VIRTIO_MMIO_BYTES, layout::VIRTIO_MMIO),
        ),
        ("virtio-gsis", gsis),
    ];
    rows.into_iter().map(|(what, value)| Pin { what, value }).collect()
}

fn ports(first: u16, count: u8, gsi: Option<u32>) -> String {
    let line = gsi.map_or_else(String::new, |gsi| format!(", GSI {gsi}"));
    format!("{count} ports from {first:#x}{line}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn new_guests_get_the_last_profile_and_names_are_distinct() {
        assert_eq!(PROFILES.last().map(|profile| profile.name), Some(CURRENT.name));
        let names = PROFILES.map(|profile| profile.name);
        assert!(names.iter().enumerate().all(|(index, name)| !names[..index].contains(name)));
    }
}
