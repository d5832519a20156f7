//! How long a wait may last before it is a failure. Waits end at once when what they wait for is there, so the
//! limit is generous: it costs time only where something is broken.

use std::time::{Duration, Instant};

/// Seconds of every wait; `TERN_TEST_TIMEOUT` sets another number.
const DEFAULT_S: u64 = 120;
/// Between two looks at what has no event of its own (a file that grows, a state).
const LOOK_EVERY: Duration = Duration::from_millis(2);

/// The limit of every wait.
pub fn limit() -> Duration {
    let given = std::env::var("TERN_TEST_TIMEOUT").ok().and_then(|text| text.parse().ok());
    Duration::from_secs(given.unwrap_or(DEFAULT_S))
}

/// Looks until `look` finds something.
///
/// # Panics
/// It finds nothing within the [`limit`]; `what` says what was awaited.
pub fn wait_for<T>(what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + limit();
    loop {
        if let Some(found) = look() {
            return found;
        }
        if Instant::now() > deadline {
            panic!("waited {} s for {what}, in vain (TERN_TEST_TIMEOUT sets the seconds)", limit().as_secs());
        }
        std::thread::sleep(LOOK_EVERY);
    }
}
