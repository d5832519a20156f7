//! What happened: the latest events for people, and a hash of all of them, by which two runs are compared.

use std::collections::VecDeque;
use std::fmt;

use super::random::mix;

/// Events that are kept.
const KEPT: usize = 60;

/// One event.
#[derive(Debug, Clone, Copy)]
struct Event {
    at_us: u64,
    task: usize,
    what: &'static str,
    numbers: [u64; 2],
}

/// All events so far.
#[derive(Debug, Default)]
pub(crate) struct Trace {
    pub(crate) hash: u64,
    latest: VecDeque<Event>,
}

impl Trace {
    pub(crate) fn add(&mut self, at_us: u64, task: usize, what: &'static str, numbers: [u64; 2]) {
        for number in [at_us, task as u64, numbers[0], numbers[1]] {
            self.hash = mix(self.hash ^ number);
        }
        self.hash = what.bytes().fold(self.hash, |hash, byte| hash.rotate_left(5) ^ u64::from(byte));
        if self.latest.len() >= KEPT {
            self.latest.pop_front();
        }
        self.latest.push_back(Event { at_us, task, what, numbers });
    }

    /// The latest events, a line each; `names` are the tasks'.
    pub(crate) fn text(&self, names: &[String]) -> String {
        self.latest.iter().map(|event| Line(event, names).to_string()).collect()
    }
}

struct Line<'t>(&'t Event, &'t [String]);

impl fmt::Display for Line<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self(Event { at_us, task, what, numbers: [one, other] }, names) = self;
        let name = names.get(*task).map_or("world", String::as_str);
        writeln!(f, "{at_us:>12} us  {name:<22} {what} {one} {other}")
    }
}
