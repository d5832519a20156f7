//! What each section costs while the guest stands still: two readings of a clock a section, into room that was made
//! when the machine was built. Told when the guest runs again, to who asks: `TERN_LOG=tern::sections=debug`.

use std::time::{Duration, Instant};

/// What is done with a section.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    /// Read of the machine and encoded.
    Save,
    /// Decoded and checked.
    Check,
    /// Given to the machine.
    Apply,
}

#[derive(Debug)]
struct Lap {
    step: Step,
    name: &'static str,
    instance: u32,
    took: Duration,
}

/// The times of one save or load, in order.
#[derive(Debug)]
pub struct Laps {
    since: Instant,
    laps: Vec<Lap>,
}

impl Laps {
    /// Room for so many sections, each saved, or checked and applied.
    pub fn of(sections: usize) -> Self {
        Self { since: Instant::now(), laps: Vec::with_capacity(sections.saturating_mul(2)) }
    }

    /// Forgets what was measured: from now on.
    pub fn start(&mut self) {
        self.laps.clear();
        self.since = Instant::now();
    }

    /// All since the last one was for this section.
    pub fn end(&mut self, step: Step, name: &'static str, instance: u32) {
        let now = Instant::now();
        let took = now.saturating_duration_since(self.since);
        self.since = now;
        // Not one more than there is room for: the guest is stopped.
        if self.laps.len() < self.laps.capacity() {
            self.laps.push(Lap { step, name, instance, took });
        }
    }

    /// Tells what was measured since [`Self::start`], once.
    pub fn tell(&mut self) {
        for Lap { step, name, instance, took } in self.laps.drain(..) {
            let us = took.as_micros();
            let ns = took.as_nanos().saturating_sub(us.saturating_mul(1000));
            tracing::debug!(target: "tern::sections", "{step:?} {name}/{instance} {us}.{ns:03} us");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_follow_one_another_and_there_is_room_for_all_and_no_more() {
        let began = Instant::now();
        let mut laps = Laps::of(1);
        let room = laps.laps.capacity();
        laps.end(Step::Save, "old", 0);
        laps.start();
        for instance in 0..room as u32 + 5 {
            laps.end(Step::Check, "a", instance);
        }
        assert_eq!((laps.laps.len(), laps.laps.capacity()), (room, room));
        assert!(laps.laps.iter().all(|lap| lap.name == "a" && lap.step == Step::Check));
        assert!(laps.laps.iter().map(|lap| lap.took).sum::<Duration>() <= began.elapsed());
        laps.tell();
        assert!(laps.laps.is_empty());
    }
}
