//! The two guests: how each is started here, and what their lines say.

use std::path::Path;

use tern_tests::pulse::{PulseLog, field};

use crate::Result;
use crate::network::GUEST;

/// Where the Linux guest echoes.
pub const ECHO_PORT: u16 = 7;
/// The disk of the Linux guest.
pub const DISK_BYTES: u64 = 16 << 20;

/// What Linux or its agent print when something is wrong.
const BAD: [&str; 4] = ["CORRUPT", "Kernel panic", "BUG:", "error: "];

/// Which guest moves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Guest {
    Linux,
    Pulse,
}

/// One line of the guest about its own checks; counts are since the guest's start.
#[derive(Debug, Clone, Copy, Default)]
pub struct Beat {
    pub pages_verified: u64,
    pub disk_verified: u64,
    /// Largest gap of the guest's clock since the line before.
    pub gap_us: u64,
    /// Where in the guest's output the line ends.
    pub ends_at: usize,
}

impl Guest {
    pub fn named(name: &str) -> Option<Self> {
        [Self::Linux, Self::Pulse].into_iter().find(|guest| guest.image() == name)
    }

    pub fn image(self) -> &'static str {
        match self {
            Self::Linux => "linux",
            Self::Pulse => "pulse",
        }
    }

    pub fn memory_mib(self) -> u32 {
        match self {
            Self::Linux => 256,
            Self::Pulse => 1024,
        }
    }

    pub fn cpus(self) -> &'static str {
        "2"
    }

    pub fn has_devices(self) -> bool {
        self == Self::Linux
    }

    /// Pages that it rewrites and checks in turn.
    pub fn working_set_pages(self) -> u64 {
        match self {
            Self::Linux => (8 << 20) / 4096,
            Self::Pulse => (84 << 20) / 4096,
        }
    }

    /// Lines that can hold the gap of the switch: of each vCPU that prints, the one that the switch may have cut,
    /// and the next.
    pub fn lines_at_switch(self) -> usize {
        match self {
            Self::Linux => 2,
            Self::Pulse => 4,
        }
    }

    /// What it is told to do.
    pub fn cmdline(self, network: bool) -> String {
        let mut words = match self {
            Self::Linux => {
                "tern.shell=off tern.heartbeat=500 tern.pages=8M tern.rate=2000 tern.disk=/dev/vda"
            }
            Self::Pulse => "cpus=2 ws=84M rate=20000 interval=50",
        }
        .to_owned();
        if network && self.has_devices() {
            words += &format!(" tern.ip={GUEST}/24 tern.echo={ECHO_PORT}");
        }
        words
    }

    /// What it does meanwhile, for people.
    pub fn work(self, network: bool) -> &'static str {
        match (self, network) {
            (Self::Linux, true) => "rewrites and checks 8 MiB of memory and a disk, answers UDP",
            (Self::Linux, false) => "rewrites and checks 8 MiB of memory and a disk",
            (Self::Pulse, _) => "rewrites and checks 84 MiB of memory, 20000 pages/s",
        }
    }

    /// The arguments of its devices, the same on both sides.
    pub fn devices(self, disk: &Path, tap: Option<&str>) -> Vec<String> {
        if !self.has_devices() {
            return Vec::new();
        }
        let net = tap.map(|tap| ["--net".to_owned(), format!("tap={tap}")]);
        let disk = ["--disk".to_owned(), disk.display().to_string()];
        disk.into_iter().chain(net.into_iter().flatten()).collect()
    }

    /// Is it up? Its name for people.
    pub fn ready(self, text: &str) -> Option<String> {
        match self {
            Self::Linux => {
                let (_, line) = text.split_once("AGENT ready ")?;
                let (line, _) = line.split_once('\n')?;
                let kernel = line.split(' ').find_map(|word| word.strip_prefix("kernel="))?;
                Some(format!("Linux {}", kernel.trim_end()))
            }
            Self::Pulse => text.contains("A ready\n").then(|| "pulse".to_owned()),
        }
    }

    /// All that it has said so far, in order; an error if anything is not as it must be: a failed check, a second
    /// start, a line that is missing or damaged.
    pub fn beats(self, text: &str) -> Result<Vec<Beat>> {
        match self {
            Self::Linux => agent_beats(text),
            Self::Pulse => pulse_beats(text),
        }
    }
}

/// Complete lines and where they end.
fn lines(text: &str) -> impl Iterator<Item = (&str, usize)> {
    let whole = text.split_inclusive('\n').filter(|line| line.ends_with('\n'));
    whole.scan(0, |at, line| {
        *at += line.len();
        Some((line.trim_end(), *at))
    })
}

fn agent_beats(text: &str) -> Result<Vec<Beat>> {
    if let Some((line, _)) = lines(text).find(|(line, _)| BAD.iter().any(|bad| line.contains(bad))) {
        return Err(format!("the guest says: {line}").into());
    }
    if text.matches("AGENT ready ").count() > 1 {
        return Err("the guest started again".into());
    }
    let mut beats = Vec::new();
    for (line, ends_at) in lines(text).filter(|(line, _)| line.starts_with("AGENT beat ")) {
        let number = |name| field(line, name).ok_or_else(|| format!("a damaged line: {line:?}"));
        if number("seq")? != beats.len() as u64 {
            return Err(format!("line {} is missing before: {line}", beats.len()).into());
        }
        if number("disk_bad")? != 0 {
            return Err(format!("the disk gave wrong data: {line}").into());
        }
        beats.push(Beat {
            pages_verified: number("pages_verified")?,
            disk_verified: number("disk_ok")?,
            gap_us: number("gap_us")?,
            ends_at,
        });
    }
    Ok(beats)
}

fn pulse_beats(text: &str) -> Result<Vec<Beat>> {
    let log = PulseLog::check(text)?;
    let mut pages_verified = 0;
    let ends = lines(text).filter(|(line, _)| line.starts_with("B ")).map(|(_, ends_at)| ends_at);
    let beats = log.beats.iter().zip(ends).map(|(beat, ends_at)| {
        pages_verified += beat.verified;
        Beat { pages_verified, disk_verified: 0, gap_us: beat.gap_us, ends_at }
    });
    Ok(beats.collect())
}
