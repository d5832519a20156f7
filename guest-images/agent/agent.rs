//! The agent's state, and its one loop.

use crate::{
    button::Button,
    clock::Clock,
    disk,
    net::Echo,
    pages::{self, Load},
    power, print,
    shell::{self, Lines},
    sys::{self, PollFd},
    vdso,
    worker::{Figures, Worker},
};
use core::sync::atomic::Ordering::Relaxed;

/// How long the loop sleeps while heartbeats run and no page checker watches the clock. Shorter
/// would show smaller gaps, and cost an interpreting host more of its time.
const WATCH_MS: u64 = 50;
/// The same without heartbeats.
const IDLE_MS: u64 = 1000;

pub struct Agent {
    pub figures: &'static Figures,
    pub clock: Clock,
    pub pages: Worker,
    disk: [Worker; disk::LANES],
    pub echo: Option<Echo>,
    button: Option<Button>,
    /// Prompts are printed, and the console read.
    pub shell: bool,
    heartbeat_ms: u64,
    next_beat_ns: u64,
    seq: u64,
    /// A line was entered, or none yet: the next prompt may be printed.
    pub prompt_due: bool,
    /// The last thing printed was a prompt. Whether the echo of a line followed it cannot be
    /// known (the line may have been typed ahead), so a record starts a new line in any case.
    behind_prompt: bool,
    signals: i32,
}

impl Agent {
    pub fn new(gettime: Option<vdso::ClockGettime>) -> sys::Result<Self> {
        Ok(Agent {
            figures: Figures::shared()?,
            clock: Clock::new(gettime),
            pages: Worker::new("pages"),
            disk: [const { Worker::new("disk") }; disk::LANES],
            echo: None,
            button: Button::open(),
            shell: true,
            heartbeat_ms: 0,
            next_beat_ns: 0,
            seq: 0,
            prompt_due: true,
            behind_prompt: false,
            signals: sys::signal_fd(&[sys::SIGINT, sys::SIGTERM, sys::SIGPWR, sys::SIGCHLD])?,
        })
    }

    /// Starts what the command line asks for, says so, and serves for ever.
    pub fn run(&mut self) -> ! {
        shell::run_command_line(self);
        let mut release = [0; 390];
        let (_, boot_ns) = self.look();
        print!(
            "AGENT ready boot_us={} kernel={} cpus={}\n",
            boot_ns / 1000,
            sys::kernel_release(&mut release),
            sys::cpu_count()
        );
        let mut lines = Lines::new();
        loop {
            if self.shell && core::mem::take(&mut self.prompt_due) {
                print!("tern# ");
                self.behind_prompt = true;
            }
            self.turn(&mut lines);
        }
    }

    /// Waits for the next event and handles it.
    fn turn(&mut self, lines: &mut Lines) {
        let console = if self.shell { 0 } else { -1 };
        let echo = self.echo.as_ref().map_or(-1, |echo| echo.fd);
        let button = self.button.as_ref().map_or(-1, |button| button.fd);
        // The kernel skips negative descriptors.
        let mut fds =
            [self.signals, console, echo, button].map(|fd| PollFd { fd, events: sys::POLLIN, revents: 0 });
        let ready = sys::poll(&mut fds, Some(sys::Timespec::from_ms(self.sleep_ms())));
        let (now_ns, _) = self.look();
        if matches!(ready, Ok(count) if count > 0) {
            if fds[0].revents != 0 {
                self.take_signal();
            }
            if fds[2].revents != 0
                && let Some(echo) = &mut self.echo
            {
                echo.answer();
            }
            if fds[3].revents != 0 {
                self.read_button();
            }
            if fds[1].revents != 0 {
                lines.read(self);
            }
        }
        if self.heartbeat_ms > 0 && now_ns >= self.next_beat_ns {
            // From now on, and not from when it was due: no burst after a stop.
            self.next_beat_ns = now_ns + self.heartbeat_ms * 1_000_000;
            self.beat();
        }
    }

