//! What other threads tell the main loop.

use std::io;
use std::sync::Arc;
use std::sync::mpsc::{self, Receiver, Sender};

use tern_migration::handover::Answer;
use tern_migration::pager::PagerError;
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use crate::vcpu::VcpuEvent;

use super::migration::Ended;

/// One thing told.
pub(super) enum Notice {
    /// A vCPU of machine number `generation` has ended. A notice of a machine that is gone is out of date.
    Vcpu {
        /// Which machine of this process.
        generation: u64,
        /// What it said.
        event: VcpuEvent,
    },
    /// A page of machine number `generation` can't be had.
    MemoryLost {
        /// Which machine of this process.
        generation: u64,
        /// Why.
        error: PagerError,
    },
    /// A destination has answered, or not, what became of this session.
    Answered {
        /// Hexadecimal.
        session: String,
        /// None: nobody answers.
        answer: Option<Answer>,
    },
    /// A migration is over.
    Migration(Box<Ended>),
}

/// Tells, from any thread.
#[derive(Clone)]
pub(super) struct Notices {
    queue: Sender<Notice>,
    wake: Arc<EventFd>,
}

impl Notices {
    pub(super) fn post(&self, notice: Notice) {
        // The loop ends before its receiver does; a notice after the end concerns nobody.
        if self.queue.send(notice).is_ok()
            && let Err(error) = self.wake.write(1)
        {
            tracing::warn!(%error, "the main loop can't be woken");
        }
    }

    /// Wakes the loop without telling anything.
    pub(super) fn wake(&self) {
        if let Err(error) = self.wake.write(1) {
            tracing::warn!(%error, "the main loop can't be woken");
        }
    }
}

/// The loop's end.
pub(super) struct Inbox {
    queue: Receiver<Notice>,
    pub(super) wake: Arc<EventFd>,
}

impl Inbox {
    /// What was told since the last time, in order.
    pub(super) fn take(&self) -> Vec<Notice> {
        // An empty counter is no error: something else woke the loop.
        let _ = self.wake.read();
        self.queue.try_iter().collect()
    }
}

pub(super) fn channel() -> io::Result<(Notices, Inbox)> {
    let wake = Arc::new(EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC)?);
    let (sender, queue) = mpsc::channel();
    Ok((Notices { queue: sender, wake: Arc::clone(&wake) }, Inbox { queue, wake }))
}
