//! The state of a machine alone: how long a migration's save and load of it take while the guest is stopped, for
//! machines of several sizes, so that the differences say what a vCPU and what a device costs.
//!
//! tern: the report's `state_save_us` (reading the state and encoding it) and `load_us` (decoding, checking, applying).
//! QEMU: the sum of what its trace events `vmstate_downtime_save` and `vmstate_downtime_load` show for each device;
//! that is without RAM, and without the file or socket.

use std::io;

use serde_json::json;
use tern_tests::Qmp;
use tern_tests::host::root_or_skip;
use tern_tests::limit::wait_for;
use tern_tests::namespace::Namespace;

use crate::contender::{Devices, Machine, Process, Vmm};
use crate::migration::{listen, prepare, wait_until_completed};
use crate::plan::Plan;
use crate::pulse_lines::is_ready;
use crate::table::{Aim, Figure, Group};

const TAPS: [&str; 2] = ["bench0", "bench1"];

/// Saves and loads of all machines.
pub fn measure(plan: &Plan) -> io::Result<Option<Group>> {
    if !root_or_skip() {
        return Ok(None);
    }
    let namespace = Namespace::new(&TAPS);
    let devices = Devices {
        disk: plan.file("disk", &[0; 1 << 20])?,
        namespace: namespace.name().to_owned(),
        taps: TAPS,
    };
    let machine = |cpus: u32, devices: Option<Devices>| {
        let cmdline = format!("ws=16M rate=2000 cpus={cpus} nap=10");
        Machine { memory_mib: 64, cpus, devices, ..Machine::pulse(&plan.pulse, &cmdline) }
    };
    let machines = [
        ("2 vCPUs, all devices", machine(2, Some(devices)), Some(Aim::Below(1.0))),
        ("2 vCPUs, no disk, no network", machine(2, None), None),
        ("1 vCPU, no disk, no network", machine(1, None), None),
    ];
    let mut figures = Vec::new();
    for (name, machine, aim) in &machines {
        let [save, load] =
            plan.in_turns(&format!("state, {name}"), plan.runs, |vmm| one(plan, machine, vmm))?;
        figures.push(Figure::new(format!("{name}: save"), "ms", save, *aim));
        figures.push(Figure::new(format!("{name}: load"), "ms", load, *aim));
    }
    let setting = "state without memory, of a pulse that writes, moved between two processes".to_owned();
    Ok(Some(Group { name: "state", setting, figures }))
}

/// One migration; returns the milliseconds of save and load.
fn one(plan: &Plan, machine: &Machine, vmm: Vmm) -> io::Result<[f64; 2]> {
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
    let report = here.execute("query-migrate", json!({}));
    let part = |name: &str| report["report"]["downtime"][name].as_f64().map(|us| us / 1e3);
    let missing = || io::Error::other(format!("a report without the parts of the stop: {report}"));
    Ok([part("state_save_us").ok_or_else(missing)?, part("load_us").ok_or_else(missing)?])
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
