//! The messages. Records of the schema crate: a reader passes over an unknown field that its writer marked
//! optional, and refuses any other, so messages may grow without a new protocol version.

use tern_schema::{ChosenVersion, record};

use crate::vm::{Aspect, VmFacts};

/// Oldest protocol version that this build speaks.
pub(crate) const PROTOCOL_MIN: u32 = 1;
/// Newest protocol version that this build speaks.
pub(crate) const PROTOCOL_MAX: u32 = 1;
/// This build's release.
pub(crate) const TERN_VERSION: &str = env!("CARGO_PKG_VERSION");
/// Most connections of one migration.
pub(crate) const CHANNELS_MAX: u32 = 64;
/// Most bytes of all probes of a check.
pub(crate) const PROBE_BYTES_MAX: u64 = 256 << 20;

/// What a connection is for: its `role` in a hello.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Purpose {
    /// A migration: messages, memory and state.
    Migration = 1,
    /// Only questions: would it fit, and how fast is the link?
    Check = 2,
    /// A further connection of a migration: memory alone.
    Channel = 3,
    /// A source in doubt: what became of the migration with this session?
    Inquiry = 4,
    /// Post-copy: pages that somebody waits for, and the questions for them.
    Urgent = 5,
    /// Post-copy: the first connection of a migration whose connections have broken after COMMIT.
    Recover = 6,
}

impl Purpose {
    pub(crate) fn from_role(role: u8) -> Option<Self> {
        let migration = [Self::Migration, Self::Channel, Self::Urgent, Self::Recover];
        let questions = [Self::Check, Self::Inquiry];
        migration.into_iter().chain(questions).find(|purpose| *purpose as u8 == role)
    }
}

record! {
    /// First message of each connection, both ways.
    pub struct Hello {
        /// Oldest protocol version spoken.
        [1] protocol_min: u32,
        /// Newest protocol version spoken.
        [2] protocol_max: u32,
        /// Release of the writer, for people.
        [3] tern_version: String,
        /// Number of this migration, drawn by the source; the destination gives it back.
        [4] session: [u8; 16],
        /// What this connection is for.
        [5] role: u8,
        /// Which of several with this role.
        [6] index: u32,
        /// Destination, to a source in doubt: what became of that session, as [`crate::handover::Answer::ALL`] numbers it.
        [7 optional] answer: Option<u8>,
    }
}

record! {
    /// Source: what is to be moved, and how it may be sent.
    pub struct Offer {
        /// The machine.
        [1] facts: VmFacts,
        /// Unit of the page records.
        [2] page_bytes: u32,
        /// Bit n: the source can send encoding n.
        [3] encodings: u64,
        /// Limits at the start, for the destination's report.
        [4 optional] downtime_limit_ms: Option<u64>,
        /// 0: none.
        [5 optional] max_bandwidth_bytes_per_s: Option<u64>,
        /// 0: none.
        [6 optional] max_total_time_ms: Option<u64>,
        /// Bit n: the source can prove with scheme n that all has arrived.
        [7 optional] proofs: Option<u64>,
        /// Connections that memory could take, this one included; none: this one.
        [8 optional] channels: Option<u32>,
        /// The guest may be handed over while part of its memory is still at the source (post-copy).
        [9 optional] postcopy: Option<bool>,
    }
}

record! {
    /// Destination: it will be taken, in this way.
    pub struct Agreed {
        /// Protocol version from here on.
        [1] protocol_version: u32,
        /// Bit n: encoding n may be sent.
        [2] encodings: u64,
        /// The part of the offer's `proofs` that is used.
        [3 optional] proofs: Option<u64>,
        /// For each section that both sides have, the version in which it is to be sent.
        [4 optional] sections: Vec<ChosenVersion>,
        /// Connections that memory takes, this one included; none: this one.
        [5 optional] channels: Option<u32>,
        /// Post-copy is possible, and one more connection is opened for it.
        [6 optional] postcopy: Option<bool>,
        /// Hashes of pages that the destination has, which follow in frames of their own; none: no such frames.
        [7 optional] known_pages: Option<u64>,
    }
}

