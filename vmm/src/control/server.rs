//! The control server: a subscriber of the process' event loop. Accepts clients, runs their commands on the
//! machine, and tells all of them what happens.

use std::collections::HashMap;
use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::net::UnixStream;

use event_manager::{EventOps, Events, MutEventSubscriber};
use serde_json::Value;
use vmm_sys_util::epoll::EventSet;

use super::connection::{Connection, Gone};
use super::event::{EventQueue, Stamped};
use super::operations::Operations;
use super::socket::ListeningSocket;

/// Most clients at once.
pub const CLIENT_LIMIT: usize = 16;

/// The server. Add it to the event loop; it ends, and removes the socket's file, when it is dropped.
pub struct ControlServer<O> {
    socket: ListeningSocket,
    vm: O,
    events: EventQueue,
    clients: HashMap<RawFd, Connection>,
    /// Held so that, when the process has no descriptors left, one can be freed to turn a client away: it
    /// would wait in the backlog for ever otherwise, and keep the loop awake.
    spare: Option<File>,
}

impl<O: Operations> ControlServer<O> {
    /// A server at `socket` for the machine `vm`, that tells what is posted to the sink of `events`.
    pub fn new(socket: ListeningSocket, vm: O, events: EventQueue) -> Self {
        Self { socket, vm, events, clients: HashMap::new(), spare: open_spare() }
    }

    /// The machine.
    pub fn vm(&mut self) -> &mut O {
        &mut self.vm
    }

    /// Sends what waits, as far as the sockets take it: before the process ends, so that clients have the
    /// answer to `quit` and see `SHUTDOWN`.
    pub fn finish(&mut self) {
        let events: Vec<Value> = self.events.take().iter().map(Stamped::to_json).collect();
        for client in self.clients.values_mut() {
            for event in &events {
                // Nothing can be done for a client that is gone at the very end.
                let _ = client.tell(event);
            }
        }
    }

    fn accept(&mut self, ops: &mut EventOps) {
        loop {
            match self.socket.listener().accept() {
                Ok((stream, _)) => self.add_client(stream, ops),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => {
                    tracing::warn!(%error, "can't accept a control client: turned away");
                    self.spare = None;
                    let turned_away = self.socket.listener().accept();
                    drop(turned_away);
                    self.spare = open_spare();
                    return;
                }
            }
        }
    }

    fn add_client(&mut self, stream: UnixStream, ops: &mut EventOps) {
        if self.clients.len() >= CLIENT_LIMIT {
            tracing::warn!(CLIENT_LIMIT, "too many control clients: one more was turned away");
            return;
        }
        let connection = match Connection::new(stream) {
            Ok(connection) => connection,
            Err(error) => return tracing::warn!(%error, "can't serve a control client"),
        };
        let fd = connection.fd();
        if let Err(error) = ops.add(Events::new_raw(fd, EventSet::IN)) {
            return tracing::warn!(?error, "can't watch a control client");
        }
        self.clients.insert(fd, connection);
        self.with_client(fd, ops, |client, vm| client.serve(EventSet::empty(), vm));
    }

    /// Lets a client act, and looks afterwards what it waits for, or drops it.
    fn with_client(
        &mut self,
        fd: RawFd,
        ops: &mut EventOps,
        act: impl FnOnce(&mut Connection, &mut dyn Operations) -> Result<(), Gone>,
    ) {
        let Some(client) = self.clients.get_mut(&fd) else { return };
        let result = act(client, &mut self.vm);
        if let Err(gone) = result {
            tracing::debug!(fd, ?gone, "control client left");
            self.drop_client(fd, ops);
        } else if let Some(interest) = client.new_interest()
            && let Err(error) = ops.modify(Events::new_raw(fd, interest))
        {
            tracing::warn!(?error, "can't watch a control client");
            self.drop_client(fd, ops);
        }
    }

    fn drop_client(&mut self, fd: RawFd, ops: &mut EventOps) {
        if let Err(error) = ops.remove(Events::empty_raw(fd)) {
            tracing::warn!(?error, "can't stop watching a control client");
        }
        self.clients.remove(&fd);
    }

    fn tell_events(&mut self, ops: &mut EventOps) {
        for event in self.events.take() {
            let event = event.to_json();
            let all: Vec<RawFd> = self.clients.keys().copied().collect();
            for fd in all {
                self.with_client(fd, ops, |client, _| client.tell(&event));
            }
        }
    }
}

fn open_spare() -> Option<File> {
    File::open("/dev/null").ok()
}

impl<O: Operations> MutEventSubscriber for ControlServer<O> {
    fn process(&mut self, events: Events, ops: &mut EventOps) {
        let fd = events.fd();
        if fd == self.socket.listener().as_raw_fd() {
            self.accept(ops);
        } else if fd == self.events.wake_fd().as_raw_fd() {
            self.tell_events(ops);
        } else {
            self.with_client(fd, ops, |client, vm| client.serve(events.event_set(), vm));
            // What the command has caused follows its answer at once.
            self.tell_events(ops);
        }
    }

    fn init(&mut self, ops: &mut EventOps) {
        for fd in [self.socket.listener().as_raw_fd(), self.events.wake_fd().as_raw_fd()] {
            if let Err(error) = ops.add(Events::new_raw(fd, EventSet::IN)) {
                tracing::error!(?error, "can't watch the control socket: it will not answer");
            }
        }
    }
}

#[cfg(test)]
mod tests;
