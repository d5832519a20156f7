//! Migrations of pulse between two processes of the same VMM on this host, tern's and QEMU's in turns.
//!
//! | figure | how |
//! |---|---|
//! | total | from just before `migrate` is sent until the source's event `MIGRATION completed` (its own time stamp) |
//! | guest runs | the same until the destination's event `RESUME` |
//! | downtime | what the source reports: tern from the order to stop until the answer that the guest runs, QEMU from the stop until its own end |
//! | gap at the switch | pulse's `gap_us` of the two heartbeats around the switch, found in the serial output of both processes |
//! | worst gap | the same for all heartbeats from `migrate` on |
//! | control | the same in the second before `migrate` |
//! | sent, passes | `ram.transferred` and `ram.dirty-sync-count` of `query-migrate` |
//! | CPU | CPU time of the whole process (vCPU included) from `migrate` until both sides are done |
//!
//! Both have QMP's default parameters but `max-bandwidth`, which is the same for both.

use std::io;
use std::net::TcpListener;
use std::path::Path;
use std::thread::sleep;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde_json::{Value, json};
use tern_tests::Qmp;
use tern_tests::limit::wait_for;

use crate::accounting::{self, cpu_seconds};
use crate::contender::{Machine, Process, Vmm};
use crate::plan::{Plan, Transport};
use crate::pulse_lines::{Record, Seen, is_ready};
use crate::table::{Aim, Figure, Group};

/// How long the guest is watched before it is moved: the noise floor.
const CONTROL: Duration = Duration::from_secs(1);
/// Heartbeats of the destination that are waited for.
const BEATS_AFTER: usize = 4;
/// What the two processes of a migration touch, and some more.
const WARM_BYTES: usize = 1 << 30;

/// A guest and how it is moved.
#[derive(Debug, Clone, Copy)]
pub struct Scenario {
    /// For the command line and JSON.
    pub name: &'static str,
    /// For people.
    pub setting: &'static str,
    /// pulse's.
    pub cmdline: &'static str,
    /// Limit of both, bytes a second; 0: none.
    pub max_bandwidth: u64,
    /// tern's total time as a part of QEMU's.
    pub total_aim: Option<Aim>,
    /// Is it a scenario of few runs, because a run takes long?
    pub slow: bool,
}

/// What is measured.
pub const SCENARIOS: [Scenario; 4] = [
    Scenario {
        name: "idle",
        setting: "1 GiB, asleep, never written; no bandwidth limit",
        cmdline: "ws=0 nap=10",
        max_bandwidth: 0,
        total_aim: Some(Aim::PartOfQemu(0.2)),
        slow: false,
    },
    Scenario {
        name: "rewriting",
        setting: "1 GiB, 84 MiB of it rewritten as fast as the guest can; no bandwidth limit",
        cmdline: "ws=84M rate=max",
        max_bandwidth: 0,
        total_aim: Some(Aim::PartOfQemu(0.5)),
        slow: false,
    },
    Scenario {
        name: "capped",
        setting: "1 GiB, 84 MiB of it rewritten at 5000 pages/s; 100 MiB/s",
        cmdline: "ws=84M rate=5000 nap=10",
        max_bandwidth: 100 << 20,
        total_aim: None,
        slow: false,
    },
    Scenario {
        name: "throughput",
        setting: "1 GiB, 256 MiB of it written once and then left alone; no bandwidth limit",
        cmdline: "ws=256M rate=1 content=random nap=10",
        max_bandwidth: 0,
        total_aim: None,
        slow: true,
    },
];

/// One migration, in the units of the table.
#[derive(Debug, Clone, Copy)]
struct Moved {
    total_ms: f64,
    until_running_ms: f64,
    downtime_ms: f64,
    seen: Seen,
    control_gap_us: u64,
    sent_mib: f64,
    passes: f64,
    source_cpu_s: f64,
    destination_cpu_s: f64,
    hash_ms: f64,
    stopped_hash_ms: f64,
}

/// Runs one scenario.
pub fn measure(plan: &Plan, scenario: &Scenario) -> io::Result<Group> {
    let runs = if scenario.slow { plan.slow_runs } else { plan.runs };
    let figures = plan.in_turns(&format!("migration, {}", scenario.name), runs, |vmm| {
        let moved = migrate(plan, scenario, vmm, Way::Usual)?;
        Ok([
            moved.total_ms,
            moved.until_running_ms,
            moved.downtime_ms,
            moved.seen.switch_gap_us as f64 / 1e3,
            moved.seen.worst_gap_us as f64 / 1e3,
            moved.control_gap_us as f64 / 1e3,
            moved.sent_mib,
            moved.passes,
            moved.sent_mib / moved.total_ms * 1e3,
            moved.source_cpu_s,
            moved.destination_cpu_s,
        ])
    })?;
    let [total, running, downtime, at_switch, worst, control, sent, passes, rate, source, destination] =
        figures;
    Ok(Group {
        name: scenario.name,
        setting: format!("migration of pulse, {}, over {:?}", scenario.setting, plan.transport),
        figures: vec![
            Figure::new("total", "ms", total, scenario.total_aim),
            Figure::new("until the guest runs there", "ms", running, None),
            Figure::new("downtime as reported", "ms", downtime, None),
            Figure::new("guest's gap at the switch", "ms", at_switch, Some(Aim::PartOfQemu(1.0))),
            Figure::new("guest's worst gap in all", "ms", worst, None),
            Figure::new("control: worst gap before", "ms", control, None),
            Figure::new("sent", "MiB", sent, None),
            Figure::new("passes", "", passes, None),
            Figure::new("sent per total time", "MiB/s", rate, None),
            Figure::new("CPU of the source", "s", source, None),
            Figure::new("CPU of the destination", "s", destination, None),
        ],
        notes: Vec::new(),
    })
}

