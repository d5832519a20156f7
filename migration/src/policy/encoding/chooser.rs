//! When all candidates are tried, when the choice is made anew, and when it is worth a change.
//!
//! The first group is a sample, then one of 64; as long as the choice stays, each time half as often, to one of 1024.
//! Whatever that says, samples take no more than a fiftieth of the threads' time. A choice changes if another
//! candidate is better by a tenth in two windows one after the other, or in one that has news of the link.
//!
//! A link that isn't known is taken for one of 1 Gbit/s, and for a faster one after each window in which nobody had to
//! wait for it: so what is sent before it is known is never far from the best, on slow links and on fast ones.

use super::capacity::{Capacity, Window};
use super::{Bound, Candidate, Choice, Cost, Figures, Known, RAW, Threads};

/// A window is at least so long; as long as the link is only guessed it is shorter.
const WINDOW_US: u64 = 50_000;
const PROBING_WINDOW_US: u64 = 10_000;
/// Groups from one sample to the next.
const INTERVAL: u32 = 64;
const INTERVAL_MAX: u32 = 1024;
/// Of the threads' time, samples take one part of so many.
const SAMPLE_SHARE: u64 = 50;
/// A better candidate must be so much better.
const WORTH_IT: f64 = 1.1;
/// And in so many windows.
const WINDOWS: u32 = 2;
/// If the destination should bind, and pages are at least so fast beside what it can do, it does; else it is the link.
const DESTINATION_BINDS: f64 = 0.6;
/// Weight of a new sample.
const FRESH: f64 = 0.25;
/// What an unknown link is taken for at first, in bytes/s; it grows by so much a window, until it is taken for no limit.
const ASSUMED: f64 = 125e6;
const ASSUMED_GROWTH: f64 = 4.0;
const ASSUMED_MOST: f64 = 3e9;

/// What a candidate made of one group.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Trial {
    /// As many as raw if it gave up.
    pub(crate) bytes: u64,
    pub(crate) encode_us: u64,
    /// 0 if it gave up.
    pub(crate) decode_us: u64,
}

/// What a thread has just sent.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Sent {
    /// Those that aren't zero.
    pub(crate) pages: u64,
    pub(crate) bytes: u64,
    /// Waits for the limit not counted.
    pub(crate) sending_us: u64,
    pub(crate) encoding_us: u64,
}

/// The choice, from the first group of a migration to the last.
#[derive(Debug, Clone)]
pub(crate) struct Chooser {
    tried: Vec<Tried>,
    threads: Threads,
    cap_bytes_per_s: u64,
    capacity: Capacity,
    /// What the link is taken for as long as it isn't known; none: no limit.
    assumed: Option<f64>,
    choice: Choice,
    /// The candidate that was better in the latest windows, and in how many.
    rival: Option<(usize, u32)>,
    window: Window,
    window_began_us: Option<u64>,
    progress: Progress,
    groups_to_sample: u32,
    interval: u32,
    sampling_us: u64,
    working_us: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Progress {
    /// Nothing was tried yet.
    New,
    /// What was tried is all that is known.
    Guessed,
    /// There was a window.
    Decided,
    /// The guest is stopped: nothing is tried or decided any more.
    Stopped,
}

#[derive(Debug, Clone, Copy)]
struct Tried {
    candidate: Candidate,
    /// None before the first sample.
    cost: Option<Cost>,
}

impl Chooser {
    /// Candidates by rising work. Raw is one by itself.
    pub(crate) fn new(methods: impl IntoIterator<Item = Candidate>, threads: Threads) -> Self {
        let raw = Tried { candidate: RAW, cost: Some(Cost::raw()) };
        let untried = |candidate| Tried { candidate, cost: None };
        let tried: Vec<_> = [raw].into_iter().chain(methods.into_iter().map(untried)).collect();
        let choice = Choice { index: 0, bound: Bound::Link, link_bytes_per_s: None, rates: vec![(RAW, 0.0)] };
        Self {
            tried,
            threads,
            cap_bytes_per_s: 0,
            capacity: Capacity::new(),
            assumed: Some(ASSUMED),
            choice,
            rival: None,
            window: Window::default(),
            window_began_us: None,
            progress: Progress::New,
            groups_to_sample: 0,
            interval: INTERVAL,
            sampling_us: 0,
            working_us: 0,
        }
    }

