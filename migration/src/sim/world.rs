//! One small world: a clock, chance, two hosts, the threads on them, and the network between.

use std::cell::{Cell, RefCell};
use std::rc::Rc;

use super::net::Net;
use super::random::Random;
use super::trace::Trace;
use super::turn::{Start, Task, enter};
use crate::stats::Side;

/// Longest time that a thread takes for what it does between two waits.
const STEP_MAX_US: u64 = 20;

/// What all of a simulation share.
pub(super) struct World {
    now_us: Cell<u64>,
    /// Rises with all that happens: whoever has looked since need not look again.
    version: Cell<u64>,
    random: RefCell<Random>,
    slots: RefCell<Vec<Slot>>,
    starting: RefCell<Vec<Start>>,
    current: Cell<Option<usize>>,
    pub(super) net: RefCell<Net>,
    pub(super) trace: RefCell<Trace>,
    hosts: [Host; 2],
}

/// A thread as others see it.
struct Slot {
    name: String,
    side: Side,
    ended: bool,
    /// The version at which it last found that it can't go on.
    looked: Option<u64>,
    deadline_us: Option<u64>,
}

/// How one side's process is.
#[derive(Default)]
struct Host {
    dead: Cell<bool>,
    /// Its clock after its death: nothing that its threads still do takes time.
    ahead_us: Cell<u64>,
    frozen_until_us: Cell<u64>,
}

impl World {
    pub(super) fn new(seed: u64) -> Rc<Self> {
        Rc::new(Self {
            now_us: Cell::new(0),
            version: Cell::new(0),
            random: RefCell::new(Random::new(seed)),
            slots: RefCell::default(),
            starting: RefCell::default(),
            current: Cell::new(None),
            net: RefCell::default(),
            trace: RefCell::default(),
            hosts: Default::default(),
        })
    }

    fn host(&self, side: Side) -> &Host {
        let [source, destination] = &self.hosts;
        if side == Side::Source { source } else { destination }
    }

    pub(super) fn now_us(&self) -> u64 {
        self.now_us.get()
    }

    /// The time as the thread that runs sees it.
    pub(super) fn task_now_us(&self) -> u64 {
        let ahead_us = self.current_side().map_or(0, |side| self.host(side).ahead_us.get());
        self.now_us.get().max(ahead_us)
    }

    /// Has the time come, for the thread that runs?
    pub(super) fn is_over(&self, deadline_us: u64) -> bool {
        if let Some(side) = self.current_side().filter(|side| self.is_dead(*side)) {
            let ahead_us = &self.host(side).ahead_us;
            ahead_us.set(ahead_us.get().max(deadline_us));
        }
        self.task_now_us() >= deadline_us
    }

    pub(super) fn random<T>(&self, draw: impl FnOnce(&mut Random) -> T) -> T {
        draw(&mut self.random.borrow_mut())
    }

    pub(super) fn chance(&self, percent: u64) -> bool {
        self.random(|random| random.percent(percent))
    }

    pub(super) fn note(&self, what: &'static str, numbers: [u64; 2]) {
        let task = self.current.get().unwrap_or(usize::MAX);
        self.trace.borrow_mut().add(self.now_us.get(), task, what, numbers);
    }

    /// Something has happened, and it took a moment.
    pub(super) fn progress(&self) {
        self.changed();
        self.now_us.set(self.now_us.get() + self.random(|random| random.below(STEP_MAX_US)));
    }

    /// Everybody looks again.
    pub(super) fn changed(&self) {
        self.version.set(self.version.get() + 1);
    }

    pub(super) fn current(&self) -> Option<usize> {
        self.current.get()
    }

    pub(super) fn current_side(&self) -> Option<Side> {
        self.current.get().and_then(|task| Some(self.slots.borrow().get(task)?.side))
    }

    /// The thread that runs gives its turn away; `ready`: it could go on.
    pub(super) fn rest(&self, deadline_us: Option<u64>, ready: bool) {
        let looked = (!ready).then(|| self.version.get());
        let mut slots = self.slots.borrow_mut();
        if let Some(slot) = self.current.get().and_then(|at| slots.get_mut(at)) {
            (slot.looked, slot.deadline_us) = (looked, deadline_us);
        }
    }

    /// A new thread; its number.
    pub(super) fn start(&self, start: Start) -> usize {
        let mut slots = self.slots.borrow_mut();
        let (name, side) = (format!("{} {}", start.side.name(), start.name), start.side);
        slots.push(Slot { name, side, ended: false, looked: None, deadline_us: None });
        self.starting.borrow_mut().push(start);
        slots.len() - 1
    }