/// What the proof of equality costs: tern moves the guest that rewrites its memory with it and without, in turns.
pub fn proof(plan: &Plan) -> io::Result<Group> {
    let [_, rewriting, ..] = &SCENARIOS;
    let what = "migration, with and without its proof";
    let both = plan.turns_of(&[Vmm::Tern], what, plan.runs, |vmm| {
        let with = migrate(plan, rewriting, vmm, Way::Usual)?;
        let without = migrate(plan, rewriting, vmm, Way::Unproven)?;
        let figures = |moved: &Moved| {
            let Moved { total_ms, downtime_ms, sent_mib, source_cpu_s, destination_cpu_s, .. } = *moved;
            [total_ms, downtime_ms, sent_mib, total_ms / sent_mib, source_cpu_s, destination_cpu_s]
        };
        let [a, b, c, d, e, f] = figures(&with);
        let [g, h, i, j, k, l] = figures(&without);
        Ok([a, g, b, h, c, i, d, j, e, k, f, l, with.hash_ms, with.stopped_hash_ms])
    })?;
    let rows = [
        ("total", "ms"),
        ("total without", "ms"),
        ("downtime", "ms"),
        ("downtime without", "ms"),
        ("sent", "MiB"),
        ("sent without", "MiB"),
        ("total per MiB sent", "ms"),
        ("total per MiB sent without", "ms"),
        ("CPU of the source", "s"),
        ("CPU of the source without", "s"),
        ("CPU of the destination", "s"),
        ("CPU of the destination without", "s"),
        ("source: time in hashing", "ms"),
        ("of it with the guest stopped", "ms"),
    ];
    let figures = rows.into_iter().zip(both).map(|((name, unit), pair)| Figure::new(name, unit, pair, None));
    let setting = format!("migration of pulse with the proof of equality and without, {}", rewriting.setting);
    Ok(Group { name: "proof", setting, figures: figures.collect(), notes: Vec::new() })
}

/// What TLS costs: tern moves the guest that rewrites its memory with it and without, in turns.
pub fn tls(plan: &Plan) -> io::Result<Group> {
    let [_, rewriting, ..] = &SCENARIOS;
    let secret = tempfile::NamedTempFile::new()?;
    std::fs::write(secret.path(), [7; 32])?;
    let both = plan.turns_of(&[Vmm::Tern], "migration, with and without TLS", plan.runs, |vmm| {
        let with = migrate(plan, rewriting, vmm, Way::Secret(secret.path()))?;
        let without = migrate(plan, rewriting, vmm, Way::Usual)?;
        let figures = |moved: &Moved| {
            let Moved { total_ms, downtime_ms, sent_mib, source_cpu_s, destination_cpu_s, .. } = *moved;
            let per_gib = 1024.0 / sent_mib;
            [total_ms, downtime_ms, total_ms * per_gib, source_cpu_s * per_gib, destination_cpu_s * per_gib]
        };
        let [a, b, c, d, e] = figures(&with);
        let [f, g, h, i, j] = figures(&without);
        Ok([a, f, b, g, c, h, d, i, e, j])
    })?;
    let rows = [
        ("total", "ms"),
        ("total without", "ms"),
        ("downtime", "ms"),
        ("downtime without", "ms"),
        ("total per GiB sent", "ms"),
        ("total per GiB sent without", "ms"),
        ("CPU of the source per GiB sent", "s"),
        ("CPU of the source per GiB sent without", "s"),
        ("CPU of the destination per GiB sent", "s"),
        ("CPU of the destination per GiB sent without", "s"),
    ];
    let figures = rows.into_iter().zip(both).map(|((name, unit), pair)| Figure::new(name, unit, pair, None));
    let setting = format!("migration of pulse with TLS (a shared secret) and without, {}", rewriting.setting);
    Ok(Group { name: "tls", setting, figures: figures.collect(), notes: Vec::new() })
}

/// What is special about a migration.
#[derive(Debug, Clone, Copy)]
enum Way<'a> {
    Usual,
    /// Without the proof of equality.
    Unproven,
    /// With TLS, by the secret in this file.
    Secret(&'a Path),
}

