//! State of the in-kernel chips: both 8259, the I/O APIC, the PIT, and the VM's clock.

use kvm_bindings::{
    KVM_CLOCK_HOST_TSC, KVM_CLOCK_REALTIME, KVM_IRQCHIP_IOAPIC, KVM_IRQCHIP_PIC_MASTER,
    KVM_IRQCHIP_PIC_SLAVE, kvm_clock_data, kvm_irqchip, kvm_pic_state, kvm_pit_channel_state, kvm_pit_state2,
};
use kvm_ioctls::VmFd;
use tern_schema::record;
use thiserror::Error;

/// Why a chip's state could not be saved or restored.
#[derive(Debug, Error)]
pub enum ChipError {
    /// KVM refused.
    #[error("KVM {operation} failed")]
    Kvm {
        /// The ioctl.
        operation: &'static str,
        /// KVM's reason.
        #[source]
        source: kvm_ioctls::Error,
    },
    /// A list has the wrong length.
    #[error("{what}: {found} entries, the chip has {expected}")]
    Count {
        /// What is listed.
        what: &'static str,
        /// Entries found.
        found: usize,
        /// Entries of the chip.
        expected: usize,
    },
}

fn kvm(operation: &'static str) -> impl Fn(kvm_ioctls::Error) -> ChipError {
    move |source| ChipError::Kvm { operation, source }
}

record! {
    /// One 8259 interrupt controller; instance 0 is the master.
    pub struct PicV1 = "pic" 1 {
        /// Edge detection of the last level.
        [1] last_irr: u8,
        /// Interrupt request register.
        [2] irr: u8,
        /// Interrupt mask register.
        [3] imr: u8,
        /// In-service register.
        [4] isr: u8,
        /// Highest priority, for rotation.
        [5] priority_add: u8,
        /// First vector.
        [6] irq_base: u8,
        /// Does a read give the ISR?
        [7] read_reg_select: u8,
        /// Poll command pending.
        [8] poll: u8,
        /// Special mask mode.
        [9] special_mask: u8,
        /// Position in the initialisation sequence.
        [10] init_state: u8,
        /// Automatic EOI.
        [11] auto_eoi: u8,
        /// Rotate on automatic EOI.
        [12] rotate_on_auto_eoi: u8,
        /// Special fully nested mode.
        [13] special_fully_nested_mode: u8,
        /// ICW4 expected.
        [14] init4: u8,
        /// Edge/level control register.
        [15] elcr: u8,
        /// Which ELCR bits can be written.
        [16] elcr_mask: u8,
    }
}

impl PicV1 {
    /// Reads a PIC; `instance` 0 is the master.
    pub fn save(vm: &VmFd, instance: u32) -> Result<Self, ChipError> {
        let mut chip = kvm_irqchip { chip_id: pic_id(instance), ..Default::default() };
        vm.get_irqchip(&mut chip).map_err(kvm("GET_IRQCHIP (PIC)"))?;
        let kvm_pic_state {
            last_irr,
            irr,
            imr,
            isr,
            priority_add,
            irq_base,
            read_reg_select,
            poll,
            special_mask,
            init_state,
            auto_eoi,
            rotate_on_auto_eoi,
            special_fully_nested_mode,
            init4,
            elcr,
            elcr_mask,
        } = pic_of(&chip);
        Ok(Self {
            last_irr,
            irr,
            imr,
            isr,
            priority_add,
            irq_base,
            read_reg_select,
            poll,
            special_mask,
            init_state,
            auto_eoi,
            rotate_on_auto_eoi,
            special_fully_nested_mode,
            init4,
            elcr,
            elcr_mask,
        })
    }

