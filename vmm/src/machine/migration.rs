//! Migrations as the main thread sees them: started in a thread of their own, ended by a notice.

use std::sync::Arc;
use std::sync::mpsc::{self, SendError};
use std::time::{Duration, Instant};

use tern_migration::channel::{self, Acceptor, Security, Uri, UriError};
use tern_migration::destination::{self, ReceiveError, Received};
use tern_migration::error::{LinkError, MigrationError};
use tern_migration::known::KnownPages;
use tern_migration::pager::PagerError;
use tern_migration::source::{self, Doubt, Outcome, SourceEnd};
use tern_migration::{Aspect, Control, LiveParameters, Observer, Parameters, Report, Side, Status};

use crate::config::{Incoming, RestoreConfig, RestoreMode};
use crate::control::{CommandError, Event, EventSink, MigrateRequest};
use crate::run_control::Hold;
use crate::sections;
use crate::vm::Vm;

use super::checking::Check;
use super::doubt::Doubtful;
use super::notice::{Notice, Notices};
use super::restoring::lost;
use super::state::Attempt;
use super::{ExitReason, Machine, RunError};

/// How long the end of the process waits for a migration that is past its commit: a round trip, and more.
const LAST_WORD_TIMEOUT: Duration = Duration::from_secs(2);
/// Between two attempts to listen when the host refuses one.
const LISTEN_PAUSE: Duration = Duration::from_millis(500);
const LAST_WORD_POLL: Duration = Duration::from_millis(2);

/// Where a destination listens, for one attempt after the other.
pub(super) struct Receiver {
    acceptor: Arc<dyn Acceptor>,
}

/// How a migration ended, with the machine if there still is one.
pub(super) enum Ended {
    /// The source's side.
    Source(SourceEnd<Vm>),
    /// A guest from a file, and how its memory came.
    File(RestoreMode, Result<Received<Vm>, Box<ReceiveError<Vm>>>),
    /// The destination's side. After a failure its machine may be half filled: it is not used again.
    Destination(Result<Received<Vm>, Box<ReceiveError<Vm>>>),
}

/// Tells the control socket's clients.
struct Teller {
    sink: EventSink,
    live: Arc<LiveParameters>,
    notices: Notices,
    generation: u64,
}

impl Observer for Teller {
    fn status(&self, status: Status) {
        if self.live.get().capabilities.events {
            self.sink.post(Event::Migration { status: status.name().to_owned() });
        }
        if status == Status::Completed {
            // A reset may have waited for the rest of the guest's memory.
            self.notices.wake();
        }
    }

    fn memory_lost(&self, error: PagerError) {
        lost(&self.notices, self.generation, error);
    }

    fn pass(&self, pass: u32) {
        if self.live.get().capabilities.events {
            self.sink.post(Event::MigrationPass { pass: u64::from(pass) });
        }
    }

    fn turned_away(&self, text: &str) {
        tracing::warn!("{text}");
    }

    fn asked(&self, differing: &[Aspect]) {
        let text = differing.iter().map(Aspect::text).collect::<Vec<_>>().join("; ");
        tracing::info!(
            "a source has asked whether its guest fits: {}",
            if text.is_empty() { "yes" } else { &text }
        );
    }
}

