//! What can go wrong, by who is to blame: the pairing of the two machines, the peer's protocol, the link,
//! this side's machine, the limits that were set, or nobody (cancelled).

use std::error::Error;
use std::io;

use serde::Serialize;
use tern_schema::{DecodeError, StateError};
use thiserror::Error;

use crate::channel::TlsError;
use crate::snapshot::{SaveError, SnapshotError};
use crate::vm::VmError;

/// Who is to blame.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Blame {
    /// The two machines don't fit together.
    Incompatible,
    /// The peer broke the protocol.
    Protocol,
    /// The connection.
    Link,
    /// The peer's own machine failed; it said so.
    Peer,
    /// The machine on this side.
    Local,
    /// A limit that was set.
    Limit,
    /// Nobody: it was cancelled.
    Cancelled,
}

/// Why a migration did not complete.
#[derive(Debug, Error)]
pub enum MigrationError {
    /// The destination compared both machines and can't run this one.
    #[error("the destination can not run this guest: {text}")]
    Refused {
        /// Short code, such as `memory-layout`.
        code: String,
        /// Each difference with both sides' values.
        text: String,
    },
    /// The two sides have no protocol version in common.
    #[error(
        "no common protocol version: tern {here_tern} speaks {here_min} to {here_max}, the peer's tern \
         {peer_tern} speaks {peer_min} to {peer_max}; use releases that are closer to each other"
    )]
    Version {
        /// This side's release.
        here_tern: &'static str,
        /// Oldest version of this side.
        here_min: u32,
        /// Newest version of this side.
        here_max: u32,
        /// Peer's release.
        peer_tern: String,
        /// Oldest version of the peer.
        peer_min: u32,
        /// Newest version of the peer.
        peer_max: u32,
    },
    /// The peer broke the protocol.
    #[error(transparent)]
    Protocol(#[from] ProtocolError),
    /// The connection failed.
    #[error(transparent)]
    Link(#[from] LinkError),
    /// The peer gave up and said why.
    #[error("the {peer} gave up: {text}")]
    Peer {
        /// `source` or `destination`.
        peer: &'static str,
        /// The peer's code.
        code: String,
        /// The peer's words.
        text: String,
    },
    /// The guest could not be saved into a file.
    #[error(transparent)]
    Save(#[from] SaveError),
    /// What arrived is not what was sent.
    #[error(
        "the {what} that has arrived is not the source's: its proof is {source_proof:#018x} at the source and \
         {destination_proof:#018x} at the destination; bytes were damaged on the way or in a host's memory: try \
         again, and over another link or host if it comes again"
    )]
    Proof {
        /// `memory` or `state`.
        what: &'static str,
        /// The source's hash.
        source_proof: u64,
        /// The destination's.
        destination_proof: u64,
    },
    /// The file that the guest is in can't be read, or is not what was saved.
    #[error(transparent)]
    Snapshot(#[from] SnapshotError),
    /// A known page is not in its file any more.
    #[error(
        "page {page} of region {region} in {name} is not what it was when it was read at the start: {reason}; start the \
         destination without --known, or with a file that nobody writes to"
    )]
    KnownChanged {
        /// The file.
        name: String,
        /// Region there.
        region: u16,
        /// Page of that region.
        page: u64,
        /// How that was found.
        reason: String,
    },
    /// The machine on this side failed.
    #[error("{action} failed")]
    Vm {
        /// What it was asked to do.
        action: &'static str,
        /// Its own words.
        #[source]
        source: VmError,
    },
    /// This side's memory can't be read or written where it should be.
    #[error("guest memory: region {region} has no bytes {offset_bytes} to {end_bytes}")]
    Memory {
        /// Region's number.
        region: usize,
        /// First byte wanted.
        offset_bytes: u64,
        /// Behind the last byte wanted.
        end_bytes: u64,
    },
    /// A thread of this migration.
    #[error("this migration's threads can not {action}")]
    Thread {
        /// What they should do.
        action: &'static str,
        /// The system's words.
        #[source]
        source: io::Error,
    },
    /// The guest can't go on after a failed attempt.
    #[error("the guest could not be resumed after a failed migration ({after})")]
    Resume {
        /// What failed before.
        after: Box<MigrationError>,
        /// Why it can't go on.
        #[source]
        source: VmError,
    },
    /// The parameters ask for post-copy, and it can't be here.
    #[error("post-copy is not possible: {reason}; use another address, or postcopy=off")]
    NoPostcopy {
        /// Why.
        reason: &'static str,
    },
    /// Dirty pages come faster than they can be sent, and the time is over.
    #[error(
        "max-total-time {max_total_time_ms} ms is over: after {elapsed_ms} ms not all memory has been sent once, or \
         what the guest writes meanwhile is more than fits into downtime-limit {downtime_limit_ms} ms (a stop now \
         would take {expected_downtime_ms} ms or more); raise one of the two, or max-bandwidth if it is set"
    )]
    NotConverging {
        /// Time since the start.
        elapsed_ms: u64,
        /// The limit.
        max_total_time_ms: u64,
        /// Downtime if it were stopped now.
        expected_downtime_ms: u64,
        /// The limit.
        downtime_limit_ms: u64,
    },
    /// A source came too late.
    #[error("this process has its guest already, and waits for no other")]
    NotWaiting,
    /// The manager did not say that the guest may be stopped.
    #[error(
        "switchover-limit {switchover_limit_ms} ms is over, and nobody has said migrate-continue; raise it, or leave          pause-before-switchover off"
    )]
    NotContinued {
        /// The limit.
        switchover_limit_ms: u64,
    },
    /// A person has broken the connections of post-copy on purpose.
    #[error("a person has paused post-copy: its connections were closed, and are made anew")]
    Paused,
    /// Somebody cancelled it.
    #[error("the migration was cancelled")]
    Cancelled,
}

