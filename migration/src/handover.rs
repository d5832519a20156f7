//! The handover: who may run the guest, as two state machines without a clock or a socket.
//!
//! ```text
//! source        Setup -> Live [-> PreSwitchover] -> Stopped -> Offered -> Releasing -> GivenUp -> Done
//!                 '------+-------------+--------------+----------+           |            v
//!                        | failure, cancel                      Reclaiming <-'         InDoubt -> Done, Discarded
//!                        v                                       |   ^                    |
//!                       Kept <-----------------------------------+   '-- it never will ---+
//!                                             refused: Stranded <'
//!
//! destination   Setup -> Loading -> Prepared -> Committed -> Starting -> Running
//!                 '---------+----------'            '-----------+-> Held, and `cont` tries again
//!                           v failure, cancel
//!                          Over: it never will
//! ```
//!
//! `step(state, event)` gives the next state and what has to be done; the engine's phases do nothing else at the
//! switch, and `tests/model` checks these very functions in all orders of events, losses and crashes.

pub mod destination;
mod register;
pub mod source;

pub use register::Register;

/// What a destination says of a session when a source in doubt asks. What is final never changes while the
/// destination's process lives.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Answer {
    /// The attempt is not over there: ask again.
    Undecided,
    /// Final: the guest was never taken, and now never will be.
    Never,
    /// The guest is there and doesn't run yet: it starts, or it can't.
    Held,
    /// Final: the guest is the destination's, and was started there.
    Running,
    /// That process knows nothing of this session: the one that had it is gone.
    Unknown,
}

impl Answer {
    /// All of them; the position is their number on the wire.
    pub const ALL: [Self; 5] = [Self::Undecided, Self::Never, Self::Held, Self::Running, Self::Unknown];

    /// Its number on the wire.
    pub(crate) fn number(self) -> u8 {
        self as u8
    }

    /// The answer with this number.
    pub(crate) fn from_number(number: u8) -> Option<Self> {
        Self::ALL.get(usize::from(number)).copied()
    }

    /// For reports and programs.
    pub fn name(self) -> &'static str {
        match self {
            Self::Undecided => "undecided",
            Self::Never => "never",
            Self::Held => "held",
            Self::Running => "running",
            Self::Unknown => "unknown",
        }
    }
}

/// What a person says of a migration in doubt.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Resolution {
    /// The guest shall run here.
    Run,
    /// The guest is elsewhere, or lost: this copy goes.
    Discard,
}
