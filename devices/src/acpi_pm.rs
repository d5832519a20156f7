//! ACPI fixed hardware: the power button and soft-off (ACPI 6.5, 4.8.3.1 and 4.8.3.2).
//!
//! ```text
//! +0 PM1a status (u16, write 1 to clear)   +2 PM1a enable (u16)   +4 PM1a control (u16)
//! ```

use std::sync::Arc;

use tern_schema::record;
use vmm_sys_util::eventfd::EventFd;

use crate::irq::raise;
use crate::{BusDevice, Interrupt, RestoreError, Stateful};

const REGISTER_BYTES: usize = 6;
const STATUS: usize = 0;
const ENABLE: usize = 2;
const CONTROL: usize = 4;

/// Power button: status and enable bit.
const POWER_BUTTON: u16 = 1 << 8;
/// Global lock: status and enable bit, which Linux writes at start.
const GLOBAL_LOCK: u16 = 1 << 5;
/// Wake status, write 1 to clear.
const WAKE: u16 = 1 << 15;
const STATUS_BITS: u16 = POWER_BUTTON | GLOBAL_LOCK | WAKE;
const ENABLE_BITS: u16 = POWER_BUTTON | GLOBAL_LOCK;

/// The platform is in ACPI mode, always: the FADT names no SMI command to change that.
const SCI_ENABLED: u16 = 1;
const SLEEP_TYPE_SHIFT: u16 = 10;
const SLEEP_TYPE: u16 = 7 << SLEEP_TYPE_SHIFT;
const SLEEP_ENABLE: u16 = 1 << 13;
/// `SLP_TYP` of S5, as the DSDT's `_S5_` must say.
const SOFT_OFF: u16 = 5;

record! {
    /// Saved state of [`AcpiPm`].
    pub struct AcpiPmV1 = "acpi-pm" 1 {
        /// PM1a status.
        [1] status: u16,
        /// PM1a enable.
        [2] enable: u16,
        /// PM1a control without its write-only and fixed bits: the sleep type.
        [3] control: u16,
    }
}

/// The PM1a blocks.
pub struct AcpiPm {
    // Glue.
    sci: Arc<dyn Interrupt>,
    power_off: EventFd,
    // State.
    status: u16,
    enable: u16,
    control: u16,
}

impl AcpiPm {
    /// `sci` is the ACPI interrupt; `power_off` is written to when the guest enters S5.
    pub fn new(sci: Arc<dyn Interrupt>, power_off: EventFd) -> Self {
        Self { sci, power_off, status: 0, enable: 0, control: 0 }
    }

    /// Back to power-on.
    pub fn reset(&mut self) {
        let Self { sci: _, power_off: _, status, enable, control } = self;
        (*status, *enable, *control) = (0, 0, 0);
    }

    /// A person presses the power button. False if the guest doesn't listen (yet); it will see the press
    /// when it does.
    pub fn press_power_button(&mut self) -> bool {
        self.status |= POWER_BUTTON;
        self.raise_if_pending();
        self.enable & POWER_BUTTON != 0
    }

    fn raise_if_pending(&self) {
        if self.status & self.enable != 0 {
            raise(&*self.sci, "acpi-pm");
        }
    }

    fn registers(&self) -> [u8; REGISTER_BYTES] {
        let [s0, s1] = self.status.to_le_bytes();
        let [e0, e1] = self.enable.to_le_bytes();
        let [c0, c1] = (self.control | SCI_ENABLED).to_le_bytes();
        [s0, s1, e0, e1, c0, c1]
    }

    fn write_register(&mut self, register: usize, value: u16, mask: u16) {
        match register {
            STATUS => self.status &= !(value & mask),
            ENABLE => {
                self.enable = ((self.enable & !mask) | (value & mask)) & ENABLE_BITS;
                self.raise_if_pending();
            }
            CONTROL => {
                let control = (self.control & !mask) | (value & mask);
                self.control = control & SLEEP_TYPE;
                let sleep_type = self.control >> SLEEP_TYPE_SHIFT;
                if control & SLEEP_ENABLE != 0 && sleep_type == SOFT_OFF {
                    raise(&self.power_off, "acpi-pm");
                }
            }
            _ => {}
        }
    }
}

impl BusDevice for AcpiPm {
    fn read(&mut self, offset: u64, data: &mut [u8]) {
        data.fill(0);
        let registers = self.registers();
        let from = usize::try_from(offset).unwrap_or(REGISTER_BYTES);
        for (to, byte) in data.iter_mut().zip(registers.iter().skip(from)) {
            *to = *byte;
        }
    }

    // Guests may write bytes, words, or status and enable as one u32.
    fn write(&mut self, offset: u64, data: &[u8]) {
        for register in [STATUS, ENABLE, CONTROL] {
            let (mut value, mut mask) = ([0; 2], [0; 2]);
            for (position, byte) in (offset..).zip(data) {
                let place = position.checked_sub(register as u64).and_then(|at| usize::try_from(at).ok());
                let Some(at) = place.filter(|at| *at < 2) else { continue };
                (value[at], mask[at]) = (*byte, 0xff);
            }
            if mask != [0; 2] {
                self.write_register(register, u16::from_le_bytes(value), u16::from_le_bytes(mask));
            }
        }
    }
}

