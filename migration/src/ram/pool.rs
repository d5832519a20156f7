//! Threads that work off a bounded queue, with a barrier: pages on their way out of a source, into a file, and into a
//! destination.
//!
//! ```text
//! caller --put--> queue --> worker 0 .. n-1        n = 0: `put` is the worker's own call, with no queue at all
//! caller --wait--> until the queue is empty and all workers are idle
//! ```
//!
//! The first fault is kept, and nothing is begun after it. A worker that panics is a fault, so nobody waits for it for
//! ever.

use std::collections::VecDeque;
use std::fmt;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use crate::control::Control;
use crate::thread::{Signal, Thread};

/// Jobs that wait for a worker, for each of them: enough that none is idle while the next one is made.
const WAITING_PER_WORKER: usize = 2;

/// What does the jobs; each thread has one.
pub(crate) type Worker<J, F> = Box<dyn FnMut(J) -> Result<(), F> + Send>;

/// Threads for work that costs CPU time: `asked`, or as many as there are CPUs, up to 8, if that is 0.
pub(crate) fn worker_threads(asked: u64) -> usize {
    match usize::try_from(asked).unwrap_or(usize::MAX) {
        0 => std::thread::available_parallelism().map_or(1, |cpus| cpus.get().min(8)),
        threads => threads,
    }
}

/// What a worker that panicked is to its caller.
pub(crate) trait Panicked {
    /// The fault.
    fn panicked() -> Self;
}

/// The threads and their queue. Dropped, they end after the job that they are at.
pub(crate) struct Pool<J, F> {
    shared: Arc<Shared<J, F>>,
    threads: Vec<Thread>,
    /// Without threads.
    own: Option<Mutex<Worker<J, F>>>,
}

struct Shared<J, F> {
    queue: Mutex<Queue<J, F>>,
    /// There is work, or no more will come.
    work: Signal,
    /// A job was begun or is done.
    done: Signal,
}

struct Queue<J, F> {
    waiting: VecDeque<J>,
    busy: usize,
    closed: bool,
    failed: bool,
    fault: Option<F>,
}

impl<J, F> Shared<J, F> {
    fn queue(&self) -> MutexGuard<'_, Queue<J, F>> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<J: Send + 'static, F: Panicked + Send + 'static> Pool<J, F> {
    /// Starts `count` threads, named with `name` and their number, each with a worker that `make` has made for its
    /// number; none: the worker of number 0 is called by `put`.
    pub(crate) fn start(
        control: &Control,
        name: &str,
        count: usize,
        mut make: impl FnMut(usize) -> Worker<J, F>,
    ) -> io::Result<Self> {
        let queue = Queue { waiting: VecDeque::new(), busy: 0, closed: false, failed: false, fault: None };
        let (work, done) = (Signal::default(), Signal::default());
        let shared = Arc::new(Shared { queue: Mutex::new(queue), work, done });
        let own = (count == 0).then(|| Mutex::new(make(0)));
        let mut pool = Self { shared, threads: Vec::with_capacity(count), own };
        for number in 0..count {
            let (shared, worker) = (Arc::clone(&pool.shared), make(number));
            pool.threads.push(control.spawn(format!("{name}-{number}"), move || serve(&shared, worker))?);
        }
        Ok(pool)
    }

    /// Hands a job to a worker; waits while enough jobs wait already. An error is the first fault of any job; after it
    /// was told once, jobs are dropped.
    pub(crate) fn put(&self, job: J) -> Result<(), F> {
        if let Some(own) = &self.own {
            return own.lock().unwrap_or_else(PoisonError::into_inner)(job);
        }
        while !self.has_room(None)? {}
        let mut queue = self.shared.queue();
        if !queue.failed {
            queue.waiting.push_back(job);
            self.shared.work.one();
        }
        Ok(())
    }

    /// Would `put` go on at once? Waits for that, for `most` at the longest.
    pub(crate) fn has_room(&self, most: Option<Duration>) -> Result<bool, F> {
        let full = self.threads.len() * WAITING_PER_WORKER;
        self.until(most, |queue| queue.waiting.len() < full)
    }

    /// Is all done that was put? Waits for that, for `most` at the longest.
    pub(crate) fn is_idle(&self, most: Option<Duration>) -> Result<bool, F> {
        self.until(most, |queue| queue.waiting.is_empty() && queue.busy == 0)
    }

    /// Waits until all is done that was put.
    pub(crate) fn wait(&self) -> Result<(), F> {
        while !self.is_idle(None)? {}
        Ok(())
    }

