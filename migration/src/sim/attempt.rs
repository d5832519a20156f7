//! One migration in the world: both sides are started, faults come when the plan says, a manager looks after it, and
//! what must always hold is looked at after each turn.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::plan::{Fault, Phase, Plan, What};
use super::stream::Place;
use super::turn::{self, Start};
use super::world::Runner;
use crate::channel::{Acceptor, Connector};
use crate::config::LiveParameters;
use crate::control::{Control, Observer};
use crate::destination::{ReceiveError, Received, receive_with};
use crate::fake::{Call, FakeGuest, FakeVm, Hook, Options};
use crate::handover::Register;
use crate::source::{SourceEnd, migrate_by};
use crate::stats::{Report, Side, Status};
use crate::vm::VmError;

/// Nobody waits longer for anything: a few of the engine's own limits one after the other.
const TIME_MAX_US: u64 = 300_000_000;
const TURNS_MAX: u64 = 2_000_000;
/// Rounds that shrink no more, such as on a link that was slow when it was measured: a person has seen enough.
const TURNS_PATIENT: u64 = 100_000;
/// A cancel has to be obeyed within this: the guest goes on.
const CANCEL_US: u64 = 200_000;
/// Then the peer is told, and what it has said is looked for.
const LAST_WORDS_US: u64 = 1_100_000;
/// A destination whose source is gone is cancelled by its manager after this.
const LEFT_ALONE_US: u64 = 60_000_000;

/// What one side has told its observer, in order, and when.
#[derive(Debug, Default)]
pub(super) struct Told(Mutex<Vec<(u64, Status)>>);

impl Told {
    pub(super) fn all(&self) -> Vec<(u64, Status)> {
        locked(&self.0).clone()
    }
}

struct Listener {
    side: Side,
    told: Arc<Told>,
}

impl Observer for Listener {
    fn status(&self, status: Status) {
        let Some(world) = turn::world() else { return };
        if !world.is_dead(self.side) {
            world.note(status.name(), [self.side as u64, 0]);
            locked(&self.told.0).push((world.now_us(), status));
        }
    }

    fn pass(&self, _: u32) {}
}

type DestinationEnd = Result<Received<FakeVm>, Box<ReceiveError<FakeVm>>>;

/// One side of the attempt.
pub(super) struct Party {
    pub(super) control: Arc<Control>,
    pub(super) told: Arc<Told>,
    pub(super) guest: Arc<FakeGuest>,
    pub(super) killed: bool,
    pub(super) frozen: bool,
    /// When a cancel of it was accepted.
    pub(super) cancelled_us: Option<u64>,
    /// A cancel came too late.
    refused: bool,
    over_us: Option<u64>,
}

/// The attempt as it stands, and in the end how it went.
pub(super) struct Attempt {
    pub(super) parties: [Party; 2],
    pub(super) source: Arc<Mutex<Option<SourceEnd<FakeVm>>>>,
    pub(super) destination: Arc<Mutex<Option<DestinationEnd>>>,
    /// What the destination's start has found.
    found: Arc<Mutex<Found>>,
    /// What the destination's process remembers.
    pub(super) register: Arc<Register>,
    pub(super) live: LiveParameters,
    pub(super) limits_changed: bool,
    faults: Vec<(Fault, u64)>,
    patience_us: u64,
    manager_us: u64,
    writes: [u64; 2],
    pub(super) began_us: u64,
    written_us: u64,
    pub(super) was_running: bool,
}

/// What the calls of both machines have shown.
#[derive(Debug, Default)]
pub(super) struct Found {
    pub(super) started: bool,
    /// The source lets its disks go.
    committing: bool,
    difference: Option<(usize, u64)>,
}

impl Attempt {
    /// Starts both sides.
    pub(super) fn begin(
        runner: &Runner,
        mut vm: FakeVm,
        options: &Options,
        mut plan: Plan,
    ) -> Result<Self, String> {
        let world = &runner.world;
        let found: Arc<Mutex<Found>> = Arc::default();
        let there = FakeVm::new(Options { fail: None, hook: None, ..options.clone() });
        let mut there = there.map_err(|error| error.to_string())?;
        let guests = [Arc::new(vm.guest()), Arc::new(there.guest())];
        let [failing_here, failing_there] = plan.failing;
        vm.set_fail(failing_here);
        there.set_fail(failing_there);
        vm.set_hook(Some(hook(Side::Source, &guests, &found)));
        there.set_hook(Some(hook(Side::Destination, &guests, &found)));
        let was_running = vm.is_running();
        let known = plan.known.then(|| vm.visited().0);
        let [here, yonder] = guests;
        let parties = [party(Side::Source, here)?, party(Side::Destination, yonder)?];
        let [here, yonder] = parties.each_ref().map(|party| Arc::clone(&party.control));
        world.net.borrow_mut().begin(plan.links.drain(..).collect());
        let (live, faults) = (LiveParameters::new(plan.source), std::mem::take(&mut plan.faults));
        let (source, destination) = (Arc::default(), Arc::default());
        let (result, parameters): (Arc<Mutex<_>>, _) = (Arc::clone(&source), live.clone());
        let run = move || {
            let connector: Arc<dyn Connector> = Arc::new(Place);
            *locked(&result) = Some(migrate_by(vm, &connector, &parameters, &here));
        };
        world.start(Start { name: "migration".to_owned(), side: Side::Source, run: Box::new(run) });
        let result: Arc<Mutex<_>> = Arc::clone(&destination);
        let limits = LiveParameters::new(plan.destination);
        let register: Arc<Register> = Arc::default();
        let register_there = Arc::clone(&register);
        let run = move || {
            let acceptor: Arc<dyn Acceptor> = Arc::new(Place);
            *locked(&result) =
                Some(receive_with(there, &acceptor, &limits, &register_there, known.as_ref(), &yonder));
        };
        world.start(Start { name: "migration".to_owned(), side: Side::Destination, run: Box::new(run) });
        let now_us = world.now_us();
        Ok(Self {
            parties,
            source,
            destination,
            found,
            register,
            live,
            limits_changed: false,
            faults: faults.into_iter().map(|fault| (fault, 0)).collect(),
            patience_us: plan.patience_us,
            manager_us: plan.manager_us,
            writes: plan.writes,
            began_us: now_us,
            written_us: now_us,
            was_running,
        })
    }

