//! The destination's side of the handover, as a table.

use super::Answer;

/// Where the right to run the guest is, as the destination knows it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum State {
    /// The two sides come to terms.
    Setup,
    /// Memory and state arrive.
    Loading,
    /// All is loaded and checked; COMMIT may come.
    Prepared,
    /// COMMIT has come: the disks' locks are taken.
    Committed,
    /// The disks are this side's, and the guest starts.
    Starting,
    /// Over: the guest was started here, or is paused as it was.
    Running,
    /// Over: this machine holds the only guest, stopped; `cont` tries again.
    Held,
    /// Over: nothing ran here, and nothing of this attempt ever will.
    Over,
}

impl State {
    /// All of them.
    pub const ALL: [Self; 8] = [
        Self::Setup,
        Self::Loading,
        Self::Prepared,
        Self::Committed,
        Self::Starting,
        Self::Running,
        Self::Held,
        Self::Over,
    ];

    /// Is the attempt over?
    pub fn is_over(self) -> bool {
        matches!(self, Self::Running | Self::Held | Self::Over)
    }

    /// Has the guest become this side's?
    pub fn is_committed(self) -> bool {
        matches!(self, Self::Committed | Self::Starting | Self::Running | Self::Held)
    }

    /// What a source that asks is told.
    pub fn answer(self) -> Answer {
        match self {
            Self::Setup | Self::Loading | Self::Prepared => Answer::Undecided,
            Self::Committed | Self::Starting | Self::Held => Answer::Held,
            Self::Running => Answer::Running,
            Self::Over => Answer::Never,
        }
    }
}

/// What has happened.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Event {
    /// This side will take the guest.
    Agreed,
    /// All is loaded and checked, and nobody has cancelled before that.
    Loaded,
    /// COMMIT has come.
    Commit,
    /// The disks are this side's.
    Taken,
    /// At least one disk is somebody else's; none is held.
    Refused,
    /// The guest runs, or is paused as it was.
    Started,
    /// Link, peer, this machine or a limit.
    Failed,
    /// A person cancels.
    Cancel,
    /// A person's `cont`.
    Cont,
}

/// What has to be done, in this order; its outcome is the next event.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Action {
    /// Say that all is loaded.
    Prepared,
    /// Take the disks' locks: [`Event::Taken`] or [`Event::Refused`].
    Take,
    /// Start the guest: [`Event::Started`] or [`Event::Failed`].
    Start,
    /// Say that the guest is here.
    Running,
    /// Say why it ends, or why the guest doesn't run, if the connection still carries that.
    Tell,
}

/// The next state, and what to do. An event that means nothing in a state changes nothing.
pub fn step(state: State, event: Event) -> (State, &'static [Action]) {
    use State::{Committed, Held, Loading, Over, Prepared, Running, Setup, Starting};
    let same: (State, &'static [Action]) = (state, &[]);
    match (event, state) {
        (Event::Agreed, Setup) => (Loading, &[]),
        (Event::Loaded, Loading) => (Prepared, &[Action::Prepared]),
        (Event::Commit, Prepared) | (Event::Cont, Held) => (Committed, &[Action::Take]),
        (Event::Taken, Committed) => (Starting, &[Action::Start]),
        (Event::Started, Starting) => (Running, &[Action::Running]),

        (Event::Failed, Setup | Loading | Prepared) | (Event::Cancel, Setup | Loading) => {
            (Over, &[Action::Tell])
        }
        (Event::Refused, Committed) | (Event::Failed, Committed | Starting) => (Held, &[Action::Tell]),

        // The source may have given the guest up: too late.
        (Event::Cancel, Prepared | Committed | Starting) | (_, Running | Held | Over) => same,
        (
            Event::Agreed
            | Event::Loaded
            | Event::Commit
            | Event::Taken
            | Event::Refused
            | Event::Started
            | Event::Cont,
            _,
        ) => same,
    }
}
