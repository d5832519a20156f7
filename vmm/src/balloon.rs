//! What becomes of the air in a guest's balloon, and who hears of it.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use tern_devices::virtio::Segment;
use tern_devices::{BalloonSize, GuestRam, Reclaim};
use tern_migration::PAGE_BYTES;

use crate::control::{Event, EventSink};
use crate::memory::Reclaimer;

/// A driver tells each step, of 1 MiB: clients hear of one in this time, and of the last.
const TELL_EVERY: Duration = Duration::from_secs(1);

/// Takes what the guest gives, and tells how much of its memory it has left.
pub struct Air {
    reclaimer: Arc<Reclaimer>,
    memory_bytes: u64,
    sink: Option<EventSink>,
    told: Mutex<Option<Instant>>,
}

impl Air {
    /// For a machine with so much memory.
    pub fn new(reclaimer: Arc<Reclaimer>, memory_bytes: u64, sink: Option<EventSink>) -> Self {
        Self { reclaimer, memory_bytes, sink, told: Mutex::default() }
    }

    /// Is this the time to tell? At the end always, and on the way now and then.
    fn tells(&self, size: BalloonSize) -> bool {
        let mut told = self.told.lock().unwrap_or_else(PoisonError::into_inner);
        let due =
            size.given_pages == size.wanted_pages || told.is_none_or(|told| told.elapsed() >= TELL_EVERY);
        if due {
            *told = Some(Instant::now());
        }
        due
    }
}

impl Reclaim for Air {
    fn take(&self, ram: &GuestRam, range: Segment) {
        self.reclaimer.take(ram, range);
    }

    fn resized(&self, size: BalloonSize) {
        if let Some(sink) = self.sink.as_ref().filter(|_| self.tells(size)) {
            sink.post(Event::BalloonChange { actual_bytes: left_bytes(self.memory_bytes, size.given_pages) });
        }
    }
}

/// Memory that the guest has left when so many pages are in the balloon.
pub fn left_bytes(memory_bytes: u64, pages: u32) -> u64 {
    memory_bytes.saturating_sub(u64::from(pages).saturating_mul(PAGE_BYTES))
}

/// Pages that must be in the balloon so that the guest has so much left; all its memory at the most.
pub fn pages_for(memory_bytes: u64, left_bytes: u64) -> u32 {
    u32::try_from(memory_bytes.saturating_sub(left_bytes) / PAGE_BYTES).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::event_queue;
    use crate::memory::Backing;

    #[test]
    fn sizes_are_what_the_guest_has_left() {
        let gib = 1 << 30;
        assert_eq!((pages_for(gib, gib), pages_for(gib, gib + 1), pages_for(gib, gib - 4096)), (0, 0, 1));
        assert_eq!((pages_for(gib, 0), left_bytes(gib, 1 << 18)), (1 << 18, 0));
        assert_eq!((left_bytes(gib, 256), left_bytes(gib, u32::MAX)), (gib - (1 << 20), 0));
    }

    #[test]
    fn each_end_is_told_and_few_of_the_steps() {
        let (sink, queue) = event_queue().unwrap();
        let air = Air::new(Arc::new(Reclaimer::of(&Backing::Anonymous)), 1 << 30, Some(sink));
        let began = Instant::now();
        for given_pages in (0..=10_000).step_by(250) {
            air.resized(BalloonSize { wanted_pages: 10_000, given_pages });
        }
        let all: Vec<_> = queue.take().iter().map(|stamped| stamped.to_json()).collect();
        assert!(all.len() as u64 <= 2 + began.elapsed().as_secs(), "{all:?}");
        let last = all.last().unwrap();
        assert_eq!(
            (&last["event"], &last["data"]["actual"]),
            (&"BALLOON_CHANGE".into(), &((1u64 << 30) - 10_000 * 4096).into())
        );
    }
}