    pub(super) fn has_ended(&self, task: usize) -> bool {
        self.slots.borrow().get(task).is_none_or(|slot| slot.ended)
    }

    /// Do threads of this side live?
    pub(super) fn is_busy(&self, side: Side) -> bool {
        self.slots.borrow().iter().any(|slot| slot.side == side && !slot.ended)
    }

    pub(super) fn is_dead(&self, side: Side) -> bool {
        self.host(side).dead.get()
    }

    /// The process ends at once. Its threads go on as ghosts until they notice: nothing that they do is seen.
    pub(super) fn kill(&self, side: Side, silently: bool) {
        self.host(side).dead.set(true);
        self.net.borrow_mut().kill(side, silently, self.now_us());
        self.changed();
    }

    /// A new process: after all threads of the old one have ended.
    pub(super) fn revive(&self, side: Side) {
        let host = self.host(side);
        host.dead.set(false);
        host.ahead_us.set(0);
        host.frozen_until_us.set(0);
    }

    pub(super) fn is_frozen(&self, side: Side) -> bool {
        self.host(side).frozen_until_us.get() > self.now_us()
    }

    /// The process doesn't run for a while (SIGSTOP).
    pub(super) fn freeze(&self, side: Side, time_us: u64) {
        self.host(side).frozen_until_us.set(self.now_us() + time_us);
    }

    pub(super) fn names(&self) -> Vec<String> {
        self.slots.borrow().iter().map(|slot| slot.name.clone()).collect()
    }

    fn ready(&self) -> Vec<usize> {
        let version = self.version.get();
        let slots = self.slots.borrow();
        let ready = |slot: &Slot| !slot.ended && slot.looked != Some(version) && !self.is_frozen(slot.side);
        slots.iter().enumerate().filter(|(_, slot)| ready(slot)).map(|(at, _)| at).collect()
    }

    /// When something happens by itself.
    fn next_us(&self, alarm_us: Option<u64>) -> Option<u64> {
        let now_us = self.now_us();
        let slots = self.slots.borrow();
        let waits = slots.iter().filter(|slot| !slot.ended && !self.is_frozen(slot.side));
        let thaws = self.hosts.iter().map(|host| host.frozen_until_us.get()).filter(|at| *at > now_us);
        let times = waits.filter_map(|slot| slot.deadline_us).chain(thaws);
        times.chain(self.net.borrow().next_us(now_us)).chain(alarm_us).min()
    }
}

/// The world, and its threads.
pub(super) struct Runner {
    pub(super) world: Rc<World>,
    tasks: Vec<Task>,
}

impl Runner {
    pub(super) fn new(world: Rc<World>) -> Self {
        enter(Some(Rc::clone(&world)));
        Self { world, tasks: Vec::new() }
    }

    /// One turn, or a jump of the clock, to `alarm_us` at the latest. False: nothing can happen any more. An error: a
    /// thread has panicked.
    pub(super) fn step(&mut self, alarm_us: Option<u64>) -> Result<bool, String> {
        for start in self.world.starting.take() {
            self.tasks.push(Task::new(start).map_err(|error| format!("no stack for a thread: {error}"))?);
        }
        let ready = self.world.ready();
        let Some(at) = self.world.random(|random| random.pick(&ready)) else {
            let Some(next_us) = self.world.next_us(alarm_us) else { return Ok(false) };
            self.world.now_us.set(next_us.max(self.world.now_us()));
            self.world.changed();
            return Ok(true);
        };
        let Some(task) = self.tasks.get_mut(at) else { return Ok(false) };
        self.world.current.set(Some(at));
        let (ended, panic) = task.resume();
        if ended {
            if let Some(slot) = self.world.slots.borrow_mut().get_mut(at) {
                slot.ended = true;
            }
            self.world.note("ends", [0, 0]);
            self.world.changed();
        }
        self.world.current.set(None);
        match panic {
            Some(panic) => Err(format!("a thread has panicked: {}", text_of(&*panic))),
            None => Ok(true),
        }
    }
}

impl Drop for Runner {
    fn drop(&mut self) {
        enter(None);
    }
}

fn text_of(panic: &(dyn std::any::Any + Send)) -> &str {
    let text = panic.downcast_ref::<&str>().copied();
    text.or_else(|| panic.downcast_ref::<String>().map(String::as_str)).unwrap_or("no text")
}
