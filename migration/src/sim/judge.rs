//! What must be true when an attempt is over, however it went, and what comes then.

use super::attempt::{Attempt, locked};
use super::world::Runner;
use crate::destination::{ReceiveError, Received};
use crate::error::MigrationError;
use crate::fake::FakeVm;
use crate::handover::{Answer, Resolution};
use crate::source::{Doubt, Outcome, SourceEnd, Standing};
use crate::stats::{Bytes, Report, Round, Side, Status};

/// Above its limit a second may carry this many parts of a thousand, and the frames that say that a round ends.
const CAP_SLACK_PERMILLE: u64 = 30;
const ROUND_END_MAX_BYTES: u64 = 128;
const SECOND_US: u64 = 1_000_000;

/// What has become of the guest.
#[expect(clippy::large_enum_variant, reason = "there is one at a time")]
pub(super) enum Verdict {
    /// It is elsewhere, in doubt, or gone with its host: `name` says which.
    Over(&'static str),
    /// It is still the source's: another attempt has to succeed.
    Again(FakeVm),
}

/// Looks at both ends.
pub(super) fn judge(attempt: &Attempt, runner: &Runner, calm: bool) -> Result<Verdict, String> {
    let [here, there] = &attempt.parties;
    let source = locked(&attempt.source).take().ok_or("the source has no result")?;
    let destination = locked(&attempt.destination).take().ok_or("the destination has no result")?;
    if !here.killed {
        statuses(attempt, Side::Source, expected(&source.outcome))?;
    }
    if !there.killed {
        let ended = match &destination {
            Ok(_) => Status::Completed,
            Err(failed) if matches!(failed.error, MigrationError::Cancelled) => Status::Cancelled,
            Err(_) => Status::Failed,
        };
        statuses(attempt, Side::Destination, ended)?;
    }
    if calm && !matches!(source.outcome, Outcome::Completed) {
        let error =
            |error: Option<crate::stats::ErrorReport>| error.map(|error| error.chain).unwrap_or_default();
        let [one, other] = [Side::Source, Side::Destination].map(|side| error(attempt.report(side).error));
        return Err(format!("an attempt without faults has failed: {one:?}, {other:?}"));
    }
    limit_kept(attempt, runner)?;
    if here.killed {
        return Ok(Verdict::Over(if destination.is_ok() {
            "arrived from a dead host"
        } else {
            "lost with its host"
        }));
    }
    match (source, destination) {
        (SourceEnd { outcome: Outcome::Completed, vm }, destination) => {
            moved(attempt, runner, &vm, destination)?;
            Ok(Verdict::Over("moved"))
        }
        (SourceEnd { outcome: Outcome::InDoubt(doubt), vm }, destination) => {
            doubted(attempt, vm, doubt, destination)
        }
        (SourceEnd { outcome: Outcome::Saved { .. }, .. }, _) => Err("a link keeps no guest".to_owned()),
        (SourceEnd { outcome: Outcome::Discarded, .. }, _) => Err("nobody has given it up".to_owned()),
        (SourceEnd { outcome: Outcome::Failed(error), vm }, destination) => {
            stayed(attempt, vm, &destination, matches!(error, MigrationError::Resume { .. }))
        }
        (SourceEnd { outcome: Outcome::Cancelled, vm }, destination) => {
            stayed(attempt, vm, &destination, false)
        }
    }
}

fn expected(outcome: &Outcome) -> Status {
    match outcome {
        Outcome::Completed | Outcome::Saved { .. } | Outcome::Discarded => Status::Completed,
        Outcome::Cancelled => Status::Cancelled,
        Outcome::Failed(_) => Status::Failed,
        Outcome::InDoubt(_) => Status::InDoubt,
    }
}

type DestinationEnd = Result<Received<FakeVm>, Box<ReceiveError<FakeVm>>>;

/// The guest is at the destination, and both sides say the same of how it came there.
fn moved(attempt: &Attempt, runner: &Runner, vm: &FakeVm, destination: DestinationEnd) -> Result<(), String> {
    if vm.is_running() {
        return Err("it is completed, and the guest runs at the source".to_owned());
    }
    if attempt.party(Side::Destination).killed {
        return Ok(());
    }
    let received =
        destination.map_err(|failed| format!("only the source completes: {}", failed.error.text()))?;
    if received.running != received.vm.is_running() {
        return Err("the destination says of the guest what isn't so".to_owned());
    }
    let [source, destination] = [Side::Source, Side::Destination].map(|side| attempt.report(side));
    same("pages", source.pages, destination.pages)?;
    same("encodings", &source.encodings, &destination.encodings)?;
    // The last message may come too late.
    let messages = if received.settled { source.bytes.messages } else { destination.bytes.messages };
    same("bytes", Bytes { messages, ..source.bytes }, destination.bytes)?;
    same("channels' pages", channel_pages(&source), channel_pages(&destination))?;
    for report in [&source, &destination] {
        let pages = report.pages.sent();
        if report.rounds_forgotten == 0 {
            same("pages of all rounds", report.rounds.iter().map(Round::pages).sum::<u64>(), pages)?;
        }
        same("pages of all channels", channel_pages(report).iter().sum::<u64>(), pages)?;
        same("pages of all encodings", report.encodings.iter().map(|count| count.pages).sum::<u64>(), pages)?;
    }
    if received.settled && source.warnings.is_empty() && destination.strangers == 0 {
        same("bytes on the wire", source.bytes.total(), runner.world.net.borrow().sent_bytes())?;
    }
    Ok(())
}

fn channel_pages(report: &Report) -> Vec<u64> {
    report.channels.iter().map(|channel| channel.pages).collect()
}

fn same<T: PartialEq + std::fmt::Debug>(what: &str, one: T, other: T) -> Result<(), String> {
    if one == other { Ok(()) } else { Err(format!("{what} don't agree: {one:?}, {other:?}")) }
}

/// The guest stands at the source. What the destination's process remembers settles that, or a person who knows
/// that it is gone.
fn doubted(
    attempt: &Attempt,
    mut vm: FakeVm,
    mut doubt: Doubt,
    destination: DestinationEnd,
) -> Result<Verdict, String> {
    if vm.is_running() {
        return Err("the source is in doubt, and runs the guest".to_owned());
    }
    vm.set_fail(None);
    let killed = attempt.party(Side::Destination).killed;
    // With a process its machine and its locks are gone.
    let there = Some(destination).filter(|_| !killed);
    let answer = if killed { Answer::Unknown } else { attempt.register.answer(&doubt.session) };
    let standing = doubt.hear(&mut vm, Some(answer));
    match (answer, &there, standing) {
        (Answer::Running, Some(Ok(_)), Standing::Gone) if !vm.is_running() => {
            Ok(Verdict::Over("in doubt, and there"))
        }
        (Answer::Held, Some(Err(failed)), Standing::Open) if failed.committed && !failed.vm.is_running() => {
            Ok(Verdict::Over("in doubt, and held there"))
        }
        (Answer::Never, Some(Err(failed)), Standing::Kept) if !failed.committed => given_back(attempt, vm),
        (Answer::Unknown, None, Standing::Open) => match doubt.resolve(&mut vm, Resolution::Run) {
            Ok(Standing::Kept) => given_back(attempt, vm),
            other => Err(format!("nobody else has the guest, and it can't be had: {other:?}")),
        },
        (answer, there, standing) => {
            let there =
                there.as_ref().map(|there| there.as_ref().map(|_| ()).map_err(|failed| failed.error.text()));
            Err(format!("a doubt is settled wrongly: {answer:?}, {standing:?}, and there it is {there:?}"))
        }
    }
}

/// After a doubt the guest is the source's again.
fn given_back(attempt: &Attempt, vm: FakeVm) -> Result<Verdict, String> {
    if vm.is_running() == attempt.was_running {
        Ok(Verdict::Again(vm))
    } else {
        Err(format!("after a doubt the guest goes on: {}", vm.is_running()))
    }
}

/// The guest is the source's, and runs there if it can.
fn stayed(
    attempt: &Attempt,
    mut vm: FakeVm,
    destination: &DestinationEnd,
    not_resumed: bool,
) -> Result<Verdict, String> {
    match destination {
        _ if attempt.party(Side::Destination).killed => {}
        Ok(_) => return Err("the source keeps the guest, and the destination has it".to_owned()),
        Err(failed) if failed.committed => {
            return Err("the source keeps the guest that it gave up".to_owned());
        }
        Err(failed) if failed.vm.is_running() => return Err("a failed destination runs the guest".to_owned()),
        Err(_) => {}
    }
    if attempt.found().started {
        return Err("the source keeps the guest that the destination has started".to_owned());
    }
    if attempt.report(Side::Source).error.is_none() {
        return Err("no reason is told".to_owned());
    }
    let goes_on = attempt.was_running && !not_resumed;
    if vm.is_running() != goes_on {
        return Err(format!("the guest goes on: {}, and it should: {goes_on}", vm.is_running()));
    }
    vm.set_running(attempt.was_running);
    Ok(Verdict::Again(vm))
}

/// Statuses come in their order, the last one is `ended`, and the report says the same.
fn statuses(attempt: &Attempt, side: Side, ended: Status) -> Result<(), String> {
    let told: Vec<Status> = attempt.party(side).told.all().into_iter().map(|(_, status)| status).collect();
    let rank = |status: &Status| match status {
        Status::None => 0,
        Status::Setup => 1,
        Status::Active => 2,
        Status::PreSwitchover => 3,
        Status::Device => 4,
        Status::Cancelling => 5,
        Status::PostcopyActive | Status::PostcopyPaused | Status::PostcopyRecover => 5,
        Status::Completed | Status::Failed | Status::Cancelled | Status::InDoubt => 6,
    };
    let rising = told.windows(2).all(|pair| pair.first().map(rank) < pair.last().map(rank));
    if !rising || told.last() != Some(&ended) || attempt.report(side).status != ended {
        let reported = attempt.report(side).status;
        let side = side.name();
        return Err(format!("the {side} ends as {ended:?}, reports {reported:?}, and has told {told:?}"));
    }
    Ok(())
}

/// No second in which the guest ran has carried more than the limit.
fn limit_kept(attempt: &Attempt, runner: &Runner) -> Result<(), String> {
    let limit = attempt.live.get().max_bandwidth_bytes_per_s;
    let told = attempt.party(Side::Source).told.all();
    let at = |status| told.iter().find(|(_, told)| *told == status).map(|(at_us, _)| *at_us);
    let Some(first_us) = at(Status::Active).filter(|_| limit > 0 && !attempt.limits_changed) else {
        return Ok(());
    };
    let last_us = at(Status::Device).unwrap_or(u64::MAX);
    let net = runner.world.net.borrow();
    let sent: Vec<_> = net.log.iter().filter(|(at_us, _)| (first_us..last_us).contains(at_us)).collect();
    let report = attempt.report(Side::Source);
    let rounds = report.rounds.len() as u64 + report.rounds_forgotten;
    let most = limit + limit * CAP_SLACK_PERMILLE / 1000 + rounds * ROUND_END_MAX_BYTES;
    let (mut bytes, mut oldest) = (0, sent.iter());
    for (at_us, count) in &sent {
        bytes += count;
        while let Some((old_us, old)) =
            oldest.as_slice().first().filter(|(old_us, _)| old_us + SECOND_US < *at_us)
        {
            bytes -= old;
            let _ = old_us;
            oldest.next();
        }
        if bytes > most {
            return Err(format!("{bytes} bytes in the second before {at_us} us, and the limit is {limit}"));
        }
    }
    Ok(())
}
