//! How soon a destination answers at its control socket while a guest arrives.
//!
//! One connection asks `query-status` and `query-migrate` in turns, without a pause of more than half a millisecond, from
//! `migrate` until the guest is there. Where there are fewer CPUs than threads that want one, an answer also waits for its
//! turn; the kernel counts that for each thread (`schedstat`), so each answer's time is shown with it and without.

use std::fs;
use std::io;
use std::thread::sleep;
use std::time::{Duration, Instant};

use serde_json::json;
use tern_tests::Qmp;
use tern_tests::limit::wait_for;

use crate::accounting;
use crate::contender::{Machine, Vmm};
use crate::plan::{Plan, Transport};
use crate::pulse_lines::is_ready;
use crate::table::{Aim, Figure, Group};

const CMDLINE: &str = "ws=900M rate=1000 content=text";
const PARAMETERS: &str = "4 channels, lz4";
/// How long it is asked before anything arrives.
const QUIET: Duration = Duration::from_secs(1);
const BETWEEN: Duration = Duration::from_micros(500);
const WARM_BYTES: usize = 2 << 30;

/// How long each answer took, in microseconds: with the waits for a CPU, and without.
#[derive(Default)]
struct Answers {
    all_us: Vec<f64>,
    own_us: Vec<f64>,
}

impl Answers {
    fn ask(&mut self, qmp: &mut Qmp, pid: u32, command: &str) -> io::Result<String> {
        let (began, waited) = (Instant::now(), waited_us(pid)?);
        let answer = qmp.execute(command, json!({}));
        let (took_us, waited) = (began.elapsed().as_secs_f64() * 1e6, waited_us(pid)? - waited);
        self.all_us.push(took_us);
        self.own_us.push((took_us - waited).max(0.0));
        sleep(BETWEEN);
        Ok(answer["status"].as_str().unwrap_or_default().to_owned())
    }

    /// Median, the one of a hundred, and the longest, in milliseconds.
    fn spread_ms(mut answers: Vec<f64>) -> [f64; 3] {
        answers.sort_by(f64::total_cmp);
        let at = |part: f64| {
            let index = ((answers.len() as f64 * part) as usize).min(answers.len().saturating_sub(1));
            answers.get(index).copied().unwrap_or(f64::NAN) / 1e3
        };
        [at(0.5), at(0.99), at(1.0)]
    }
}

/// How long the main thread of `pid` and the one that asks have been ready to run and did not.
fn waited_us(pid: u32) -> io::Result<f64> {
    let mut all = 0.0;
    for path in [format!("/proc/{pid}/task/{pid}/schedstat"), "/proc/thread-self/schedstat".to_owned()] {
        let text = fs::read_to_string(&path)?;
        let waited_ns = text.split(' ').nth(1).and_then(|word| word.parse::<f64>().ok());
        all += waited_ns.ok_or_else(|| io::Error::other(format!("{path}: {text:?}")))? / 1e3;
    }
    Ok(all)
}

/// Moves a guest and asks its destination all the time.
pub fn measure(plan: &Plan) -> io::Result<Group> {
    let figures = plan.turns_of(&[Vmm::Tern], "answers while a guest arrives", plan.slow_runs, |vmm| {
        accounting::warm(WARM_BYTES)?;
        let machine = Machine::pulse(&plan.pulse, CMDLINE);
        let destination = machine.await_guest(vmm, &plan.programs)?;
        let source = machine.boot(vmm, &plan.programs)?;
        let uri = crate::migration::listen(&destination, Transport::Unix)?;
        wait_for("pulse to have filled its memory", || is_ready(&source.serial()).then_some(()));
        let (mut near, mut far) = (source.qmp(), destination.qmp());
        let (mut quiet, began) = (Answers::default(), Instant::now());
        while began.elapsed() < QUIET {
            quiet.ask(&mut far, destination.pid(), "query-status")?;
        }
        let parameters = json!({ "channels": 4, "compress": "lz4" });
        near.execute("migrate", json!({ "uri": uri, "parameters": parameters }));
        let mut busy = Answers::default();
        loop {
            busy.ask(&mut far, destination.pid(), "query-status")?;
            match busy.ask(&mut far, destination.pid(), "query-migrate")?.as_str() {
                "completed" => break,
                "failed" => return Err(io::Error::other("the migration failed")),
                _ => {}
            }
        }
        let answers = busy.all_us.len() as f64;
        let [median, rare, longest] = Answers::spread_ms(busy.all_us);
        let [_, own_rare, own_longest] = Answers::spread_ms(busy.own_us);
        let [_, _, quiet_longest] = Answers::spread_ms(quiet.all_us);
        Ok([answers, median, rare, longest, own_rare, own_longest, quiet_longest])
    })?;
    let rows = [
        ("answers", "", None),
        ("median", "ms", Some(Aim::Below(10.0))),
        ("99 % within", "ms", Some(Aim::Below(10.0))),
        ("longest", "ms", Some(Aim::Below(10.0))),
        ("99 % within, waits for a CPU left out", "ms", None),
        ("longest, waits for a CPU left out", "ms", Some(Aim::Below(10.0))),
        ("longest before anything arrives", "ms", None),
    ];
    let figures =
        rows.into_iter().zip(figures).map(|((name, unit, aim), pair)| Figure::new(name, unit, pair, aim));
    let setting = format!(
        "answers of a destination while pulse arrives, 1 GiB, 900 MiB of it text that is rewritten, {PARAMETERS}"
    );
    Ok(Group { name: "answers", setting, figures: figures.collect(), notes: Vec::new() })
}
