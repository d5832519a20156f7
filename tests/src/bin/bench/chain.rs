//! A guest that moves from process to process of the same VMM: it fills its memory once, and each hop is a run.
//!
//! | figure | how |
//! |---|---|
//! | total | from just before `migrate` is sent until the source's event `MIGRATION completed` and the destination's `RESUME` (their own time stamps): without a return path QEMU says the one as soon as all is in the socket's buffer |
//! | downtime | what the source reports |
//! | gap at the switch | pulse's `gap_us` of the two heartbeats around the switch |
//! | control | the largest `gap_us` while the guest was watched before |
//! | on the link | bytes that its loopback interface has carried, where it runs in a network of its own |
//! | CPU | CPU time of each process, its vCPU included, from `migrate` until both sides are done |
//! | guest's own CPU | what the source's process takes while nothing moves |

use std::io;
use std::thread::sleep;
use std::time::{Duration, Instant, SystemTime};

use serde_json::{Value, json};
use tern_tests::limit::wait_for;

use crate::accounting::{self, cpu_seconds};
use crate::bound::Used;
use crate::contender::{Machine, Process, Vmm};
use crate::interrupt;
use crate::link;
use crate::migration::{downtime_ms, listen, since_ms, wait_until_completed};
use crate::plan::Plan;
use crate::pulse_lines::{Record, Seen, is_ready};
use crate::statistics::Samples;
use crate::way::Way;

/// How long the guest is watched before each hop.
const CONTROL: Duration = Duration::from_millis(300);
/// Heartbeats of the destination that are waited for.
const BEATS_AFTER: usize = 2;
/// What the two processes touch beside the guest's memory, and some more.
const WARM_MORE_MIB: u64 = 128;

/// The guest, and where it is now.
#[derive(Debug)]
pub struct Chain<'p> {
    plan: &'p Plan,
    vmm: Vmm,
    machine: Machine,
    here: Process,
}

/// One hop.
#[derive(Debug, Clone)]
pub struct Hop {
    pub total_ms: f64,
    pub downtime_ms: f64,
    pub seen: Seen,
    pub control_gap_us: u64,
    /// Before it moved, in seconds of CPU time a second.
    pub guest_cpu: f64,
    pub source_cpu_s: f64,
    pub destination_cpu_s: f64,
    /// Frames with all their headers, both ways; none where others may use the link.
    pub link_bytes: Option<u64>,
    /// `query-migrate` of the source.
    pub report: Value,
}

/// A figure of a hop.
pub type Pick = fn(&Hop) -> f64;

/// All hops of one guest that went the same way.
#[derive(Debug, Clone, Default)]
pub struct Hops(pub Vec<Hop>);

impl<'p> Chain<'p> {
    /// Boots it, and waits until it has filled its memory.
    pub fn boot(plan: &'p Plan, vmm: Vmm, machine: Machine) -> io::Result<Self> {
        accounting::warm(warm_bytes(&machine))?;
        let here = machine.boot(vmm, &plan.programs)?;
        wait_for("pulse to have filled its memory", || is_ready(&here.serial()).then_some(()));
        Ok(Self { plan, vmm, machine, here })
    }

