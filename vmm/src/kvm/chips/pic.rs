//! The two 8259 interrupt controllers.

use kvm_bindings::{KVM_IRQCHIP_PIC_MASTER, KVM_IRQCHIP_PIC_SLAVE, kvm_irqchip, kvm_pic_state};
use kvm_ioctls::VmFd;
use tern_schema::record;

use super::{ChipError, kvm};

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
