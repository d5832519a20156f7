//! The state of a machine alone: how long a migration's save and load of it take while the guest is stopped, for
//! machines of several sizes, so that the differences say what a vCPU and what a device costs.
//!
//! And of tern's largest machine each section by itself, as its log tells after the stop.
//!
//! tern: the report's `state_save_us` (reading the state and encoding it) and `load_us` (decoding, checking, applying).
//! QEMU: the sum of what its trace events `vmstate_downtime_save` and `vmstate_downtime_load` show for each device;
//! that is without RAM, and without the file or socket.

use std::collections::BTreeMap;
use std::io;

use serde_json::json;
use tern_tests::Qmp;
use tern_tests::host::root_or_skip;
use tern_tests::limit::wait_for;
use tern_tests::namespace::Namespace;

use crate::contender::{Devices, Machine, Process, Vmm};
use crate::migration::{listen, prepare, wait_until_completed};
use crate::plan::{Pair, Plan};
use crate::pulse_lines::is_ready;
use crate::statistics::Samples;
use crate::table::{Aim, Figure, Group};

const TAPS: [&str; 2] = ["bench0", "bench1"];
/// The section that is saved and loaded last.
const LAST: &str = "virtio-console/0 ";

/// Saves and loads of all machines.
pub fn measure(plan: &Plan) -> io::Result<Option<Group>> {
    if !root_or_skip() {
        return Ok(None);
    }
    let namespace = Namespace::new(&TAPS);
    let devices = Devices { disk: plan.file("disk", &[0; 1 << 20])?, taps: TAPS };
    let machine = |cpus: u32, devices: Option<Devices>| {
        let cmdline = format!("ws=16M rate=2000 cpus={cpus} nap=10");
        let log = devices.as_ref().map(|_| "warn,tern::sections=debug");
        let namespace = devices.as_ref().map(|_| namespace.name().to_owned());
        Machine { memory_mib: 64, cpus, devices, namespace, log, ..Machine::pulse(&plan.pulse, &cmdline) }
    };
    let machines = [
        ("2 vCPUs, all devices", machine(2, Some(devices)), Some(Aim::Below(1.0))),
        ("2 vCPUs, no disk, no network", machine(2, None), None),
        ("1 vCPU, no disk, no network", machine(1, None), None),
    ];
    let mut figures = Vec::new();
    let mut parts = Parts::default();
    for (name, machine, aim) in &machines {
        let [save, load] =
            plan.in_turns(&format!("state, {name}"), plan.runs, |vmm| one(plan, machine, vmm, &mut parts))?;
        figures.push(Figure::new(format!("{name}: save"), "ms", save, *aim));
        figures.push(Figure::new(format!("{name}: load"), "ms", load, *aim));
    }
    figures.extend(parts.figures());
    let setting = "state without memory, of a pulse that writes, moved between two processes".to_owned();
    Ok(Some(Group { name: "state", setting, figures, notes: Vec::new() }))
}

/// One migration; returns the milliseconds of save and load.
fn one(plan: &Plan, machine: &Machine, vmm: Vmm, parts: &mut Parts) -> io::Result<[f64; 2]> {
    let destination = machine.await_guest(vmm, &plan.programs)?;
    let source = machine.boot(vmm, &plan.programs)?;
    let uri = listen(&destination, plan.transport)?;
    wait_for("pulse to have filled its memory", || is_ready(&source.serial()).then_some(()));
    let (mut here, mut there) = (source.qmp(), destination.qmp());
    let command = prepare(&mut here, vmm, &uri, 0);
    if vmm == Vmm::Qemu {
        trace(&mut here, "save");
        trace(&mut there, "load");
    }
    here.execute("migrate", command);
    wait_until_completed(&mut here, vmm);
    there.wait_event("RESUME");
    if vmm == Vmm::Qemu {
        return Ok([traced_ms(&source, "save"), traced_ms(&destination, "load")]);
    }
    if machine.log.is_some() {
        parts.add(&source, "Save")?;
        parts.add(&destination, "Apply")?;
    }
    let report = here.execute("query-migrate", json!({}));
    let part = |name: &str| report["report"]["downtime"][name].as_f64().map(|us| us / 1e3);
    let missing = || io::Error::other(format!("a report without the parts of the stop: {report}"));
    Ok([part("state_save_us").ok_or_else(missing)?, part("load_us").ok_or_else(missing)?])
}

/// What each section took, by what was done and its name: the runs, in microseconds. Instances are added.
#[derive(Default)]
struct Parts(BTreeMap<(String, String), Samples>);

impl Parts {
    /// Adds what this process has told, up to the last section, for which `last` was done last.
    fn add(&mut self, process: &Process, last: &str) -> io::Result<()> {
        // It tells when the guest runs again.
        let told = wait_for("the sections' times", || {
            let said = process.stderr();
            let whole = said.lines().any(|line| line.contains(&format!("tern::sections: {last} {LAST}")));
            whole.then_some(said)
        });
        let mut sums: BTreeMap<(String, String), f64> = BTreeMap::new();
        for line in told.lines().filter_map(|line| Some(line.split_once("tern::sections: ")?.1)) {
            let words: Vec<&str> = line.split(' ').collect();
            let [step, section, us, "us"] = words[..] else {
                return Err(io::Error::other(format!("no time of a section: {line}")));
            };
            let name = section.split_once('/').map_or(section, |(name, _)| name);
            let us: f64 = us.parse().map_err(|_| io::Error::other(format!("no time: {line}")))?;
            *sums.entry((step.to_lowercase(), name.to_owned())).or_default() += us;
        }
        for (part, us) in sums {
            self.0.entry(part).or_default().0.push(us);
        }
        Ok(())
    }

    /// The first run is not counted, as everywhere.
    fn figures(self) -> impl Iterator<Item = Figure> {
        self.0.into_iter().map(|((step, name), runs)| {
            let tern = Samples(runs.0.into_iter().skip(1).collect());
            Figure::new(format!("{step} {name}"), "us", Pair { tern, ..Pair::default() }, None)
        })
    }
}

fn trace(qemu: &mut Qmp, what: &str) {
    let event = json!({ "name": format!("vmstate_downtime_{what}"), "enable": true });
    qemu.execute("trace-event-set-state", event);
}

/// Milliseconds in all lines that QEMU has written about this.
fn traced_ms(process: &Process, what: &str) -> f64 {
    let event = format!("vmstate_downtime_{what} ");
    let said = process.stderr();
    let lines = said.lines().filter(|line| line.contains(&event));
    let times = lines.filter_map(|line| line.rsplit_once("downtime=")?.1.trim().parse::<f64>().ok());
    let sum_us: f64 = times.sum();
    // Without this build's trace to stderr there are none, and no figure.
    if sum_us > 0.0 { sum_us / 1e3 } else { f64::NAN }
}
