//! A migration in doubt: the guest was given up, and no answer came. The source asks the destination again, on a
//! connection of its own; what it hears, and what a person decides, go through the handover's table.

use std::sync::Arc;
use std::time::Duration;

use thiserror::Error;

use crate::channel::Connector;
use crate::control::Control;
use crate::error::{LinkError, MigrationError, ProtocolError};
use crate::handover::source::{Action, Event, State, step};
use crate::handover::{Answer, Resolution};
use crate::stats::Side;
use crate::vm::{SourceVm, VmError};
use crate::wire::{Purpose, Wire, introduce_again};

/// The first pause between two questions; each is twice as long as the one before.
const FIRST_PAUSE_MS: u64 = 100;
/// The longest pause.
const PAUSE_MAX_MS: u64 = 5_000;
/// How long the destination may take for its answer.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(3);

/// What is not known, and what has been heard.
#[derive(Debug)]
pub struct Doubt {
    /// Why no answer came.
    pub error: MigrationError,
    /// The session that the destination is asked about, hexadecimal.
    pub session: String,
    /// The latest answer; none: nobody answers.
    pub answer: Option<Answer>,
    /// Questions so far.
    pub asked: u32,
    state: State,
}

/// Where a doubt stands.
#[derive(Debug)]
pub enum Standing {
    /// It goes on.
    Open,
    /// The guest is the destination's.
    Gone,
    /// The guest is this side's again, and goes on as before the stop.
    Kept,
    /// The guest is this side's again and stays stopped: its disks or the machine refuse.
    Stranded(VmError),
    /// This copy was given up by a person.
    Discarded,
}

/// A person's decision that can't be carried out.
#[derive(Debug, Error)]
pub enum ResolveError {
    /// The destination has it.
    #[error(
        "the destination has the guest, though it does not run there: let it go on there (`cont`), or end that process, \
         and then decide again"
    )]
    HeldThere,
    /// The disks are somebody else's.
    #[error("the guest can not run here")]
    Disks(#[source] VmError),
}

impl Doubt {
    pub(super) fn new(error: MigrationError, session: String) -> Self {
        Self { error, session, answer: None, asked: 0, state: State::InDoubt }
    }

    /// How long to wait before the next question.
    pub fn pause(&self) -> Duration {
        Duration::from_millis((FIRST_PAUSE_MS << self.asked.min(16)).min(PAUSE_MAX_MS))
    }

    /// What a person can do now.
    pub fn advice(&self) -> &'static str {
        match self.answer {
            Some(Answer::Held) => {
                "the destination has the guest and does not run it: let it go on there (`cont`), or end that process and \
                 then resolve with run"
            }
            Some(Answer::Unknown) => {
                "another process answers at the destination, and the one that had the guest is gone: make sure that it is, \
                 then resolve with run"
            }
            Some(Answer::Undecided) => "the destination has not finished yet, and is asked again",
            Some(Answer::Never | Answer::Running) => "it is being settled",
            None => {
                "the destination is asked again and does not answer: look whether the guest runs there; if it does, resolve \
                 with discard, and if its process has ended, with run"
            }
        }
    }

    /// Takes in what the destination has answered; none: nobody has.
    pub fn hear<V: SourceVm>(&mut self, vm: &mut V, answer: Option<Answer>) -> Standing {
        self.asked = self.asked.saturating_add(1);
        self.answer = answer;
        let refused = self.take(vm, answer.map_or(Event::Unanswered, Event::Answered));
        self.standing(refused)
    }

    /// A person decides.
    pub fn resolve<V: SourceVm>(
        &mut self,
        vm: &mut V,
        resolution: Resolution,
    ) -> Result<Standing, ResolveError> {
        if (self.state, resolution) == (State::HeldThere, Resolution::Run) {
            return Err(ResolveError::HeldThere);
        }
        let refused = self.take(vm, Event::Resolve(resolution));
        match (self.standing(None), refused) {
            (Standing::Open, Some(error)) => Err(ResolveError::Disks(error)),
            (_, refused) => Ok(self.standing(refused)),
        }
    }

    fn standing(&self, refused: Option<VmError>) -> Standing {
        match (self.state, refused) {
            (State::Kept | State::Stranded, Some(error)) => Standing::Stranded(error),
            (State::Kept, None) => Standing::Kept,
            (State::Done, _) => Standing::Gone,
            (State::Discarded, _) => Standing::Discarded,
            _ => Standing::Open,
        }
    }

    /// The table's steps, carried out. Returns why the guest could not be had.
    fn take<V: SourceVm>(&mut self, vm: &mut V, event: Event) -> Option<VmError> {
        let (mut next, mut refused) = (Some(event), None);
        while let Some(event) = next.take() {
            let (state, actions) = step(self.state, event);
            self.state = state;
            for action in actions {
                match action {
                    Action::Take => {
                        refused = vm.take_disks().err();
                        next = Some(if refused.is_none() { Event::Taken } else { Event::Refused });
                    }
                    Action::TakeBack => vm.take_back(),
                    Action::Resume => refused = vm.resume().err(),
                    // The connection is gone, and COMMIT was the last that was sent on it.
                    Action::Stop
                    | Action::Release
                    | Action::GiveUp
                    | Action::Commit
                    | Action::Tell
                    | Action::Ask => {}
                }
            }
        }
        refused
    }
}

/// Asks the destination where `connector` leads what became of `session`. Blocks for at most a few seconds; `control`
/// can cancel it.
pub fn inquire(
    connector: &dyn Connector,
    session: &str,
    control: &Arc<Control>,
) -> Result<Answer, MigrationError> {
    let session = number(session).ok_or(ProtocolError::Session {
        found: session.to_owned(),
        expected: "32 hexadecimal digits".to_owned(),
    })?;
    let connection = connector.connect(control)?.with_timeout(ANSWER_TIMEOUT);
    let mut wire = Wire::new(connection, Side::Source, control);
    introduce_again(&mut wire, session, Purpose::Inquiry).map(|peer| peer.answer)
}

/// Waits for the next question's time. An error: it was cancelled.
pub fn wait(doubt_pause: Duration, control: &Control) -> Result<(), MigrationError> {
    match control.pause(doubt_pause) {
        Err(MigrationError::Link(LinkError::Io { .. })) => Err(MigrationError::Cancelled),
        ended => ended,
    }
}

fn number(session: &str) -> Option<[u8; 16]> {
    let number = (session.len() == 32).then(|| u128::from_str_radix(session, 16).ok())??;
    Some(number.to_be_bytes())
}
