//! Runs simulated worlds until it is interrupted, a seed fails, or `SEEDS` are done: `simulate [SEEDS [SERIES]]`, or one
//! seed alone: `simulate 0xSEED`. `make sim` is the short way.

use std::process::ExitCode;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use tern_migration::sim::{Failure, run, seed_of};

const TELL_EVERY: Duration = Duration::from_secs(10);

fn main() -> ExitCode {
    let words: Vec<String> = std::env::args().skip(1).filter(|word| !word.is_empty()).collect();
    if let Some(seed) = words.first().and_then(|word| word.strip_prefix("0x")) {
        return one(seed);
    }
    let number = |place: usize| words.get(place).map(|word| word.parse());
    match (number(0).unwrap_or(Ok(u64::MAX)), number(1).unwrap_or(Ok(fresh()))) {
        (Ok(seeds), Ok(series)) => all(seeds, series),
        _ => {
            eprintln!("simulate [SEEDS [SERIES]] or simulate 0xSEED; found: {}", words.join(" "));
            ExitCode::from(2)
        }
    }
}

/// Another series each time.
fn fresh() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs()
}

fn one(digits: &str) -> ExitCode {
    let Ok(seed) = u64::from_str_radix(digits, 16) else {
        eprintln!("0x{digits} is no number");
        return ExitCode::from(2);
    };
    match run(seed) {
        Ok(ran) => {
            println!("seed {seed:#x}: {ran:?}");
            ExitCode::SUCCESS
        }
        Err(failure) => {
            eprintln!("{failure}");
            ExitCode::FAILURE
        }
    }
}

fn all(seeds: u64, series: u64) -> ExitCode {
    let (next, done, failed) = (AtomicU64::new(0), AtomicU64::new(0), AtomicBool::new(false));
    let failure: Mutex<Option<Failure>> = Mutex::new(None);
    let began = Instant::now();
    println!("series {series}; Ctrl-C ends it");
    std::thread::scope(|scope| {
        for _ in 0..std::thread::available_parallelism().map_or(1, usize::from) {
            scope.spawn(|| {
                while !failed.load(Ordering::SeqCst) {
                    let number = next.fetch_add(1, Ordering::SeqCst);
                    if number >= seeds {
                        return;
                    }
                    if let Err(found) = run(seed_of(series, number)) {
                        failed.store(true, Ordering::SeqCst);
                        failure.lock().unwrap_or_else(|poisoned| poisoned.into_inner()).get_or_insert(found);
                    }
                    done.fetch_add(1, Ordering::SeqCst);
                }
            });
        }
        let mut told = Instant::now();
        while !failed.load(Ordering::SeqCst) && done.load(Ordering::SeqCst) < seeds {
            std::thread::sleep(Duration::from_millis(100));
            if told.elapsed() >= TELL_EVERY {
                told = Instant::now();
                tell(&done, began);
            }
        }
    });
    tell(&done, began);
    match failure.into_inner().unwrap_or_else(|poisoned| poisoned.into_inner()) {
        None => ExitCode::SUCCESS,
        Some(found) => {
            eprintln!("{found}");
            ExitCode::FAILURE
        }
    }
}

fn tell(done: &AtomicU64, began: Instant) {
    let (done, time) = (done.load(Ordering::SeqCst), began.elapsed());
    println!(
        "{done} seeds in {:.0} s, {:.0} a second",
        time.as_secs_f64(),
        done as f64 / time.as_secs_f64().max(0.001)
    );
}
