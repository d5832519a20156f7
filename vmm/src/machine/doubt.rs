//! After the switch: a source in doubt asks the destination, and a destination whose source may be in doubt goes on
//! answering. Each has a thread that has nothing of the machine; what is heard comes back in a notice.

use std::sync::Arc;
use std::thread::JoinHandle;

use serde_json::{Value, json};
use tern_migration::channel::{Acceptor, Address, Security, Uri};
use tern_migration::destination;
use tern_migration::handover::{self, Answer, Register};
use tern_migration::source::{self, Doubt, Standing};
use tern_migration::{Control, Parameters, Side, Status, Unobserved};

use crate::control::{CommandError, Resolution};
use crate::run_control::Hold;

use super::notice::Notice;
use super::{ExitReason, Machine};

/// A thread that can be called off.
pub(super) struct Watch {
    control: Arc<Control>,
    thread: Option<JoinHandle<()>>,
}

impl Watch {
    fn start(name: &str, work: impl FnOnce(Arc<Control>) + Send + 'static) -> std::io::Result<Self> {
        let control = Control::new(Side::Source, Box::new(Unobserved))?;
        let shared = Arc::clone(&control);
        let thread = std::thread::Builder::new().name(name.to_owned()).spawn(move || work(shared))?;
        Ok(Self { control, thread: Some(thread) })
    }
}

/// Nobody waits for its end: it may be looking up a name.
impl Drop for Watch {
    fn drop(&mut self) {
        self.control.cancel();
    }
}

/// The engine's word.
pub(super) fn of(resolution: Resolution) -> handover::Resolution {
    match resolution {
        Resolution::Run => handover::Resolution::Run,
        Resolution::Discard => handover::Resolution::Discard,
    }
}

/// A source in doubt.
pub(super) struct Doubtful {
    doubt: Doubt,
    uri: Option<Uri>,
    watch: Option<Watch>,
}

/// A destination that has what it has received.
#[derive(Default)]
pub(super) struct Attendance {
    /// All sessions of this process.
    pub(super) register: Arc<Register>,
    /// The session whose guest is here and can't be started.
    held: Option<String>,
    watch: Option<Watch>,
}

impl Attendance {
    /// The end of the process: the socket's file goes away with its thread.
    pub(super) fn end(self) {
        if let Some(mut watch) = self.watch {
            watch.control.cancel();
            // A panic was reported by its own hook.
            let _ = watch.thread.take().map(JoinHandle::join);
        }
    }
}

impl Doubtful {
    /// Without an address there is nobody to ask.
    pub(super) fn new(doubt: Doubt, uri: Option<Uri>) -> Self {
        Self { doubt, uri, watch: None }
    }

    /// For `query-migrate`.
    pub(super) fn to_json(&self) -> Value {
        let Doubt { session, answer, asked, .. } = &self.doubt;
        let answer = answer.map_or("none", Answer::name);
        json!({ "session": session, "asked": asked, "answer": answer, "advice": self.doubt.advice() })
    }
}

impl Machine {
    /// Starts the next question. Without a thread it is left to a person.
    pub(super) fn ask_destination(&mut self) {
        let notices = self.notices.clone();
        // As the migration went there.
        let security = self.attempt.as_ref().map(|attempt| Security::of(&attempt.live.get()));
        let security = security.unwrap_or_else(|| Security::of(&Parameters::default()));
        let Some(Doubtful { doubt, uri, watch }) = &mut self.doubt else { return };
        let Some(uri) = uri.clone() else { return };
        let (pause, session) = (doubt.pause(), doubt.session.clone());
        let started = Watch::start("inquiry", move |control| {
            if source::wait(pause, &control).is_err() {
                return;
            }
            let answer = source::inquire(&Address::new(&uri, security), &session, &control).ok();
            notices.post(Notice::Answered { session, answer });
        });
        match started {
            Ok(started) => *watch = Some(started),
            Err(error) => tracing::warn!(%error, "the destination can't be asked: no thread can be started"),
        }
    }

    /// What the destination has answered.
    pub(super) fn hear_answer(&mut self, session: &str, answer: Option<Answer>) {
        let (Some(doubtful), Some(vm)) = (&mut self.doubt, &mut self.vm) else { return };
        if doubtful.doubt.session != session {
            return;
        }
        let standing = doubtful.doubt.hear(vm, answer);
        if matches!(standing, Standing::Open) {
            return self.ask_destination();
        }
        self.settle_doubt(standing, "the destination has answered");
    }

    /// A person's decision.
    pub(super) fn resolve(&mut self, resolution: Resolution) -> Result<(), CommandError> {
        if self.resolve_postcopy(resolution)? {
            return Ok(());
        }
        let (Some(doubtful), Some(vm)) = (&mut self.doubt, &mut self.vm) else {
            let gone = if self.core.run().holds(Hold::GivenUp) { ": the guest has moved away" } else { "" };
            let text = format!("no migration is in doubt, and no post-copy goes on from here{gone}");
            return Err(CommandError::illegal(text));
        };
        let standing = doubtful.doubt.resolve(vm, of(resolution));
        let standing = standing.map_err(|error| CommandError::illegal(crate::control::chain(&error)))?;
        self.settle_doubt(standing, "a person has decided");
        Ok(())
    }

    fn settle_doubt(&mut self, standing: Standing, by: &str) {
        self.doubt = None;
        let (status, what) = match standing {
            Standing::Open => return,
            Standing::Gone => (Status::Completed, "the guest is the destination's"),
            Standing::Kept => (Status::Failed, "the guest goes on here"),
            Standing::Stranded(error) => {
                self.core.run().exchange(Hold::Migration, Hold::User);
                tracing::error!(error = crate::control::chain(&error), "the guest is here again and stopped");
                (Status::Failed, "the guest is here again and stopped: `cont` tries again")
            }
            Standing::Discarded => {
                self.end(Ok(ExitReason::Discarded));
                (Status::Completed, "this copy of the guest was discarded")
            }
        };
        let text = format!("it was in doubt until {by}: {what}");
        tracing::info!("{text}");
        if let Some(attempt) = &self.attempt {
            attempt.control.settle(status, text);
        }
    }

    /// Goes on answering at `acceptor`, if the source may not know what became of its guest.
    pub(super) fn attend(&mut self, acceptor: Arc<dyn Acceptor>, settled: bool, is_held: bool) {
        let session = self.attempt.as_ref().map(|attempt| attempt.control.report().session);
        let (Some(session), false, None) = (session, settled, acceptor.only_one()) else { return };
        self.attendance.held = is_held.then(|| session.clone());
        let register = Arc::clone(&self.attendance.register);
        let started = Watch::start("attendance", move |control| {
            let ended = destination::attend(&*acceptor, &register, &session, &control);
            if let Err(error) = ended {
                tracing::debug!(error = error.text(), "no source is answered any more");
            }
        });
        match started {
            Ok(watch) => self.attendance.watch = Some(watch),
            Err(error) => {
                tracing::warn!(%error, "a source in doubt won't be answered: no thread can be started")
            }
        }
    }

    /// A person's `cont`: the disks first, if they are not this process's yet.
    pub(super) fn cont(&mut self) -> Result<(), CommandError> {
        let core = Arc::clone(&self.core);
        let first = || core.devices().locks().take();
        match core.run().cont_after(first).map_err(super::operations::not_now)? {
            Ok(()) => {}
            Err(error) => return Err(CommandError::failed(&error)),
        }
        if let Some(session) = self.attendance.held.take() {
            self.attendance.register.note(&session, Answer::Running);
        }
        Ok(())
    }
}