    /// All candidates but raw, to be tried on a sample.
    pub(crate) fn methods(&self) -> impl Iterator<Item = Candidate> + '_ {
        self.tried.iter().skip(1).map(|tried| tried.candidate)
    }

    /// `max-bandwidth`; 0: none.
    pub(crate) fn set_cap(&mut self, bytes_per_s: u64) {
        self.cap_bytes_per_s = bytes_per_s;
    }

    /// Shall all methods be tried on the next group?
    pub(crate) fn wants_sample(&mut self) -> bool {
        if self.progress == Progress::Stopped {
            return false;
        }
        let first = self.working_us == 0;
        let sample =
            self.groups_to_sample == 0 && (first || self.sampling_us <= self.working_us / SAMPLE_SHARE);
        self.groups_to_sample = self.groups_to_sample.saturating_sub(1);
        if sample {
            self.groups_to_sample = self.interval - 1;
            self.interval = (2 * self.interval).min(INTERVAL_MAX);
        }
        sample && self.tried.len() > 1
    }

    /// How to write the next group.
    pub(crate) fn candidate(&self) -> Candidate {
        self.tried.get(self.choice.index).map_or(RAW, |tried| tried.candidate)
    }

    /// What a candidate made of a group of so many pages.
    pub(crate) fn sampled(&mut self, candidate: Candidate, pages: u64, trial: Trial) {
        self.sampling_us += trial.encode_us + trial.decode_us;
        let per_page = |total: u64| total as f64 / pages.max(1) as f64;
        let new = Cost::of(per_page(trial.bytes), per_page(trial.encode_us), per_page(trial.decode_us));
        let Some(tried) = self.tried.iter_mut().find(|tried| tried.candidate == candidate) else { return };
        tried.cost = Some(tried.cost.map_or(new, |old| Cost {
            bytes: mix(old.bytes, new.bytes),
            source_us: mix(old.source_us, new.source_us),
            destination_us: mix(old.destination_us, new.destination_us),
        }));
        if self.progress == Progress::New && self.tried.iter().all(|tried| tried.cost.is_some()) {
            self.begin();
        }
    }

    /// A batch was sent. At the end of a window the choice is made anew.
    pub(crate) fn sent(&mut self, now_us: u64, sent: Sent) {
        let Sent { pages, bytes, sending_us, encoding_us } = sent;
        let began_us = *self.window_began_us.get_or_insert(now_us);
        self.working_us += sending_us + encoding_us;
        self.window.pages += pages;
        self.window.bytes += bytes;
        self.window.sending_us += sending_us;
        self.window.encoding_us += encoding_us;
        self.window.wall_us = now_us.saturating_sub(began_us);
        let known = self.capacity.bytes_per_s();
        let probing = known.is_none() && self.assumed.is_some();
        if self.window.wall_us < if probing { PROBING_WINDOW_US } else { WINDOW_US } {
            return;
        }
        let window = std::mem::take(&mut self.window);
        self.window_began_us = Some(now_us);
        let destination_binds = self.destination_binds(&window);
        self.capacity.add(now_us, &window, self.threads.source, destination_binds);
        let measured = self.capacity.bytes_per_s();
        self.assumed = match measured {
            Some(measured) => Some(ASSUMED.max(2.0 * measured)),
            None if probing => {
                self.assumed.map(|link| link * ASSUMED_GROWTH).filter(|link| *link <= ASSUMED_MOST)
            }
            None => self.assumed,
        };
        let news = probing || known.is_some() != measured.is_some();
        self.learn(&window);
        self.decide(if news { 1 } else { WINDOWS });
    }

