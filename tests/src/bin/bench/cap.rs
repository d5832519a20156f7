//! How exact the bandwidth limit is: what really passes in any second, seen from outside.
//!
//! A proxy stands between the two sides and counts. The guest writes faster than the limit, so memory moves until the
//! bench cancels; half way another limit is set. The window of one second is moved over each half in steps of a look; the
//! first tenth of a second after a change belongs to none, since the change is obeyed within 50 ms.

use std::io;
use std::thread::sleep;
use std::time::{Duration, Instant};

use serde_json::json;
use tern_tests::limit::wait_for;
use tern_tests::{Direction, Proxy};

use crate::accounting;
use crate::contender::{Machine, Vmm};
use crate::plan::{Plan, Transport};
use crate::pulse_lines::is_ready;
use crate::table::{Aim, Figure, Group};

const CMDLINE: &str = "ws=96M rate=max content=random";
const LOOK_EVERY: Duration = Duration::from_millis(5);
const HALF: Duration = Duration::from_secs(4);
const SETTLING: Duration = Duration::from_millis(100);
const WARM_BYTES: usize = 1 << 30;
/// Limits of the two halves, bytes a second.
const LIMITS: [u64; 2] = [100_000_000, 12_500_000];
/// What the issue asks for.
const AIM_PERCENT: f64 = 3.0;

/// When, and how many bytes had passed.
type Look = (Duration, u64);

/// Looks for so long, beginning a moment later.
fn watch(proxy: &Proxy) -> Vec<Look> {
    sleep(SETTLING);
    let (began, mut looks) = (Instant::now(), Vec::new());
    while began.elapsed() < HALF {
        looks.push((began.elapsed(), proxy.bytes(Direction::ToDestination)));
        sleep(LOOK_EVERY);
    }
    looks
}

/// How far the worst second is from the limit, in percent of it, above and below; and all seconds together.
fn deviations(looks: &[Look], limit: u64) -> [f64; 3] {
    let second = Duration::from_secs(1);
    let percent = |from: &Look, to: &Look| {
        let rate = (to.1 - from.1) as f64 / (to.0 - from.0).as_secs_f64();
        (rate / limit as f64 - 1.0) * 100.0
    };
    let windows = looks.iter().filter_map(|from| {
        let to = looks.iter().find(|to| to.0 >= from.0 + second)?;
        Some(percent(from, to))
    });
    let (above, below) = windows.fold((0.0f64, 0.0f64), |(a, b), found| (a.max(found), b.max(-found)));
    let all = looks.first().zip(looks.last()).map_or(f64::NAN, |(from, to)| percent(from, to).abs());
    [above, below, all]
}

/// One migration with both limits, over so many channels: six figures.
fn limited(plan: &Plan, vmm: Vmm, channels: u32) -> io::Result<[f64; 6]> {
    accounting::warm(WARM_BYTES)?;
    let machine = Machine::pulse(&plan.pulse, CMDLINE);
    let destination = machine.await_guest(vmm, &plan.programs)?;
    let source = machine.boot(vmm, &plan.programs)?;
    let proxy = Proxy::new(&crate::migration::listen(&destination, Transport::Unix)?);
    wait_for("pulse to have filled its memory", || is_ready(&source.serial()).then_some(()));
    let mut near = source.qmp();
    let [first, second] = LIMITS;
    let parameters = json!({ "max-bandwidth": first, "downtime-limit": 0, "channels": channels });
    near.execute("migrate", json!({ "uri": proxy.uri(), "parameters": parameters }));
    wait_for("memory that moves", || (proxy.bytes(Direction::ToDestination) > first / 10).then_some(()));
    let fast = deviations(&watch(&proxy), first);
    near.execute("migrate-set-parameters", json!({ "max-bandwidth": second }));
    let slow = deviations(&watch(&proxy), second);
    near.execute("migrate_cancel", json!({}));
    let [a, b, c] = fast;
    let [d, e, f] = slow;
    Ok([a, b, c, d, e, f])
}

/// With one channel and with four.
pub fn measure(plan: &Plan) -> io::Result<Group> {
    let mut figures = Vec::new();
    for channels in [1, 4] {
        let what = format!("limit, {channels} channels");
        let found = plan.turns_of(&[Vmm::Tern], &what, plan.slow_runs, |vmm| limited(plan, vmm, channels))?;
        let rows = LIMITS.into_iter().flat_map(|limit| {
            ["most above in a second", "most below in a second", "in all"]
                .map(|which| format!("{channels} channels, {} MB/s, {which}", limit as f64 / 1e6))
        });
        let figure = |(name, pair)| Figure::new(name, "%", pair, Some(Aim::Below(AIM_PERCENT)));
        figures.extend(rows.zip(found).map(figure));
    }
    let setting = "deviation from max-bandwidth in any second, as a proxy counts; pulse rewrites 96 MiB; the second limit is \
                   set on the way";
    Ok(Group { name: "limit", setting: setting.to_owned(), figures, notes: Vec::new() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_worst_second_is_found() {
        let steady: Vec<Look> = (0..300).map(|n| (Duration::from_millis(n * 10), n * 1000)).collect();
        assert!(deviations(&steady, 100_000).iter().all(|found| found.abs() < 1e-6));
        let mut burst = steady;
        burst.iter_mut().skip(150).for_each(|look| look.1 += 10_000);
        let [above, below, all] = deviations(&burst, 100_000);
        assert!((above - 10.0).abs() < 1e-6 && below == 0.0 && (3.0..4.0).contains(&all), "{above} {all}");
    }
}
