//! Checks that run beside the shell: each is a forked process, so that it is stopped
//! by a signal and shares nothing but its figures.

#![allow(unsafe_code, reason = "figures live in memory that processes share")]

use crate::{print, sys};
use core::sync::atomic::{AtomicU64, Ordering::Relaxed};

/// Figures that the checks count and the heartbeat prints. Lives in shared memory.
#[derive(Default)]
pub struct Figures {
    pub pages_written: AtomicU64,
    pub pages_verified: AtomicU64,
    pub pages_gap_ns: AtomicU64,
    pub disk_ok: AtomicU64,
    pub disk_bad: AtomicU64,
    /// Blocks that are being written or read.
    pub disk_now: AtomicU64,
    /// The most that there have been at a time.
    pub disk_depth: AtomicU64,
}

impl Figures {
    /// Figures in memory that forked processes share.
    pub fn shared() -> sys::Result<&'static Figures> {
        let memory = sys::map(size_of::<Figures>(), true)?;
        // SAFETY: the mapping is zeroed, page-aligned, large enough and never unmapped;
        // atomics may be shared, and zero is a valid value of each.
        Ok(unsafe { &*memory.cast::<Figures>() })
    }
}

/// Adds to a figure.
pub fn count(figure: &AtomicU64, by: u64) {
    figure.fetch_add(by, Relaxed);
}

/// A check that may be running.
pub struct Worker {
    name: &'static str,
    pid: Option<i32>,
}

impl Worker {
    pub const fn new(name: &'static str) -> Self {
        Worker { name, pid: None }
    }

    pub fn is_running(&self) -> bool {
        self.pid.is_some()
    }

    /// Stops the current run, if any, and starts `check`, which is not meant to return.
    pub fn start(&mut self, check: impl FnOnce()) -> sys::Result<()> {
        self.stop();
        match sys::fork()? {
            0 => {
                let mut name = [0u8; 16];
                name[..self.name.len().min(15)]
                    .copy_from_slice(&self.name.as_bytes()[..self.name.len().min(15)]);
                sys::set_name(&name);
                check();
                sys::exit(1)
            }
            pid => self.pid = Some(pid),
        }
        Ok(())
    }

    /// Stops the check and waits until it is gone.
    pub fn stop(&mut self) {
        if let Some(pid) = self.pid.take() {
            sys::kill(pid, sys::SIGKILL);
            let _ = sys::wait(pid, true);
        }
    }

    /// Takes note that process `pid` ended by itself, which a check never should.
    pub fn ended(&mut self, pid: i32, status: i32) {
        if self.pid == Some(pid) {
            self.pid = None;
            print!("\nAGENT ENDED what={} status={status:#x}\n", self.name);
        }
    }
}
