//! Pages on their way out: what a thread is told to send, and what has become of it.

use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::batch::{PageRecord, RECORD_BYTES};
use super::encode::ENCODINGS;
use crate::control::Control;
use crate::vm::PAGE_BYTES;

/// Pages that are to be sent. Their dirty bits were cleared before: a write from then on marks them again.
#[derive(Debug, Default)]
pub(crate) struct Job {
    /// Region and pages; rising.
    pub(crate) runs: Vec<(u16, Range<u64>)>,
    /// How many they are.
    pub(crate) count: usize,
    pub(crate) round: u32,
    /// The guest runs: the bandwidth limit holds.
    pub(crate) live: bool,
}

impl Job {
    /// Adds a page that lies behind all others.
    pub(crate) fn add(&mut self, region: u16, page: u64) {
        self.count += 1;
        match self.runs.last_mut() {
            Some((last, run)) if *last == region && run.end == page => run.end += 1,
            _ => self.runs.push((region, page..page + 1)),
        }
    }

    /// All pages with their region.
    pub(crate) fn pages(&self) -> impl Iterator<Item = (u16, u64)> + '_ {
        self.runs.iter().flat_map(|(region, run)| run.clone().map(|page| (*region, page)))
    }
}

/// Pages, and their bytes on the wire with their records.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Count {
    pub(crate) pages: u64,
    pub(crate) bytes: u64,
}

impl Count {
    fn add(&mut self, pages: u64, bytes: u64) {
        (self.pages, self.bytes) = (self.pages + pages, self.bytes + bytes);
    }
}

/// What has been sent or has come.
#[derive(Debug, Clone, Default)]
pub(crate) struct Moved {
    /// By encoding, in the table's order.
    pub(crate) encodings: [Count; ENCODINGS.len()],
    /// By channel.
    pub(crate) channels: Vec<Count>,
    pub(crate) record_bytes: u64,
    pub(crate) data_bytes: u64,
    /// Time in which a thread was sending.
    pub(crate) sending_us: u64,
    /// Time in which a thread was encoding or sending.
    pub(crate) working_us: u64,
}

impl Moved {
    /// Pages that have a record.
    pub(crate) fn pages(&self) -> u64 {
        self.encodings.iter().map(|count| count.pages).sum()
    }

    /// Their bytes on the wire.
    pub(crate) fn bytes(&self) -> u64 {
        self.record_bytes + self.data_bytes
    }

    /// Their bytes in memory.
    pub(crate) fn page_bytes(&self) -> u64 {
        self.pages() * PAGE_BYTES
    }
}

/// Counts for several threads what moves.
#[derive(Debug)]
pub(crate) struct Tally {
    control: Arc<Control>,
    now: Mutex<Now>,
}

#[derive(Debug, Default)]
struct Now {
    moved: Moved,
    sending: Clock,
    working: Clock,
}

/// Time in which at least one thread was at it.
#[derive(Debug, Default)]
struct Clock {
    threads: u32,
    since_us: u64,
    total_us: u64,
}

impl Clock {
    fn turn(&mut self, on: bool, now_us: u64) {
        if self.threads > 0 {
            self.total_us += now_us.saturating_sub(self.since_us);
        }
        self.since_us = now_us;
        self.threads = if on { self.threads + 1 } else { self.threads.saturating_sub(1) };
    }

    fn take(&mut self, now_us: u64) -> u64 {
        if self.threads > 0 {
            self.total_us += now_us.saturating_sub(self.since_us);
            self.since_us = now_us;
        }
        std::mem::take(&mut self.total_us)
    }
}

/// What a thread does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Doing {
    Encoding,
    Sending,
}

impl Tally {
    pub(crate) fn new(channels: usize, control: &Arc<Control>) -> Self {
        let moved = Moved { channels: vec![Count::default(); channels], ..Moved::default() };
        Self { control: Arc::clone(control), now: Mutex::new(Now { moved, ..Now::default() }) }
    }

    fn now(&self) -> MutexGuard<'_, Now> {
        self.now.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A batch has moved over a channel.
    pub(crate) fn add(&self, channel: usize, records: &[PageRecord]) {
        let mut now = self.now();
        let moved = &mut now.moved;
        let data_bytes: u64 = records.iter().map(|record| u64::from(record.data_bytes)).sum();
        let record_bytes = (records.len() * RECORD_BYTES) as u64;
        for record in records {
            if let Some(count) = moved.encodings.get_mut(record.encoding as usize) {
                count.add(1, RECORD_BYTES as u64 + u64::from(record.data_bytes));
            }
        }
        if let Some(count) = moved.channels.get_mut(channel) {
            count.add(records.len() as u64, record_bytes + data_bytes);
        }
        moved.record_bytes += record_bytes;
        moved.data_bytes += data_bytes;
    }

    /// Does it, and counts its time.
    pub(crate) fn timed<T>(&self, doing: Doing, action: impl FnOnce() -> T) -> T {
        self.turn(doing, true);
        let result = action();
        self.turn(doing, false);
        result
    }

    fn turn(&self, doing: Doing, on: bool) {
        let now_us = self.control.now_us();
        let mut now = self.now();
        now.working.turn(on, now_us);
        if doing == Doing::Sending {
            now.sending.turn(on, now_us);
        }
    }

    /// Does it as a part of what is timed, without counting its time.
    pub(crate) fn untimed<T>(&self, action: impl FnOnce() -> T) -> T {
        self.turn(Doing::Sending, false);
        let result = action();
        self.turn(Doing::Sending, true);
        result
    }

    /// What has moved since this was last asked.
    pub(crate) fn take(&self) -> Moved {
        let now_us = self.control.now_us();
        let mut now = self.now();
        let channels = vec![Count::default(); now.moved.channels.len()];
        let moved = std::mem::replace(&mut now.moved, Moved { channels, ..Moved::default() });
        let (sending_us, working_us) = (now.sending.take(now_us), now.working.take(now_us));
        Moved { sending_us, working_us, ..moved }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn neighbours_are_one_run() {
        let mut job = Job::default();
        [(0, 3), (0, 4), (0, 6), (1, 7), (1, 8)].into_iter().for_each(|(region, page)| job.add(region, page));
        assert_eq!((job.count, job.runs.len()), (5, 3));
        assert_eq!(job.pages().collect::<Vec<_>>(), [(0, 3), (0, 4), (0, 6), (1, 7), (1, 8)]);
    }

    #[test]
    fn time_of_several_threads_at_once_counts_once() {
        let mut clock = Clock::default();
        clock.turn(true, 10);
        clock.turn(true, 15);
        clock.turn(false, 20);
        assert_eq!(clock.take(25), 15);
        clock.turn(false, 30);
        clock.turn(true, 100);
        clock.turn(false, 101);
        assert_eq!((clock.take(200), clock.take(300)), (6, 0));
    }
}
