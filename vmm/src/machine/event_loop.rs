//! The main thread: one event loop for devices, control socket, signals and notices.

use std::os::fd::{AsRawFd, RawFd};
use std::sync::{Arc, Mutex, PoisonError};

use event_manager::{
    EventManager, EventOps, EventSet, Events, MutEventSubscriber, SubscriberId, SubscriberOps,
};
use tern_migration::snapshot::SnapshotFile;

use crate::config::VmConfig;
use crate::control::event_queue;
use crate::devices::Source;

use super::signals::Signals;
use super::{ExitReason, Machine, RunError, notice};

type Manager = EventManager<Box<dyn MutEventSubscriber>>;

/// Serves one device.
struct DeviceSubscriber(Source);

impl MutEventSubscriber for DeviceSubscriber {
    fn init(&mut self, ops: &mut EventOps<'_>) {
        let device = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        for (fd, token) in device.fds() {
            let events = Events::with_data_raw(fd, token, EventSet::IN | EventSet::EDGE_TRIGGERED);
            if let Err(error) = ops.add(events) {
                tracing::error!(%error, fd, "a device's descriptor can't be watched");
            }
        }
    }

    fn process(&mut self, events: Events, _: &mut EventOps<'_>) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).ready(events.data());
    }
}

/// Ends the wait of the loop; what has happened is looked at between two rounds.
struct Wake(Vec<RawFd>);

impl MutEventSubscriber for Wake {
    fn init(&mut self, ops: &mut EventOps<'_>) {
        for fd in &self.0 {
            if let Err(error) = ops.add(Events::new_raw(*fd, EventSet::IN)) {
                tracing::error!(%error, fd, "a descriptor can't be watched");
            }
        }
    }

    fn process(&mut self, _: Events, _: &mut EventOps<'_>) {}
}

fn host(what: &'static str) -> impl Fn(event_manager::Error) -> RunError {
    move |error| RunError::Host { what, source: std::io::Error::other(error) }
}

fn io(what: &'static str) -> impl Fn(std::io::Error) -> RunError {
    move |source| RunError::Host { what, source }
}

pub(super) fn run(config: VmConfig, snapshot: Option<SnapshotFile>) -> Result<ExitReason, RunError> {
    let mut signals = Signals::new().map_err(io("signals can't be taken"))?;
    let (sink, events) = event_queue().map_err(io("an eventfd can't be had"))?;
    let (notices, inbox) = notice::channel().map_err(io("an eventfd can't be had"))?;
    let mut manager = Manager::new().map_err(host("the event loop can't be made"))?;
    let woken_by_notices = inbox.wake.as_raw_fd();
    let machine = Machine::new(config, snapshot, sink, notices, inbox)?;
    let plugs = machine.plugs();
    let lines = [&plugs.reset, &plugs.power_off].map(|line| line.as_raw_fd());
    let woken_by = lines.into_iter().chain([woken_by_notices, signals.0.as_raw_fd()]).collect();
    manager.add_subscriber(Box::new(Wake(woken_by)));
    let control = machine.control_path();
    let machine = Arc::new(Mutex::new(machine));
    let server = super::operations::serve(&mut manager, control.as_deref(), events, &machine)?;

    let shared = Arc::clone(&machine);
    let lock = || machine.lock().unwrap_or_else(PoisonError::into_inner);
    let mut served = Served::default();
    served.replace(&mut manager, lock().sources());
    lock().begin()?;
    loop {
        manager.run().map_err(host("the event loop failed"))?;
        let mut machine = lock();
        machine.take_notices();
        if let Some(signal) = signals.take() {
            machine.end_by_signal(signal);
        }
        machine.look_at_lines();
        if machine.wants_new() {
            served.replace(&mut manager, Vec::new());
            machine.renew()?;
            served.replace(&mut manager, machine.sources());
            machine.begin()?;
        }
        if let Some(result) = machine.take_end() {
            let memory_lost = machine.memory_lost;
            drop(machine);
            if let Some(server) = server {
                server.lock().unwrap_or_else(PoisonError::into_inner).finish();
            }
            if memory_lost {
                // To take it down is to wait for its threads, or to let them go on with a page of zeroes.
                std::mem::forget(shared);
            }
            return result;
        }
    }
}

/// The subscribers of the present machine's devices.
#[derive(Default)]
struct Served(Vec<SubscriberId>);

impl Served {
    fn replace(&mut self, manager: &mut Manager, sources: Vec<Source>) {
        for id in self.0.drain(..) {
            if let Err(error) = manager.remove_subscriber(id) {
                tracing::error!(?error, "a device can't be taken out of the loop");
            }
        }
        for source in sources {
            self.0.push(manager.add_subscriber(Box::new(DeviceSubscriber(source))));
        }
    }
}
