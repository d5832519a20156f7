//! The power button: with ACPI the kernel shows it as an input device.

use crate::sys;

/// The only input device of tern's machine.
const DEVICE: &[u8] = b"/dev/input/event0\0";
/// `struct input_event`: a time of 16 bytes, then type and code (u16 each) and value (i32).
const EVENT_BYTES: usize = 24;
const EV_KEY: u16 = 1;
const KEY_POWER: u16 = 116;

pub struct Button {
    pub fd: i32,
}

impl Button {
    /// None in a guest without ACPI.
    pub fn open() -> Option<Button> {
        sys::open(DEVICE, sys::O_RDONLY | sys::O_NONBLOCK).ok().map(|fd| Button { fd })
    }

    /// Has it been pressed?
    pub fn read(&self) -> sys::Result<bool> {
        let mut events = [0u8; 16 * EVENT_BYTES];
        match sys::read(self.fd, &mut events) {
            Ok(count) => Ok(events[..count].chunks_exact(EVENT_BYTES).any(is_press)),
            Err(sys::EINTR | sys::EAGAIN) => Ok(false),
            Err(errno) => Err(errno),
        }
    }
}

fn is_press(event: &[u8]) -> bool {
    let half = |at: usize| u16::from_ne_bytes([event[at], event[at + 1]]);
    half(16) == EV_KEY && half(18) == KEY_POWER && half(20) == 1
}