    /// Is it the destination that the threads waited for? What is only assumed of the link says nothing against that.
    fn destination_binds(&self, window: &Window) -> bool {
        let known = self.known();
        let free = Figures { link_bytes_per_s: self.capacity.bytes_per_s(), ..self.figures(&known, false) };
        let current = known.get(self.choice.index).map(|known| free.rate(known));
        current.is_some_and(|(rate, bound)| {
            bound == Bound::Destination && window.pages_per_s() >= DESTINATION_BINDS * rate
        })
    }

    /// Makes the choice for the last round, once.
    pub(crate) fn stop(&mut self) {
        if self.progress != Progress::Stopped {
            self.progress = Progress::Stopped;
            self.choice = self.figures(&self.known(), true).choose();
        }
    }

    /// The choice, with its reason.
    pub(crate) fn choice(&self) -> &Choice {
        &self.choice
    }

    /// Before anything is known of the link.
    fn begin(&mut self) {
        self.progress = Progress::Guessed;
        let known = self.known();
        self.choice = self.told(self.figures(&known, false).choose());
    }

    /// A choice for a link that is only assumed says so.
    fn told(&self, mut choice: Choice) -> Choice {
        if choice.bound == Bound::Link && self.capacity.bytes_per_s().is_none() {
            choice.bound = Bound::Unknown;
        }
        choice
    }

    /// What a method really takes, with all that its threads share their processors with.
    fn learn(&mut self, window: &Window) {
        let method = self.tried.get_mut(self.choice.index).filter(|tried| tried.candidate != RAW);
        if let Some(cost) = method.and_then(|tried| tried.cost.as_mut())
            && window.pages > 0
        {
            let encoding_us = window.encoding_us as f64 / window.pages as f64;
            cost.source_us = mix(cost.source_us, encoding_us + Cost::socket_us(cost.bytes));
        }
    }

    /// A rival must have been better in so many windows.
    fn decide(&mut self, least_windows: u32) {
        let known = self.known();
        let figures = self.figures(&known, false);
        let mut best = figures.choose();
        let current = self.choice.index;
        let rate = |index: usize| best.rates.get(index).map_or(0.0, |(_, rate)| *rate);
        let better = best.index != current && rate(best.index) >= WORTH_IT * rate(current);
        // Nearly as fast with less work is worth a change too, if nothing waits for the source.
        let spares = best.index < current && rate(best.index) >= super::NEARLY * rate(current);
        let windows = match self.rival {
            Some((rival, windows)) if rival == best.index => windows + 1,
            _ => 1,
        };
        self.rival = (better || spares).then_some((best.index, windows));
        self.progress = Progress::Decided;
        if self.rival.is_some_and(|(_, windows)| windows >= least_windows) {
            self.rival = None;
            self.interval = INTERVAL;
            self.groups_to_sample = self.groups_to_sample.min(INTERVAL);
        } else {
            best.bound = known.get(current).map_or(best.bound, |known| figures.rate(known).1);
            best.index = current;
        }
        self.choice = self.told(best);
    }

    fn known(&self) -> Vec<Known> {
        // What was not tried yet is as good as nothing.
        let untried = Cost::of(Cost::raw().bytes, f64::INFINITY, f64::INFINITY);
        let known = |tried: &Tried| Known { candidate: tried.candidate, cost: tried.cost.unwrap_or(untried) };
        self.tried.iter().map(known).collect()
    }

    fn figures<'f>(&self, known: &'f [Known], stopped: bool) -> Figures<'f> {
        let measured = self.capacity.bytes_per_s();
        Figures {
            known,
            link_bytes_per_s: measured.or(self.assumed.filter(|_| !stopped)),
            cap_bytes_per_s: self.cap_bytes_per_s,
            threads: self.threads,
            stopped,
        }
    }
}

fn mix(old: f64, new: f64) -> f64 {
    old + FRESH * (new - old)
}

#[cfg(test)]
mod tests;
