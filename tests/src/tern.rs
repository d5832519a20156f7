//! A `tern run` process: built with flags, watched, and ended with whoever started it.

mod booted;
mod builder;

use std::path::{Path, PathBuf};
use std::process::{Child, ExitStatus};

use serde_json::json;
use tempfile::TempDir;

pub use builder::{INHERITED, Incoming, TernBuilder};

use crate::limit::wait_for;
use crate::pulse::{PulseLog, tail};
use crate::qmp::Qmp;
use crate::serial::Serial;

/// A running process with a folder of its own. Dropping it kills the process; if the test is failing, what the
/// process and its guest said last is shown first.
#[derive(Debug)]
pub struct Tern {
    child: Child,
    exit: Option<ExitStatus>,
    folder: TempDir,
    serial: Serial,
    uri: String,
}

impl Tern {
    /// A guest `pulse` with this command line, 64 MiB and one vCPU unless changed.
    pub fn pulse(cmdline: &str) -> TernBuilder {
        TernBuilder::new().image("pulse").cmdline(cmdline)
    }

    /// The process's number.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// The process's own folder.
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// Path of the control socket.
    pub fn control(&self) -> PathBuf {
        self.folder.path().join(builder::CONTROL)
    }

    /// A new connection to the control socket.
    pub fn qmp(&self) -> Qmp {
        Qmp::connect(&self.control())
    }

    /// Where a destination listens.
    ///
    /// # Panics
    /// The process was not started as a destination that listens.
    pub fn uri(&self) -> String {
        assert!(!self.uri.is_empty(), "this process does not listen for a guest");
        self.uri.clone()
    }

    /// The other end of the guest's serial port.
    pub fn serial(&self) -> &Serial {
        &self.serial
    }

    /// What the process has written to its standard error.
    pub fn stderr(&self) -> String {
        let bytes = std::fs::read(self.folder.path().join(builder::STDERR)).unwrap_or_default();
        String::from_utf8_lossy(&bytes).into_owned()
    }

    /// What the process has written to its standard output.
    pub fn stdout(&self) -> String {
        let bytes = std::fs::read(self.folder.path().join(builder::STDOUT)).unwrap_or_default();
        String::from_utf8_lossy(&bytes).into_owned()
    }

    /// Waits until `pulse` has filled its memory and each vCPU has printed `count` whole beats in this process.
    pub fn wait_beats(&self, cpus: usize, count: usize) {
        self.serial.wait(&format!("{count} beats of {cpus} vCPUs"), |text| {
            let complete = &text[..text.rfind('\n')?];
            let beats = |cpu: usize| {
                let word = format!(" cpu={cpu} ");
                complete.lines().filter(|line| line.starts_with("B ") && line.contains(&word)).count()
            };
            (0..cpus).all(|cpu| beats(cpu) >= count).then_some(())
        });
    }

    /// What `pulse` has printed in this process, checked; for a guest that was booted here.
    pub fn pulse_log(&self) -> PulseLog {
        PulseLog::read(&self.serial.text())
    }

    /// Sends a signal (`libc::SIGSTOP`, ...).
    pub fn signal(&self, number: i32) {
        crate::spawn::signal(&self.child, number);
    }

    /// Ends the process at once, without letting it clean up.
    pub fn kill(&mut self) {
        if self.exit.is_none() {
            // Ended already is as good; the wait says which.
            let _ = self.child.kill();
            self.exit = self.child.wait().ok();
        }
    }

    /// Has it ended?
    pub fn has_ended(&mut self) -> bool {
        if self.exit.is_none() {
            self.exit = self.child.try_wait().unwrap_or_else(|error| panic!("wait for tern: {error}"));
        }
        self.exit.is_some()
    }

    /// Waits until the process ends by itself.
    pub fn wait_end(&mut self) -> ExitStatus {
        wait_for("the end of a tern process", || {
            self.has_ended();
            self.exit
        })
    }

    /// Asks it to end, and waits for it.
    pub fn quit(mut self) -> ExitStatus {
        self.qmp().execute("quit", json!({}));
        self.wait_end()
    }
}

impl Drop for Tern {
    fn drop(&mut self) {
        let ended = self.has_ended();
        if std::thread::panicking() {
            let (pid, stderr, printed) = (self.pid(), self.stderr(), self.serial.text());
            let exit = if ended { format!("{:?}", self.exit) } else { "still running".to_owned() };
            eprintln!("--- tern {pid} ({exit}), stderr:\n{stderr}--- its guest:\n{}\n---", tail(&printed));
        }
        self.kill();
    }
}
