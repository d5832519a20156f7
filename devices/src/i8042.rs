//! The keyboard controller, as far as PCs need it: a status register, and the reset line.

use tern_schema::record;
use vmm_sys_util::eventfd::EventFd;

use crate::irq::raise;
use crate::{BusDevice, RestoreError, Stateful};

/// Data port.
const DATA: u64 = 0;
/// Status (read) and command (write) port.
const COMMAND: u64 = 4;
/// Output buffer full: the guest may read a byte.
const STATUS_OUTPUT_FULL: u8 = 0x01;
/// The last byte written was a command; keyboard not locked.
const STATUS_IDLE: u8 = 0x18;

const COMMAND_READ_CONFIG: u8 = 0x20;
const COMMAND_WRITE_CONFIG: u8 = 0x60;
const COMMAND_SELF_TEST: u8 = 0xaa;
const COMMAND_TEST_KEYBOARD: u8 = 0xab;
const COMMAND_READ_OUTPUT: u8 = 0xd0;
const COMMAND_WRITE_OUTPUT: u8 = 0xd1;
/// Pulse output lines 0xf0 - 0xff: bit 0 clear pulls the CPU's reset line.
const COMMAND_PULSE: u8 = 0xf0;

const SELF_TEST_PASSED: u8 = 0x55;
/// Reset line high, A20 open.
const OUTPUT_PORT: u8 = 0x03;
/// No interrupts, both clocks off: there is no keyboard and no mouse.
const CONFIG_AT_RESET: u8 = 0x30;

record! {
    /// Saved state of [`I8042`].
    pub struct I8042V1 = "i8042" 1 {
        /// Configuration byte.
        [1] config: u8,
        /// Byte that waits to be read.
        [2] output: Option<u8>,
        /// Command that waits for its data byte.
        [3] command: Option<u8>,
    }
}

/// An i8042 without keyboard or mouse.
#[derive(Debug)]
pub struct I8042 {
    // Glue.
    reset_event: EventFd,
    // State.
    config: u8,
    output: Option<u8>,
    command: Option<u8>,
}

impl I8042 {
    /// `reset_event` is written to when the guest pulls the reset line.
    pub fn new(reset_event: EventFd) -> Self {
        Self { reset_event, config: CONFIG_AT_RESET, output: None, command: None }
    }

    /// Back to power-on.
    pub fn reset(&mut self) {
        let Self { reset_event: _, config, output, command } = self;
        (*config, *output, *command) = (CONFIG_AT_RESET, None, None);
    }

    fn command(&mut self, command: u8) {
        self.command = None;
        match command {
            COMMAND_READ_CONFIG => self.output = Some(self.config),
            COMMAND_SELF_TEST => self.output = Some(SELF_TEST_PASSED),
            // "Clock line stuck low": Linux then knows that there is no keyboard, without timeouts.
            COMMAND_TEST_KEYBOARD => self.output = Some(1),
            COMMAND_READ_OUTPUT => self.output = Some(OUTPUT_PORT),
            COMMAND_WRITE_CONFIG | COMMAND_WRITE_OUTPUT => self.command = Some(command),
            COMMAND_PULSE.. if command & 1 == 0 => raise(&self.reset_event, "i8042"),
            _ => {}
        }
    }

    fn data(&mut self, byte: u8) {
        match self.command.take() {
            Some(COMMAND_WRITE_CONFIG) => self.config = byte,
            Some(COMMAND_WRITE_OUTPUT) if byte & 1 == 0 => raise(&self.reset_event, "i8042"),
            _ => {}
        }
    }
}

impl BusDevice for I8042 {
    fn read(&mut self, offset: u64, data: &mut [u8]) {
        data.fill(0);
        let [byte] = data else { return };
        match offset {
            DATA => *byte = self.output.take().unwrap_or(0),
            COMMAND => {
                *byte = STATUS_IDLE | if self.output.is_some() { STATUS_OUTPUT_FULL } else { 0 };
            }
            _ => {}
        }
    }

    fn write(&mut self, offset: u64, data: &[u8]) {
        match (offset, data) {
            (DATA, &[byte]) => self.data(byte),
            (COMMAND, &[byte]) => self.command(byte),
            _ => {}
        }
    }
}

impl Stateful for I8042 {
    type Saved = I8042V1;

    fn save(&self) -> I8042V1 {
        let Self { reset_event: _, config, output, command } = self;
        I8042V1 { config: *config, output: *output, command: *command }
    }

    fn check(&self, saved: &I8042V1) -> Result<(), RestoreError> {
        let I8042V1 { config: _, output: _, command } = saved;
        match *command {
            None | Some(COMMAND_WRITE_CONFIG | COMMAND_WRITE_OUTPUT) => Ok(()),
            Some(found) => Err(RestoreError::Field {
                record: "I8042V1",
                field: "command",
                found: u64::from(found),
                expected: "only commands with a data byte wait: 0x60 and 0xd1",
            }),
        }
    }

    fn restore(&mut self, saved: I8042V1) -> Result<(), RestoreError> {
        self.check(&saved)?;
        let I8042V1 { config, output, command } = saved;
        (self.config, self.output, self.command) = (config, output, command);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn chip() -> (I8042, EventFd) {
        let event = EventFd::new(libc::EFD_NONBLOCK).unwrap();
        (I8042::new(event.try_clone().unwrap()), event)
    }

    fn read(chip: &mut I8042, offset: u64) -> u8 {
        let mut byte = [0xee];
        chip.read(offset, &mut byte);
        byte[0]
    }

    #[test]
    fn the_reset_line_reaches_the_event() {
        let (mut chip, event) = chip();
        chip.write(COMMAND, &[0xff]);
        assert!(event.read().is_err(), "0xff pulses no line");
        chip.write(COMMAND, &[0xfe]);
        assert_eq!(event.read().unwrap(), 1);
        chip.write(COMMAND, &[COMMAND_WRITE_OUTPUT]);
        chip.write(DATA, &[0x02]);
        assert_eq!(event.read().unwrap(), 1);
    }

    #[test]
    fn a_command_with_a_data_byte_survives_a_migration_in_between() {
        let (mut source, _) = chip();
        source.write(COMMAND, &[COMMAND_WRITE_CONFIG]);
        let saved = source.save();
        let (mut destination, _) = chip();
        destination.restore(saved.clone()).unwrap();
        assert_eq!(destination.save(), saved);
        destination.write(DATA, &[0x47]);
        destination.write(COMMAND, &[COMMAND_READ_CONFIG]);
        assert_eq!(read(&mut destination, COMMAND), STATUS_IDLE | STATUS_OUTPUT_FULL);
        assert_eq!(read(&mut destination, DATA), 0x47);
        assert_eq!(read(&mut destination, COMMAND), STATUS_IDLE);
        destination.reset();
        assert_eq!(destination.save(), chip().0.save());
    }

    #[test]
    fn an_impossible_command_is_refused() {
        let (mut chip, _) = chip();
        let before = chip.save();
        let saved = I8042V1 { config: 0, output: None, command: Some(0xfe) };
        assert!(matches!(chip.restore(saved), Err(RestoreError::Field { found: 0xfe, .. })));
        assert_eq!(chip.save(), before);
    }

    proptest! {
        #[test]
        fn any_access_is_harmless(accesses: Vec<(bool, u64, Vec<u8>)>) {
            let (mut chip, _) = chip();
            for (write, offset, mut data) in accesses {
                if write { chip.write(offset % 8, &data) } else { chip.read(offset % 8, &mut data) }
                let saved = chip.save();
                prop_assert!(chip.check(&saved).is_ok());
            }
        }
    }
}