/// How the peer broke the protocol.
#[derive(Debug, Error)]
pub enum ProtocolError {
    /// The first bytes aren't tern's.
    #[error("the peer is not tern: it began with {first_bytes}, expected \"TERN-MIG\"")]
    NotTern {
        /// The first eight bytes, readable.
        first_bytes: String,
    },
    /// A frame type that doesn't exist.
    #[error("frame type {found} is not known")]
    UnknownFrame {
        /// The number found.
        found: u8,
    },
    /// A frame in a state where it isn't legal.
    #[error("unexpected frame {found} while {state}; expected {expected}")]
    Unexpected {
        /// Frame found.
        found: &'static str,
        /// What this side was doing.
        state: &'static str,
        /// Frames that are legal.
        expected: &'static str,
    },
    /// A header whose checksum is wrong.
    #[error(
        "frame {frame}: checksum {found:#010x}, computed {computed:#010x}; bytes were damaged on the way"
    )]
    Checksum {
        /// Frame's name.
        frame: &'static str,
        /// In the header.
        found: u32,
        /// Of the bytes.
        computed: u32,
    },
    /// A frame was lost, doubled or swapped.
    #[error("frame number {found} came where number {expected} was due")]
    Sequence {
        /// Number found.
        found: u32,
        /// Number due.
        expected: u32,
    },
    /// A frame of another round.
    #[error("a frame of round {found} came in round {expected}")]
    Epoch {
        /// Round found.
        found: u32,
        /// Round due.
        expected: u32,
    },
    /// A number outside what the protocol allows.
    #[error("frame {frame}: {field} is {found}, at most {max} is legal")]
    Limit {
        /// Frame's name.
        frame: &'static str,
        /// What is out of range.
        field: &'static str,
        /// Value found.
        found: u64,
        /// Greatest legal value.
        max: u64,
    },
    /// Two numbers that must be equal.
    #[error("frame {frame}: {field} is {found}, expected {expected}")]
    Mismatch {
        /// Frame's name.
        frame: &'static str,
        /// What differs.
        field: &'static str,
        /// Value found.
        found: u64,
        /// Value due.
        expected: u64,
    },
    /// A message that can't be read.
    #[error("frame {frame} can not be read")]
    Message {
        /// Frame's name.
        frame: &'static str,
        /// Why.
        #[source]
        source: DecodeError,
    },
    /// State that can't be read.
    #[error("the machine's state can not be read")]
    State(#[from] StateError),
    /// A page that can't be decoded.
    #[error("page {page} of region {region} can not be decoded by {encoding}: {reason}")]
    Undecodable {
        /// Encoding's name.
        encoding: &'static str,
        /// Its region.
        region: u16,
        /// Its place in the region.
        page: u64,
        /// What is wrong with it.
        reason: String,
    },
    /// A delta to something that this side doesn't have.
    #[error(
        "page {page} of region {region} came as what has changed since round {base}, and {}",
        found.map_or("it has never come before".to_owned(), |round| format!("what is here is of round {round}"))
    )]
    LostBase {
        /// Its region.
        region: u16,
        /// Its place in the region.
        page: u64,
        /// Round of the content that the source means.
        base: u32,
        /// Round of the content that is here.
        found: Option<u32>,
    },
    /// A page that came twice in a round.
    #[error("page {page} of region {region} came twice in round {round}")]
    PageTwice {
        /// Its region.
        region: u16,
        /// Its place in the region.
        page: u64,
        /// The round.
        round: u32,
    },
    /// Post-copy: a page that the destination isn't without.
    #[error("frame {frame}: page {page} of region {region} is not missing at the destination")]
    NotMissing {
        /// Frame's name.
        frame: &'static str,
        /// Its region.
        region: u16,
        /// Its place in the region.
        page: u64,
    },
    /// A connection of another session.
    #[error("the peer answered for session {found}, expected {expected}")]
    Session {
        /// Session found, hexadecimal.
        found: String,
        /// Session due, hexadecimal.
        expected: String,
    },
    /// A further connection for a migration that isn't under way here.
    #[error("a further connection came for migration {found}, which does not wait for it here")]
    NoSession {
        /// Session found, hexadecimal.
        found: String,
    },
    /// The peer takes a question for a migration, or the reverse.
    #[error(
        "the peer's tern {peer_tern} can not be asked whether a guest fits: take a newer one there, or migrate \
         without a check"
    )]
    Purpose {
        /// Peer's release.
        peer_tern: String,
    },
}

