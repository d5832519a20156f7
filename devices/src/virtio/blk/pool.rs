//! The threads of a disk: requests in, completions out in any order.

use std::collections::VecDeque;
use std::io;
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread::JoinHandle;

use vmm_sys_util::eventfd::EventFd;

use super::activity::DiskActivity;
use super::disk::Disk;
use super::request::Request;
use crate::GuestRam;
use crate::state::lock;

const THREADS: usize = 4;
/// Buffers are on the heap.
const STACK_BYTES: usize = 256 << 10;

/// A request that is complete.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Done {
    pub(super) head: u16,
    pub(super) written_bytes: usize,
}

#[derive(Debug, Default)]
struct Work {
    waiting: VecDeque<Order>,
    /// Numbers of those that are being carried out.
    running: Vec<u64>,
    done: Vec<Done>,
    /// Number of the next order.
    next: u64,
    /// Who waits for [`Shared::idle`].
    waiters: usize,
    stop: bool,
}

#[derive(Debug)]
struct Order {
    number: u64,
    ram: GuestRam,
    request: Request,
}

impl Work {
    /// Number of the oldest order that isn't complete.
    fn oldest(&self) -> Option<u64> {
        self.running.iter().copied().chain(self.waiting.front().map(|order| order.number)).min()
    }
}

#[derive(Debug)]
pub(super) struct Shared {
    disk: Arc<Disk>,
    work: Mutex<Work>,
    /// There is work, or the end.
    changed: Condvar,
    /// Something is complete.
    idle: Condvar,
    /// There are completions.
    event: EventFd,
}

/// The threads. They start with the first driver, so an unused disk costs none.
#[derive(Debug)]
pub(super) struct Pool {
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<()>>,
}

impl Pool {
    pub(super) fn new(disk: Arc<Disk>) -> io::Result<Self> {
        let event = EventFd::new(libc::EFD_NONBLOCK | libc::EFD_CLOEXEC)?;
        let (changed, idle) = (Condvar::new(), Condvar::new());
        let shared = Shared { disk, work: Mutex::default(), changed, idle, event };
        Ok(Self { shared: Arc::new(shared), threads: Vec::new() })
    }

    pub(super) fn start(&mut self) -> io::Result<()> {
        while self.threads.len() < THREADS {
            let shared = Arc::clone(&self.shared);
            let builder = std::thread::Builder::new().name("disk".into()).stack_size(STACK_BYTES);
            self.threads.push(builder.spawn(move || shared.run())?);
        }
        Ok(())
    }

    /// Readable when there are completions.
    pub(super) fn event(&self) -> &EventFd {
        &self.shared.event
    }

    pub(super) fn submit(&self, ram: &GuestRam, request: Request) {
        let mut work = lock(&self.shared.work);
        let number = work.next;
        work.next = number.wrapping_add(1);
        work.waiting.push_back(Order { number, ram: ram.clone(), request });
        drop(work);
        self.shared.changed.notify_one();
    }

    pub(super) fn take_done(&self) -> Vec<Done> {
        std::mem::take(&mut lock(&self.shared.work).done)
    }

    /// The requests, for those who have no part in them.
    pub(super) fn activity(&self) -> DiskActivity {
        DiskActivity(Arc::clone(&self.shared))
    }

    /// Requests that wait or are being carried out.
    pub(super) fn unfinished(&self) -> usize {
        let work = lock(&self.shared.work);
        work.running.len() + work.waiting.len()
    }

    /// Waits until every request is complete.
    pub(super) fn wait_idle(&self) {
        self.shared.wait_until(|work| work.oldest().is_none());
    }

    /// Forgets what hasn't begun, waits for what has, and forgets that too.
    pub(super) fn forget(&self) {
        lock(&self.shared.work).waiting.clear();
        self.shared.idle.notify_all();
        self.wait_idle();
        lock(&self.shared.work).done.clear();
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        self.forget();
        lock(&self.shared.work).stop = true;
        self.shared.changed.notify_all();
        for thread in self.threads.drain(..) {
            if thread.join().is_err() {
                tracing::error!("a thread of a disk panicked");
            }
        }
    }
}

impl Shared {
    fn run(&self) {
        while let Some(Order { number, ram, request }) = self.next() {
            let written_bytes = self.disk.execute(&ram, &request);
            let mut work = lock(&self.work);
            work.running.retain(|running| *running != number);
            work.done.push(Done { head: request.head(), written_bytes });
            if work.waiters > 0 {
                self.idle.notify_all();
            }
            drop(work);
            // Fails only when the counter is full, and then it is readable anyway.
            let _ = self.event.write(1);
        }
    }

    pub(super) fn disk(&self) -> &Disk {
        &self.disk
    }

    pub(super) fn wait_for_present(&self) {
        let next = lock(&self.work).next;
        self.wait_until(|work| work.oldest().is_none_or(|oldest| oldest >= next));
    }

    fn wait_until(&self, is_so: impl Fn(&Work) -> bool) {
        let mut work = lock(&self.work);
        work.waiters += 1;
        while !is_so(&work) {
            work = self.idle.wait(work).unwrap_or_else(PoisonError::into_inner);
        }
        work.waiters -= 1;
    }

    fn next(&self) -> Option<Order> {
        let mut work = lock(&self.work);
        loop {
            if work.stop {
                return None;
            }
            if let Some(next) = work.waiting.pop_front() {
                work.running.push(next.number);
                return Some(next);
            }
            work = self.changed.wait(work).unwrap_or_else(PoisonError::into_inner);
        }
    }
}
