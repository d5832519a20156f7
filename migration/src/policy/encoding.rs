//! How to write the pages that have to be sent: raw, or compressed by which method (`compress=auto`).
//!
//! ```text
//! rate of a candidate (pages/s) = least of    link bytes/s      / its bytes a page
//!                                             source threads    / its time a page here
//!                                             destination's     / its time a page there
//! ```
//!
//! The best rate wins; among those that are nearly as good, the one that takes the least work. While the guest is stopped
//! there is too little to send for the three to overlap, and the least sum of their times wins.
//!
//! Bytes and times come from groups on which all candidates are tried ([`chooser::Chooser`] says which ones), the
//! link's speed from windows in which it was the link that the source waited for ([`capacity::Capacity`]), or
//! from the limit that somebody has set. For the page pipeline:
//!
//! ```text
//! Chooser::new(candidates, threads)          at the start; under a lock, all threads use the same one
//! wants_sample() -> bool                     before a group is written
//! sampled(candidate, pages, trial)           if so: for each of methods(), what it made of the group
//! candidate() -> Candidate                   how the group is written
//! sent(now_us, sent)                         after a batch: closes a window each 50 ms and decides
//! stop()                                     before the last round
//! choice() -> Choice                         for the report: `to_string()` is the reason in words
//! ```

pub(crate) mod capacity;
pub(crate) mod chooser;

use std::fmt;

use crate::vm::PAGE_BYTES;

/// Rates that differ by less are the same: less work decides.
const NEARLY: f64 = 0.97;

/// What each page costs the source whatever its encoding: the zero test, the hash, its part of the records.
const SOURCE_BASE_US: f64 = 0.6;
/// What each page costs the destination in any case: memory for it, and the hash.
const DESTINATION_BASE_US: f64 = 0.9;
/// What 4096 bytes cost to copy into a socket, or out of it.
const SOCKET_US: f64 = 0.5;

/// One way to write a group.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Candidate {
    pub(crate) name: &'static str,
    /// Its number on the wire.
    pub(crate) encoding: u8,
    /// 0: it has none.
    pub(crate) level: u32,
}

/// The pages as they are. Always among the candidates.
pub(crate) const RAW: Candidate = Candidate { name: "raw", encoding: 1, level: 0 };

/// What a page costs on average.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Cost {
    pub(crate) bytes: f64,
    pub(crate) source_us: f64,
    pub(crate) destination_us: f64,
}

/// Threads that work at the same time: no more than there are processors for them.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Threads {
    pub(crate) source: f64,
    pub(crate) destination: f64,
}

/// A candidate and what is known of it.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Known {
    pub(crate) candidate: Candidate,
    pub(crate) cost: Cost,
}

/// All that a choice depends on.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Figures<'f> {
    pub(crate) known: &'f [Known],
    /// None: it has not been seen at its limit.
    pub(crate) link_bytes_per_s: Option<f64>,
    /// 0: none is set.
    pub(crate) cap_bytes_per_s: u64,
    pub(crate) threads: Threads,
    /// The guest is stopped: the limit doesn't count, and latency does.
    pub(crate) stopped: bool,
}

/// What keeps pages from going faster.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Bound {
    Link,
    /// A link of which nothing is known yet.
    Unknown,
    /// `max-bandwidth`.
    Cap,
    Source,
    Destination,
    /// The three times one after the other, while the guest is stopped.
    Latency,
}

/// What was chosen, and why.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Choice {
    /// Position in the figures.
    pub(crate) index: usize,
    pub(crate) bound: Bound,
    /// Bytes a second that the link or its limit gives, if that is known.
    pub(crate) link_bytes_per_s: Option<f64>,
    /// All candidates with their pages a second, in the figures' order.
    pub(crate) rates: Vec<(Candidate, f64)>,
}

impl Cost {
    /// Of raw pages, which nobody has to try.
    pub(crate) fn raw() -> Self {
        Self::of(PAGE_BYTES as f64, 0.0, 0.0)
    }