record! {
    /// Destination, in a check: whether and how it would be taken.
    pub struct Answer {
        /// All that was compared.
        [1] aspects: Vec<Aspect>,
        /// As it would agree if all of that fits.
        [2] agreed: Agreed,
    }
}

record! {
    /// Destination, in a check: the probes up to the one that asks have come.
    pub struct Echo {
        /// Their bytes since the last answer, without headers.
        [1] bytes: u64,
    }
}

record! {
    /// Destination: the machines don't fit together.
    pub struct Refused {
        /// For programs.
        [1] code: String,
        /// For people: each difference with both sides' values.
        [2] text: String,
    }
}

record! {
    /// Source: all pages of a round have been sent.
    pub struct RoundEnd {
        /// Page records in this round.
        [1] pages: u64,
        /// The guest is stopped, and no page follows.
        [2] last: bool,
        /// Pages of this round that were never touched; in the first round only.
        [3 optional] pages_untouched: Option<u64>,
        /// Pages found dirty at the end of the round before.
        [4 optional] pages_dirty_before: Option<u64>,
        /// Pages dirtied a second in the round before.
        [5 optional] dirty_pages_per_s_before: Option<u64>,
        /// What the link carries, if it was measured.
        [6 optional] link_bytes_per_s: Option<u64>,
        /// Limits as they are now, for the destination's report.
        [7 optional] downtime_limit_ms: Option<u64>,
        /// 0: none.
        [8 optional] max_bandwidth_bytes_per_s: Option<u64>,
        /// 0: none.
        [9 optional] max_total_time_ms: Option<u64>,
        /// The last one, if a proof was agreed: of all memory.
        [10 optional] memory_proof: Option<u64>,
        /// Likewise: of the state that follows.
        [11 optional] state_proof: Option<u64>,
    }
}

impl RoundEnd {
    /// All that was missing in post-copy has been sent.
    pub(crate) fn last_of_postcopy(pages: u64, memory_proof: Option<u64>) -> Self {
        Self {
            pages,
            last: true,
            pages_untouched: None,
            pages_dirty_before: None,
            dirty_pages_per_s_before: None,
            link_bytes_per_s: None,
            downtime_limit_ms: None,
            max_bandwidth_bytes_per_s: None,
            max_total_time_ms: None,
            memory_proof,
            state_proof: None,
        }
    }
}

record! {
    /// Source, on a further connection: all its pages of a round have been sent.
    pub struct Sync {
        /// Page records on this connection in this round.
        [1] pages: u64,
    }
}

record! {
    /// Destination, in post-copy: all pages are here, and memory is as the source has said.
    pub struct HaveAll {
        /// Pages that came because somebody waited for them.
        [1] pages_by_request: u64,
        /// Pages that came more than once.
        [2] pages_twice: u64,
    }
}

record! {
    /// Destination: all is loaded and checked, and waits for COMMIT.
    pub struct Prepared {
        /// Time that loading took.
        [1] load_us: u64,
    }
}

record! {
    /// Source: the guest is yours. After this the source never runs it again by itself.
    pub struct Commit {
        /// Time to stop the guest.
        [1] stop_us: u64,
        /// Time to read its state.
        [2] state_save_us: u64,
        /// Time to send the last pages.
        [3] final_ram_us: u64,
        /// Time to send the state until the destination said that all is loaded.
        [4 optional] state_send_us: Option<u64>,
        /// Time of the rounds with the guest running.
        [5 optional] live_us: Option<u64>,
    }
}

record! {
    /// Destination: the guest is here, running or paused as it was.
    pub struct Running {
        /// Time to start it.
        [1] resume_us: u64,
    }
}

record! {
    /// Source, at the very end: it knows that the guest is the destination's, and will never ask.
    pub struct Settled {
        /// From the order to stop until the answer that the guest runs.
        [1] total_us: u64,
        /// From sending COMMIT until that answer.
        [2] commit_us: u64,
    }
}

record! {
    /// Either side, before COMMIT: it gives up. Destination, after COMMIT: the guest is here but doesn't run.
    pub struct Failed {
        /// For programs.
        [1] code: String,
        /// For people.
        [2] text: String,
    }
}
