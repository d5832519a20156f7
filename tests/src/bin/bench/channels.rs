//! As fast as it goes: a guest that is nearly full, over one connection and over two, without a limit.
//!
//! tern goes once more without its proof of equality, which QEMU doesn't have: what is between the two is what it costs.

use std::io;

use crate::chain::{Chain, Hop, Hops, Pick, in_turns};
use crate::contender::{BOTH, Machine};
use crate::plan::{Pair, Plan};
use crate::table::{Aim, Figure, Group};
use crate::way::{PLAIN, Way};

/// Of a guest of 1 GiB.
const CONTENT_MIB: u32 = 896;

const ONE: Way = PLAIN;
const TWO: Way = Way { name: "raw", channels: 2, ..PLAIN };

/// Over one connection.
pub fn one(plan: &Plan) -> io::Result<Group> {
    measure(plan, "channel", ONE, "over one connection")
}

/// Over two.
pub fn two(plan: &Plan) -> io::Result<Group> {
    measure(plan, "channels", TWO, "over two connections (QEMU: multifd)")
}

fn measure(plan: &Plan, name: &'static str, way: Way, how: &str) -> io::Result<Group> {
    let machine = Machine::pulse(&plan.pulse, &format!("ws={CONTENT_MIB}M rate=500 content=random nap=10"));
    let [tern, qemu] = BOTH.map(|vmm| Chain::boot(plan, vmm, machine.clone()));
    let mut chains = [tern?, qemu?];
    let ways = [way, Way { verify: false, ..way }];
    // The first of each brings files and memory to where they are for all later ones.
    in_turns(name, 1, &mut chains, &[way])?;
    let [[tern, unproven], [qemu, _]] = in_turns(name, plan.slow_runs, &mut chains, &ways)?;
    let setting = format!(
        "migration of pulse, 1 GiB, {CONTENT_MIB} MiB of it not zero, {how}, by {:?}, no bandwidth limit",
        plan.transport
    );
    let notes = [("tern", &tern), ("QEMU", &qemu)];
    let notes = notes.map(|(who, hops)| format!("{who}: {} binds", hops.bound(&way, None)));
    Ok(Group { name, setting, figures: figures(&tern, &qemu, &unproven), notes: notes.to_vec() })
}

fn per_gib(seconds: f64) -> f64 {
    seconds * 1024.0 / f64::from(CONTENT_MIB)
}

fn figures(tern: &Hops, qemu: &Hops, unproven: &Hops) -> Vec<Figure> {
    let figure = |name, unit, aim, pick: Pick| {
        Figure::new(name, unit, Pair { tern: tern.samples(pick), qemu: qemu.samples(pick) }, aim)
    };
    let alone = |name, unit, pick: Pick| {
        Figure::new(name, unit, Pair { tern: unproven.samples(pick), ..Pair::default() }, None)
    };
    let half = Some(Aim::PartOfQemu(0.5));
    let cpu: Pick = |hop| per_gib(hop.cpu_s());
    vec![
        figure("total", "ms", half, |hop| hop.total_ms),
        figure("CPU of both sides per GiB", "s", half, cpu),
        figure("of it the source's", "s", None, |hop| per_gib(hop.source_cpu_s)),
        figure("and the destination's", "s", None, |hop| per_gib(hop.destination_cpu_s)),
        figure("downtime as reported", "ms", None, |hop| hop.downtime_ms),
        figure("guest's gap at the switch", "ms", Some(Aim::PartOfQemu(1.0)), |hop| {
            hop.seen.switch_gap_us as f64 / 1e3
        }),
        figure("guest's worst gap in all", "ms", None, |hop| hop.seen.worst_gap_us as f64 / 1e3),
        figure("control: worst gap before", "ms", None, |hop| hop.control_gap_us as f64 / 1e3),
        figure("sent", "MiB", None, Hop::sent_mib),
        figure("sent per total time", "MiB/s", None, |hop| hop.sent_mib() / hop.total_ms * 1e3),
        figure("passes", "", None, |hop| hop.ram("dirty-sync-count")),
        alone("without the proof: total", "ms", |hop| hop.total_ms),
        alone("without the proof: CPU of both sides per GiB", "s", cpu),
    ]
}