    fn until(&self, most: Option<Duration>, ready: impl Fn(&Queue<J, F>) -> bool) -> Result<bool, F> {
        let mut queue = self.shared.queue();
        loop {
            if let Some(fault) = queue.fault.take() {
                return Err(fault);
            }
            if self.own.is_some() || queue.failed || ready(&queue) {
                return Ok(true);
            }
            let Some(most) = most else {
                queue = self.shared.done.wait(&self.shared.queue, queue);
                continue;
            };
            let (woken, in_time) = self.shared.done.wait_for(&self.shared.queue, queue, most);
            queue = woken;
            if !in_time && queue.fault.is_none() {
                return Ok(ready(&queue));
            }
        }
    }
}

impl<J, F> Drop for Pool<J, F> {
    fn drop(&mut self) {
        let mut queue = self.shared.queue();
        queue.closed = true;
        queue.waiting.clear();
        drop(queue);
        self.shared.work.all();
        for thread in self.threads.drain(..) {
            // One that panicked has said so with a fault.
            thread.join();
        }
    }
}

impl<J, F> fmt::Debug for Pool<J, F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Pool").field("threads", &self.threads.len()).finish_non_exhaustive()
    }
}

/// Counts a job as done even if its worker panics.
struct Busy<'s, J, F: Panicked> {
    shared: &'s Shared<J, F>,
    result: Option<Result<(), F>>,
}

impl<J, F: Panicked> Drop for Busy<'_, J, F> {
    fn drop(&mut self) {
        let result = self.result.take().unwrap_or_else(|| Err(F::panicked()));
        let mut queue = self.shared.queue();
        queue.busy -= 1;
        if let Err(fault) = result
            && !queue.failed
        {
            (queue.failed, queue.fault) = (true, Some(fault));
            queue.waiting.clear();
        }
        self.shared.done.all();
    }
}

/// A thread's life.
fn serve<J, F: Panicked>(shared: &Shared<J, F>, mut worker: Worker<J, F>) {
    loop {
        let mut queue = shared.queue();
        let job = loop {
            if queue.closed {
                return;
            }
            match queue.waiting.pop_front() {
                Some(job) => break job,
                None => queue = shared.work.wait(&shared.queue, queue),
            }
        };
        queue.busy += 1;
        drop(queue);
        let mut busy = Busy { shared, result: None };
        shared.done.all();
        busy.result = Some(worker(job));
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;
    use crate::control::Unobserved;
    use crate::stats::Side;

    #[derive(Debug, PartialEq)]
    enum Fault {
        Job(usize),
        Panic,
    }

    impl Panicked for Fault {
        fn panicked() -> Self {
            Self::Panic
        }
    }

    fn pool(threads: usize, run: fn(usize) -> Result<(), Fault>) -> (Pool<usize, Fault>, Arc<AtomicUsize>) {
        let control = Control::new(Side::Source, Box::new(Unobserved)).unwrap();
        let done = Arc::new(AtomicUsize::new(0));
        let make = |_| -> Worker<usize, Fault> {
            let done = Arc::clone(&done);
            Box::new(move |job| {
                run(job)?;
                done.fetch_add(1, Ordering::SeqCst);
                Ok(())
            })
        };
        (Pool::start(&control, "test", threads, make).unwrap(), done)
    }

    #[test]
    fn all_that_was_put_is_done_at_the_barrier() {
        for threads in [0, 1, 3, 20] {
            let (pool, done) = pool(threads, |_| Ok(()));
            for round in 1..20 {
                (0..50).for_each(|job| pool.put(job).unwrap());
                pool.wait().unwrap();
                assert_eq!(done.load(Ordering::SeqCst), round * 50);
            }
        }
    }

    #[test]
    fn the_first_fault_is_told_once_and_ends_it() {
        for threads in [1, 4] {
            let (pool, done) = pool(threads, |job| if job < 30 { Ok(()) } else { Err(Fault::Job(job)) });
            let told: Vec<_> =
                (0..200).filter_map(|job| pool.put(job).err()).chain(pool.wait().err()).collect();
            assert!(matches!(told[..], [Fault::Job(30..)]), "{told:?}");
            assert!(done.load(Ordering::SeqCst) <= 30);
        }
    }

    #[test]
    fn a_worker_that_panics_is_a_fault() {
        let (pool, _) =
            pool(2, |job| if job == 7 { std::panic::resume_unwind(Box::new(())) } else { Ok(()) });
        let told: Vec<_> = (0..100).filter_map(|job| pool.put(job).err()).chain(pool.wait().err()).collect();
        assert_eq!(told, [Fault::Panic]);
    }

    #[test]
    fn a_wait_has_its_limit() {
        static HELD: Mutex<()> = Mutex::new(());
        let held = HELD.lock().unwrap();
        let (pool, _) = pool(1, |_| {
            drop(HELD.lock());
            Ok(())
        });
        (0..2).for_each(|job| pool.put(job).unwrap());
        assert_eq!(pool.is_idle(Some(Duration::from_millis(1))), Ok(false));
        drop(held);
        pool.wait().unwrap();
    }
}
