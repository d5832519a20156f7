//! The disk checker: writes blocks that carry their number, a generation and a checksum,
//! reads them back past the page cache, and flushes now and then.

use crate::{
    print, sys,
    worker::{Figures, count},
};

const BLOCK_BYTES: usize = 4096;
const WORDS: usize = BLOCK_BYTES / 8;
/// Blocks at the start of the disk that the checker uses, at most: 1 MiB is quickly round.
const BLOCKS: u64 = 256;
/// Writes between two flushes.
const FLUSH_EVERY: u64 = 32;
/// Between two blocks: a request costs milliseconds of kernel on an interpreting host.
const PAUSE_MS: u64 = 10;
const REPORTED: u32 = 16;

/// One block in memory, aligned as `O_DIRECT` wants it.
#[repr(C, align(4096))]
pub struct Block([u8; BLOCK_BYTES]);

impl Block {
    pub const fn zeroed() -> Self {
        Block([0; BLOCK_BYTES])
    }

    /// Changes one bit of a byte, as a broken disk might.
    #[cfg(test)]
    pub fn flip(&mut self, byte: usize) {
        self.0[byte] ^= 1;
    }

    fn word(&self, index: usize) -> u64 {
        let mut bytes = [0; 8];
        bytes.copy_from_slice(&self.0[index * 8..index * 8 + 8]);
        u64::from_le_bytes(bytes)
    }

    fn set_word(&mut self, index: usize, value: u64) {
        self.0[index * 8..index * 8 + 8].copy_from_slice(&value.to_le_bytes());
    }

    /// FNV-1a over the words before the last, which holds it.
    fn checksum(&self) -> u64 {
        (0..WORDS - 1).fold(0xcbf2_9ce4_8422_2325, |sum, index| {
            (sum ^ self.word(index)).wrapping_mul(0x0000_0100_0000_01b3)
        })
    }

    pub fn fill(&mut self, number: u64, generation: u64) {
        self.set_word(0, number);
        self.set_word(1, generation);
        let mut value = number ^ generation.rotate_left(32);
        for index in 2..WORDS - 1 {
            value = value.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            self.set_word(index, value);
        }
        let checksum = self.checksum();
        self.set_word(WORDS - 1, checksum);
    }

    /// The first wrong field: its name, what it should be and what it is.
    pub fn check(&self, number: u64, generation: u64) -> Option<(&'static str, u64, u64)> {
        [
            ("number", number, self.word(0)),
            ("generation", generation, self.word(1)),
            ("checksum", self.checksum(), self.word(WORDS - 1)),
        ]
        .into_iter()
        .find(|(_, expected, found)| expected != found)
    }
}

/// A pass in block order, then random ones, until killed. `path` ends in NUL.
pub fn run(path: &[u8], figures: &Figures) {
    let fd = match sys::open(path, sys::O_RDWR | sys::O_DIRECT) {
        Ok(fd) => fd,
        Err(errno) => return print!("\nerror: disk: cannot open it for writing (errno {})\n", errno.0),
    };
    let blocks = (sys::seek_end(fd).unwrap_or(0) / BLOCK_BYTES as u64).min(BLOCKS);
    if blocks == 0 {
        return print!("\nerror: disk: smaller than one block of {BLOCK_BYTES} bytes\n");
    }
    let mut check = Check { fd, figures, block: Block::zeroed(), writes: 0, reported: 0 };
    let mut generations = [1u64; BLOCKS as usize];
    for number in 0..blocks {
        check.write(number, 1);
    }
    let mut random = 0x2545_f491_4f6c_dd1du64;
    loop {
        random ^= random << 13;
        random ^= random >> 7;
        random ^= random << 17;
        let number = random % blocks;
        let generation = &mut generations[number as usize];
        check.read(number, *generation);
        *generation += 1;
        check.write(number, *generation);
        sys::sleep_ms(PAUSE_MS);
    }
}

struct Check<'a> {
    fd: i32,
    figures: &'a Figures,
    block: Block,
    writes: u64,
    reported: u32,
}

impl Check<'_> {
    fn write(&mut self, number: u64, generation: u64) {
        self.block.fill(number, generation);
        match sys::pwrite(self.fd, &self.block.0, number * BLOCK_BYTES as u64) {
            Ok(BLOCK_BYTES) => {}
            Ok(count) => self.bad(number, "write_bytes", BLOCK_BYTES as u64, count as u64),
            Err(errno) => self.bad(number, "write_errno", 0, errno.0 as u64),
        }
        self.writes += 1;
        if self.writes.is_multiple_of(FLUSH_EVERY)
            && let Err(errno) = sys::sync_data(self.fd)
        {
            self.bad(number, "flush_errno", 0, errno.0 as u64);
        }
    }

    fn read(&mut self, number: u64, generation: u64) {
        self.block.0.fill(0);
        match sys::pread(self.fd, &mut self.block.0, number * BLOCK_BYTES as u64) {
            Ok(BLOCK_BYTES) => match self.block.check(number, generation) {
                None => count(&self.figures.disk_ok, 1),
                Some((field, expected, found)) => self.bad(number, field, expected, found),
            },
            Ok(count) => self.bad(number, "read_bytes", BLOCK_BYTES as u64, count as u64),
            Err(errno) => self.bad(number, "read_errno", 0, errno.0 as u64),
        }
    }

    fn bad(&mut self, number: u64, field: &str, expected: u64, found: u64) {
        count(&self.figures.disk_bad, 1);
        if self.reported < REPORTED {
            self.reported += 1;
            print!(
                "\nAGENT CORRUPT what=disk block={number} field={field} expected={expected:#x} found={found:#x}\n"
            );
        }
    }
}
