//! One line of output, put together without an allocator.

/// Longer than the longest record with 64-bit numbers in each field.
const CAPACITY: usize = 320;

pub(crate) struct Line {
    bytes: [u8; CAPACITY],
    len: usize,
}

impl Line {
    pub(crate) fn new(record: &str) -> Self {
        let mut line = Self { bytes: [0; CAPACITY], len: 0 };
        line.push(record.as_bytes());
        line
    }

    /// Adds ` name=text`.
    pub(crate) fn text(mut self, name: &str, text: &str) -> Self {
        self.name(name);
        self.push(text.as_bytes());
        self
    }

    /// Adds ` name=number`.
    pub(crate) fn number(mut self, name: &str, number: u64) -> Self {
        self.name(name);
        self.digits(number, 10);
        self
    }

    /// Adds ` name=0xnumber`.
    pub(crate) fn hex(mut self, name: &str, number: u64) -> Self {
        self.name(name);
        self.push(b"0x");
        self.digits(number, 16);
        self
    }

    /// Adds ` sum=` with a checksum (FNV-1a) of all before it.
    pub(crate) fn sum(self) -> Self {
        let text = &self.bytes[..self.len];
        let sum =
            text.iter().fold(0x811c_9dc5_u32, |sum, byte| (sum ^ u32::from(*byte)).wrapping_mul(0x0100_0193));
        self.hex("sum", u64::from(sum))
    }

    /// The line with its end. What did not fit is cut off.
    pub(crate) fn finish(&mut self) -> &[u8] {
        self.len = self.len.min(CAPACITY - 1);
        self.bytes[self.len] = b'\n';
        &self.bytes[..=self.len]
    }

    fn name(&mut self, name: &str) {
        self.push(b" ");
        self.push(name.as_bytes());
        self.push(b"=");
    }

    fn digits(&mut self, mut number: u64, base: u64) {
        let mut digits = [0; 20];
        let mut first = digits.len();
        loop {
            first -= 1;
            digits[first] = b"0123456789abcdef"[(number % base) as usize];
            number /= base;
            if number == 0 {
                break;
            }
        }
        self.push(&digits[first..]);
    }

    fn push(&mut self, bytes: &[u8]) {
        for byte in bytes.iter().take(CAPACITY - self.len) {
            self.bytes[self.len] = *byte;
            self.len += 1;
        }
    }
}
