//! Reads what `pulse` prints, over all processes that it ran in, and checks what must hold across them:
//! one banner, no `CORRUPT`, each vCPU's beats numbered without holes, time and totals never going back, and no
//! byte lost or doubled (every line has a known form).

use std::collections::BTreeMap;

/// One `B` line.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Beat {
    /// Number of the line, per vCPU, from 0.
    pub seq: u64,
    /// The vCPU.
    pub cpu: u64,
    /// Guest time since its boot.
    pub t_us: u64,
    /// Pages written since the vCPU's last line.
    pub written: u64,
    /// Pages found as they should be since the vCPU's last line.
    pub verified: u64,
    /// Pages written since the start.
    pub total: u64,
    /// Largest time that the guest missed since the vCPU's last line.
    pub gap_us: u64,
}

/// All beats of one guest, checked.
#[derive(Debug, Clone, Default)]
pub struct PulseLog {
    /// In the order in which they were printed.
    pub beats: Vec<Beat>,
    /// vCPUs that the banner announced.
    pub cpus: u64,
    /// `A ready` was printed.
    pub ready: bool,
}

impl PulseLog {
    /// Reads `text`: the output of the processes that the guest ran in, one behind the other. The last line may be
    /// incomplete.
    ///
    /// # Panics
    /// The text breaks one of the rules above; the offending line is shown.
    pub fn read(text: &str) -> Self {
        Self::check(text).unwrap_or_else(|problem| panic!("{problem}\nThe guest printed:\n{}", tail(text)))
    }

    /// As [`Self::read`], with the broken rule as an error.
    ///
    /// # Errors
    /// The rule and the line.
    pub fn check(text: &str) -> Result<Self, String> {
        let mut log = Self::default();
        let mut banners = 0;
        let mut last: BTreeMap<u64, Beat> = BTreeMap::new();
        let complete = text.rfind('\n').map_or("", |end| &text[..end]);
        for line in complete.lines() {
            match line.split(' ').next() {
                Some("A") if line.starts_with("A tern-pulse ") => {
                    banners += 1;
                    log.cpus = field(line, "cpus").ok_or_else(|| format!("no cpus= in: {line}"))?;
                }
                Some("A") if line == "A ready" && !log.ready => log.ready = true,
                Some("B") => {
                    let beat = Beat::read(line).ok_or_else(|| format!("a damaged line: {line:?}"))?;
                    if let Some(problem) = beat.follows(last.insert(beat.cpu, beat)) {
                        return Err(format!("{problem}: {line}"));
                    }
                    log.beats.push(beat);
                }
                _ => return Err(format!("pulse should not print: {line:?}")),
            }
        }
        if banners > 1 {
            return Err(format!("{banners} start banners: the guest started again"));
        }
        if log.beats.iter().any(|beat| beat.cpu >= log.cpus) {
            return Err(format!("a beat of a vCPU that the banner (cpus={}) doesn't have", log.cpus));
        }
        Ok(log)
    }

    /// The beats of one vCPU.
    pub fn of_cpu(&self, cpu: u64) -> impl Iterator<Item = &Beat> {
        self.beats.iter().filter(move |beat| beat.cpu == cpu)
    }

    /// The largest gap that the guest saw, on any vCPU, in beats number `from` and later.
    pub fn largest_gap_us(&self, from: u64) -> u64 {
        self.beats.iter().filter(|beat| beat.seq >= from).map(|beat| beat.gap_us).max().unwrap_or(0)
    }

    /// Pages checked by all vCPUs.
    pub fn verified(&self) -> u64 {
        self.beats.iter().map(|beat| beat.verified).sum()
    }

    /// Number of the beat that all vCPUs have reached; none if one has not printed any.
    pub fn reached(&self) -> Option<u64> {
        (0..self.cpus).map(|cpu| self.of_cpu(cpu).last().map(|beat| beat.seq)).min().flatten()
    }
}