fn migrate(plan: &Plan, scenario: &Scenario, vmm: Vmm, way: Way<'_>) -> io::Result<Moved> {
    // Each time: what the kernel hands out next may have lain idle, and the layer below may have taken it back.
    accounting::warm(WARM_BYTES)?;
    let machine = Machine::pulse(&plan.pulse, scenario.cmdline);
    let destination = machine.await_guest(vmm, &plan.programs)?;
    let source = machine.boot(vmm, &plan.programs)?;
    if let Way::Secret(file) = way {
        destination.qmp().execute("migrate-set-parameters", json!({ "tls-psk": file }));
    }
    let uri = listen(&destination, plan.transport)?;
    wait_for("pulse to have filled its memory", || is_ready(&source.serial()).then_some(()));
    let control_from = source.serial().len();
    sleep(CONTROL);

    let (mut here, mut there) = (source.qmp(), destination.qmp());
    let mut command = prepare(&mut here, vmm, &uri, scenario.max_bandwidth);
    match way {
        Way::Usual => {}
        Way::Unproven => command["capabilities"] = json!([{ "capability": "verify", "state": false }]),
        Way::Secret(file) => command["parameters"]["tls-psk"] = json!(file),
    }
    let cpu_before = [cpu_seconds(source.pid())?, cpu_seconds(destination.pid())?];
    let printed_before = source.serial().len();
    let begin = SystemTime::now();
    here.execute("migrate", command);
    let completed = since_ms(begin, &wait_until_completed(&mut here, vmm));
    let running = since_ms(begin, &there.wait_event("RESUME"));
    let cpu_after = [cpu_seconds(source.pid())?, cpu_seconds(destination.pid())?];
    let report = here.execute("query-migrate", json!({}));

    let record = wait_for("the guest at the destination", || {
        let record = Record::new(&source.serial(), &destination.serial());
        (record.beats_after() >= BEATS_AFTER).then_some(record)
    });
    let seen =
        record.across_switch(printed_before).map_err(|what| io::Error::other(format!("{vmm:?}: {what}")))?;
    let hash_ms = |name: &str| report["report"]["proof"][name].as_f64().unwrap_or(0.0) / 1e3;
    Ok(Moved {
        total_ms: completed,
        until_running_ms: running,
        downtime_ms: downtime_ms(&report),
        seen,
        control_gap_us: record.worst_gap_us(control_from..printed_before).unwrap_or(0),
        sent_mib: report["ram"]["transferred"].as_f64().unwrap_or(0.0) / f64::from(1 << 20),
        passes: report["ram"]["dirty-sync-count"].as_f64().unwrap_or(0.0),
        source_cpu_s: cpu_after[0] - cpu_before[0],
        destination_cpu_s: cpu_after[1] - cpu_before[1],
        hash_ms: hash_ms("hash_us"),
        stopped_hash_ms: hash_ms("stopped_hash_us"),
    })
}

/// The event that says that a migration is complete.
pub fn wait_until_completed(source: &mut Qmp, vmm: Vmm) -> Value {
    const ENDS: [&str; 3] = ["completed", "failed", "cancelled"];
    let status = |event: &Value| event["data"]["status"].as_str().unwrap_or_default().to_owned();
    let event = source.wait_event_where("MIGRATION completed", |event| {
        event["event"] == "MIGRATION" && ENDS.contains(&&*status(event))
    });
    let why = |source: &mut Qmp| source.execute("query-migrate", json!({}))["error-desc"].clone();
    assert_eq!(status(&event), "completed", "{vmm:?}: {}", why(source));
    event
}

/// Where the destination listens. A TCP port is free when it is looked for, which will do for a bench.
pub fn listen(destination: &Process, transport: Transport) -> io::Result<String> {
    let uri = match transport {
        Transport::Unix => format!("unix:{}", destination.socket().display()),
        Transport::Tcp => format!("tcp:{}", TcpListener::bind("127.0.0.1:0")?.local_addr()?),
    };
    destination.listen(&uri);
    Ok(uri)
}

/// Sets the parameters, and returns the arguments of `migrate`.
pub fn prepare(source: &mut Qmp, vmm: Vmm, uri: &str, max_bandwidth: u64) -> Value {
    match vmm {
        Vmm::Tern => json!({ "uri": uri, "parameters": { "max-bandwidth": max_bandwidth } }),
        Vmm::Qemu => {
            let events = json!({ "capabilities": [{ "capability": "events", "state": true }] });
            source.execute("migrate-set-capabilities", events);
            source.execute("migrate-set-parameters", json!({ "max-bandwidth": max_bandwidth }));
            json!({ "uri": uri })
        }
    }
}

/// Milliseconds from `begin` to the time stamp of an event.
pub fn since_ms(begin: SystemTime, event: &Value) -> f64 {
    let part = |name: &str| event["timestamp"][name].as_u64().unwrap_or(0);
    let moment = Duration::from_secs(part("seconds")) + Duration::from_micros(part("microseconds"));
    let begin = begin.duration_since(UNIX_EPOCH).unwrap_or_default();
    (moment.as_secs_f64() - begin.as_secs_f64()) * 1e3
}

/// tern's report has microseconds; QEMU has whole milliseconds only.
pub fn downtime_ms(report: &Value) -> f64 {
    let exact = report["report"]["downtime"]["total_us"].as_f64().map(|us| us / 1e3);
    exact.or(report["downtime"].as_f64()).unwrap_or(f64::NAN)
}
