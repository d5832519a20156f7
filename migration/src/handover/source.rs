//! The source's side of the handover, as a table.

use super::{Answer, Resolution};

/// Where the right to run the guest is, as the source knows it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum State {
    /// The two sides come to terms.
    Setup,
    /// Memory moves, and the guest runs as before.
    Live,
    /// Little is left, and the manager has not yet said that the guest may be stopped.
    PreSwitchover,
    /// The guest is stopped, and the rest goes.
    Stopped,
    /// All has gone; the destination loads it.
    Offered,
    /// The destination is prepared: the disks' locks are let go.
    Releasing,
    /// COMMIT is on its way: this side never runs the guest again by itself.
    GivenUp,
    /// Post-copy: the guest is the destination's, and part of its memory is still here only.
    Serving,
    /// No answer came to COMMIT.
    InDoubt,
    /// In doubt, and the destination has said that it has the guest and doesn't run it.
    HeldThere,
    /// A person wants the guest here: its disks have to be this side's first.
    Claiming,
    /// The guest is this side's again, and takes its disks back.
    Reclaiming,
    /// Over: the guest goes on here as before.
    Kept,
    /// Over: the guest is this side's and stopped, since its disks are somebody else's; `cont` tries again.
    Stranded,
    /// Over: the guest is the destination's.
    Done,
    /// Over: a person has given this copy up.
    Discarded,
}

impl State {
    /// All of them.
    pub const ALL: [Self; 16] = [
        Self::Setup,
        Self::Live,
        Self::PreSwitchover,
        Self::Stopped,
        Self::Offered,
        Self::Releasing,
        Self::GivenUp,
        Self::Serving,
        Self::InDoubt,
        Self::HeldThere,
        Self::Claiming,
        Self::Reclaiming,
        Self::Kept,
        Self::Stranded,
        Self::Done,
        Self::Discarded,
    ];

    /// Is the attempt over, with nothing left to settle?
    pub fn is_over(self) -> bool {
        matches!(self, Self::Kept | Self::Stranded | Self::Done | Self::Discarded)
    }

    /// Can a cancel still come in time?
    pub fn can_cancel(self) -> bool {
        matches!(self, Self::Setup | Self::Live | Self::PreSwitchover | Self::Stopped | Self::Offered)
    }
}

/// What has happened.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Event {
    /// The destination will take the guest.
    Agreed,
    /// What is left fits into the stop that is accepted.
    LittleLeft {
        /// The manager wants to be waited for.
        pause: bool,
    },
    /// The manager is ready.
    Continue,
    /// All of memory and state has been sent.
    Sent,
    /// A copy of it all has been made, and the guest goes on meanwhile: it is not given away.
    GoesOn,
    /// The destination has loaded all, and nobody has cancelled before that.
    Prepared,
    /// The disks' locks are let go.
    Released,
    /// The disks are this side's.
    Taken,
    /// At least one disk is somebody else's, or its lock can't be changed; none is held.
    Refused,
    /// The destination says that it has the guest.
    Running,
    /// Post-copy: the destination says that it has the guest, or is found again, and goes on with what it lacks.
    RunsInPart,
    /// Post-copy: the destination has all of the guest's memory.
    AllThere,
    /// Link, peer, this machine or a limit.
    Failed,
    /// A person cancels.
    Cancel,
    /// The destination's answer to this side's question.
    Answered(Answer),
    /// Nobody has answered.
    Unanswered,
    /// A person's decision.
    Resolve(Resolution),
    /// A person's `cont`.
    Cont,
}

/// What has to be done, in this order; its outcome is the next event.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Action {
    /// Stop the guest.
    Stop,
    /// Let the disks' locks go: [`Event::Released`] or [`Event::Refused`].
    Release,
    /// Take the disks' locks: [`Event::Taken`] or [`Event::Refused`].
    Take,
    /// From here on nothing but [`Self::TakeBack`] lets the guest run here.
    GiveUp,
    /// Send COMMIT.
    Commit,
    /// The right to run the guest is this side's again.
    TakeBack,
    /// The guest goes on as before the stop.
    Resume,
    /// Say why it ends, if the connection still carries that.
    Tell,
    /// Ask the destination on a connection of its own, again and again with bounded pauses.
    Ask,
}

