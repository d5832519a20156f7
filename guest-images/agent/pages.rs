//! The page checker: writes whole pages and, one pass later, checks that each still
//! holds its number, its generation and the words that follow from both.

#![allow(unsafe_code, reason = "the pages to check are mapped, and known by their address")]

use crate::{
    clock::Clock,
    print, sys, text,
    worker::{Figures, count},
};
use core::sync::atomic::Ordering::Relaxed;

const PAGE_BYTES: usize = 4096;
const WORDS: usize = PAGE_BYTES / 8;
/// A broken host breaks many pages: the first few lines tell, the rest would flood the console.
const REPORTED: u32 = 16;
/// Pages between two looks at the clock, where each look is a system call.
const LOOK_EVERY: u64 = 64;

/// How much memory, and how fast.
#[derive(Clone, Copy)]
pub struct Load {
    pub bytes: u64,
    /// Pages a second; `None` is as fast as possible.
    pub rate: Option<u64>,
}

impl Load {
    /// From `16M` and `1000` or `max`.
    pub fn parse(size: &str, rate: &str) -> Option<Load> {
        let bytes = text::parse_size(size)?;
        let rate = if rate == "max" { None } else { Some(rate.parse().ok().filter(|&rate| rate > 0)?) };
        Some(Load { bytes, rate })
    }
}

/// The words of a page: its number, its generation, then a stream made from both.
struct Words(u64);

impl Words {
    fn of(page: u64, generation: u64) -> Self {
        Words(page.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ generation.wrapping_mul(0xd6e8_feb8_6659_fd93) | 1)
    }

    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }
}

pub fn write_page(words: &mut [u64], page: u64, generation: u64) {
    let mut stream = Words::of(page, generation);
    words[0] = page;
    words[1] = generation;
    for word in &mut words[2..] {
        *word = stream.next();
    }
}

/// The first wrong word: its index, what it should be and what it is.
pub fn check_page(words: &[u64], page: u64, generation: u64) -> Option<(usize, u64, u64)> {
    let mut stream = Words::of(page, generation);
    for (index, &found) in words.iter().enumerate() {
        let expected = match index {
            0 => page,
            1 => generation,
            _ => stream.next(),
        };
        if found != expected {
            return Some((index, expected, found));
        }
    }
    None
}

fn report(page: u64, wrong: (usize, u64, u64)) {
    let field = match wrong.0 {
        0 => "number",
        1 => "generation",
        _ => "data",
    };
    let (offset, expected, found) = (wrong.0 * 8, wrong.1, wrong.2);
    print!(
        "\nAGENT CORRUPT what=page page={page} field={field} offset={offset} expected={expected:#x} found={found:#x}\n"
    );
}

/// Writes and checks `load.bytes` of memory until killed.
pub fn run(load: Load, figures: &Figures, clock: &mut Clock) {
    let pages = (load.bytes / PAGE_BYTES as u64).max(1);
    let bytes = pages as usize * PAGE_BYTES;
    let Ok(memory) = sys::map(bytes, false) else {
        print!("\nerror: pages: no memory for {bytes} bytes; give less, or the guest more\n");
        return;
    };
    // SAFETY: a fresh private mapping of exactly this size, page-aligned and zeroed,
    // and nothing else in this process refers to it.
    let memory = unsafe { core::slice::from_raw_parts_mut(memory.cast::<u64>(), pages as usize * WORDS) };
    let mut pace = Pace { rate: load.rate, start_ns: clock.look(), done: 0 };
    let mut reported = 0;
    for generation in 1.. {
        for (page, words) in (0u64..).zip(memory.chunks_exact_mut(WORDS)) {
            if generation > 1 {
                match check_page(words, page, generation - 1) {
                    None => count(&figures.pages_verified, 1),
                    Some(wrong) if reported < REPORTED => {
                        reported += 1;
                        report(page, wrong);
                    }
                    Some(_) => {}
                }
            }
            write_page(words, page, generation);
            count(&figures.pages_written, 1);
            pace.wait(clock, figures);
        }
    }
}

/// Keeps to the rate, and watches the clock after each page.
struct Pace {
    rate: Option<u64>,
    start_ns: u64,
    done: u64,
}

impl Pace {
    fn wait(&mut self, clock: &mut Clock, figures: &Figures) {
        self.done += 1;
        if !clock.is_fast() && !self.done.is_multiple_of(LOOK_EVERY) {
            return;
        }
        let mut now_ns = clock.look();
        figures.pages_gap_ns.fetch_max(clock.take_gap_ns(), Relaxed);
        let Some(rate) = self.rate else { return };
        let due_ns = u128::from(self.done) * 1_000_000_000 / u128::from(rate);
        while u128::from(now_ns - self.start_ns) < due_ns {
            // One timer tick: a system call a page would be the larger load.
            sys::sleep_ms(10);
            now_ns = clock.look();
        }
        figures.pages_gap_ns.fetch_max(clock.take_gap_ns(), Relaxed);
        // After a stop, go on at the rate and do not catch up with a burst.
        if u128::from(now_ns - self.start_ns) > due_ns + 1_000_000_000 {
            (self.start_ns, self.done) = (now_ns, 0);
        }
    }
}
