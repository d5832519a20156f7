//! The 16550 serial port: vm-superio's registers, plugged into a [`BytePort`].

use std::io::{self, Write};
use std::os::fd::{AsRawFd, RawFd};
use std::sync::Arc;

use tern_schema::record;
use vm_superio::serial::{NoEvents, SerialState};
use vm_superio::{Serial as Uart, Trigger};

use crate::{BusDevice, BytePort, EventSource, Interrupt, RestoreError, Stateful};

const REGISTERS: u64 = 8;
/// Depth of vm-superio's receive FIFO.
const FIFO_MAX_BYTES: usize = 64;
const DATA: u8 = 0;
const MODEM_CONTROL: u8 = 4;
const MODEM_LOOPBACK: u8 = 0x10;
const INTERRUPT_ENABLE_BITS: u8 = 0x0f;
const IIR_NONE: u8 = 0x01;
const IIR_BITS: u8 = 0x07;
const LINE_DATA_READY: u8 = 0x01;
const LINE_IDLE: u8 = 0x60;

record! {
    /// Saved state of [`Serial`]. The transmitter is always empty; "empty" that the guest has not yet been told
    /// of is a bit of `interrupt_identification`.
    pub struct SerialV1 = "serial" 1 {
        /// Divisor latch, both bytes.
        [1] baud_divisor: u16,
        /// IER.
        [2] interrupt_enable: u8,
        /// IIR without the FIFO bits.
        [3] interrupt_identification: u8,
        /// LCR.
        [4] line_control: u8,
        /// LSR.
        [5] line_status: u8,
        /// MCR.
        [6] modem_control: u8,
        /// MSR.
        [7] modem_status: u8,
        /// SCR.
        [8] scratch: u8,
        /// Receive FIFO, at most 64 bytes.
        [9] received: Vec<u8>,
    }
}

/// A 16550A. Registers from offset 0 to 7; the event source is the host's input.
pub struct Serial {
    // Glue.
    port: Arc<BytePort>,
    line: Line,
    // State.
    uart: Uart<Line, NoEvents, Output>,
}

#[derive(Clone)]
struct Line(Arc<dyn Interrupt>);

impl Trigger for Line {
    type E = io::Error;

    fn trigger(&self) -> io::Result<()> {
        self.0.trigger()
    }
}

struct Output(Arc<BytePort>);

