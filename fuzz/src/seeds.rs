//! The seeds that a test goes through: a first few by themselves, more or one alone by environment variables.

use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};

/// Repeats one seed.
pub const SEED: &str = "TERN_HOSTILE_SEED";
/// How many seeds are tried.
pub const COUNT: &str = "TERN_HOSTILE_SEEDS";

/// The seeds of a test that tries `usual` of them.
pub fn seeds(usual: u64) -> Range<u64> {
    let number = |name: &str| std::env::var(name).ok().and_then(|text| text.parse::<u64>().ok());
    match number(SEED) {
        Some(seed) => seed..seed.saturating_add(1),
        None => 0..number(COUNT).unwrap_or(usual),
    }
}

/// Runs `case` for each seed, on two threads. A seed that panics is named, with how to repeat it.
pub fn for_each(seeds: Range<u64>, case: impl Fn(u64) + Sync) {
    struct Named(u64);
    impl Drop for Named {
        fn drop(&mut self) {
            if std::thread::panicking() {
                eprintln!("seed {}: repeat it with {SEED}={}", self.0, self.0);
            }
        }
    }
    let next = AtomicU64::new(seeds.start);
    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                loop {
                    let seed = next.fetch_add(1, Ordering::SeqCst);
                    if seed >= seeds.end {
                        return;
                    }
                    let _named = Named(seed);
                    case(seed);
                }
            });
        }
    });
}