/// How the connection failed.
#[derive(Debug, Error)]
pub enum LinkError {
    /// No connection.
    #[error("can not connect to {uri}; is a tern waiting there with --incoming?")]
    Connect {
        /// Where to.
        uri: String,
        /// The system's words.
        #[source]
        source: io::Error,
    },
    /// No listening socket.
    #[error("can not listen on {uri}")]
    Listen {
        /// Where.
        uri: String,
        /// The system's words.
        #[source]
        source: io::Error,
    },
    /// An only connection has been used.
    #[error("{uri} was one connection, and it has been used: give another address or descriptor")]
    UsedUp {
        /// What it was.
        uri: String,
    },
    /// The peer closed the connection.
    #[error("the peer closed the connection while {state}")]
    Closed {
        /// What this side was doing.
        state: &'static str,
    },
    /// Nothing moved for too long.
    #[error("nothing moved on the connection for {timeout_ms} ms while {state}")]
    Stalled {
        /// What this side was doing.
        state: &'static str,
        /// How long it waited.
        timeout_ms: u64,
    },
    /// Another connection or thread of the same migration has failed.
    #[error("{state} ended, since another part of this migration has failed")]
    Halted {
        /// What this side was doing.
        state: &'static str,
    },
    /// The two sides don't trust each other, or one of them doesn't speak TLS.
    #[error(transparent)]
    Tls(TlsError),
    /// Any other failure.
    #[error("the connection broke while {state}")]
    Io {
        /// What this side was doing.
        state: &'static str,
        /// The system's words.
        #[source]
        source: io::Error,
    },
}

