//! The Linux guest's agent: its shell on the serial port, its `AGENT` lines, and what must hold of them.

use std::time::Duration;

use crate::limit::wait_for;
use crate::pulse::{field, tail};
use crate::serial::Serial;

/// One `AGENT beat` line.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct AgentBeat {
    /// Number of the line.
    pub seq: u64,
    /// The guest's monotonic clock.
    pub mono_us: u64,
    /// The guest's boot-time clock.
    pub boot_us: u64,
    /// Pages written by the page checker.
    pub pages_written: u64,
    /// Pages that it found as they should be.
    pub pages_verified: u64,
    /// Blocks of the disk that were found as they should be.
    pub disk_ok: u64,
    /// Blocks that were not, or could not be read or written.
    pub disk_bad: u64,
    /// The most blocks that the disk checker had at the disk at a time.
    pub disk_depth: u64,
    /// UDP datagrams answered.
    pub echo: u64,
    /// Numbered datagrams (`n=17 ...`) that came a second time.
    pub echo_twice: u64,
}

impl AgentBeat {
    /// Reads an `AGENT beat` line.
    pub fn read(line: &str) -> Option<Self> {
        if !line.starts_with("AGENT beat ") {
            return None;
        }
        let number = |name| field(line, name);
        Some(Self {
            seq: number("seq")?,
            mono_us: number("mono_us")?,
            boot_us: number("boot_us")?,
            pages_written: number("pages_written")?,
            pages_verified: number("pages_verified")?,
            disk_ok: number("disk_ok")?,
            disk_bad: number("disk_bad")?,
            disk_depth: number("disk_depth")?,
            echo: number("echo")?,
            echo_twice: number("echo_twice")?,
        })
    }
}

/// The agent in one process.
#[derive(Debug, Clone, Copy)]
pub struct Agent<'a> {
    serial: &'a Serial,
}

impl<'a> Agent<'a> {
    /// The agent behind a serial port with input (`TernBuilder::serial_unix`).
    pub fn new(serial: &'a Serial) -> Self {
        Self { serial }
    }

    /// Waits until the guest has booted; returns its `AGENT ready` line.
    pub fn wait_ready(self) -> String {
        self.serial.wait("the Linux guest's agent", |text| {
            let line = complete_line(text, "AGENT ready ")?;
            // Not a prompt from before a reset.
            let (_, behind) = text.rsplit_once("AGENT ready ")?;
            behind.contains(PROMPT).then_some(line)
        })
    }

    /// Runs a command of the agent's shell and returns what it prints before the next prompt.
    pub fn run(self, command: &str) -> String {
        let before = self.serial.text().len();
        self.serial.write(&format!("{command}\n"));
        self.serial.wait(&format!("the answer to `{command}`"), |text| {
            // The echo of the command, its answer, and the next prompt.
            let (_, answer) = text.get(before..)?.split_once(command)?.1.split_once('\n')?;
            Some(answer.split_once(PROMPT)?.0.replace('\r', ""))
        })
    }

    /// Runs `status` and reads its line.
    pub fn status(self) -> AgentBeat {
        let said = self.run("status");
        let beat = said.lines().find_map(AgentBeat::read);
        beat.unwrap_or_else(|| panic!("`status` printed no AGENT beat line: {said:?}"))
    }

    /// Asks for `status` until it is as `enough` wants it, and returns that.
    ///
    /// # Panics
    /// It is not within the [`crate::limit::limit`]; `what` says what was awaited.
    pub fn wait_status(self, what: &str, enough: impl Fn(&AgentBeat) -> bool) -> AgentBeat {
        let mut asked = false;
        wait_for(what, || {
            if std::mem::replace(&mut asked, true) {
                std::thread::sleep(ASK_EVERY);
            }
            Some(self.status()).filter(&enough)
        })
    }

    /// Checks that the agent has found nothing wrong.
    ///
    /// # Panics
    /// It printed `AGENT CORRUPT`, started again, or the kernel complained.
    pub fn check(self) {
        check(&self.serial.text());
    }
}

/// Where the guest's kernel is interpreted, an answer costs it 30 ms: asked without a pause, it did little else, and what
/// the test waited for took twice the time.
const ASK_EVERY: Duration = Duration::from_millis(200);
const PROMPT: &str = "tern# ";

/// Checks the output of one guest, over all processes that it ran in.
///
/// # Panics
/// As [`Agent::check`].
pub fn check(text: &str) {
    for bad in ["CORRUPT", "Kernel panic", "BUG:", "Oops", "soft lockup", "rcu_sched self-detected"] {
        assert!(!text.contains(bad), "the guest printed {bad:?}:\n{}", tail(text));
    }
    let starts = text.matches("AGENT ready ").count();
    assert!(starts <= 1, "the guest started {starts} times:\n{}", tail(text));
}

/// The first complete line that begins with `start`.
fn complete_line(text: &str, start: &str) -> Option<String> {
    let at = text.find(start)?;
    let (line, _) = text[at..].split_once('\n')?;
    Some(line.trim_end().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_beat_is_read() {
        let line = "AGENT beat seq=5 mono_us=10 boot_us=11 gap_us=2 pages_written=7 pages_verified=6 disk_ok=3 \
                    disk_bad=0 disk_depth=16 echo=12 echo_twice=0\r";
        let beat = AgentBeat::read(line).unwrap();
        assert_eq!((beat.seq, beat.disk_ok, beat.disk_depth, beat.echo), (5, 3, 16, 12));
        assert_eq!(AgentBeat::read("AGENT ready boot_us=1"), None);
    }

    #[test]
    #[should_panic(expected = "CORRUPT")]
    fn corruption_is_found() {
        check("AGENT ready boot_us=1\nAGENT CORRUPT what=page\n");
    }

    #[test]
    #[should_panic(expected = "started 2 times")]
    fn a_second_start_is_found() {
        check("AGENT ready boot_us=1\nAGENT ready boot_us=1\n");
    }
}