    pub(super) fn party(&self, side: Side) -> &Party {
        let [source, destination] = &self.parties;
        if side == Side::Source { source } else { destination }
    }

    fn party_mut(&mut self, side: Side) -> &mut Party {
        let [source, destination] = &mut self.parties;
        if side == Side::Source { source } else { destination }
    }

    pub(super) fn report(&self, side: Side) -> Report {
        self.party(side).control.report()
    }

    pub(super) fn found(&self) -> MutexGuard<'_, Found> {
        locked(&self.found)
    }

    /// Until both sides have ended.
    pub(super) fn run(&mut self, runner: &mut Runner) -> Result<u64, String> {
        for turn in 0..TURNS_MAX {
            let now_us = runner.world.now_us();
            self.note_ends(runner);
            if self.parties.iter().all(|party| party.over_us.is_some()) {
                return Ok(turn);
            }
            if now_us.saturating_sub(self.began_us) > TIME_MAX_US {
                return Err(format!("somebody still waits after {} s", TIME_MAX_US / 1_000_000));
            }
            self.apply_faults(runner)?;
            self.look_after(runner, turn > TURNS_PATIENT);
            self.let_guests_write(runner);
            if !runner.step(Some(now_us + CANCEL_US))? {
                return Err("nobody can go on".to_owned());
            }
            self.check(runner)?;
        }
        Err(format!("no end after {TURNS_MAX} turns"))
    }

    fn note_ends(&mut self, runner: &Runner) {
        for side in [Side::Source, Side::Destination] {
            if self.party(side).over_us.is_none() && !runner.world.is_busy(side) {
                self.party_mut(side).over_us = Some(runner.world.now_us());
                if side == Side::Destination {
                    runner.world.net.borrow_mut().stop_listening(runner.world.now_us());
                    runner.world.changed();
                }
            }
        }
    }

    fn phase_reached(&self, phase: Phase) -> bool {
        let told = self.party(Side::Source).told.all();
        let was = |status| told.iter().any(|(_, told)| *told == status);
        match phase {
            Phase::Begun => true,
            Phase::Active => was(Status::Active),
            Phase::Stopped => was(Status::Device),
            Phase::Committing => self.found().committing,
        }
    }

    fn apply_faults(&mut self, runner: &Runner) -> Result<(), String> {
        let mut faults = std::mem::take(&mut self.faults);
        let mut result = Ok(());
        faults.retain_mut(|(fault, turns)| {
            if !self.phase_reached(fault.phase) {
                return true;
            }
            *turns += 1;
            let due = *turns > fault.turns;
            if due && let Err(error) = self.happen(runner, &fault.what) {
                result = Err(error);
            }
            !due
        });
        self.faults = faults;
        result
    }

    fn happen(&mut self, runner: &Runner, what: &What) -> Result<(), String> {
        let world = &runner.world;
        match what {
            What::Kill(side, silently) => {
                if self.party(*side).over_us.is_none() {
                    world.note("dies", [*side as u64, u64::from(*silently)]);
                    self.party_mut(*side).killed = true;
                    world.kill(*side, *silently);
                    self.party(*side).control.cancel();
                }
            }
            What::Freeze(side, time_us) => {
                world.note("freezes", [*side as u64, *time_us]);
                self.party_mut(*side).frozen = true;
                world.freeze(*side, *time_us);
            }
            What::Cancel(side) => self.cancel(runner, *side),
            What::Change(changes) => {
                world.note("limits change", [0, 0]);
                self.limits_changed = true;
                self.live.merge(changes).map_err(|error| error.to_string())?;
            }
            What::Partition(time_us) => {
                world.note("partition", [*time_us, 0]);
                world.net.borrow_mut().partition(world.now_us() + time_us);
            }
        }
        world.changed();
        Ok(())
    }

    fn cancel(&mut self, runner: &Runner, side: Side) {
        let party = self.party_mut(side);
        if party.killed || party.over_us.is_some() || party.refused || party.cancelled_us.is_some() {
            return;
        }
        let now_us = runner.world.now_us();
        let accepted = party.control.cancel();
        (party.refused, party.cancelled_us) = (!accepted, accepted.then_some(now_us));
        runner.world.note("cancel", [side as u64, u64::from(accepted)]);
        runner.world.changed();
    }

    /// The managers of both sides.
    fn look_after(&mut self, runner: &Runner, too_many: bool) {
        let now_us = runner.world.now_us();
        if now_us.saturating_sub(self.began_us) > self.patience_us || too_many && self.patience_us < u64::MAX
        {
            self.cancel(runner, Side::Source);
        }
        self.let_go_on(now_us);
        let [source, destination] = &self.parties;
        let alone = source.over_us.is_some_and(|over_us| now_us.saturating_sub(over_us) > LEFT_ALONE_US);
        if alone && destination.over_us.is_none() {
            self.cancel(runner, Side::Destination);
        }
    }

    /// The source's manager is waited for, and takes its time.
    fn let_go_on(&self, now_us: u64) {
        let told = self.party(Side::Source).told.all();
        let waits = told.last().filter(|(_, status)| *status == Status::PreSwitchover);
        if waits.is_some_and(|(since_us, _)| now_us.saturating_sub(*since_us) > self.manager_us) {
            self.party(Side::Source).control.go_on();
        }
    }

    /// The guest writes wherever it runs.
    fn let_guests_write(&mut self, runner: &Runner) {
        let now_us = runner.world.now_us();
        let quiet_ms = now_us.saturating_sub(self.written_us) / 1000;
        self.written_us = now_us;
        let [often, per_ms] = self.writes;
        let now = u64::from(runner.world.chance(often));
        let count = now + (quiet_ms * per_ms).min(200);
        for party in self.parties.iter().filter(|party| !party.killed) {
            party.guest.write(count as u32);
        }
    }

    /// What holds at every moment.
    fn check(&self, runner: &Runner) -> Result<(), String> {
        let running = self.parties.iter().filter(|party| !party.killed && party.guest.is_running());
        if running.count() > 1 {
            return Err("the guest runs on both sides".to_owned());
        }
        if let Some((region, page)) = self.found().difference {
            return Err(format!("page {page} of region {region} is another one when the guest starts"));
        }
        let now_us = runner.world.now_us();
        for (side, party) in [Side::Source, Side::Destination].into_iter().zip(&self.parties) {
            let Some(cancelled_us) = party.cancelled_us.filter(|_| !party.killed && !party.frozen) else {
                continue;
            };
            let since_us = party.over_us.unwrap_or(now_us).saturating_sub(cancelled_us);
            let stays = side == Side::Source && self.was_running && !party.guest.is_running();
            if stays && since_us > CANCEL_US && !self.resume_fails() {
                return Err(format!("{since_us} us after the cancel the guest still stands"));
            }
            if since_us > CANCEL_US + LAST_WORDS_US {
                return Err(format!("the {} has not ended {since_us} us after its cancel", side.name()));
            }
        }
        Ok(())
    }

    /// Was the machine told to fail when the guest shall go on?
    fn resume_fails(&self) -> bool {
        let error = self.report(Side::Source).error;
        error.is_some_and(|error| error.chain.iter().any(|text| text.contains("failure of Resume")))
            || self.found().started
    }
}

