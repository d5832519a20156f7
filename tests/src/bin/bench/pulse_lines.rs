//! What pulse said on its serial port, over two processes: the gap that the guest saw across the switch.

use std::ops::Range;

/// The serial output of one guest: what the source wrote, and behind it what the destination wrote.
#[derive(Debug)]
pub struct Record {
    text: String,
    switch_at: usize,
}

/// What one migration looked like from inside.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Seen {
    /// Largest gap in the two heartbeats around the switch.
    pub switch_gap_us: u64,
    /// Largest gap since the byte that was given, the switch included.
    pub worst_gap_us: u64,
}

impl Record {
    /// `source` and `destination` are the whole output of each; a guest that never moved has no second one.
    pub fn new(source: &[u8], destination: &[u8]) -> Self {
        let mut text = String::from_utf8_lossy(source).into_owned();
        let switch_at = text.len();
        text.push_str(&String::from_utf8_lossy(destination));
        Self { text, switch_at }
    }

    /// The largest gap of the heartbeats that end within `bytes`.
    pub fn worst_gap_us(&self, bytes: Range<usize>) -> Option<u64> {
        self.beats().filter(|beat| bytes.contains(&beat.end)).map(|beat| beat.gap_us).max()
    }

    /// Heartbeats that ended at the destination.
    pub fn beats_after(&self) -> usize {
        self.beats().filter(|beat| beat.end > self.switch_at).count()
    }

    /// Looks at the switch; `begin` is where the source's output stood when the migration began. An error if
    /// the guest complained, lost a heartbeat or fell silent: then no figure of it means anything.
    pub fn across_switch(&self, begin: usize) -> Result<Seen, String> {
        if let Some(line) =
            self.text.lines().find(|line| line.starts_with("CORRUPT") || line.starts_with("ERROR"))
        {
            return Err(format!("the guest said: {line}"));
        }
        let beats = self.beats().collect::<Vec<_>>();
        if let Some(pair) = beats.windows(2).find(|pair| pair[1].seq != pair[0].seq + 1) {
            return Err(format!("heartbeat {} of the guest is followed by {}", pair[0].seq, pair[1].seq));
        }
        // A line that was being printed at the switch was composed before it: the gap is in the next one.
        let after = beats.iter().filter(|beat| beat.end > self.switch_at).collect::<Vec<_>>();
        let around = after.iter().take(2).map(|beat| beat.gap_us).max();
        let since = beats.iter().filter(|beat| beat.end > begin).map(|beat| beat.gap_us).max();
        match (around, since) {
            (Some(switch_gap_us), Some(worst_gap_us)) if after.len() >= 2 => {
                Ok(Seen { switch_gap_us, worst_gap_us })
            }
            _ => Err(format!("only {} heartbeats came from the destination", after.len())),
        }
    }

    fn beats(&self) -> impl Iterator<Item = Beat> {
        let mut end = 0;
        self.text.split_inclusive('\n').filter_map(move |line| {
            end += line.len();
            Beat::parse(line, end)
        })
    }
}

/// Has the guest of this output filled its memory and begun to work?
pub fn is_ready(output: &[u8]) -> bool {
    output.split(|byte| *byte == b'\n').any(|line| line.starts_with(b"A ready"))
}

#[derive(Debug)]
struct Beat {
    end: usize,
    seq: u64,
    gap_us: u64,
}

impl Beat {
    fn parse(line: &str, end: usize) -> Option<Self> {
        let fields = line.strip_suffix('\n')?.strip_prefix("B ")?;
        let field = |name: &str| -> Option<u64> {
            let words = fields.split_ascii_whitespace();
            words.filter_map(|word| word.split_once('=')).find(|(key, _)| *key == name)?.1.parse().ok()
        };
        Some(Self { end, seq: field("seq")?, gap_us: field("gap_us")? })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SOURCE: &[u8] = b"A ready\nB seq=0 cpu=0 gap_us=9\nB seq=1 cpu=0 gap_us=40\nB seq=2 cpu";

    #[test]
    fn the_gap_is_in_the_line_behind_the_one_that_was_being_printed() {
        let record =
            Record::new(SOURCE, b"=0 gap_us=3\nB seq=3 cpu=0 gap_us=700\nB seq=4 cpu=0 gap_us=5000\n");
        let seen = record.across_switch(8).unwrap();
        assert_eq!(seen, Seen { switch_gap_us: 700, worst_gap_us: 5000 });
        assert_eq!(record.beats_after(), 3);
        assert_eq!(record.worst_gap_us(0..SOURCE.len()), Some(40));
    }

    #[test]
    fn a_guest_that_complains_or_skips_is_no_figure() {
        let error = |destination: &[u8]| Record::new(SOURCE, destination).across_switch(0).unwrap_err();
        assert!(error(b"=0 gap_us=3\nCORRUPT cpu=0 page=0x1\n").contains("page=0x1"));
        assert!(error(b"=0 gap_us=3\nB seq=4 cpu=0 gap_us=1\n").contains("2 of the guest is followed by 4"));
        assert!(error(b"=0 gap_us=3\n").contains("only 1 heartbeats"));
    }
}