impl Write for Output {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.output(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Serial {
    /// A serial port between `port` and the guest, with its interrupt line.
    pub fn new(port: Arc<BytePort>, interrupt: Arc<dyn Interrupt>) -> Self {
        let line = Line(interrupt);
        let uart = Uart::new(line.clone(), Output(Arc::clone(&port)));
        // The machine before this one may have left input in the port.
        port.announce_input();
        Self { port, line, uart }
    }

    /// Back to power-on. What the FIFO held is lost, as on a real one.
    pub fn reset(&mut self) {
        let Self { port, line, uart } = self;
        *uart = Uart::new(line.clone(), Output(Arc::clone(port)));
        self.receive();
    }

    /// Moves input from the host into the FIFO, as much as fits.
    fn receive(&mut self) {
        // The line is cut off in loopback mode: input waits in the port.
        if self.uart.read(MODEM_CONTROL) & MODEM_LOOPBACK != 0 {
            return;
        }
        let bytes = self.port.take_input(self.uart.fifo_capacity());
        if bytes.is_empty() {
            return;
        }
        if let Err(error) = self.uart.enqueue_raw_bytes(&bytes) {
            tracing::error!(%error, "the serial port could not take input");
        }
    }
}

impl BusDevice for Serial {
    fn read(&mut self, offset: u64, data: &mut [u8]) {
        data.fill(0);
        let ([byte], Ok(register)) = (data, u8::try_from(offset)) else { return };
        if offset >= REGISTERS {
            return;
        }
        *byte = self.uart.read(register);
        if register == DATA {
            self.receive();
        }
    }

    fn write(&mut self, offset: u64, data: &[u8]) {
        let (&[byte], Ok(register)) = (data, u8::try_from(offset)) else { return };
        if let Err(error) = self.uart.write(register, byte) {
            tracing::error!(%error, "the serial port could not be written");
        }
        if register == MODEM_CONTROL {
            self.receive();
        }
    }
}

impl EventSource for Serial {
    fn fds(&self) -> Vec<(RawFd, u32)> {
        vec![(self.port.input_event().as_raw_fd(), 0)]
    }

    fn ready(&mut self, _token: u32) {
        // Nothing to read means that it was a spurious call.
        let _ = self.port.input_event().read();
        self.receive();
    }
}

impl Stateful for Serial {
    type Saved = SerialV1;

    fn save(&self) -> SerialV1 {
        let Self { port: _, line: _, uart } = self;
        let SerialState {
            baud_divisor_low,
            baud_divisor_high,
            interrupt_enable,
            interrupt_identification,
            line_control,
            line_status,
            modem_control,
            modem_status,
            scratch,
            in_buffer: received,
        } = uart.state();
        let baud_divisor = u16::from_le_bytes([baud_divisor_low, baud_divisor_high]);
        SerialV1 {
            baud_divisor,
            interrupt_enable,
            interrupt_identification,
            line_control,
            line_status,
            modem_control,
            modem_status,
            scratch,
            received,
        }
    }

    fn check(&self, saved: &SerialV1) -> Result<(), RestoreError> {
        let SerialV1 {
            baud_divisor: _,
            interrupt_enable,
            interrupt_identification,
            line_control: _,
            line_status,
            modem_control: _,
            modem_status: _,
            scratch: _,
            received,
        } = saved;
        let iir = *interrupt_identification;
        let (ready, idle) = (line_status & LINE_DATA_READY, line_status & !LINE_DATA_READY);
        // Data ready and the FIFO agree, or the guest would poll for ever for a byte that doesn't come.
        let agree = (ready != 0) != received.is_empty();
        let length = received.len();
        let fields = [
            (
                interrupt_enable & !INTERRUPT_ENABLE_BITS == 0,
                "interrupt_enable",
                u64::from(*interrupt_enable),
                "only the bits 0 to 3 exist",
            ),
            (
                iir & !IIR_BITS == 0 && (iir & IIR_NONE == 0) == (iir > IIR_NONE),
                "interrupt_identification",
                u64::from(iir),
                "1, or the pending bits 1 and 2",
            ),
            (
                idle == LINE_IDLE && agree,
                "line_status",
                u64::from(*line_status),
                "0x61 with received data, else 0x60",
            ),
            (length <= FIFO_MAX_BYTES, "received", length as u64, "at most 64 bytes"),
        ];
        match fields.into_iter().find(|(legal, ..)| !legal) {
            Some((_, field, found, expected)) => {
                Err(RestoreError::Field { record: "SerialV1", field, found, expected })
            }
            None => Ok(()),
        }
    }

    fn restore(&mut self, saved: SerialV1) -> Result<(), RestoreError> {
        self.check(&saved)?;
        let SerialV1 {
            baud_divisor,
            interrupt_enable,
            interrupt_identification,
            line_control,
            line_status,
            modem_control,
            modem_status,
            scratch,
            received: in_buffer,
        } = saved;
        let [baud_divisor_low, baud_divisor_high] = baud_divisor.to_le_bytes();
        let state = SerialState {
            baud_divisor_low,
            baud_divisor_high,
            interrupt_enable,
            interrupt_identification,
            line_control,
            line_status,
            modem_control,
            modem_status,
            scratch,
            in_buffer,
        };
        // What was typed on this side before the guest arrived comes behind what it brings along.
        self.port.give_back(&self.uart.state().in_buffer);
        // Raises what is pending and enabled: a guest that waits for "transmitter empty" goes on.
        let uart = Uart::from_state(&state, self.line.clone(), NoEvents, Output(Arc::clone(&self.port)));
        self.uart = uart.map_err(|error| RestoreError::Activate {
            record: "SerialV1",
            source: io::Error::other(error),
        })?;
        self.receive();
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::PortTarget;
    use proptest::prelude::*;
    use std::os::unix::net::{UnixListener, UnixStream};
    use std::time::{Duration, Instant};
    use vmm_sys_util::eventfd::EventFd;

    const INTERRUPT_ENABLE: u64 = 1;
    const INTERRUPT_IDENTIFICATION: u64 = 2;
    const LINE_STATUS: u64 = 5;

    fn chip() -> (Serial, EventFd) {
        with_port(BytePort::new(PortTarget::Null).unwrap())
    }

    fn with_port(port: Arc<BytePort>) -> (Serial, EventFd) {
        let event = EventFd::new(libc::EFD_NONBLOCK).unwrap();
        (Serial::new(port, Arc::new(event.try_clone().unwrap())), event)
    }

    fn read(chip: &mut Serial, register: u64) -> u8 {
        let mut byte = [0xee];
        chip.read(register, &mut byte);
        byte[0]
    }

    #[test]
    fn a_port_saved_in_mid_transmission_interrupts_again() {
        let (mut source, interrupt) = chip();
        source.write(INTERRUPT_ENABLE, &[2]);
        source.write(0, b"x");
        assert!(interrupt.read().is_ok());
        // The guest hasn't read IIR yet when it is stopped.
        let saved = source.save();
        let (mut destination, interrupt) = chip();
        destination.restore(saved.clone()).unwrap();
        assert_eq!(destination.save(), saved);
        assert!(interrupt.read().is_ok(), "the guest would wait for ever");
        assert_eq!(read(&mut destination, INTERRUPT_IDENTIFICATION) & 0x0f, 2);
        destination.write(0, b"y");
        assert!(interrupt.read().is_ok());
    }

    #[test]
    fn input_reaches_the_guest_in_order_through_a_small_fifo_and_a_migration() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("serial");
        let listener = UnixListener::bind(&path).unwrap();
        let port = BytePort::new(PortTarget::Unix(listener)).unwrap();
        let (mut chip, mut interrupt) = with_port(Arc::clone(&port));
        chip.write(INTERRUPT_ENABLE, &[1]);
        let mut client = UnixStream::connect(&path).unwrap();
        let text: Vec<u8> = (0..200).collect();
        client.write_all(&text).unwrap();

        let deadline = Instant::now() + Duration::from_secs(20);
        let mut found = Vec::new();
        while found.len() < text.len() && Instant::now() < deadline {
            chip.ready(0);
            if read(&mut chip, LINE_STATUS) & LINE_DATA_READY != 0 {
                found.push(read(&mut chip, 0));
            }
            if found.len() == 70 {
                let saved = chip.save();
                (chip, interrupt) = with_port(Arc::clone(&port));
                chip.restore(saved).unwrap();
            }
        }
        assert!(interrupt.read().is_ok());
        assert_eq!(found, text);
    }

    #[test]
    fn what_was_typed_at_the_destination_before_the_guest_arrived_is_not_lost() {
        let port = BytePort::new(PortTarget::Null).unwrap();
        port.give_back(b"typed early");
        let (mut destination, _) = with_port(port);
        destination.ready(0);
        assert_eq!(destination.save().received, b"typed early");
        let saved = SerialV1 { received: b"brought ".to_vec(), line_status: 0x61, ..chip().0.save() };
        destination.restore(saved).unwrap();
        let text: Vec<u8> = std::iter::from_fn(|| {
            let more = read(&mut destination, LINE_STATUS) & LINE_DATA_READY != 0;
            more.then(|| read(&mut destination, 0))
        })
        .collect();
        assert_eq!(text, b"brought typed early");
    }

    #[test]
    fn impossible_states_are_refused() {
        let (mut chip, _) = chip();
        let good = chip.save();
        let bad = [
            SerialV1 { interrupt_enable: 0x10, ..good.clone() },
            SerialV1 { interrupt_identification: 0, ..good.clone() },
            SerialV1 { interrupt_identification: 3, ..good.clone() },
            SerialV1 { line_status: 0, ..good.clone() },
            SerialV1 { line_status: 0x61, ..good.clone() },
            SerialV1 { received: vec![0], ..good.clone() },
            SerialV1 { received: vec![0; 65], line_status: 0x61, ..good.clone() },
        ];
        for saved in bad {
            assert!(matches!(chip.restore(saved), Err(RestoreError::Field { .. })));
            assert_eq!(chip.save(), good);
        }
    }

    proptest! {
        #[test]
        fn any_access_leaves_a_state_that_travels(accesses: Vec<(bool, u64, Vec<u8>)>, far: u64) {
            let (mut chip, _) = chip();
            chip.write(far, &[0xff]);
            for (write, offset, mut data) in accesses {
                data.truncate(1 + usize::from(offset % 16 == 0));
                if write { chip.write(offset % 10, &data) } else { chip.read(offset % 10, &mut data) }
            }
            let saved = chip.save();
            let (mut other, _) = self::chip();
            other.restore(saved.clone()).unwrap();
            prop_assert_eq!(other.save(), saved);
        }

        #[test]
        fn any_state_is_taken_whole_or_refused(
            registers: (u16, u8, u8, u8, u8, u8, u8, u8), received in prop::collection::vec(any::<u8>(), 0..70),
            plausible: bool,
        ) {
            let (mut chip, _) = chip();
            let before = chip.save();
            let (baud_divisor, enable, iir, line_control, line_status, modem_control, modem_status, scratch) =
                registers;
            let mut saved = SerialV1 {
                baud_divisor, interrupt_enable: enable, interrupt_identification: iir, line_control,
                line_status, modem_control, modem_status, scratch, received,
            };
            if plausible {
                saved.interrupt_enable &= 0x0f;
                saved.interrupt_identification &= 0x06;
                saved.line_status = if saved.received.is_empty() { 0x60 } else { 0x61 };
            }
            let taken = chip.restore(saved.clone()).is_ok();
            prop_assert_eq!(chip.save(), if taken { saved } else { before });
            for register in 0..8 {
                read(&mut chip, register);
                chip.write(register, &[0xff]);
            }
        }
    }
}
