//! `torture=on`: instead of writing pages, each vCPU sets whatever a machine's state must carry, keeps it
//! for a while, and looks whether it is still there. One turn visits everything, and ends with a `T` line.

mod hold;
mod kvm_clock;
mod strings;
mod system;
mod timers;

use crate::Plan;
use crate::cpu::{self, Avx};
use crate::line::Line;
use crate::page::{Random, Wrong};
use crate::serial;
use crate::watch::Watch;

/// Turns of the holding loop: 0.1 to 0.3 ms.
const HOLD_TURNS: u64 = 200_000;
const HOLDS: u32 = 4;
const COPIES: u32 = 4;
const MOST_REPORTS: u32 = 100;

struct Torture<'a> {
    cpu: u32,
    plan: &'a Plan,
    random: Random,
    watch: Watch,
    registers: hold::Registers,
    timers: timers::Timers,
    clock: Option<kvm_clock::Clock>,
    reports: u32,
}

/// What the banner says of AVX, which is switched on by each vCPU for itself; all are alike.
pub(crate) fn avx_word(avx: Avx) -> &'static str {
    match avx {
        Avx::On => "on",
        Avx::Absent => "absent",
        Avx::Refused => "refused",
    }
}

/// Runs a vCPU's share until `quit`.
pub(crate) fn run(cpu: u32, plan: &Plan) -> ! {
    let avx = cpu::switch_on_avx();
    let mut torture = Torture {
        cpu,
        plan,
        random: Random::new(u64::from(cpu) + 1),
        watch: Watch::new(),
        registers: hold::Registers::new(cpu, avx == Avx::On),
        timers: timers::Timers::new(plan.timer, plan.tsc_khz),
        clock: kvm_clock::Clock::new(cpu),
        reports: 0,
    };
    if avx != plan.avx {
        torture.judge(Err(Wrong { field: "avx", expected: plan.avx as u64, found: avx as u64 }));
    }
    torture.watch.take_gap();
    for seq in 0.. {
        torture.turn();
        torture.say(seq);
        if plan.options.quit_beats.is_some_and(|beats| seq + 1 >= beats) {
            break;
        }
    }
    crate::end(cpu, plan)
}

impl Torture<'_> {
    fn turn(&mut self) {
        let system = system::System::set(&mut self.random);
        for _ in 0..HOLDS {
            let held = self.registers.hold(HOLD_TURNS, &mut self.random);
            self.judge(held);
            self.look_at_clocks();
        }
        let system_registers = self.registers.check_system();
        self.judge(system_registers);
        let copied = strings::copies(self.cpu, COPIES, &mut self.random);
        self.judge(copied);
        self.look_at_clocks();
        let timers = self.timers.check(&mut self.watch);
        self.judge(timers);
        self.look_at_clocks();
        self.ports();
        let kept = system.check();
        self.judge(kept);
        self.look_at_clocks();
    }

    /// The scratch register is one for all vCPUs.
    fn ports(&mut self) {
        while !serial::try_lock() {
            self.look_at_clocks();
        }
        let told = strings::ports(&mut self.random);
        serial::unlock();
        self.judge(told);
    }

    fn look_at_clocks(&mut self) {
        self.watch.turn();
        if let Some(wrong) = self.watch.take_wrong() {
            self.judge(Err(wrong));
        }
        if let Some(result) = self.clock.as_mut().map(kvm_clock::Clock::check) {
            self.judge(result);
        }
    }

    fn judge(&mut self, result: Result<(), Wrong>) {
        self.watch.turn();
        let Err(wrong) = result else { return };
        self.reports += 1;
        if self.reports > MOST_REPORTS {
            return;
        }
        let mut line = Line::new("CORRUPT")
            .number("cpu", u64::from(self.cpu))
            .text("register", wrong.field)
            .hex("expected", wrong.expected)
            .hex("found", wrong.found);
        serial::print(line.finish(), &mut self.watch);
    }

    fn say(&mut self, seq: u64) {
        let now = self.watch.turn();
        let gap_tsc = self.watch.take_gap();
        let (clock_gap_ns, stops) = self.clock.as_mut().map_or((0, 0), kvm_clock::Clock::take);
        let mut line = Line::new("T")
            .number("seq", seq)
            .number("cpu", u64::from(self.cpu))
            .number("t_us", (now - self.plan.start_tsc) * 1000 / self.plan.tsc_khz)
            .number("gap_us", gap_tsc * 1000 / self.plan.tsc_khz)
            .number("clock_gap_us", clock_gap_ns / 1000)
            .number("stops", stops)
            .sum();
        let text = line.finish();
        while !serial::try_lock() {
            self.look_at_clocks();
        }
        // By one instruction: a stop in the middle must neither lose nor double a byte.
        cpu::out_string(serial::PORT, text);
        serial::unlock();
    }
}