/// The next state, and what to do. An event that means nothing in a state changes nothing.
pub fn step(state: State, event: Event) -> (State, &'static [Action]) {
    use Action::{Ask, Commit, GiveUp, Release, Resume, Stop, Take, TakeBack, Tell};
    use State::{
        Claiming, Discarded, Done, GivenUp, HeldThere, InDoubt, Kept, Live, Offered, PreSwitchover,
        Reclaiming, Releasing, Serving, Setup, Stopped, Stranded,
    };
    let same: (State, &'static [Action]) = (state, &[]);
    match (event, state) {
        (Event::Agreed, Setup) => (Live, &[]),
        (Event::LittleLeft { pause: true }, Live) => (PreSwitchover, &[]),
        (Event::LittleLeft { pause: false }, Live) | (Event::Continue, PreSwitchover) => (Stopped, &[Stop]),
        (Event::Sent, Stopped) => (Offered, &[]),
        (Event::GoesOn, Stopped | Offered) => (Live, &[]),
        (Event::Prepared, Offered) => (Releasing, &[Release]),
        (Event::Released, Releasing) => (GivenUp, &[GiveUp, Commit]),
        (Event::Running, GivenUp) | (Event::AllThere, Serving) => (Done, &[]),
        // However often the connections break there: both sides keep what they have, and the guest is the destination's.
        (Event::RunsInPart, GivenUp | InDoubt | HeldThere) => (Serving, &[]),

        (Event::Failed | Event::Cancel, Setup | Live | PreSwitchover) => (Kept, &[Tell]),
        (Event::Failed | Event::Cancel, Stopped | Offered) => (Kept, &[Resume, Tell]),
        // COMMIT may have arrived, whatever went wrong.
        (Event::Failed, GivenUp) => (InDoubt, &[Ask]),
        // A part of the locks may be gone already.
        (Event::Failed | Event::Refused, Releasing) => (Reclaiming, &[Take]),

        (Event::Answered(Answer::Running), InDoubt | HeldThere) => (Done, &[]),
        (Event::Answered(Answer::Held), InDoubt | HeldThere) => (HeldThere, &[]),
        (Event::Answered(Answer::Never), InDoubt) | (Event::Cont, Stranded) => (Reclaiming, &[Take]),
        // The process that had it is gone, or was restarted.
        (Event::Answered(Answer::Unknown) | Event::Unanswered, HeldThere) => (InDoubt, &[]),
        // In post-copy that loses what the guest has done since the switch, and a person says that it shall.
        (Event::Resolve(Resolution::Run), InDoubt | Serving) => (Claiming, &[Take]),
        (Event::Resolve(Resolution::Discard), InDoubt | HeldThere | Serving) => (Discarded, &[]),
        (Event::Taken, Claiming | Reclaiming) => (Kept, &[TakeBack, Resume, Tell]),
        (Event::Refused, Claiming) => (InDoubt, &[]),
        (Event::Refused, Reclaiming) => (Stranded, &[TakeBack, Tell]),

        (Event::Cancel, Releasing | GivenUp | Serving)
        | (Event::Failed, Serving)
        | (Event::Cancel | Event::Failed, InDoubt | HeldThere | Claiming | Reclaiming)
        | (_, Kept | Stranded | Done | Discarded) => same,
        (
            Event::Agreed
            | Event::LittleLeft { .. }
            | Event::Continue
            | Event::Sent
            | Event::GoesOn
            | Event::Prepared
            | Event::Released
            | Event::Taken
            | Event::Refused
            | Event::Running
            | Event::RunsInPart
            | Event::AllThere
            | Event::Answered(_)
            | Event::Unanswered
            | Event::Resolve(_)
            | Event::Cont,
            _,
        ) => same,
    }
}