impl Stateful for AcpiPm {
    type Saved = AcpiPmV1;

    fn save(&self) -> AcpiPmV1 {
        let Self { sci: _, power_off: _, status, enable, control } = self;
        AcpiPmV1 { status: *status, enable: *enable, control: *control }
    }

    fn check(&self, saved: &AcpiPmV1) -> Result<(), RestoreError> {
        let AcpiPmV1 { status, enable, control } = *saved;
        let fields = [
            ("status", status, STATUS_BITS, "only the bits 5, 8 and 15 exist"),
            ("enable", enable, ENABLE_BITS, "only the bits 5 and 8 exist"),
            ("control", control, SLEEP_TYPE, "only the bits 10 to 12 are kept"),
        ];
        for (field, found, legal, expected) in fields {
            if found & !legal != 0 {
                let found = u64::from(found);
                return Err(RestoreError::Field { record: "AcpiPmV1", field, found, expected });
            }
        }
        Ok(())
    }

    fn restore(&mut self, saved: AcpiPmV1) -> Result<(), RestoreError> {
        self.check(&saved)?;
        let AcpiPmV1 { status, enable, control } = saved;
        (self.status, self.enable, self.control) = (status, enable, control);
        self.raise_if_pending();
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn chip() -> (AcpiPm, EventFd, EventFd) {
        let event = || EventFd::new(libc::EFD_NONBLOCK).unwrap();
        let (sci, off) = (event(), event());
        (AcpiPm::new(Arc::new(sci.try_clone().unwrap()), off.try_clone().unwrap()), sci, off)
    }

    #[test]
    fn a_press_interrupts_when_enabled_and_is_cleared_by_writing_one() {
        let (mut chip, sci, _) = chip();
        assert!(!chip.press_power_button());
        assert!(sci.read().is_err(), "not enabled yet");
        chip.write(2, &POWER_BUTTON.to_le_bytes());
        assert_eq!(sci.read().unwrap(), 1);
        let mut status = [0; 2];
        chip.read(0, &mut status);
        assert_eq!(u16::from_le_bytes(status), POWER_BUTTON);
        chip.write(1, &[1]);
        chip.read(0, &mut status);
        assert_eq!(status, [0; 2]);
        assert!(chip.press_power_button());
        assert_eq!(sci.read().unwrap(), 1);
    }

    #[test]
    fn a_pending_press_interrupts_again_after_a_migration() {
        let (mut source, _, _) = chip();
        source.write(0, &(u32::from(POWER_BUTTON) << 16).to_le_bytes());
        source.press_power_button();
        let saved = source.save();
        let (mut destination, sci, _) = chip();
        destination.restore(saved.clone()).unwrap();
        assert_eq!(sci.read().unwrap(), 1);
        assert_eq!(destination.save(), saved);
        destination.reset();
        assert_eq!(destination.save(), chip().0.save());
    }

    #[test]
    fn only_soft_off_powers_off() {
        let (mut chip, _, off) = chip();
        for sleep_type in (0..8).filter(|t| *t != SOFT_OFF) {
            chip.write(4, &(sleep_type << SLEEP_TYPE_SHIFT | SLEEP_ENABLE).to_le_bytes());
        }
        chip.write(4, &(SOFT_OFF << SLEEP_TYPE_SHIFT).to_le_bytes());
        assert!(off.read().is_err());
        chip.write(4, &(SOFT_OFF << SLEEP_TYPE_SHIFT | SLEEP_ENABLE).to_le_bytes());
        assert_eq!(off.read().unwrap(), 1);
        let mut control = [0; 2];
        chip.read(4, &mut control);
        assert_eq!(u16::from_le_bytes(control) & (SLEEP_ENABLE | SCI_ENABLED), SCI_ENABLED);
    }

    proptest! {
        #[test]
        fn any_access_leaves_a_legal_state(accesses: Vec<(bool, u64, Vec<u8>)>, far: u64) {
            let (mut chip, ..) = chip();
            chip.write(far, &[0xff; 8]);
            for (write, offset, mut data) in accesses {
                if write { chip.write(offset % 8, &data) } else { chip.read(offset % 8, &mut data) }
            }
            prop_assert!(chip.check(&chip.save()).is_ok());
        }

        #[test]
        fn any_state_is_taken_whole_or_refused(status: u16, enable: u16, control: u16) {
            let (mut chip, ..) = chip();
            let before = chip.save();
            let saved = AcpiPmV1 { status, enable, control };
            let taken = chip.restore(saved.clone()).is_ok();
            prop_assert_eq!(chip.save(), if taken { saved } else { before });
        }
    }
}
