//! The machine as the main thread has it.

use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::thread::JoinHandle;

use tern_migration::destination::Arrival;
use tern_migration::known::KnownPages;
use tern_migration::snapshot::SnapshotFile;
use tern_migration::{Control, LiveParameters, Parameters};

use crate::config::{Incoming, MacAddress, VmConfig};
use crate::control::{Event, EventSink};
use crate::devices::{Plugs, Source};
use crate::memory::Backing;
use crate::restore::Opened;
use crate::run_control::Hold;
use crate::vcpu::VcpuEvent;
use crate::vm::{BuildError, Core, Host, Vm};

use super::booting::{self, Plan};
use super::checking::Check;
use super::doubt::{Attendance, Doubtful};
use super::history::History;
use super::migration::Receiver;
use super::notice::{Inbox, Notice, Notices};
use super::opening::Ends;
use super::{ExitReason, RunError, opening};

/// Everything of one `tern run`.
pub struct Machine {
    pub(super) config: VmConfig,
    host: Arc<Host>,
    host_words: Vec<String>,
    ends: Ends,
    pub(super) sink: EventSink,
    pub(super) notices: Notices,
    inbox: Inbox,
    pub(super) core: Arc<Core>,
    /// None while a migration has it.
    pub(super) vm: Option<Vm>,
    /// Number of this machine among those that this process has had.
    pub(super) generation: u64,
    wants_new: bool,
    end: Option<Result<ExitReason, RunError>>,
    /// The running migration, or the last one.
    pub(super) attempt: Option<Attempt>,
    /// Its thread.
    pub(super) thread: Option<JoinHandle<()>>,
    /// The attempt before `attempt`, shown until the next one begins.
    pub(super) former: Option<Arc<Control>>,
    /// Those before `attempt`.
    pub(super) history: History,
    /// The running check of a destination, or the last one.
    pub(super) check: Option<Check>,
    /// Where a destination listens.
    pub(super) receiver: Option<Arc<Receiver>>,
    /// For the awaited incoming migration.
    pub(super) awaited: Parameters,
    /// Pages that its source needn't send.
    pub(super) known: Option<Arc<KnownPages>>,
    /// A source that was not answered.
    pub(super) doubt: Option<Doubtful>,
    /// What a destination knows for sources that were not answered.
    pub(super) attendance: Attendance,
    /// The rest of the guest's memory, which comes while it runs.
    pub(super) arrival: Option<Arrival>,
    /// The file that the guest comes from, until it is read.
    opened: Option<Opened>,
    /// A page can't be had, and some thread waits for it.
    pub(super) memory_lost: bool,
}

/// A migration that runs or ran.
#[derive(Clone)]
pub(super) struct Attempt {
    pub(super) control: Arc<Control>,
    pub(super) live: Arc<LiveParameters>,
    pub(super) running: bool,
}

impl Machine {
    /// Builds the machine; nothing runs yet.
    pub(super) fn new(
        config: VmConfig,
        snapshot: Option<SnapshotFile>,
        sink: EventSink,
        notices: Notices,
        inbox: Inbox,
    ) -> Result<Self, RunError> {
        // The file first: what is wrong with it is known at once.
        let opened_file = match (&config.incoming, snapshot) {
            (Some(Incoming::File(file)), Some(snapshot)) => Some(Opened::of(file, snapshot)?),
            (Some(Incoming::File(file)), None) => Some(Opened::open(file)?),
            _ => None,
        };
        let backing = opened_file.as_ref().map(|file| file.backing(config.memory_bytes)).transpose()?;
        let awaited = Parameters::default().merged_at_destination(&config.awaited).map_err(|error| {
            RunError::Incoming { uri: "parameters".to_owned(), reason: error.to_string() }
        })?;
        let opened = opening::host()?;
        let mut ends = opening::ends(&config)?;
        ends.plugs.told = Some(sink.clone());
        let host = Arc::new(opened.host);
        let backing = backing.map_or_else(|| fresh_memory(&config), Ok)?;
        let vm = build(&host, &config, &backing, &ends.plugs, &sink, &notices, 0)?;
        Ok(Self {
            config,
            host,
            host_words: opened.words,
            ends,
            sink,
            notices,
            inbox,
            core: Arc::clone(vm.core()),
            vm: Some(vm),
            generation: 0,
            wants_new: false,
            end: None,
            attempt: None,
            thread: None,
            former: None,
            history: History::default(),
            check: None,
            receiver: None,
            awaited,
            known: None,
            doubt: None,
            attendance: Attendance::default(),
            arrival: None,
            opened: opened_file,
            memory_lost: false,
        })
    }