fn party(side: Side, guest: Arc<FakeGuest>) -> Result<Party, String> {
    let told: Arc<Told> = Arc::default();
    let control = Control::new(side, Box::new(Listener { side, told: Arc::clone(&told) }));
    let control = control.map_err(|error| error.to_string())?;
    Ok(Party {
        control,
        told,
        guest,
        killed: false,
        frozen: false,
        cancelled_us: None,
        refused: false,
        over_us: None,
    })
}

/// What every call of a machine goes through: it takes time, others may go on meanwhile, and a dead process makes none.
fn hook(side: Side, guests: &[Arc<FakeGuest>; 2], found: &Arc<Mutex<Found>>) -> Hook {
    const CALL_MAX_US: u64 = 300;
    let ([here, there], found) = (guests.each_ref().map(Arc::clone), Arc::clone(found));
    let dead = || Err(VmError::plain("this process has ended"));
    Hook(Arc::new(move |call| {
        let Some(world) = turn::world() else { return Ok(()) };
        if world.is_dead(side) {
            return dead();
        }
        world.note("calls its machine", [call as u64, 0]);
        turn::spend(world.random(|random| random.spread(CALL_MAX_US)));
        if world.is_dead(side) {
            return dead();
        }
        if call == Call::ReleaseDisks {
            locked(&found).committing = true;
        }
        if call == Call::Start {
            let mut found = locked(&found);
            found.started = true;
            found.difference = here.first_difference(&there);
        }
        Ok(())
    }))
}

pub(super) fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
