//! All vCPUs of a VM: their threads, and stopping and starting them together.
//!
//! ```text
//! parked --run()--> running --pause(): immediate_exit, signal--> access completed --> parked
//! ```
//!
//! A paused vCPU's thread waits on a condition, with the vCPU unlocked, so that its state can be saved from
//! any thread. [`VcpuSet::pause`] returns when all are parked.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, Once, PoisonError};
use std::thread::JoinHandle;

use vmm_sys_util::signal::{Killable, SIGRTMIN, register_signal_handler};

use super::run::{ImmediateExit, Step};
use super::{Bus, Vcpu, VcpuError, VcpuEvent};

type OnEvent = Arc<dyn Fn(VcpuEvent) + Send + Sync>;

#[derive(Debug, Default)]
struct Gate {
    run: bool,
    quit: bool,
    parked: usize,
}

#[derive(Debug, Default)]
struct Shared {
    gate: Mutex<Gate>,
    changed: Condvar,
    // gettid(2) of each thread, in order.
    threads: Mutex<Vec<u64>>,
    // What `gate.run` says, for the run loop, which must not take a lock at every exit.
    running: AtomicBool,
}

/// The vCPUs of one VM. Dropping it ends their threads.
#[derive(Debug)]
pub struct VcpuSet {
    vcpus: Vec<Arc<Mutex<Vcpu>>>,
    exits: Vec<ImmediateExit>,
    threads: Vec<Option<JoinHandle<()>>>,
    shared: Arc<Shared>,
}

/// One vCPU, locked.
pub type VcpuGuard<'a> = MutexGuard<'a, Vcpu>;

/// A panic while a lock was held is reported by its thread; the data behind these locks stays usable.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

extern "C" fn on_kick(_: libc::c_int, _: *mut libc::siginfo_t, _: *mut libc::c_void) {}

/// The signal that gets a vCPU out of the guest. Its handler does nothing: `immediate_exit` does the work.
fn kick_signal() -> libc::c_int {
    static REGISTERED: Once = Once::new();
    REGISTERED.call_once(|| {
        if let Err(error) = register_signal_handler(SIGRTMIN(), on_kick) {
            tracing::error!(%error, "signal handler for vCPU threads");
        }
    });
    SIGRTMIN()
}

impl VcpuSet {
    /// Starts a thread for each vCPU, parked. `on_event` is called from those threads.
    pub fn new(vcpus: Vec<Vcpu>, bus: &Arc<dyn Bus>, on_event: &OnEvent) -> Result<Self, VcpuError> {
        kick_signal();
        let shared = Arc::new(Shared::default());
        let vcpus: Vec<_> = vcpus.into_iter().map(|vcpu| Arc::new(Mutex::new(vcpu))).collect();
        let exits: Vec<_> = vcpus.iter().map(ImmediateExit::new).collect();
        lock(&shared.threads).resize(vcpus.len(), 0);
        let mut set = Self { vcpus, exits, threads: Vec::new(), shared };
        for (index, vcpu) in (0u32..).zip(&set.vcpus) {
            let thread = Runner {
                index: index as usize,
                vcpu: Arc::clone(vcpu),
                exit: ImmediateExit::new(vcpu),
                shared: Arc::clone(&set.shared),
                bus: Arc::clone(bus),
                on_event: Arc::clone(on_event),
            };
            let started =
                std::thread::Builder::new().name(format!("vcpu-{index}")).spawn(move || thread.main());
            set.threads.push(Some(started.map_err(|source| VcpuError::Thread { index, source })?));
        }
        set.wait_parked();
        Ok(set)
    }

    /// Number of vCPUs.
    pub fn len(&self) -> usize {
        self.vcpus.len()
    }

    /// The host's thread ids (gettid), in the order of the vCPUs.
    pub fn thread_ids(&self) -> Vec<u64> {
        lock(&self.shared.threads).clone()
    }

    /// Is there none?
    pub fn is_empty(&self) -> bool {
        self.vcpus.is_empty()
    }

    /// Lets all run.
    pub fn run(&self) {
        let mut gate = lock(&self.shared.gate);
        gate.run = true;
        self.shared.running.store(true, Ordering::SeqCst);
        self.exits.iter().for_each(|exit| exit.set(0));
        self.shared.changed.notify_all();
    }

