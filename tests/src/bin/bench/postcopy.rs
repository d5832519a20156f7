//! Post-copy: the guest goes on at the destination after one pass, in the middle of rewriting its memory.
//!
//! Both are told `migrate-start-postcopy` at the event that begins the second pass; QEMU has `postcopy-preempt`, as tern always has
//! a connection for what somebody waits for. How long faults took is taken from QMP's `postcopy-latency-dist` on both, whose
//! buckets are powers of two of microseconds: a percentile is the upper end of its bucket. tern's own report has it exactly, and what of
//! it the kernel took to place the page.

use std::io;
use std::time::SystemTime;

use serde_json::{Value, json};
use tern_tests::Qmp;
use tern_tests::limit::wait_for;

use crate::accounting;
use crate::contender::{Machine, Vmm};
use crate::migration::{downtime_ms, listen, since_ms, wait_until_completed};
use crate::plan::Plan;
use crate::pulse_lines::{Record, is_ready};
use crate::table::{Aim, Figure, Group};

const CMDLINE: &str = "ws=84M rate=max pattern=random";
const BEATS_AFTER: usize = 4;
const WARM_BYTES: usize = 1 << 30;
const HALF: Option<Aim> = Some(Aim::PartOfQemu(0.5));

/// Before anybody listens: QEMU has these on both sides.
fn allow(qmp: &mut Qmp) {
    let names = ["events", "postcopy-ram", "postcopy-preempt", "postcopy-blocktime"];
    let list: Vec<Value> = names.iter().map(|name| json!({ "capability": name, "state": true })).collect();
    qmp.execute("migrate-set-capabilities", json!({ "capabilities": list }));
}

/// So many of a hundred faults took no longer than this, in microseconds.
fn percentile_us(report: &Value, percent: u64) -> f64 {
    let counts: Vec<u64> =
        report["postcopy-latency-dist"].as_array().into_iter().flatten().filter_map(Value::as_u64).collect();
    let due = (counts.iter().sum::<u64>() * percent).div_ceil(100);
    let mut seen = 0;
    let bucket = counts.iter().position(|count| {
        seen += count;
        due > 0 && seen >= due
    });
    bucket.map_or(f64::NAN, |bucket| 2f64.powi(i32::try_from(bucket).unwrap_or(i32::MAX) + 1))
}

fn one(plan: &Plan, vmm: Vmm) -> io::Result<[f64; 9]> {
    accounting::warm(WARM_BYTES)?;
    let machine = Machine::pulse(&plan.pulse, CMDLINE);
    let destination = machine.await_guest(vmm, &plan.programs)?;
    let source = machine.boot(vmm, &plan.programs)?;
    // QEMU talks to one at a time: each connection ends before the next one.
    if vmm == Vmm::Qemu {
        allow(&mut destination.qmp());
    }
    let uri = listen(&destination, plan.transport)?;
    let (mut here, mut there) = (source.qmp(), destination.qmp());
    if vmm == Vmm::Qemu {
        allow(&mut here);
        here.execute("migrate-set-parameters", json!({ "max-bandwidth": 0 }));
    }
    wait_for("pulse to have filled its memory", || is_ready(&source.serial()).then_some(()));
    let printed_before = source.serial().len();
    // A limit that can't be met: else what pulse has written in a fast first pass may be sent with the guest stopped.
    let command = match vmm {
        Vmm::Tern => json!({ "uri": uri, "parameters": { "postcopy": "manual", "downtime-limit": 0 } }),
        Vmm::Qemu => {
            here.execute("migrate-set-parameters", json!({ "downtime-limit": 0 }));
            json!({ "uri": uri })
        }
    };
    let begin = SystemTime::now();
    here.execute("migrate", command);
    here.wait_event_where("MIGRATION_PASS 2", |event| {
        event["event"] == "MIGRATION_PASS" && event["data"]["pass"].as_u64() >= Some(2)
    });
    here.execute("migrate-start-postcopy", json!({}));
    let completed = since_ms(begin, &wait_until_completed(&mut here, vmm));
    let running = since_ms(begin, &there.wait_event("RESUME"));
    let (near, far) = (here.execute("query-migrate", json!({})), there.wait_migrate(&["completed"]));
    let record = wait_for("the guest at the destination", || {
        let record = Record::new(&source.serial(), &destination.serial());
        (record.beats_after() >= BEATS_AFTER).then_some(record)
    });
    let seen =
        record.across_switch(printed_before).map_err(|what| io::Error::other(format!("{vmm:?}: {what}")))?;
    let us = |name: &str| far["report"]["postcopy"]["fault_latency"][name].as_f64().unwrap_or(f64::NAN);
    Ok([
        downtime_ms(&near),
        seen.switch_gap_us as f64 / 1e3,
        percentile_us(&far, 50),
        percentile_us(&far, 99),
        completed - running,
        far["postcopy-blocktime"].as_f64().unwrap_or(f64::NAN),
        us("p50_us"),
        us("p99_us"),
        far["report"]["postcopy"]["placing"]["p50_us"].as_f64().unwrap_or(f64::NAN),
    ])
}

/// Moves the guest by each VMM in turns.
pub fn measure(plan: &Plan) -> io::Result<Group> {
    let figures = plan.in_turns("post-copy", plan.runs, |vmm| one(plan, vmm))?;
    let rows = [
        ("downtime as reported", "ms", HALF),
        ("guest's gap at the switch", "ms", HALF),
        ("fault, median (bucket)", "us", HALF),
        ("fault, 99 % within (bucket)", "us", HALF),
        ("from the guest's start there to the last page", "ms", HALF),
        ("all vCPUs waited for pages", "ms", HALF),
        ("fault, median", "us", None),
        ("fault, 99 % within", "us", None),
        ("of it placing the page, median", "us", None),
    ];
    let figures = rows.into_iter().zip(figures).map(|((name, unit, aim), pair)| {
        // QEMU before 10.1 doesn't say how long faults took: nothing is compared then.
        let known = pair.qemu.median().is_some_and(f64::is_finite);
        Figure::new(name, unit, pair, aim.filter(|_| known))
    });
    let setting = format!(
        "post-copy of pulse after one pass, 1 GiB, 84 MiB of it rewritten at random as fast as the guest can, over {:?}",
        plan.transport
    );
    Ok(Group { name: "postcopy", setting, figures: figures.collect(), notes: Vec::new() })
}
