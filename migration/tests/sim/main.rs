//! Whole migrations by the real engine in simulated worlds, a seed each (`src/sim.rs`). `TERN_SIM_SEEDS=N` runs more of
//! them, `TERN_SIM_SEED=0x..` that one alone; `make sim` runs them for as long as one likes.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

use std::collections::BTreeMap;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

use tern_migration::sim::{Ran, run, seed_of};

/// What every run of the tests looks at.
const SEEDS: u64 = 2000;
const THREADS: usize = 2;

fn number(name: &str) -> Option<u64> {
    let text = std::env::var(name).ok()?;
    let hexadecimal = text.strip_prefix("0x").map(|digits| u64::from_str_radix(digits, 16));
    Some(hexadecimal.unwrap_or_else(|| text.parse()).unwrap())
}

/// Runs the seeds of a series on a few threads.
fn run_all(series: u64, seeds: u64) -> Vec<Ran> {
    let (next, all) = (AtomicU64::new(0), Mutex::new(Vec::new()));
    std::thread::scope(|scope| {
        for _ in 0..THREADS {
            scope.spawn(|| {
                loop {
                    let number = next.fetch_add(1, Ordering::SeqCst);
                    if number >= seeds {
                        return;
                    }
                    match run(seed_of(series, number)) {
                        Ok(ran) => all.lock().unwrap().push(ran),
                        Err(failure) => {
                            next.store(seeds, Ordering::SeqCst);
                            panic!("{failure}");
                        }
                    }
                }
            });
        }
    });
    all.into_inner().unwrap()
}

#[test]
fn every_seed_keeps_what_was_promised() {
    if let Some(seed) = number("TERN_SIM_SEED") {
        println!("{:?}", run(seed).unwrap_or_else(|failure| panic!("{failure}")));
        return;
    }
    let seeds = number("TERN_SIM_SEEDS").unwrap_or(SEEDS);
    let all = run_all(0, seeds);
    let mut ends: BTreeMap<&str, u64> = BTreeMap::new();
    all.iter().for_each(|ran| *ends.entry(ran.end).or_default() += 1);
    let hits: u64 = all.iter().map(|ran| u64::from(ran.hits)).sum();
    let attempts: u64 = all.iter().map(|ran| ran.attempts).sum();
    println!("{seeds} seeds, {attempts} migrations, {hits} damages: {ends:?}");
    assert_eq!(all.len() as u64, seeds);
    // If one of these never happens, the promises are kept because nothing is tried.
    for end in [
        "moved",
        "in doubt, and there",
        "in doubt, and held there",
        "arrived from a dead host",
        "lost with its host",
    ] {
        assert!(ends.get(end).is_some_and(|count| *count > 0), "no seed of {seeds} ends as: {end}");
    }
    assert!(hits > 0 && attempts > seeds);
}

#[test]
fn the_same_seed_is_the_same_world() {
    for number in 0..100 {
        let seed = seed_of(1, number);
        let [one, other] = [0, 1].map(|_| run(seed).unwrap_or_else(|failure| panic!("{failure}")));
        assert_eq!(one, other, "seed {seed:#x}");
    }
}
