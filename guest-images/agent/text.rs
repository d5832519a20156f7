//! Text in and out: lines written with one system call, and the words people type.

use crate::sys;
use core::fmt;

/// A line that goes to the console in one write, so that lines of several
/// processes never mix.
pub struct Line {
    bytes: [u8; 512],
    length: usize,
}

impl Line {
    pub const fn new() -> Self {
        Line { bytes: [0; 512], length: 0 }
    }

    pub fn as_bytes(&self) -> &[u8] {
        &self.bytes[..self.length]
    }
}

impl fmt::Write for Line {
    /// Too long a line is cut, never an error.
    fn write_str(&mut self, text: &str) -> fmt::Result {
        let room = self.bytes.len() - self.length;
        let taken = text.len().min(room);
        self.bytes[self.length..self.length + taken].copy_from_slice(&text.as_bytes()[..taken]);
        self.length += taken;
        Ok(())
    }
}

/// Writes everything, whatever the console takes at a time. A console that is
/// gone is not the agent's business: the checks go on.
pub fn write_all(mut bytes: &[u8]) {
    while !bytes.is_empty() {
        match sys::write(1, bytes) {
            Ok(count) if count > 0 => bytes = &bytes[count..],
            Err(sys::EINTR | sys::EAGAIN) => {}
            _ => return,
        }
    }
}

/// Prints formatted text to the console, cut at 512 bytes.
#[macro_export]
macro_rules! print {
    ($($part:tt)*) => {{
        use core::fmt::Write as _;
        let mut line = $crate::text::Line::new();
        let _ = write!(line, $($part)*);
        $crate::text::write_all(line.as_bytes());
    }};
}

/// `4096`, `64K`, `16M`, `1G` in bytes.
pub fn parse_size(text: &str) -> Option<u64> {
    let (digits, shift) = match text.as_bytes().last()? {
        b'K' | b'k' => (&text[..text.len() - 1], 10),
        b'M' | b'm' => (&text[..text.len() - 1], 20),
        b'G' | b'g' => (&text[..text.len() - 1], 30),
        _ => (text, 0),
    };
    digits.parse::<u64>().ok()?.checked_mul(1 << shift)
}

/// A path with the NUL that the kernel wants; too long a one is none.
pub fn path(text: &str) -> Option<[u8; 256]> {
    let mut bytes = [0; 256];
    bytes.get_mut(..text.len()).filter(|_| text.len() < 256)?.copy_from_slice(text.as_bytes());
    Some(bytes)
}
