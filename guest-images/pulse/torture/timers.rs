//! The LAPIC timer in each of its modes, and HLT with an interrupt that is pending already. A timer that is
//! lost leaves the vCPU asleep for ever, which whoever waits for its next line sees; one that comes early
//! is told here.

use super::hold::differ;
use crate::apic::{self, Mode, Timer};
use crate::cpu;
use crate::page::Wrong;
use crate::watch::Watch;

const MSR_TSC_DEADLINE: u32 = 0x6e0;
const PERIOD_US: u64 = 400;
const PERIODS: u64 = 3;
/// A timer may be early by a tenth: its own clock was measured, and not for long.
const TENTHS: u64 = 9;
/// Longest wait for an interrupt that must come.
const PATIENCE_MS: u64 = 20_000;

pub(crate) struct Timers {
    machine: Timer,
    tsc_khz: u64,
    timer_khz: u64,
}

impl Timers {
    /// Measures the timer of the vCPU that asks.
    pub(crate) fn new(machine: Timer, tsc_khz: u64) -> Self {
        let timer_khz = apic::timer_khz(tsc_khz);
        apic::enable(machine);
        Self { machine, tsc_khz, timer_khz }
    }

    /// All modes, one after another. Leaves the timer as pulse has it.
    pub(crate) fn check(&self, watch: &mut Watch) -> Result<(), Wrong> {
        let result =
            self.one_shot(watch).and_then(|()| self.pending(watch)).and_then(|()| self.periodic(watch));
        apic::enable(self.machine);
        result?;
        if matches!(self.machine, Timer::TscDeadline) { self.deadline(watch) } else { Ok(()) }
    }

    fn cycles(&self, us: u64) -> u64 {
        us * self.tsc_khz / 1000
    }

    fn count(&self, us: u64) -> u32 {
        (us * self.timer_khz / 1000) as u32
    }

    /// Halts; the time that it takes is no gap.
    fn halt(&self, watch: &mut Watch, until: u64) -> u64 {
        watch.asleep_until(until);
        cpu::halt();
        watch.turn()
    }

    /// Stops the timer, and takes an interrupt of it that is still there: KVM starts a count-down that has
    /// ended once more when its state is restored (Linux 6.18, `kvm_apic_set_state`), so one may come twice.
    fn quiet(&self, watch: &mut Watch) {
        apic::set_count(0);
        if apic::is_timer_pending() {
            let now = watch.turn();
            self.halt(watch, now);
        }
    }

    fn one_shot(&self, watch: &mut Watch) -> Result<(), Wrong> {
        self.quiet(watch);
        apic::set_mode(Mode::OneShot);
        let entry = apic::timer_entry();
        let (wanted, start) = (self.count(2 * PERIOD_US), watch.turn());
        apic::set_count(wanted);
        let (initial, current) = apic::counts();
        differ("timer_initial_count", u64::from(wanted), u64::from(initial))?;
        differ("timer_current_count_is_below", 1, u64::from(current <= wanted))?;
        let woken = self.halt(watch, start + self.cycles(2 * PERIOD_US));
        not_before("one_shot_timer", start + self.cycles(2 * PERIOD_US) * TENTHS / 10, woken)?;
        differ("timer_entry", u64::from(entry), u64::from(apic::timer_entry()))
    }

    fn pending(&self, watch: &mut Watch) -> Result<(), Wrong> {
        self.quiet(watch);
        let give_up = watch.turn() + self.tsc_khz * PATIENCE_MS;
        apic::set_count(self.count(PERIOD_US / 10));
        while !apic::is_timer_pending() {
            not_after("pending_timer", give_up, watch.turn())?;
        }
        for _ in 0..4 {
            watch.turn();
            differ("pending_interrupt", 1, u64::from(apic::is_timer_pending()))?;
        }
        let now = watch.turn();
        self.halt(watch, now);
        Ok(())
    }

    fn periodic(&self, watch: &mut Watch) -> Result<(), Wrong> {
        self.quiet(watch);
        apic::set_mode(Mode::Periodic);
        let start = watch.turn();
        apic::set_count(self.count(PERIOD_US));
        for period in 1..=PERIODS {
            let due = start + self.cycles(PERIOD_US) * period;
            let woken = self.halt(watch, due);
            not_before("periodic_timer", start + self.cycles(PERIOD_US) * period * TENTHS / 10, woken)?;
        }
        self.quiet(watch);
        Ok(())
    }

    fn deadline(&self, watch: &mut Watch) -> Result<(), Wrong> {
        let deadline = watch.turn() + self.cycles(2 * PERIOD_US);
        cpu::wrmsr(MSR_TSC_DEADLINE, deadline);
        let found = cpu::rdmsr(MSR_TSC_DEADLINE);
        // It reads as zero once it has passed.
        if found != 0 || watch.turn() < deadline {
            differ("tsc_deadline", deadline, found)?;
        }
        let woken = self.halt(watch, deadline);
        not_before("deadline_timer", deadline, woken)
    }
}

fn not_before(field: &'static str, expected: u64, found: u64) -> Result<(), Wrong> {
    if found >= expected { Ok(()) } else { Err(Wrong { field, expected, found }) }
}

fn not_after(field: &'static str, expected: u64, found: u64) -> Result<(), Wrong> {
    if found <= expected { Ok(()) } else { Err(Wrong { field, expected, found }) }
}