    fn sleep_ms(&self) -> u64 {
        if self.heartbeat_ms == 0 {
            return IDLE_MS;
        }
        let (now_ns, _) = self.clock.last_ns();
        let due_ms = self.next_beat_ns.saturating_sub(now_ns).div_ceil(1_000_000);
        if self.pages.is_running() { due_ms } else { due_ms.min(WATCH_MS) }
    }

    fn look(&mut self) -> (u64, u64) {
        self.clock.look();
        self.clock.last_ns()
    }

    fn read_button(&mut self) {
        match self.button.as_ref().map(Button::read) {
            Some(Ok(true)) => {
                self.stop_checks();
                power::off();
            }
            // The device has gone: polling it further would spin.
            Some(Err(_)) => self.button = None,
            _ => {}
        }
    }

    fn take_signal(&mut self) {
        let mut info = [0u8; 128];
        if !matches!(sys::read(self.signals, &mut info), Ok(128)) {
            return;
        }
        let signal = u32::from_le_bytes([info[0], info[1], info[2], info[3]]);
        if signal != sys::SIGCHLD {
            self.stop_checks();
            power::off();
        }
        while let Ok(Some((pid, status))) = sys::wait(-1, false) {
            self.pages.ended(pid, status);
            self.disk.iter_mut().for_each(|lane| lane.ended(pid, status));
        }
    }

    /// Prints one record with all figures.
    pub fn beat(&mut self) {
        let (monotonic_ns, boot_ns) = self.look();
        // The page checker looks at the clock after each page, the loop after each sleep.
        let loop_gap_ns = self.clock.take_gap_ns();
        let pages_gap_ns = self.figures.pages_gap_ns.swap(0, Relaxed);
        let gap_ns = if self.pages.is_running() { pages_gap_ns } else { loop_gap_ns };
        let start = if core::mem::take(&mut self.behind_prompt) { "\n" } else { "" };
        print!(
            "{start}AGENT beat seq={} mono_us={} boot_us={} gap_us={} pages_written={} pages_verified={} disk_ok={} disk_bad={} disk_depth={} echo={} echo_twice={}\n",
            self.seq,
            monotonic_ns / 1000,
            boot_ns / 1000,
            gap_ns / 1000,
            self.figures.pages_written.load(Relaxed),
            self.figures.pages_verified.load(Relaxed),
            self.figures.disk_ok.load(Relaxed),
            self.figures.disk_bad.load(Relaxed),
            self.figures.disk_depth.load(Relaxed),
            self.echo.as_ref().map_or(0, |echo| echo.answered),
            self.echo.as_ref().map_or(0, |echo| echo.twice),
        );
        self.seq += 1;
    }

    pub fn set_heartbeat(&mut self, ms: u64) {
        self.heartbeat_ms = ms;
        self.clock.take_gap_ns();
        self.next_beat_ns = self.clock.last_ns().0 + ms * 1_000_000;
    }

    pub fn start_pages(&mut self, load: Load) -> sys::Result<()> {
        let (figures, mut clock) = (self.figures, self.clock.fresh());
        self.pages.start(|| pages::run(load, figures, &mut clock))
    }

    pub fn stop_pages(&mut self) {
        self.pages.stop();
        // The loop slept long, because the page checker watched the clock.
        self.look();
        self.clock.take_gap_ns();
    }

    pub fn start_disk(&mut self, path: &[u8]) -> sys::Result<()> {
        self.stop_disk();
        let figures = self.figures;
        for (number, lane) in self.disk.iter_mut().enumerate() {
            lane.start(|| disk::run(path, number, figures))?;
        }
        Ok(())
    }

    pub fn stop_disk(&mut self) {
        self.disk.iter_mut().for_each(Worker::stop);
        // What was stopped in the middle has not counted down.
        self.figures.disk_now.store(0, Relaxed);
    }

    pub fn stop_checks(&mut self) {
        self.pages.stop();
        self.stop_disk();
    }
}