    /// Writes a PIC; `instance` 0 is the master.
    pub fn restore(&self, vm: &VmFd, instance: u32) -> Result<(), ChipError> {
        let Self {
            last_irr,
            irr,
            imr,
            isr,
            priority_add,
            irq_base,
            read_reg_select,
            poll,
            special_mask,
            init_state,
            auto_eoi,
            rotate_on_auto_eoi,
            special_fully_nested_mode,
            init4,
            elcr,
            elcr_mask,
        } = *self;
        let mut chip = kvm_irqchip { chip_id: pic_id(instance), ..Default::default() };
        chip.chip.pic = kvm_pic_state {
            last_irr,
            irr,
            imr,
            isr,
            priority_add,
            irq_base,
            read_reg_select,
            poll,
            special_mask,
            init_state,
            auto_eoi,
            rotate_on_auto_eoi,
            special_fully_nested_mode,
            init4,
            elcr,
            elcr_mask,
        };
        vm.set_irqchip(&chip).map_err(kvm("SET_IRQCHIP (PIC)"))
    }
}

fn pic_id(instance: u32) -> u32 {
    if instance == 0 { KVM_IRQCHIP_PIC_MASTER } else { KVM_IRQCHIP_PIC_SLAVE }
}

#[allow(unsafe_code, reason = "the kernel's union; chip_id says which member is meant")]
fn pic_of(chip: &kvm_irqchip) -> kvm_pic_state {
    // SAFETY: every bit pattern is a kvm_pic_state, and KVM filled this member for a PIC's chip_id.
    unsafe { chip.chip.pic }
}

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

record! {
    /// One channel of the 8254.
    pub struct PitChannelV1 {
        /// Reload value; 65536 is possible.
        [1] count: u32,
        /// Latched counter.
        [2] latched_count: u16,
        /// Which half of the latch is next.
        [3] count_latched: u8,
        /// Status latched?
        [4] status_latched: u8,
        /// Latched status.
        [5] status: u8,
        /// Read half.
        [6] read_state: u8,
        /// Write half.
        [7] write_state: u8,
        /// First half written.
        [8] write_latch: u8,
        /// Read/write mode.
        [9] rw_mode: u8,
        /// Counter mode.
        [10] mode: u8,
        /// BCD counting.
        [11] bcd: u8,
        /// Gate input.
        [12] gate: u8,
        /// When the counter was loaded, in the host's ktime. Kept as KVM gives it; KVM reloads the counter
        /// on restore.
        [13] count_load_time_ns: i64,
    }
}

record! {
    /// The 8254 timer.
    pub struct PitV1 = "pit" 1 {
        /// Its three channels.
        [1] channels: Vec<PitChannelV1>,
        /// KVM's flags: HPET legacy, speaker data.
        [2] flags: u32,
    }
}

impl PitV1 {
    /// Reads the PIT.
    pub fn save(vm: &VmFd) -> Result<Self, ChipError> {
        let kvm_pit_state2 { channels, flags, reserved: _ } = vm.get_pit2().map_err(kvm("GET_PIT2"))?;
        let channel = |channel: &kvm_pit_channel_state| {
            let kvm_pit_channel_state {
                count,
                latched_count,
                count_latched,
                status_latched,
                status,
                read_state,
                write_state,
                write_latch,
                rw_mode,
                mode,
                bcd,
                gate,
                count_load_time: count_load_time_ns,
            } = *channel;
            PitChannelV1 {
                count,
                latched_count,
                count_latched,
                status_latched,
                status,
                read_state,
                write_state,
                write_latch,
                rw_mode,
                mode,
                bcd,
                gate,
                count_load_time_ns,
            }
        };
        Ok(Self { channels: channels.iter().map(channel).collect(), flags })
    }

    /// Is this state possible? Called before anything is applied.
    pub fn validate(&self) -> Result<(), ChipError> {
        let (what, found, expected) = ("pit.channels", self.channels.len(), 3);
        if found == expected { Ok(()) } else { Err(ChipError::Count { what, found, expected }) }
    }

    /// Writes the PIT.
    pub fn restore(&self, vm: &VmFd) -> Result<(), ChipError> {
        self.validate()?;
        let Self { channels, flags } = self;
        let mut state = kvm_pit_state2 { flags: *flags, ..Default::default() };
        for (to, from) in state.channels.iter_mut().zip(channels) {
            let PitChannelV1 {
                count,
                latched_count,
                count_latched,
                status_latched,
                status,
                read_state,
                write_state,
                write_latch,
                rw_mode,
                mode,
                bcd,
                gate,
                count_load_time_ns: count_load_time,
            } = *from;
            *to = kvm_pit_channel_state {
                count,
                latched_count,
                count_latched,
                status_latched,
                status,
                read_state,
                write_state,
                write_latch,
                rw_mode,
                mode,
                bcd,
                gate,
                count_load_time,
            };
        }
        vm.set_pit2(&state).map_err(kvm("SET_PIT2"))
    }
}

