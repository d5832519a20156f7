//! The I/O APIC.

use kvm_bindings::{KVM_IRQCHIP_IOAPIC, kvm_irqchip};
use kvm_ioctls::VmFd;
use tern_schema::record;

use super::{ChipError, kvm};

/// Pins of the I/O APIC.
const IOAPIC_PINS: usize = 24;

record! {
    /// The I/O APIC.
    pub struct IoapicV1 = "ioapic" 1 {
        /// Guest-physical address.
        [1] base_gpa: u64,
        /// Register selected.
        [2] ioregsel: u32,
        /// APIC id.
        [3] id: u32,
        /// Pending pins, a bit each.
        [4] irr: u32,
        /// Redirection table, 24 entries.
        [5] redirection: Vec<u64>,
    }
}

impl IoapicV1 {
    /// Reads the I/O APIC.
    #[allow(unsafe_code, reason = "the kernel's unions; chip_id says which member is meant")]
    pub fn save(vm: &VmFd) -> Result<Self, ChipError> {
        let mut chip = kvm_irqchip { chip_id: KVM_IRQCHIP_IOAPIC, ..Default::default() };
        vm.get_irqchip(&mut chip).map_err(kvm("GET_IRQCHIP (IOAPIC)"))?;
        // SAFETY: every bit pattern is a kvm_ioapic_state, and KVM filled this member.
        let ioapic = unsafe { chip.chip.ioapic };
        // SAFETY: both members of an entry's union are plain integers of the same size.
        let redirection = ioapic.redirtbl.iter().map(|entry| unsafe { entry.bits }).collect();
        let (ioregsel, id, irr) = (ioapic.ioregsel, ioapic.id, ioapic.irr);
        Ok(Self { base_gpa: ioapic.base_address, ioregsel, id, irr, redirection })
    }

    /// Is this state possible? Called before anything is applied.
    pub fn validate(&self) -> Result<(), ChipError> {
        let (what, found, expected) = ("ioapic.redirection", self.redirection.len(), IOAPIC_PINS);
        if found == expected { Ok(()) } else { Err(ChipError::Count { what, found, expected }) }
    }

    /// Writes the I/O APIC.
    #[allow(unsafe_code, reason = "the kernel's union; chip_id says which member is meant")]
    pub fn restore(&self, vm: &VmFd) -> Result<(), ChipError> {
        self.validate()?;
        let Self { base_gpa, ioregsel, id, irr, redirection } = self;
        let mut chip = kvm_irqchip { chip_id: KVM_IRQCHIP_IOAPIC, ..Default::default() };
        // SAFETY: the union is plain integers, zeroed above; this names the member that KVM will read.
        let ioapic = unsafe { &mut chip.chip.ioapic };
        (ioapic.base_address, ioapic.ioregsel, ioapic.id, ioapic.irr) = (*base_gpa, *ioregsel, *id, *irr);
        for (entry, bits) in ioapic.redirtbl.iter_mut().zip(redirection) {
            entry.bits = *bits;
        }
        vm.set_irqchip(&chip).map_err(kvm("SET_IRQCHIP (IOAPIC)"))
    }
}
