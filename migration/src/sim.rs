//! The deterministic simulator: whole migrations by the real engine in a small world that follows from a seed.
//!
//! ```text
//! seed -> plan (machine, parameters, links, faults)
//!      -> world: clock, chance, network, two hosts
//!           coroutine "source"       migrate_by(..)     with all the threads that it starts
//!           coroutine "destination"  receive_from(..)   likewise
//!      -> after each turn: what always holds;  at the end: what must be true;  then another attempt
//! ```
//!
//! Nothing is real but the engine. Each of its threads is a coroutine, and one runs at a time, until it waits for a connection, for
//! another thread or for the clock (`thread.rs` is that seam, and the streams of `stream.rs`): then the seed chooses
//! who is next. When nobody can go on the clock jumps, so thirty seconds of silence cost nothing. The network delays,
//! splits, holds back, cuts, silences and changes bytes; processes die, stand still and are cancelled; calls of the machine
//! fail; limits change. A process that dies at once has threads that don't know it: they go on as ghosts whose every call fails,
//! and nobody sees what they do.
//!
//! What is checked: at most one side runs the guest, with exactly the memory that the source had when it was stopped; a guest
//! that was not given up goes on, and the next attempt, without faults, succeeds; nobody waits for ever; a cancel is
//! obeyed in 200 ms; statuses come in order; both sides count the same; the bandwidth limit holds in every second.
//!
//! The same seed gives the same world, which a hash of all events shows. Time that the CPU takes doesn't exist, and page
//! contents are read in one piece between two waits: races inside a single step are for other tests.

mod attempt;
mod judge;
mod net;
mod plan;
mod random;
mod stream;
mod trace;
pub(crate) mod turn;
mod world;

use std::fmt;

use self::attempt::Attempt;
use self::judge::{Verdict, judge};
use self::plan::Plan;
use self::random::{Random, mix};
use self::world::{Runner, World};
use crate::fake::FakeVm;
use crate::stats::Side;

/// Failed attempts in one world before the one without faults.
const WILD_MAX: u64 = 3;

/// How a seed went.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ran {
    /// Of everything that has happened, in order.
    pub hash: u64,
    /// What became of the guest.
    pub end: &'static str,
    /// Migrations.
    pub attempts: u64,
    /// Turns of all threads.
    pub turns: u64,
    /// Time that has passed in the world.
    pub time_us: u64,
    /// Damages to connections that a byte has met.
    pub hits: u32,
}

/// What a seed has found.
#[derive(Debug, Clone)]
pub struct Failure {
    /// The seed.
    pub seed: u64,
    /// What doesn't hold.
    pub text: String,
    /// The attempt's plan.
    pub plan: String,
    /// The latest events.
    pub trace: String,
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { seed, text, plan, trace } = self;
        writeln!(f, "{trace}\n{plan}\n\nseed {seed:#x}: {text}")?;
        write!(
            f,
            "again: make sim SEED={seed:#x}, or TERN_SIM_SEED={seed:#x} cargo test -p tern-migration --test sim"
        )
    }
}

/// The seed of place `number` in a series.
pub fn seed_of(series: u64, number: u64) -> u64 {
    mix(series.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ mix(number.wrapping_add(1)))
}

/// Runs the world of a seed.
pub fn run(seed: u64) -> Result<Ran, Failure> {
    let mut runner = Runner::new(World::new(mix(seed)));
    let mut story = Story { random: Random::new(seed), plan: String::new(), attempts: 0, turns: 0, hits: 0 };
    match story.run(&mut runner) {
        Ok(end) => {
            let (hash, time_us) = (runner.world.trace.borrow().hash, runner.world.now_us());
            let Story { attempts, turns, hits, .. } = story;
            Ok(Ran { hash, end, attempts, turns, time_us, hits })
        }
        Err(text) => {
            let trace = runner.world.trace.borrow().text(&runner.world.names());
            Err(Failure { seed, text, plan: story.plan, trace })
        }
    }
}

/// One guest's life: attempts with faults, and a last one without if it is still where it was.
struct Story {
    random: Random,
    plan: String,
    attempts: u64,
    turns: u64,
    hits: u32,
}

impl Story {
    fn run(&mut self, runner: &mut Runner) -> Result<&'static str, String> {
        let options = plan::options(&mut self.random);
        let mut vm = FakeVm::booted(options.clone()).map_err(|error| error.to_string())?;
        if self.random.percent(5) {
            vm.set_running(false);
        }
        let wild = self.random.between(1, WILD_MAX);
        loop {
            let calm = self.attempts >= wild;
            let plan = if calm { Plan::calm(&mut self.random)? } else { Plan::wild(&mut self.random)? };
            self.plan = format!("attempt {}: {plan:#?}\n{options:?}", self.attempts + 1);
            self.attempts += 1;
            runner.world.note(if calm { "calm attempt" } else { "attempt" }, [self.attempts, 0]);
            runner.world.revive(Side::Destination);
            let mut attempt = Attempt::begin(runner, vm, &options, plan)?;
            self.turns += attempt.run(runner)?;
            self.hits += runner.world.net.borrow().hits;
            match judge(&attempt, runner, calm)? {
                Verdict::Over(end) => return Ok(end),
                Verdict::Again(kept) => vm = kept,
            }
        }
    }
}