record! {
    /// The VM's clock: kvmclock, and the host's clocks at the same instant where the host can say.
    pub struct ClockV1 = "clock" 1 {
        /// kvmclock.
        [1] guest_ns: u64,
        /// The host's CLOCK_REALTIME at that instant.
        [2] host_realtime_ns: Option<u64>,
        /// The host's TSC at that instant.
        [3] host_tsc: Option<u64>,
    }
}

/// Furthest that the guest's clock is moved on for the time in which it was stopped: more is a fault of
/// one of the hosts' clocks, not a stop.
const STOPPED_MAX_NS: u64 = 600 * 1_000_000_000;

impl ClockV1 {
    /// Reads the clock.
    pub fn save(vm: &VmFd) -> Result<Self, ChipError> {
        let data = vm.get_clock().map_err(kvm("GET_CLOCK"))?;
        let flagged = |flag: u32, value: u64| (data.flags & flag != 0).then_some(value);
        let host_realtime_ns = flagged(KVM_CLOCK_REALTIME, data.realtime);
        Ok(Self {
            guest_ns: data.clock,
            host_realtime_ns,
            host_tsc: flagged(KVM_CLOCK_HOST_TSC, data.host_tsc),
        })
    }

    /// Writes the clock, moved on by the time that has passed since it was saved, if both hosts' clocks say
    /// how long that was and it is plausible (`host_now_ns` is this host's CLOCK_REALTIME). Returns what the
    /// clock is now.
    pub fn restore(&self, vm: &VmFd, host_now_ns: u64) -> Result<Self, ChipError> {
        let mut data = kvm_clock_data { clock: self.guest_ns, ..Default::default() };
        if let Some(then_ns) = self.host_realtime_ns
            && host_now_ns.checked_sub(then_ns).is_some_and(|stopped| stopped <= STOPPED_MAX_NS)
        {
            (data.flags, data.realtime) = (KVM_CLOCK_REALTIME, then_ns);
        }
        vm.set_clock(&data).map_err(kvm("SET_CLOCK"))?;
        Self::save(vm)
    }

    /// What a vCPU's TSC offset must become here so that TSC and kvmclock go on together: the algorithm of
    /// the kernel's `Documentation/virt/kvm/devices/vcpu.rst`, section 4.1. `None` where a host doesn't
    /// report its TSC.
    pub fn moved_tsc_offset(&self, here: &Self, offset: u64, tsc_khz: u32) -> Option<u64> {
        let (source_tsc, destination_tsc) = (self.host_tsc?, here.host_tsc?);
        let passed_ns = i128::from(here.guest_ns) - i128::from(self.guest_ns);
        let passed_ticks = passed_ns * i128::from(tsc_khz) / 1_000_000;
        let ticks = i128::from(source_tsc) - i128::from(destination_tsc) + passed_ticks;
        Some(offset.wrapping_add(ticks as u64))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn clock(guest_ns: u64, host_tsc: u64) -> ClockV1 {
        ClockV1 { guest_ns, host_realtime_ns: None, host_tsc: Some(host_tsc) }
    }

    #[test]
    fn the_guest_tsc_advances_as_its_clock_did() {
        // 2 GHz: 5 ms passed for the guest, so 10 M ticks. Source: guest TSC = 1000 + 50.
        let (source, here) = (clock(1_000_000_000, 1000), clock(1_005_000_000, 7_000_000));
        let offset = source.moved_tsc_offset(&here, 50, 2_000_000).unwrap();
        assert_eq!(7_000_000u64.wrapping_add(offset), 1050 + 10_000_000);
    }

    #[test]
    fn without_a_host_tsc_there_is_no_answer() {
        let silent = ClockV1 { host_tsc: None, ..clock(0, 0) };
        assert_eq!(silent.moved_tsc_offset(&clock(0, 0), 1, 1), None);
    }
}