    /// Stops all; returns when all are parked, with no access half done.
    pub fn pause(&self) {
        {
            let mut gate = lock(&self.shared.gate);
            gate.run = false;
            self.shared.running.store(false, Ordering::SeqCst);
            self.exits.iter().for_each(|exit| exit.set(1));
        }
        self.kick();
        self.wait_parked();
    }

    /// Are they allowed to run?
    pub fn is_running(&self) -> bool {
        self.shared.running.load(Ordering::SeqCst)
    }

    /// Locks each vCPU in turn. While they run, this waits for the pause.
    pub fn iter(&self) -> impl Iterator<Item = VcpuGuard<'_>> {
        self.vcpus.iter().map(|vcpu| lock(vcpu))
    }

    /// Has each vCPU leave the guest for a moment. Doesn't wait for that.
    pub fn kick(&self) {
        for thread in self.threads.iter().flatten() {
            if let Err(error) = thread.kill(kick_signal()) {
                tracing::debug!(%error, "vCPU thread has ended");
            }
        }
    }

    fn wait_parked(&self) {
        let mut gate = lock(&self.shared.gate);
        while gate.parked < self.threads.len() {
            gate = self.shared.changed.wait(gate).unwrap_or_else(PoisonError::into_inner);
        }
    }
}

impl Drop for VcpuSet {
    fn drop(&mut self) {
        {
            let mut gate = lock(&self.shared.gate);
            (gate.run, gate.quit) = (false, true);
            self.shared.running.store(false, Ordering::SeqCst);
            self.exits.iter().for_each(|exit| exit.set(1));
            self.shared.changed.notify_all();
        }
        self.kick();
        for thread in self.threads.iter_mut().filter_map(Option::take) {
            if thread.join().is_err() {
                tracing::error!("a vCPU thread panicked");
            }
        }
    }
}

#[allow(unsafe_code, reason = "gettid(2) has no safe wrapper in std")]
fn thread_id() -> u64 {
    // SAFETY: takes nothing and can't fail.
    unsafe { libc::gettid() }.unsigned_abs().into()
}

struct Runner {
    index: usize,
    vcpu: Arc<Mutex<Vcpu>>,
    exit: ImmediateExit,
    shared: Arc<Shared>,
    bus: Arc<dyn Bus>,
    on_event: OnEvent,
}

impl Runner {
    fn main(self) {
        if let Some(place) = lock(&self.shared.threads).get_mut(self.index) {
            *place = thread_id();
        }
        while self.wait_to_run() {
            if let Some(event) = self.run() {
                (self.on_event)(event);
                self.stay_parked();
                return;
            }
        }
    }

    /// Parks until all may run; `false`: until the end.
    fn wait_to_run(&self) -> bool {
        let mut gate = lock(&self.shared.gate);
        gate.parked += 1;
        self.shared.changed.notify_all();
        while !gate.run && !gate.quit {
            gate = self.shared.changed.wait(gate).unwrap_or_else(PoisonError::into_inner);
        }
        gate.parked -= 1;
        !gate.quit
    }

    /// A vCPU that has ended counts as parked, so that the others can be stopped.
    fn stay_parked(&self) {
        let mut gate = lock(&self.shared.gate);
        gate.parked += 1;
        self.shared.changed.notify_all();
        while !gate.quit {
            gate = self.shared.changed.wait(gate).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// Runs until it is to stop or has ended. An access that is half done is done to its end first: KVM_RUN
    /// with `immediate_exit` set completes it, and that may be one more exit to serve (an instruction that
    /// reads and writes a register) before it returns EINTR.
    fn run(&self) -> Option<VcpuEvent> {
        let mut vcpu = lock(&self.vcpu);
        loop {
            let stopping = !self.shared.running.load(Ordering::SeqCst);
            if stopping {
                self.exit.set(1);
            }
            match vcpu.step(self.bus.as_ref()) {
                Step::Interrupted if stopping => return None,
                Step::Again | Step::Interrupted => {}
                Step::Ended(event) => return Some(event),
            }
        }
    }
}