    /// Of pages that take so many bytes, and so much time for the encoding itself on either side.
    pub(crate) fn of(bytes: f64, encode_us: f64, decode_us: f64) -> Self {
        let socket_us = Self::socket_us(bytes);
        Self {
            bytes,
            source_us: SOURCE_BASE_US + socket_us + encode_us,
            destination_us: DESTINATION_BASE_US + socket_us + decode_us,
        }
    }

    /// Copying so many bytes into a socket, or out of it.
    fn socket_us(bytes: f64) -> f64 {
        SOCKET_US * bytes / PAGE_BYTES as f64
    }

    fn work_us(&self) -> f64 {
        self.source_us + self.destination_us
    }
}

impl Figures<'_> {
    /// What the link gives, and whether a limit is what keeps it from more.
    fn link(&self) -> (Option<f64>, Bound) {
        let cap = (self.cap_bytes_per_s != 0 && !self.stopped).then_some(self.cap_bytes_per_s as f64);
        match (self.link_bytes_per_s, cap) {
            (Some(link), Some(cap)) if cap < link => (Some(cap), Bound::Cap),
            (Some(link), _) => (Some(link), Bound::Link),
            (None, Some(cap)) => (Some(cap), Bound::Cap),
            (None, None) => (None, Bound::Link),
        }
    }

    /// Pages a second, and what keeps it from more.
    pub(crate) fn rate(&self, known: &Known) -> (f64, Bound) {
        let cost = &known.cost;
        let (link, by_link) = self.link();
        let link_us = link.map_or(0.0, |link| cost.bytes * 1e6 / link);
        let source_us = cost.source_us / self.threads.source;
        let destination_us = cost.destination_us / self.threads.destination;
        if self.stopped {
            return (1e6 / (link_us + source_us + destination_us), Bound::Latency);
        }
        let (us, bound) =
            [(link_us, by_link), (source_us, Bound::Source), (destination_us, Bound::Destination)]
                .into_iter()
                .fold((0.0, by_link), |most, next| if next.0 > most.0 { next } else { most });
        (1e6 / us, bound)
    }

    /// The best candidate. There is always one: raw.
    pub(crate) fn choose(&self) -> Choice {
        let rated: Vec<_> = self.known.iter().map(|known| (known, self.rate(known))).collect();
        let best = rated.iter().map(|(_, (rate, _))| *rate).fold(0.0, f64::max);
        let good = rated.iter().enumerate().filter(|(_, (_, (rate, _)))| *rate >= best * NEARLY);
        let least = good.min_by(|(_, (a, _)), (_, (b, _))| a.cost.work_us().total_cmp(&b.cost.work_us()));
        let (index, bound) = least.map_or((0, Bound::Link), |(index, (_, (_, bound)))| (index, *bound));
        let rates = rated.iter().map(|(known, (rate, _))| (known.candidate, *rate)).collect();
        Choice { index, bound, link_bytes_per_s: self.link().0, rates }
    }
}

impl fmt::Display for Candidate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.level {
            0 => f.write_str(self.name),
            level => write!(f, "{} {level}", self.name),
        }
    }
}

impl fmt::Display for Choice {
    /// Such as `zstd 1: the link binds (12.5 MB/s); pages a second: raw 3052, lz4 1 5800, zstd 1 9611`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some((candidate, _)) = self.rates.get(self.index) {
            write!(f, "{candidate}: ")?;
        }
        let speed =
            self.link_bytes_per_s.map(|speed| format!(" ({:.1} MB/s)", speed / 1e6)).unwrap_or_default();
        match self.bound {
            Bound::Link => write!(f, "the link binds{speed}")?,
            Bound::Unknown => match self.link_bytes_per_s {
                Some(_) => write!(f, "the link is not known yet, and taken for one of{speed}")?,
                None => f.write_str("the link is no limit")?,
            },
            Bound::Cap => write!(f, "max-bandwidth binds{speed}")?,
            Bound::Source => f.write_str("the source's processors bind")?,
            Bound::Destination => f.write_str("the destination's processors bind")?,
            Bound::Latency => write!(f, "the guest is stopped, so the time of a single page counts")?,
        }
        f.write_str("; pages a second: ")?;
        for (position, (candidate, rate)) in self.rates.iter().enumerate() {
            let comma = if position == 0 { "" } else { ", " };
            write!(f, "{comma}{candidate} {rate:.0}")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
