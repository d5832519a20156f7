//! 64 bytes change in each page, at a rate that a capped link can't carry in whole pages: both send deltas (XBZRLE).
//!
//! Both start with an empty cache of their default size, 64 MiB, at each migration. A hit is a page whose former content
//! was in the cache, whether or not the delta then was short enough. Of a delta tern counts all bytes on the wire, QEMU
//! not all of its own header.

use std::io;

use serde_json::Value;

use crate::chain::{Chain, Hop, Hops, Pick, in_turns};
use crate::contender::{BOTH, Machine};
use crate::plan::{Pair, Plan};
use crate::table::{Aim, Figure, Group};
use crate::way::{PLAIN, Way};

/// 100 Mbit/s.
const CAP: u64 = 12_500_000;
const CONTENT_MIB: u32 = 32;
/// 16 MB/s of whole pages.
const RATE_PAGES_PER_S: u32 = 4000;

const WAYS: [Way; 2] = [
    Way { name: "xbzrle", xbzrle: true, max_bandwidth: CAP, ..PLAIN },
    // QEMU has its deltas without multifd only, and compresses with multifd only.
    Way { name: "xbzrle and auto", xbzrle: true, compress: "auto", max_bandwidth: CAP, ..PLAIN },
];

/// Deltas of both, and tern's together with compression.
pub fn measure(plan: &Plan) -> io::Result<Group> {
    let cmdline = format!("ws={CONTENT_MIB}M rate={RATE_PAGES_PER_S} bytes=64 content=random nap=10");
    let machine = Machine { memory_mib: 96, ..Machine::pulse(&plan.pulse, &cmdline) };
    let [tern, qemu] = BOTH.map(|vmm| Chain::boot(plan, vmm, machine.clone()));
    let [[tern, both], [qemu, _]] = in_turns("xbzrle", plan.slow_runs, &mut [tern?, qemu?], &WAYS)?;
    let setting = format!(
        "migration of pulse, 64 bytes changed in each of {RATE_PAGES_PER_S} pages/s of {CONTENT_MIB} MiB, by {:?}, at most 100 Mbit/s",
        plan.transport
    );
    let [xbzrle, with_auto] = &WAYS;
    let link: (Pick, f64) = (|hop| hop.ram("transferred"), CAP as f64);
    let notes = [("tern", &tern, xbzrle), ("QEMU", &qemu, xbzrle), ("tern with auto", &both, with_auto)];
    let notes = notes.map(|(who, hops, way)| format!("{who}: {} binds", hops.bound(way, Some(link))));
    let mut figures = figures("", &tern, &qemu);
    figures.extend(self::figures("with auto: ", &both, &Hops::default()));
    Ok(Group { name: "xbzrle", setting, figures, notes: notes.to_vec() })
}

fn figures(before: &str, tern: &Hops, qemu: &Hops) -> Vec<Figure> {
    let figure = |name: &str, unit, aim, pick: Pick| {
        let pair = Pair { tern: tern.samples(pick), qemu: qemu.samples(pick) };
        Figure::new(format!("{before}{name}"), unit, pair, aim)
    };
    let at_most = Some(Aim::PartOfQemu(1.0));
    vec![
        figure("total", "ms", at_most, |hop| hop.total_ms),
        figure("sent", "MiB", at_most, Hop::sent_mib),
        figure("of it deltas", "MiB", None, |hop| delta_bytes(hop) / f64::from(1 << 20)),
        figure("bytes of a delta", "", None, |hop| delta_bytes(hop) / delta_pages(hop)),
        figure("hits", "%", None, hit_percent),
        figure("rounds", "", None, |hop| hop.ram("dirty-sync-count")),
        figure("downtime as reported", "ms", None, |hop| hop.downtime_ms),
        figure("guest's gap at the switch", "ms", None, |hop| hop.seen.switch_gap_us as f64 / 1e3),
        figure("CPU of both sides", "s", None, Hop::cpu_s),
    ]
}

/// A number from tern's report or from QEMU's statistics.
fn number(value: &Value, name: &str) -> f64 {
    value[name].as_f64().unwrap_or(0.0)
}

fn delta(hop: &Hop, name: &str) -> f64 {
    let all = hop.report["report"]["encodings"].as_array();
    let ours = all.and_then(|all| all.iter().find(|row| row["name"] == "xbzrle"));
    number(ours.unwrap_or(&hop.report["xbzrle-cache"]), name)
}

fn delta_bytes(hop: &Hop) -> f64 {
    delta(hop, "bytes")
}

fn delta_pages(hop: &Hop) -> f64 {
    delta(hop, "pages")
}

fn hit_percent(hop: &Hop) -> f64 {
    let (ours, theirs) = (&hop.report["report"]["xbzrle"], &hop.report["xbzrle-cache"]);
    let (hits, misses) = if ours.is_object() {
        (number(ours, "hits"), number(ours, "misses"))
    } else {
        (number(theirs, "pages") + number(theirs, "overflow"), number(theirs, "cache-miss"))
    };
    100.0 * hits / (hits + misses)
}