impl MigrationError {
    /// Who is to blame.
    pub fn blame(&self) -> Blame {
        match self {
            Self::Refused { .. } | Self::Version { .. } => Blame::Incompatible,
            Self::Protocol(_) => Blame::Protocol,
            Self::Link(_) | Self::Proof { .. } => Blame::Link,
            Self::Peer { .. } => Blame::Peer,
            Self::Save(_)
            | Self::Snapshot(_)
            | Self::KnownChanged { .. }
            | Self::Vm { .. }
            | Self::Memory { .. }
            | Self::Thread { .. }
            | Self::Resume { .. } => Blame::Local,
            Self::NotWaiting | Self::NoPostcopy { .. } => Blame::Incompatible,
            Self::NotConverging { .. } | Self::NotContinued { .. } => Blame::Limit,
            Self::Cancelled | Self::Paused => Blame::Cancelled,
        }
    }

    /// A short code for programs; it doesn't change between releases.
    pub fn code(&self) -> &str {
        match self {
            Self::Refused { code, .. } => code,
            Self::Version { .. } => "protocol-version",
            Self::Protocol(error) => error.code(),
            Self::Link(error) => error.code(),
            Self::Save(error) => error.code(),
            Self::Snapshot(error) => error.code(),
            Self::KnownChanged { .. } => "known-changed",
            Self::Peer { .. } => "peer-gave-up",
            Self::Proof { .. } => "proof",
            Self::Vm { .. } => "vm",
            Self::Memory { .. } => "guest-memory",
            Self::Thread { .. } => "thread",
            Self::Resume { .. } => "resume",
            Self::NotWaiting => "not-waiting",
            Self::NoPostcopy { .. } => "no-postcopy",
            Self::NotConverging { .. } => "not-converging",
            Self::NotContinued { .. } => "not-continued",
            Self::Paused => "paused",
            Self::Cancelled => "cancelled",
        }
    }

    /// The text of this error and of each cause below it.
    pub fn chain(&self) -> Vec<String> {
        let mut chain = vec![self.to_string()];
        let mut next = self.source();
        while let Some(error) = next {
            let text = error.to_string();
            // `DecodeError::Nested` names its cause in its own text.
            if chain.last().is_none_or(|last| !last.ends_with(&text)) {
                chain.push(text);
            }
            next = error.source();
        }
        chain
    }

    /// All of [`Self::chain`] in one line.
    pub fn text(&self) -> String {
        self.chain().join(": ")
    }
}

impl ProtocolError {
    /// A short code for programs.
    pub fn code(&self) -> &'static str {
        match self {
            Self::NotTern { .. } => "not-tern",
            Self::Checksum { .. } => "checksum",
            Self::Message { .. } | Self::State(_) => "undecodable",
            Self::Session { .. } | Self::NoSession { .. } => "session",
            Self::Purpose { .. } => "no-check",
            Self::UnknownFrame { .. } | Self::Unexpected { .. } => "unexpected-frame",
            Self::Sequence { .. } | Self::Epoch { .. } => "out-of-order",
            Self::Limit { .. } | Self::Mismatch { .. } => "out-of-bounds",
            Self::Undecodable { .. } => "undecodable-page",
            Self::LostBase { .. } => "lost-base",
            Self::PageTwice { .. } => "out-of-order",
            Self::NotMissing { .. } => "not-missing",
        }
    }
}

impl LinkError {
    /// What failed on a connection.
    pub(crate) fn of(state: &'static str, error: io::Error) -> Self {
        match error.downcast::<TlsError>() {
            Ok(error) => Self::Tls(error),
            Err(source) => Self::Io { state, source },
        }
    }

    /// A short code for programs.
    pub fn code(&self) -> &'static str {
        match self {
            Self::Connect { .. } => "connect",
            Self::Listen { .. } => "listen",
            Self::UsedUp { .. } => "used-up",
            Self::Closed { .. } => "link-closed",
            Self::Stalled { .. } => "link-stalled",
            Self::Halted { .. } => "halted",
            Self::Tls(_) => "tls",
            Self::Io { .. } => "link-broken",
        }
    }
}