    pub(super) fn plugs(&self) -> &Plugs {
        &self.ends.plugs
    }

    pub(super) fn control_path(&self) -> Option<PathBuf> {
        self.config.control.clone()
    }

    pub(super) fn sources(&self) -> Vec<Source> {
        self.core.devices().sources().to_vec()
    }

    /// Boots, or waits for a guest.
    pub(super) fn begin(&mut self) -> Result<(), RunError> {
        match self.config.incoming.clone() {
            None => self.boot(),
            Some(Incoming::Uri(uri)) if self.receiver.is_none() => self
                .listen(&uri, self.awaited.clone())
                .map_err(|error| RunError::Incoming { uri, reason: error.to_string() }),
            Some(Incoming::File(_)) => match self.opened.take() {
                Some(opened) => self.restore(opened, Parameters::default()).map_err(|error| RunError::Host {
                    what: "the restore can't begin",
                    source: io::Error::other(error.to_string()),
                }),
                None => Ok(()),
            },
            Some(_) => {
                self.await_guest();
                Ok(())
            }
        }
    }

    fn boot(&mut self) -> Result<(), RunError> {
        let Some(boot) = &self.config.boot else { return Ok(()) };
        let plan: Plan = booting::plan(boot, &self.host_words)?;
        let loaded = booting::load(self.core.ram(), &self.config, &plan)?;
        tracing::info!(kernel = %loaded.kernel, cmdline = loaded.cmdline, "booting");
        if let Some(vm) = &self.vm {
            vm.enter(&loaded.entry)?;
        }
        if self.config.paused && self.generation == 0 {
            self.core.run().hold(Hold::User);
        }
        self.core.run().release(Hold::Building);
        Ok(())
    }

    /// A guest that has come stays: from here on a reset boots what was configured here.
    pub(super) fn has_arrived(&mut self) {
        self.config.incoming = None;
        self.receiver = None;
        // A reset must not give the guest other addresses than those that it came with.
        for (net, mac) in self.config.nets.iter_mut().zip(self.core.devices().macs()) {
            net.mac = MacAddress(mac);
        }
        if let Some(id) = self.core.devices().generation_id() {
            self.config.generation_id = id;
        }
    }

    /// Hears what other threads have told.
    pub(super) fn take_notices(&mut self) {
        for notice in self.inbox.take() {
            self.notice(notice);
        }
    }

    /// Takes the machine back from a migration that has ended: whoever has heard of the end may give the next
    /// command at once.
    pub(super) fn settle(&mut self) {
        let ended = |attempt: &Attempt| attempt.running && attempt.control.report().status.is_final();
        if self.attempt.as_ref().is_some_and(ended)
            && let Some(thread) = self.thread.take()
        {
            // Its notice is posted when it ends, and a panic was reported by its own hook.
            if thread.join().is_err() {
                tracing::error!("the migration's thread panicked");
            }
            self.take_notices();
        }
    }

    fn notice(&mut self, notice: Notice) {
        match notice {
            Notice::Vcpu { generation, .. } if generation != self.generation => {}
            Notice::Vcpu { event: VcpuEvent::Reset, .. } => self.guest_reset(),
            Notice::Vcpu { event: VcpuEvent::PowerOff, .. } => self.guest_power_off(),
            Notice::Vcpu { event: VcpuEvent::Fault(fault), .. } => {
                self.sink.post(Event::Shutdown { guest: false, reason: "host-error" });
                self.end(Err(RunError::Vcpu(fault)));
            }
            Notice::MemoryLost { generation, .. } if generation != self.generation => {}
            Notice::MemoryLost { error, .. } => self.lose_memory(error),
            Notice::Answered { session, answer } => self.hear_answer(&session, answer),
            Notice::Migration(ended) => self.migration_ended(*ended),
        }
    }

