//! The disk checker: writes blocks that carry their number, a generation and a checksum,
//! reads them back past the page cache, and flushes now and then.
//!
//! Several requests are at the disk at a time: there are [`LANES`] processes with blocks of their own, and
//! each writes a run of blocks that the kernel hands to the disk in one go, a request a block
//! ([`limit_requests`]). A run is read past the page cache before it is written again, so that a
//! block that got lost, is stale or torn, or was written a second time later on, is found by its
//! number, its generation or its checksum.

use crate::{
    print, sys,
    worker::{Figures, count},
};
use core::sync::atomic::Ordering::Relaxed;

pub const BLOCK_BYTES: usize = 4096;
const WORDS: usize = BLOCK_BYTES / 8;
/// Blocks at the start of the disk that the checker uses, at most: 1 MiB is quickly round.
const BLOCKS: u64 = 256;
/// Blocks written or read in one go.
const RUN: usize = 8;
const RUN_BYTES: usize = RUN * BLOCK_BYTES;
/// Processes that do so at a time.
pub const LANES: usize = 3;
/// Between two runs of a lane: a request costs milliseconds of kernel on an interpreting host.
const PAUSE_MS: u64 = 10;
const REPORTED: u32 = 16;

/// A run in memory, aligned as `O_DIRECT` wants it.
#[repr(C, align(4096))]
struct Run([u8; RUN_BYTES]);

fn word(block: &[u8], index: usize) -> u64 {
    let mut bytes = [0; 8];
    bytes.copy_from_slice(&block[index * 8..index * 8 + 8]);
    u64::from_le_bytes(bytes)
}

fn set_word(block: &mut [u8], index: usize, value: u64) {
    block[index * 8..index * 8 + 8].copy_from_slice(&value.to_le_bytes());
}

/// FNV-1a over the words before the last, which holds it.
fn checksum(block: &[u8]) -> u64 {
    (0..WORDS - 1).fold(0xcbf2_9ce4_8422_2325, |sum, index| {
        (sum ^ word(block, index)).wrapping_mul(0x0000_0100_0000_01b3)
    })
}

/// Makes `block`, of [`BLOCK_BYTES`], the one of this number and generation.
pub fn fill(block: &mut [u8], number: u64, generation: u64) {
    set_word(block, 0, number);
    set_word(block, 1, generation);
    let mut value = number ^ generation.rotate_left(32);
    for index in 2..WORDS - 1 {
        value = value.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        set_word(block, index, value);
    }
    let checksum = checksum(block);
    set_word(block, WORDS - 1, checksum);
}

/// The first wrong field: its name, what it should be and what it is.
pub fn check(block: &[u8], number: u64, generation: u64) -> Option<(&'static str, u64, u64)> {
    [
        ("number", number, word(block, 0)),
        ("generation", generation, word(block, 1)),
        ("checksum", checksum(block), word(block, WORDS - 1)),
    ]
    .into_iter()
    .find(|(_, expected, found)| expected != found)
}

/// A request a block from here on, in place of one for a run. Where the kernel refuses, fewer
/// requests are at the disk at a time, and that is all.
fn limit_requests(path: &[u8]) {
    let Some(name) = path.strip_prefix(b"/dev/").and_then(|rest| rest.split(|&byte| byte == 0).next()) else {
        return;
    };
    let mut limit = [0u8; 320];
    let mut length = 0;
    for part in [&b"/sys/block/"[..], name, b"/queue/max_sectors_kb\0"] {
        let Some(room) = limit.get_mut(length..length + part.len()) else { return };
        room.copy_from_slice(part);
        length += part.len();
    }
    if let Ok(fd) = sys::open(&limit[..length], sys::O_RDWR) {
        let _ = sys::write(fd, b"4");
        sys::close(fd);
    }
}