    /// Moves it to a new process, and ends the old one.
    pub fn hop(&mut self, way: &Way) -> io::Result<Hop> {
        let Self { plan, vmm, machine, here: source } = self;
        accounting::warm(warm_bytes(machine))?;
        let destination = machine.await_guest(*vmm, &plan.programs)?;
        way.tell_destination(*vmm, &mut destination.qmp());
        let uri = listen(&destination, plan.transport)?;
        let (mut here, mut there) = (source.qmp(), destination.qmp());
        let command = way.request(*vmm, &mut here, &uri);

        let (control_from, watched) = (source.serial().len(), Instant::now());
        let idle_before = cpu_seconds(source.pid())?;
        sleep(CONTROL);
        let cpu_before = [cpu_seconds(source.pid())?, cpu_seconds(destination.pid())?];
        let guest_cpu = (cpu_before[0] - idle_before) / watched.elapsed().as_secs_f64();
        let printed_before = source.serial().len();
        let link_before = machine.namespace.as_deref().map(link::carried_bytes).transpose()?;
        let begin = SystemTime::now();
        here.execute("migrate", command);
        let completed = wait_until_completed(&mut here, *vmm);
        let running = there.wait_event("RESUME");
        let cpu_after = [cpu_seconds(source.pid())?, cpu_seconds(destination.pid())?];
        let report = here.execute("query-migrate", json!({}));

        let record = wait_for("the guest at the destination", || {
            let record = Record::new(&source.serial(), &destination.serial());
            (record.beats_after() >= BEATS_AFTER).then_some(record)
        });
        let wrong = |what| io::Error::other(format!("{vmm:?}: {what}"));
        let link_after = machine.namespace.as_deref().map(link::carried_bytes).transpose()?;
        let seen = record.across_switch(printed_before).map_err(wrong)?;
        let control_gap_us = record.worst_gap_us(control_from..printed_before).unwrap_or(0);
        self.here = destination;
        Ok(Hop {
            total_ms: since_ms(begin, &completed).max(since_ms(begin, &running)),
            downtime_ms: downtime_ms(&report),
            seen,
            control_gap_us,
            guest_cpu,
            source_cpu_s: cpu_after[0] - cpu_before[0],
            destination_cpu_s: cpu_after[1] - cpu_before[1],
            link_bytes: link_before.zip(link_after).map(|(before, after)| after.saturating_sub(before)),
            report,
        })
    }
}

/// Every chain goes every way that its VMM knows, `runs` times, in turns. Of each chain, the hops of each way.
pub fn in_turns<const C: usize, const W: usize>(
    what: &str,
    runs: usize,
    chains: &mut [Chain<'_>; C],
    ways: &[Way; W],
) -> io::Result<[[Hops; W]; C]> {
    let mut all = std::array::from_fn(|_| std::array::from_fn(|_| Hops::default()));
    for run in 1..=runs {
        for (position, way) in ways.iter().enumerate() {
            for (chain, hops) in chains.iter_mut().zip(&mut all).filter(|(chain, _)| way.known_to(chain.vmm))
            {
                interrupt::check()?;
                eprint!("\r\x1b[K{what}, {}: run {run} of {runs}, {:?}", way.name, chain.vmm);
                let hop = chain.hop(way)?;
                hops[position].0.push(hop);
            }
        }
    }
    eprint!("\r\x1b[K");
    Ok(all)
}

fn warm_bytes(machine: &Machine) -> usize {
    usize::try_from((machine.memory_mib + WARM_MORE_MIB) << 20).unwrap_or(usize::MAX)
}

impl Hop {
    /// A number of `query-migrate`'s `ram`; none there is 0.
    pub fn ram(&self, name: &str) -> f64 {
        self.report["ram"][name].as_f64().unwrap_or(0.0)
    }

    /// CPU seconds of both processes.
    pub fn cpu_s(&self) -> f64 {
        self.source_cpu_s + self.destination_cpu_s
    }

    /// MiB that the source says it has sent.
    pub fn sent_mib(&self) -> f64 {
        self.ram("transferred") / f64::from(1 << 20)
    }
}

impl Hops {
    /// One figure of all of them.
    pub fn samples(&self, pick: impl FnMut(&Hop) -> f64) -> Samples {
        Samples(self.0.iter().map(pick).collect())
    }

    /// What kept them from being faster; `link`: the bytes of a hop, and bytes a second that could go.
    pub fn bound(&self, way: &Way, link: Option<(Pick, f64)>) -> String {
        let median = |pick: Pick| self.samples(pick).median().unwrap_or(f64::NAN);
        let cpus = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
        let used = Used {
            total_s: median(|hop| hop.total_ms / 1e3),
            link: link.map(|(bytes, rate)| (median(bytes), rate)),
            cpu_s: [
                median(|hop| hop.source_cpu_s - hop.guest_cpu * hop.total_ms / 1e3),
                median(|hop| hop.destination_cpu_s),
            ],
            threads: way.threads(cpus),
            cpus,
        };
        used.bound()
    }
}