fn failed(error: &(dyn std::error::Error + 'static)) -> CommandError {
    CommandError::failed(error)
}

pub(super) fn parse_uri(text: &str) -> Result<Uri, CommandError> {
    text.parse().map_err(|error: UriError| CommandError::invalid(error.to_string()))
}

/// A migration that can't be cancelled any more.
fn too_late(report: &Report) -> CommandError {
    CommandError::illegal(match (report.side, report.transport) {
        (Side::Source, "file") => "it is too late to cancel: the file is whole",
        (Side::Source, _) if report.status.is_postcopy() => {
            "it is too late to cancel: the guest goes on at the destination, and part of its memory is still here; \
             migrate-resolve gives the destination up"
        }
        (Side::Source, _) => "it is too late to cancel: the guest has been given to the destination",
        (Side::Destination, _) => "it is too late to cancel: the guest has come",
    })
}

/// Begins to read the files that a destination was told of.
fn known_pages(parameters: &Parameters) -> Result<Option<Arc<KnownPages>>, CommandError> {
    let files = parameters.known_files();
    if files.is_empty() {
        return Ok(None);
    }
    let ended = |text: Result<&str, &str>| match text {
        Ok(text) => tracing::info!("known: {text}"),
        Err(text) => tracing::warn!("no page is known: {text}"),
    };
    KnownPages::open(&files, ended).map(Some).map_err(|error| failed(&error))
}

impl Machine {
    /// An attempt to come, for [`Self::start`].
    pub(super) fn new_attempt(&self, side: Side, parameters: Parameters) -> Result<Attempt, CommandError> {
        let live = Arc::new(LiveParameters::new(parameters));
        let (sink, notices) = (self.sink.clone(), self.notices.clone());
        let teller = Teller { sink, live: Arc::clone(&live), notices, generation: self.generation };
        let control = Control::new(side, Box::new(teller)).map_err(|error| failed(&error))?;
        Ok(Attempt { control, live, running: true })
    }

    /// Starts to move the guest away.
    pub(super) fn migrate(&mut self, request: &MigrateRequest) -> Result<(), CommandError> {
        let uri = parse_uri(&request.uri)?;
        self.check_legal(&request.parameters, &uri)?;
        // What came with this command in one piece may have been a reset: its guest must not be on both sides.
        if self.wants_new() {
            return Err(CommandError::illegal("the machine is about to start anew: try again"));
        }
        let blocked = sections::blocked_reasons(self.core.devices().parts());
        if !blocked.is_empty() {
            return Err(CommandError::illegal(format!(
                "this machine can't move now: {}",
                blocked.join("; ")
            )));
        }
        self.has_all_memory()?;
        if self.vm.is_none() {
            return Err(CommandError::illegal("a migration runs already: wait for it, or cancel it"));
        }
        let attempt = self.new_attempt(Side::Source, request.parameters.clone())?;
        self.start(attempt, move |vm, Attempt { control, live, .. }| {
            Ended::Source(source::migrate_to(vm, &uri, &live, &control))
        })
    }

    /// Listens for a guest, at once and until one has come. A file is there or isn't: nobody waits for it.
    pub(super) fn listen(&mut self, uri: &str, parameters: Parameters) -> Result<(), CommandError> {
        if let Some(receiver) = &self.receiver {
            let text = format!("this process already listens at {}", receiver.acceptor.route().place());
            return Err(CommandError::illegal(text));
        }
        let uri = parse_uri(uri)?;
        if let Uri::File { path } = uri {
            return self.take_from_file(path, parameters);
        }
        let known = known_pages(&parameters)?;
        let acceptor = channel::listen(&uri, &Security::of(&parameters)).map_err(|error| failed(&error))?;
        tracing::info!(uri = acceptor.route().place(), "waiting for a guest");
        (self.awaited, self.known) = (parameters, known);
        self.receiver = Some(Arc::new(Receiver { acceptor }));
        self.await_guest();
        Ok(())
    }

    /// Waits for the next peer, if this process listens.
    pub(super) fn await_guest(&mut self) {
        let (Some(receiver), true) = (self.receiver.clone(), self.vm.is_some()) else { return };
        let register = Arc::clone(&self.attendance.register);
        let (uri, known) = (receiver.acceptor.route().place().to_owned(), self.known.clone());
        let receive = move |vm, Attempt { control, live, .. }: Attempt| {
            let end =
                destination::receive_with(vm, &receiver.acceptor, &live, &register, known.as_ref(), &control);
            if end
                .as_ref()
                .is_err_and(|failure| matches!(failure.error, MigrationError::Link(LinkError::Listen { .. })))
            {
                // Such as no descriptors left: the next attempt would fail at once, and the next.
                std::thread::sleep(LISTEN_PAUSE);
            }
            Ended::Destination(end)
        };
        let attempt = self.new_attempt(Side::Destination, self.awaited.clone());
        if let Err(error) = attempt.and_then(|attempt| self.start(attempt, receive)) {
            // There is no guest yet, and sources must not be left waiting.
            self.end(Err(RunError::Incoming { uri, reason: error.to_string() }));
        }
    }

    /// Does `work` with the machine, in a thread. The thread is there before it gets the machine: without one
    /// nothing has changed, and the guest runs on.
    pub(super) fn start(
        &mut self,
        attempt: Attempt,
        work: impl FnOnce(Vm, Attempt) -> Ended + Send + 'static,
    ) -> Result<(), CommandError> {
        let (hand, take) = mpsc::channel();
        let (notices, shared) = (self.notices.clone(), attempt.clone());
        let run = move || {
            if let Ok(vm) = take.recv() {
                notices.post(Notice::Migration(Box::new(work(vm, shared))));
            }
        };
        let failed = |source| RunError::Host { what: "the migration's thread can't be started", source };
        let thread = std::thread::Builder::new().name("migration".into()).spawn(run);
        self.thread = Some(thread.map_err(|error| CommandError::failed(&failed(error)))?);
        if let Some(former) = self.attempt.replace(attempt) {
            self.history.add(former.control.report());
            self.former = Some(former.control);
        }
        // The thread waits for nothing else, so it is there to take it.
        if let Some(vm) = self.vm.take()
            && let Err(SendError(vm)) = hand.send(vm)
        {
            self.vm = Some(vm);
        }
        Ok(())
    }

    /// Cancels and joins the attempt that runs, so that the peer is told and no socket's file stays. One that
    /// is past its commit can't be cancelled: it gets a moment to have its last word answered.
    pub(super) fn end_attempt(&mut self) {
        let running = self.attempt.as_ref().filter(|attempt| attempt.running);
        if let (Some(attempt), Some(thread)) = (running, self.thread.take()) {
            let cancelled = attempt.control.cancel();
            let deadline = Instant::now() + LAST_WORD_TIMEOUT;
            while !cancelled && !thread.is_finished() && Instant::now() < deadline {
                std::thread::sleep(LAST_WORD_POLL);
            }
            if (cancelled || thread.is_finished()) && thread.join().is_err() {
                tracing::error!("the migration's thread panicked");
            }
        }
        self.receiver = None;
        self.doubt = None;
        std::mem::take(&mut self.attendance).end();
    }

    /// The destination is asked from now on, where it can be found by an address.
    fn is_in_doubt(&mut self, doubt: Doubt) {
        tracing::warn!(
            error = doubt.error.text(),
            "the migration is in doubt: the destination is asked what became of the guest"
        );
        let uri = self.attempt.as_ref().and_then(|attempt| attempt.control.report().uri?.parse().ok());
        self.doubt = Some(Doubtful::new(doubt, uri));
        self.ask_destination();
    }

    /// A copy of the guest is in a file, and the guest is still here.
    fn saved(&self, resumed: bool) {
        if !resumed {
            // As a person stops it: `cont` lets it go on.
            return self.core.run().exchange(Hold::Migration, Hold::User);
        }
        let written = self.config.disks.iter().filter(|disk| !disk.readonly);
        let paths: Vec<_> = written.map(|disk| disk.path.display().to_string()).collect();
        if let (Some(attempt), false) = (&self.attempt, paths.is_empty()) {
            attempt.control.warn(format!(
                "the guest goes on writing to {}, and what was saved needs the disk as it was at the save: copy it \
                 while the guest is stopped (--then stop), or restore only while nothing was written since",
                paths.join(", ")
            ));
        }
    }

    /// Cancels the running attempt; if there is none, the check of a destination.
    pub(super) fn cancel(&mut self) -> Result<(), CommandError> {
        if self.doubt.is_some() {
            return Err(CommandError::illegal(
                "the migration is in doubt, and can't be cancelled: look at the destination, then migrate-resolve",
            ));
        }
        match self.attempt.as_ref().filter(|attempt| attempt.running) {
            Some(attempt) if !attempt.control.cancel() => Err(too_late(&attempt.control.report())),
            Some(_) => Ok(()),
            None => {
                self.check.iter().for_each(Check::cancel);
                Ok(())
            }
        }
    }

    fn not_received(&mut self, failure: ReceiveError<Vm>) {
        let ReceiveError { vm, committed, arrival, error } = failure;
        self.vm = Some(vm);
        self.arrival = arrival;
        if committed {
            tracing::error!(
                error = error.text(),
                "the guest has come and could not be started: it is paused"
            );
            self.core.run().exchange(Hold::Incoming, Hold::User);
            if let Some(receiver) = &self.receiver {
                self.attend(Arc::clone(&receiver.acceptor), false, true);
            }
            (self.awaited, self.known) = (Parameters::default(), None);
            return self.has_arrived();
        }
        // A descriptor or a command is one connection: where the next guest comes from must be said again.
        let used_up = self.receiver.take_if(|receiver| receiver.acceptor.only_one().is_some());
        if let (Some(receiver), None) = (&used_up, &self.config.control) {
            let uri = receiver.acceptor.route().place().to_owned();
            return self.end(Err(RunError::Incoming { uri, reason: error.text() }));
        }
        if used_up.is_some() {
            self.config.incoming = Some(Incoming::Defer);
        }
        let next = if used_up.is_some() { "waiting for `migrate-incoming`" } else { "waiting for the next" };
        tracing::warn!(error = error.text(), "no guest was received; {next}");
        self.start_anew();
    }

    /// Takes the machine back.
    pub(super) fn migration_ended(&mut self, ended: Ended) {
        if let Some(attempt) = &mut self.attempt {
            attempt.running = false;
        }
        match ended {
            Ended::Source(SourceEnd { mut vm, outcome }) => {
                vm.laps.tell();
                self.vm = Some(vm);
                match outcome {
                    Outcome::InDoubt(doubt) => self.is_in_doubt(doubt),
                    Outcome::Failed(error) => {
                        if matches!(error, MigrationError::Resume { .. }) {
                            // `cont` tries again.
                            self.core.run().exchange(Hold::Migration, Hold::User);
                        }
                        tracing::warn!(error = error.text(), "the migration did not complete");
                    }
                    Outcome::Discarded => self.end(Ok(ExitReason::Discarded)),
                    Outcome::Saved { resumed } => self.saved(resumed),
                    Outcome::Completed | Outcome::Cancelled => {}
                }
            }
            Ended::Destination(Ok(Received { mut vm, settled, arrival, .. })) => {
                vm.laps.tell();
                self.vm = Some(vm);
                self.arrival = arrival;
                if let Some(receiver) = &self.receiver {
                    self.attend(Arc::clone(&receiver.acceptor), settled, false);
                }
                // They were for this guest's way here.
                (self.awaited, self.known) = (Parameters::default(), None);
                self.has_arrived();
            }
            Ended::File(mode, Ok(Received { mut vm, running, .. })) => {
                vm.laps.tell();
                self.vm = Some(vm);
                if let Some(Incoming::File(RestoreConfig { json: true, .. })) = self.config.incoming {
                    self.tell_restored(mode, running);
                }
                self.has_arrived();
            }
            Ended::File(_, Err(failure)) => {
                // Told by `migrate-incoming`, this process waits for another word.
                let Some(Incoming::File(RestoreConfig { path, .. })) = &self.config.incoming else {
                    return self.not_received(*failure);
                };
                let path = path.clone();
                let ReceiveError { vm, error, .. } = *failure;
                self.vm = Some(vm);
                self.end(Err(RunError::NotRestored { path, source: Box::new(error) }));
            }
            Ended::Destination(Err(failure)) => self.not_received(*failure),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_cancels_too_late_is_told_where_the_guest_is() {
        let text = |side, transport| {
            let mut report = Report::new(side);
            report.transport = transport;
            too_late(&report).to_string()
        };
        assert!(text(Side::Source, "file").ends_with("the file is whole"));
        assert!(text(Side::Source, "unix").ends_with("given to the destination"));
        let mut report = Report::new(Side::Source);
        report.status = Status::PostcopyPaused;
        assert!(too_late(&report).to_string().contains("goes on at the destination"));
        assert!(text(Side::Destination, "file").ends_with("the guest has come"));
    }
}