impl Beat {
    /// Reads a `B` line with all its fields and nothing else.
    pub fn read(line: &str) -> Option<Self> {
        const FIELDS: [&str; 8] = ["seq", "cpu", "t_us", "written", "verified", "total", "gap_us", "gap_tsc"];
        let mut numbers = [0; FIELDS.len()];
        let mut words = line.strip_prefix("B ")?.split(' ');
        for (number, name) in numbers.iter_mut().zip(FIELDS) {
            *number = words.next()?.strip_prefix(name)?.strip_prefix('=')?.parse().ok()?;
        }
        let [seq, cpu, t_us, written, verified, total, gap_us, _] = numbers;
        words.next().is_none().then_some(Self { seq, cpu, t_us, written, verified, total, gap_us })
    }

    fn follows(&self, before: Option<Self>) -> Option<&'static str> {
        let Some(before) = before else {
            return (self.seq != 0).then_some("the first beat is not number 0");
        };
        if self.seq != before.seq + 1 {
            Some("a hole in the numbers of the beats")
        } else if self.t_us <= before.t_us {
            Some("the guest's time went back")
        } else if self.total != before.total + self.written {
            Some("the total is not what was written")
        } else {
            None
        }
    }
}

/// The number behind `name=` in a line of `name=value` words.
pub fn field(line: &str, name: &str) -> Option<u64> {
    line.split(' ').find_map(|word| word.strip_prefix(name)?.strip_prefix('=')?.trim_end().parse().ok())
}

/// The last lines of a long text.
pub(crate) fn tail(text: &str) -> String {
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(25)..].join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    const BANNER: &str = "A tern-pulse 1 cpus=2 ws=33554432 rate=max\nA ready\n";

    fn beat(seq: u64, cpu: u64, t_us: u64, total: u64) -> String {
        format!(
            "B seq={seq} cpu={cpu} t_us={t_us} written=10 verified=10 total={total} gap_us=3 gap_tsc=6000\n"
        )
    }

    #[test]
    fn a_sound_log_is_read() {
        let text =
            [BANNER, &beat(0, 0, 5, 10), &beat(0, 1, 6, 10), &beat(1, 0, 9, 20), "B seq=2 cp"].concat();
        let log = PulseLog::read(&text);
        assert_eq!((log.beats.len(), log.cpus, log.ready, log.verified()), (3, 2, true, 30));
        assert_eq!((log.reached(), log.largest_gap_us(0)), (Some(0), 3));
    }

    #[test]
    fn each_rule_is_checked() {
        let broken = [
            (BANNER.repeat(2), "pulse should not print: \"A ready\""),
            (BANNER.replace("A ready\n", "").repeat(2), "2 start banners"),
            ([BANNER, &beat(0, 0, 5, 10), &beat(2, 0, 6, 20)].concat(), "a hole"),
            ([BANNER, &beat(1, 0, 5, 10)].concat(), "not number 0"),
            ([BANNER, &beat(0, 0, 5, 10), &beat(1, 0, 4, 20)].concat(), "time went back"),
            ([BANNER, &beat(0, 0, 5, 10), &beat(1, 0, 6, 19)].concat(), "not what was written"),
            ([BANNER, &beat(0, 2, 5, 10)].concat(), "doesn't have"),
            ([BANNER, "CORRUPT cpu=0 page=0x1000\n"].concat(), "should not print: \"CORRUPT"),
            (
                [BANNER, "B seq=0 cpu=0 t_us=1 writtverified=10 total=10 gap_us=1 gap_tsc=1\n"].concat(),
                "damaged",
            ),
            ([BANNER, &beat(0, 0, 5, 10).replace('\n', " x=1\n")].concat(), "damaged"),
        ];
        for (text, expected) in broken {
            let problem = PulseLog::check(&text).unwrap_err();
            assert!(problem.contains(expected), "{expected}: {problem}");
        }
    }
}
