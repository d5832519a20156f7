//! A slow link: memory of text and of random bytes, raw and in each encoding, over TCP in a network of the bench's own whose
//! loopback interface is shaped (`tc ... tbf`). Neither VMM is told how fast it is, so tern's `auto` has to find out.
//!
//! The guest hardly writes: how fast memory goes is measured, not how soon that converges. Bytes are those that the
//! interface has carried, counted by the kernel for both alike.

use std::io;
use std::process::Command;

use serde_json::Value;
use tern_tests::host::root_or_skip;
use tern_tests::namespace::Namespace;

use crate::chain::{Chain, Hop, Hops, Pick, in_turns};
use crate::contender::{BOTH, Machine, Vmm};
use crate::plan::{Pair, Plan, Transport};
use crate::statistics::Samples;
use crate::table::{Aim, Figure, Group};
use crate::way::{PLAIN, Way};

/// What is beside the working set: pulse itself, and where it begins.
const BESIDE_MIB: u64 = 24;

/// A link and the guests that cross it.
#[derive(Debug, Clone, Copy)]
pub struct Scenario {
    /// For the command line and JSON.
    pub name: &'static str,
    /// How fast the link is.
    pub mbit_per_s: u32,
    /// Memory of each content: enough for a second or more, raw.
    pub contents: [(&'static str, u64); 2],
}

/// The links that are asked for.
pub const SCENARIOS: [Scenario; 2] = [
    Scenario { name: "link-1g", mbit_per_s: 1000, contents: [("text", 256), ("random", 128)] },
    Scenario { name: "link-100m", mbit_per_s: 100, contents: [("text", 64), ("random", 24)] },
];

const WAYS: [Way; 6] = [
    PLAIN,
    Way { name: "lz4", compress: "lz4", ..PLAIN },
    Way { name: "zstd", compress: "zstd", ..PLAIN },
    Way { name: "zlib", compress: "zlib", ..PLAIN },
    Way { name: "xbzrle", xbzrle: true, ..PLAIN },
    AUTO,
];
const AUTO: Way = Way { name: "auto", compress: "auto", ..PLAIN };

/// Bytes that the loopback interface of this namespace has carried since it was made.
pub fn carried_bytes(namespace: &str) -> io::Result<u64> {
    let mut command = Command::new("ip");
    let output = command.args(["-n", namespace, "-s", "-j", "link", "show", "lo"]).output()?;
    let shown: Value = serde_json::from_slice(&output.stdout)?;
    let bytes = shown[0]["stats64"]["tx"]["bytes"].as_u64();
    bytes.ok_or_else(|| io::Error::other(format!("`ip -s link` of {namespace} has no bytes: {shown}")))
}

/// Each encoding over this link. None without root.
pub fn measure(plan: &Plan, scenario: &Scenario) -> io::Result<Option<Group>> {
    if !root_or_skip() {
        return Ok(None);
    }
    let Scenario { name, mbit_per_s, contents } = *scenario;
    let namespace = Namespace::new(&[]);
    shape(namespace.name(), mbit_per_s)?;
    let plan = &plan.over(Transport::Tcp);
    let bytes_per_s = f64::from(mbit_per_s) * 1e6 / 8.0;
    let (mut figures, mut notes) = (Vec::new(), Vec::new());
    for (content, mib) in contents {
        let machine = Machine {
            memory_mib: mib + BESIDE_MIB,
            namespace: Some(namespace.name().to_owned()),
            ..Machine::pulse(&plan.pulse, &format!("ws={mib}M rate=50 content={content} nap=10"))
        };
        let [tern, qemu] = BOTH.map(|vmm| Chain::boot(plan, vmm, machine.clone()));
        let [tern, qemu] =
            in_turns(&format!("{name}, {content}"), plan.slow_runs, &mut [tern?, qemu?], &WAYS)?;
        for ((way, tern), qemu) in WAYS.iter().zip(&tern).zip(&qemu) {
            figures.extend(way_figures(content, way, tern, qemu));
            let each =
                [(Vmm::Tern, tern), (Vmm::Qemu, qemu)].into_iter().filter(|(_, hops)| !hops.0.is_empty());
            notes.extend(each.map(|(vmm, hops)| {
                format!(
                    "{content}, {}, {vmm:?}: {} binds",
                    way.name,
                    hops.bound(way, Some((link_bytes, bytes_per_s)))
                )
            }));
        }
        figures.extend(verdicts(content, &tern, &qemu));
    }
    let of = contents.map(|(content, mib)| format!("{mib} MiB of {content}")).join(" or ");
    let setting = format!("migration of pulse with {of}, over TCP on a link of {mbit_per_s} Mbit/s");
    Ok(Some(Group { name, setting, figures, notes }))
}

fn shape(namespace: &str, mbit_per_s: u32) -> io::Result<()> {
    let rate = format!("{mbit_per_s}mbit");
    let words = ["-n", namespace, "qdisc", "add", "dev", "lo", "root", "tbf", "rate", &rate];
    // A burst of several of loopback's largest frames; a queue that TCP does not fill.
    let done = Command::new("tc").args(words).args(["burst", "256kb", "latency", "100ms"]).output()?;
    if done.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&done.stderr).into_owned();
    Err(io::Error::other(format!("tc can't shape a link to {rate}: {said}; it needs the kernel's sch_tbf")))
}

fn way_figures(content: &str, way: &Way, tern: &Hops, qemu: &Hops) -> [Figure; 3] {
    let figure = |what: &str, unit, pick: Pick| {
        let pair = Pair { tern: tern.samples(pick), qemu: qemu.samples(pick) };
        Figure::new(format!("{content}, {}: {what}", way.name), unit, pair, None)
    };
    [
        figure("total", "ms", |hop| hop.total_ms),
        figure("on the link", "MiB", carried_mib),
        figure("CPU of both sides", "s", Hop::cpu_s),
    ]
}

fn link_bytes(hop: &Hop) -> f64 {
    hop.link_bytes.map_or(f64::NAN, |bytes| bytes as f64)
}

fn carried_mib(hop: &Hop) -> f64 {
    link_bytes(hop) / f64::from(1 << 20)
}

/// `auto` beside the best of tern's own, and tern's bytes beside QEMU's: of medians.
fn verdicts(content: &str, tern: &[Hops], qemu: &[Hops]) -> [Figure; 3] {
    let least = |all: &[Hops], pick: Pick| {
        let medians = all.iter().filter_map(|hops| hops.samples(pick).median());
        medians.fold(f64::INFINITY, f64::min)
    };
    let fixed =
        || WAYS.iter().zip(tern).filter(|(way, _)| way.name != AUTO.name).map(|(_, hops)| hops.clone());
    let auto =
        || WAYS.iter().zip(tern).filter(|(way, _)| way.name == AUTO.name).map(|(_, hops)| hops.clone());
    let (fixed, auto): (Vec<_>, Vec<_>) = (fixed().collect(), auto().collect());
    let one = |what: &str, value: f64, aim| {
        let pair = Pair { tern: Samples(vec![value]), ..Pair::default() };
        Figure::new(format!("{content}: {what}"), "", pair, Some(Aim::Below(aim)))
    };
    let total: Pick = |hop| hop.total_ms;
    [
        one("auto's total / the best other of tern's", least(&auto, total) / least(&fixed, total), 1.05),
        one("tern's least bytes / QEMU's least", least(tern, carried_mib) / least(qemu, carried_mib), 1.005),
        one("tern's best total / QEMU's best", least(tern, total) / least(qemu, total), 1.0),
    ]
}