    /// The lines that the guest can pull.
    pub(super) fn look_at_lines(&mut self) {
        if self.ends.plugs.lines.take_power_off() {
            self.guest_power_off();
        }
        if self.ends.plugs.lines.take_reset() {
            self.guest_reset();
        }
    }

    fn guest_power_off(&mut self) {
        self.sink.post(Event::Shutdown { guest: true, reason: "guest-shutdown" });
        self.end(Ok(ExitReason::PowerOff));
    }

    fn guest_reset(&mut self) {
        if self.config.no_reboot || self.config.boot.is_none() {
            if !self.config.no_reboot {
                tracing::warn!(
                    "the guest reset its machine, and this process has no kernel to boot: it ends"
                );
            }
            self.sink.post(Event::Shutdown { guest: true, reason: "guest-reset" });
            return self.end(Ok(ExitReason::GuestReset));
        }
        self.sink.post(Event::Reset { guest: true });
        self.start_anew();
    }

    /// A new machine, as soon as a migration has given this one back.
    pub(super) fn start_anew(&mut self) {
        self.wants_new = true;
        if let Some(attempt) = self.attempt.as_ref().filter(|attempt| attempt.running) {
            attempt.control.cancel();
        }
    }

    pub(super) fn wants_new(&self) -> bool {
        // Whoever waits for a page of the old one must get it first.
        self.wants_new && self.vm.is_some() && self.end.is_none() && self.pages_left() == 0
    }

    /// Builds a new machine in place of the present one, on the same plugs. One that a person has stopped
    /// stays stopped.
    pub(super) fn renew(&mut self) -> Result<(), RunError> {
        self.wants_new = false;
        let paused = self.core.run().holds(Hold::User);
        self.core.run().hold(Hold::Ended);
        self.arrival = None;
        self.vm = None;
        self.generation += 1;
        self.ends.plugs.renew();
        let (backing, plugs) = (fresh_memory(&self.config)?, &self.ends.plugs);
        let vm =
            build(&self.host, &self.config, &backing, plugs, &self.sink, &self.notices, self.generation)?;
        self.core = Arc::clone(vm.core());
        self.vm = Some(vm);
        if paused {
            self.core.run().hold(Hold::User);
        }
        Ok(())
    }

    pub(super) fn end_by_signal(&mut self, signal: i32) {
        self.sink.post(Event::Shutdown { guest: false, reason: "host-signal" });
        self.end(Ok(ExitReason::Signal(signal)));
    }

    /// Ends the process after this round of the loop. The first reason counts.
    pub(super) fn end(&mut self, result: Result<ExitReason, RunError>) {
        self.end.get_or_insert(result);
        self.notices.wake();
    }

    /// The reason to end, if there is one. The guest stands still, and its last output is out, when this
    /// returns one.
    pub(super) fn take_end(&mut self) -> Option<Result<ExitReason, RunError>> {
        let end = self.end.take()?;
        self.warn_if_incomplete();
        // Who waits for a page that can't be had can't be waited for. It goes with the process.
        if !self.memory_lost {
            self.end_attempt();
            self.core.run().hold(Hold::Ended);
        }
        self.ends.plugs.flush();
        Some(end)
    }
}

fn fresh_memory(config: &VmConfig) -> Result<Backing, RunError> {
    Ok(Backing::new(config.memory_kind.backing, config.memory_bytes).map_err(BuildError::from)?)
}

fn build(
    host: &Arc<Host>,
    config: &VmConfig,
    backing: &Backing,
    plugs: &Plugs,
    sink: &EventSink,
    notices: &Notices,
    generation: u64,
) -> Result<Vm, RunError> {
    let (notices, lines) = (notices.clone(), plugs.lines.clone());
    let on_event = Arc::new(move |event| {
        lines.mark_leaving();
        notices.post(Notice::Vcpu { generation, event });
    });
    let hold = if config.incoming.is_some() { Hold::Incoming } else { Hold::Building };
    Ok(Vm::build(host, config, backing, plugs, hold, sink, on_event)?)
}
