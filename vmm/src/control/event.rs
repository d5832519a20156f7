//! Events: what clients are told unasked, posted from any thread.

use std::io;
use std::sync::Arc;
use std::sync::mpsc::{self, Receiver, Sender};
use std::time::{SystemTime, UNIX_EPOCH};

use serde_json::{Value, json};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

/// Something that clients of the control socket want to know at once. Names and members are QMP's.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// The vCPUs have stopped.
    Stop,
    /// The vCPUs run.
    Resume,
    /// The machine starts anew; `guest`: at the guest's own wish.
    Reset {
        /// The guest asked for it.
        guest: bool,
    },
    /// The machine ends; `guest`: it switched itself off.
    Shutdown {
        /// The guest asked for it.
        guest: bool,
        /// `guest-shutdown`, `guest-reset`, `guest-panic`, `host-qmp-quit`, `host-signal`, `host-error`.
        reason: &'static str,
    },
    /// The power button was pressed for the guest.
    Powerdown,
    /// The migration has a new state; the name is `query-migrate`'s `status`.
    Migration {
        /// Such as `active`.
        status: String,
    },
    /// A check of a destination has ended.
    MigrationCheck {
        /// `query-migrate-check`'s `status`: `completed`, `failed` or `cancelled`.
        status: &'static str,
    },
    /// The guest has given memory, or taken it back.
    BalloonChange {
        /// What it has now.
        actual_bytes: u64,
    },
    /// A new round of pre-copy begins, counted from 1.
    MigrationPass {
        /// Its number.
        pass: u64,
    },
}

impl Event {
    fn name(&self) -> &'static str {
        match self {
            Self::Stop => "STOP",
            Self::Resume => "RESUME",
            Self::Reset { .. } => "RESET",
            Self::Shutdown { .. } => "SHUTDOWN",
            Self::Powerdown => "POWERDOWN",
            Self::Migration { .. } => "MIGRATION",
            Self::MigrationCheck { .. } => "MIGRATION_CHECK",
            Self::MigrationPass { .. } => "MIGRATION_PASS",
            Self::BalloonChange { .. } => "BALLOON_CHANGE",
        }
    }

    fn data(&self) -> Option<Value> {
        match self {
            Self::Stop | Self::Resume | Self::Powerdown => None,
            Self::Reset { guest } => {
                let reason = if *guest { "guest-reset" } else { "host-qmp-system-reset" };
                Some(json!({ "guest": guest, "reason": reason }))
            }
            Self::Shutdown { guest, reason } => Some(json!({ "guest": guest, "reason": reason })),
            Self::Migration { status } => Some(json!({ "status": status })),
            Self::MigrationCheck { status } => Some(json!({ "status": status })),
            Self::MigrationPass { pass } => Some(json!({ "pass": pass })),
            Self::BalloonChange { actual_bytes } => Some(json!({ "actual": actual_bytes })),
        }
    }
}

/// An event with the moment at which it was posted.
#[derive(Clone, Debug)]
pub struct Stamped {
    event: Event,
    at: SystemTime,
}

impl Stamped {
    /// As QMP has it.
    pub fn to_json(&self) -> Value {
        let since = self.at.duration_since(UNIX_EPOCH).unwrap_or_default();
        let timestamp = json!({ "seconds": since.as_secs(), "microseconds": since.subsec_micros() });
        let mut object = json!({ "event": self.event.name(), "timestamp": timestamp });
        if let (Some(data), Some(members)) = (self.event.data(), object.as_object_mut()) {
            members.insert("data".to_owned(), data);
        }
        object
    }
}

/// Where events are posted, from any thread. Posting never blocks; without a control socket nothing happens.
#[derive(Clone, Debug)]
pub struct EventSink {
    queue: Sender<Stamped>,
    wake: Arc<EventFd>,
}

impl EventSink {
    /// Tells all clients. The order of posts from one thread is kept.
    pub fn post(&self, event: Event) {
        tracing::debug!(?event, "event");
        if self.queue.send(Stamped { event, at: SystemTime::now() }).is_ok()
            && let Err(error) = self.wake.write(1)
        {
            // Only a full counter refuses, and then the reader is awake anyhow.
            tracing::warn!(%error, "can't wake the control socket's loop");
        }
    }
}

/// The other end: the control server takes it and tells its clients.
#[derive(Debug)]
pub struct EventQueue {
    queue: Receiver<Stamped>,
    wake: Arc<EventFd>,
}

impl EventQueue {
    /// What becomes readable when events wait.
    pub fn wake_fd(&self) -> &EventFd {
        &self.wake
    }

    /// The events that wait, in order.
    pub fn take(&self) -> Vec<Stamped> {
        // An empty counter is no error: a former call may have taken this wake-up's events.
        let _ = self.wake.read();
        self.queue.try_iter().collect()
    }
}

/// A new sink and its queue.
///
/// # Errors
/// The process has no file descriptors left.
pub fn event_queue() -> io::Result<(EventSink, EventQueue)> {
    let wake = Arc::new(EventFd::new(EFD_NONBLOCK)?);
    let (sender, queue) = mpsc::channel();
    Ok((EventSink { queue: sender, wake: wake.clone() }, EventQueue { queue, wake }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_keep_their_order_and_shape() {
        let (sink, queue) = event_queue().unwrap();
        let other = sink.clone();
        std::thread::spawn(move || {
            other.post(Event::Stop);
            other.post(Event::Migration { status: "device".into() });
        })
        .join()
        .unwrap();
        let events: Vec<Value> = queue.take().iter().map(Stamped::to_json).collect();
        assert_eq!(events[0]["event"], "STOP");
        assert!(events[0].get("data").is_none());
        assert!(events[0]["timestamp"]["seconds"].as_u64().unwrap() > 1_600_000_000);
        assert_eq!(events[1]["data"], json!({"status": "device"}));
        assert!(queue.take().is_empty());
    }

    #[test]
    fn posting_without_a_server_is_harmless() {
        let (sink, queue) = event_queue().unwrap();
        drop(queue);
        sink.post(Event::Powerdown);
    }
}