/// Writes all runs of a lane once, then reads and writes random ones, until killed. `path` ends in NUL.
pub fn run(path: &[u8], lane: usize, figures: &Figures) {
    limit_requests(path);
    let open = |flags| sys::open(path, flags);
    let (cached, direct) = match (open(sys::O_RDWR), open(sys::O_RDONLY | sys::O_DIRECT)) {
        (Ok(cached), Ok(direct)) => (cached, direct),
        (Err(errno), _) | (_, Err(errno)) => {
            return print!("\nerror: disk: cannot open it for writing (errno {})\n", errno.0);
        }
    };
    let runs = (sys::seek_end(direct).unwrap_or(0) / RUN_BYTES as u64).min(BLOCKS / RUN as u64);
    let mine = (runs + (LANES - 1 - lane) as u64) / LANES as u64;
    if mine == 0 {
        return print!("\nerror: disk: smaller than {} bytes\n", LANES * RUN_BYTES);
    }
    let mut check = Check { cached, direct, figures, run: Run([0; RUN_BYTES]), reported: 0 };
    let mut generations = [1u64; BLOCKS as usize / RUN];
    let number_of = |run: u64| (run * LANES as u64 + lane as u64) * RUN as u64;
    for run in 0..mine {
        check.write(number_of(run), 1);
    }
    let mut random = 0x2545_f491_4f6c_dd1du64 ^ lane as u64;
    loop {
        random ^= random << 13;
        random ^= random >> 7;
        random ^= random << 17;
        let run = random % mine;
        let generation = &mut generations[run as usize];
        check.read(number_of(run), *generation);
        *generation += 1;
        check.write(number_of(run), *generation);
        sys::sleep_ms(PAUSE_MS);
    }
}

struct Check<'a> {
    /// For writing: the page cache gives its pages to the disk all at once.
    cached: i32,
    /// For reading: what the disk has, and not the page cache.
    direct: i32,
    figures: &'a Figures,
    run: Run,
    reported: u32,
}

impl Check<'_> {
    /// Writes a run, and waits until the disk has it.
    fn write(&mut self, first: u64, generation: u64) {
        for (number, block) in (first..).zip(self.run.0.chunks_exact_mut(BLOCK_BYTES)) {
            fill(block, number, generation);
        }
        let written = sys::pwrite(self.cached, &self.run.0, first * BLOCK_BYTES as u64);
        self.whole(first, "write", written);
        let flushed = self.at_disk(|check| sys::sync_data(check.cached));
        if let Err(errno) = flushed {
            self.bad(first, "flush", 0, errno.0 as u64);
        }
    }

    fn read(&mut self, first: u64, generation: u64) {
        self.run.0.fill(0);
        let at = first * BLOCK_BYTES as u64;
        let read = self.at_disk(|check| sys::pread(check.direct, &mut check.run.0, at));
        if !self.whole(first, "read", read) {
            return;
        }
        for (index, number) in (first..first + RUN as u64).enumerate() {
            let block = &self.run.0[index * BLOCK_BYTES..(index + 1) * BLOCK_BYTES];
            match check(block, number, generation) {
                None => count(&self.figures.disk_ok, 1),
                Some((field, expected, found)) => self.bad(number, field, expected, found),
            }
        }
    }

    /// Counts a run's requests as being at the disk while `act` hands them over and waits for them.
    fn at_disk<T>(&mut self, act: impl FnOnce(&mut Self) -> T) -> T {
        let now = self.figures.disk_now.fetch_add(RUN as u64, Relaxed) + RUN as u64;
        self.figures.disk_depth.fetch_max(now, Relaxed);
        let done = act(self);
        self.figures.disk_now.fetch_sub(RUN as u64, Relaxed);
        done
    }

    fn whole(&mut self, first: u64, what: &str, result: sys::Result<usize>) -> bool {
        match result {
            Ok(RUN_BYTES) => return true,
            Ok(count) => self.bad(first, what, RUN_BYTES as u64, count as u64),
            Err(errno) => self.bad(first, what, 0, errno.0 as u64),
        }
        false
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
