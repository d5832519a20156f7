//! A guest that keeps values in every register, timer and access that a state carries, moved a thousand times.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

mod bench;
mod host;

use std::time::{Duration, Instant};

use bench::{Bench, number};
use tern_migration::{DestinationVm, SourceVm};
use tern_vmm::run_control::Hold;

const CYCLES: u64 = 1000;
/// About one turn of the guest's, in which a stop may fall anywhere.
const TURN_US: u64 = 18_000;

/// Lines that pulse ended with a checksum, of each vCPU.
struct Turns {
    lines: Vec<Vec<String>>,
    read_bytes: usize,
}

impl Turns {
    fn new(cpus: u8) -> Self {
        Self { lines: vec![Vec::new(); usize::from(cpus)], read_bytes: 0 }
    }

    /// Reads what is new of all that was said, and returns the turns of the vCPU that has made fewest.
    /// Anything but whole and true lines, one behind the other, fails the test.
    fn read(&mut self, heard: &str) -> usize {
        while let Some((line, _)) = heard[self.read_bytes..].split_once('\n') {
            self.read_bytes += line.len() + 1;
            self.add(line);
        }
        self.lines.iter().map(Vec::len).min().unwrap_or(0)
    }

    fn add(&mut self, line: &str) {
        if line.starts_with("A ") {
            return;
        }
        assert!(line.starts_with("T "), "the guest said: {line}");
        let (text, sum) = line.rsplit_once(" sum=0x").unwrap_or_else(|| panic!("no sum in {line}"));
        assert_eq!(u32::from_str_radix(sum, 16).ok(), Some(fnv(text)), "bytes were lost or doubled: {line}");
        let mine = &mut self.lines[number(line, "cpu") as usize];
        assert_eq!(number(line, "seq"), mine.len() as u64, "{line}");
        mine.push(line.to_owned());
    }

    fn most(&self, name: &str) -> u64 {
        self.lines.iter().flatten().map(|line| number(line, name)).max().unwrap_or(0)
    }

    fn never_goes_back(&self, name: &str) {
        for pair in self.lines.iter().flat_map(|lines| lines.windows(2)) {
            assert!(number(&pair[0], name) <= number(&pair[1], name), "{name} went back: {pair:?}");
        }
    }
}

fn fnv(text: &str) -> u32 {
    text.bytes().fold(0x811c_9dc5, |sum: u32, byte| (sum ^ u32::from(byte)).wrapping_mul(0x0100_0193))
}

/// What pulse must say of AVX: nothing hides it here, so a guest has it where its host has it.
fn avx_word() -> &'static str {
    if std::arch::is_x86_feature_detected!("avx") { " avx=on" } else { " avx=absent" }
}

fn a_thousand_moves(cpus: u8) {
    let Some(mut bench) = Bench::new(cpus) else { return };
    let began = Instant::now();
    let mut vm = bench.boot(&format!("torture=on cpus={cpus}"));
    let mut moving = Duration::ZERO;
    let mut turns = Turns::new(cpus);
    let avx = avx_word();
    bench.wait_until("a turn of each vCPU", |heard| turns.read(heard) >= 1);
    let banner = bench.heard().lines().next().unwrap();
    assert!(banner.contains(avx), "expected{avx} on this host, and the guest said: {banner}");
    let mut at_least = 2;
    for cycle in 0..CYCLES {
        bench.wait_until("a turn of each vCPU", |heard| turns.read(heard) >= at_least);
        // Anywhere in the next turn, not always just behind a line.
        std::thread::sleep(Duration::from_micros(cycle * 7919 % TURN_US));
        let stopped = Instant::now();
        assert!(vm.stop(&|| false).unwrap());
        at_least = turns.read(bench.heard()) + 1;
        let next = bench.moved(&mut vm);
        drop(std::mem::replace(&mut vm, next));
        vm.start(true).unwrap();
        moving += stopped.elapsed();
    }
    bench.wait_until("the last turns", |heard| turns.read(heard) > at_least);
    vm.core().run().hold(Hold::Ended);
    turns.never_goes_back("t_us");
    let fewest = turns.read(bench.heard());
    assert!(fewest as u64 >= CYCLES, "{fewest} turns: the guest hardly ran");
    println!(
        "{CYCLES} moves of {cpus} vCPUs,{avx}, in {:.1} s, {} us each; {} turns at least; largest gap of the TSC {} us, of \
         kvmclock {} us; stops told {}",
        began.elapsed().as_secs_f64(),
        moving.as_micros() / u128::from(CYCLES),
        fewest,
        turns.most("gap_us"),
        turns.most("clock_gap_us"),
        turns.most("stops"),
    );
}

#[test]
fn one_vcpu_keeps_all_its_registers_over_a_thousand_moves() {
    a_thousand_moves(1);
}

#[test]
fn two_vcpus_keep_all_their_registers_over_a_thousand_moves() {
    a_thousand_moves(2);
}
