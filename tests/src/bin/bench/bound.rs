//! What keeps a migration from being faster, from what was measured of it: how busy the link was, and how busy the
//! processors that could have worked on it.

/// Busy to such a part, a thing is what is waited for; the rest of its time went into beginning and end.
const BINDS: f64 = 0.75;

/// What a migration had, and what it used of that.
#[derive(Debug, Clone, Copy)]
pub struct Used {
    pub total_s: f64,
    /// Bytes that went, and bytes a second that could go; none: nobody knows a limit.
    pub link: Option<(f64, f64)>,
    /// CPU seconds of source and destination, without those of the guest's own work.
    pub cpu_s: [f64; 2],
    /// Threads of either side that work on pages.
    pub threads: [usize; 2],
    /// Processors, which both sides share.
    pub cpus: usize,
}

impl Used {
    /// Such as `the link (99 % busy; CPUs at work: source 0.12, destination 0.30)`.
    pub fn bound(&self) -> String {
        let at_work = self.cpu_s.map(|seconds| (seconds / self.total_s).max(0.0));
        let link = self.link.map_or(0.0, |(bytes, rate)| bytes / rate / self.total_s);
        let of_threads = |side: usize| at_work[side] / self.threads[side].min(self.cpus) as f64;
        let all = (at_work[0] + at_work[1]) / self.cpus as f64;
        let one = |side: usize, whose: &str| match self.threads[side] {
            1 => format!("the {whose}'s thread"),
            threads => format!("the {whose}'s {threads} threads"),
        };
        let candidates = [
            (link, "the link".to_owned()),
            (of_threads(0), one(0, "source")),
            (of_threads(1), one(1, "destination")),
            (all, format!("the {} CPUs that both sides share", self.cpus)),
        ];
        let most = candidates.into_iter().max_by(|a, b| a.0.total_cmp(&b.0));
        let (busy, name) = most.unwrap_or_default();
        let name = if busy >= BINDS { name } else { format!("no one thing; most of all {name}") };
        let link = self.link.map_or(String::new(), |_| format!("link {:.0} % busy; ", link * 100.0));
        format!("{name} ({link}CPUs at work: source {:.2}, destination {:.2})", at_work[0], at_work[1])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_busiest_binds() {
        let used = Used { total_s: 2.0, link: Some((2e6, 1e6)), cpu_s: [0.2, 0.4], threads: [1, 1], cpus: 2 };
        assert_eq!(used.bound(), "the link (link 100 % busy; CPUs at work: source 0.10, destination 0.20)");
        let free = Used { link: None, ..used };
        assert!(free.bound().starts_with("no one thing; most of all the destination's thread ("));
        assert!(Used { cpu_s: [1.9, 0.2], ..free }.bound().starts_with("the source's thread ("));
        assert!(Used { cpu_s: [1.9, 0.2], threads: [2, 1], ..free }.bound().starts_with("no one thing"));
        let both = Used { cpu_s: [1.9, 1.9], threads: [2, 2], ..free };
        assert!(both.bound().starts_with("the 2 CPUs that both sides share"), "{}", both.bound());
    }
}
