//! Who is there: each side introduces itself.

use std::fmt::Write as _;
use std::fs::File;
use std::io::{self, Read};

use super::{CHANNELS_MAX, FrameType, Hello, PROTOCOL_MAX, PROTOCOL_MIN, Purpose, TERN_VERSION, Wire};
use crate::error::{LinkError, MigrationError, ProtocolError};
use crate::handover::{Answer, Register};

/// Longest name of the peer's that a text of ours repeats.
const NAME_MAX_CHARS: usize = 64;

/// What the peer said of itself.
#[derive(Debug, Clone)]
pub(crate) struct Peer {
    /// To a source in doubt.
    pub(crate) answer: Answer,
    pub(crate) tern_version: String,
    pub(crate) session: String,
    pub(crate) protocol_version: u32,
    pub(crate) purpose: Purpose,
    /// The session as it is on the wire.
    pub(crate) session_id: SessionId,
    /// Which of several with this purpose.
    pub(crate) index: u32,
}

/// Number of a migration.
pub(crate) type SessionId = [u8; 16];

const STATE: &str = "introducing itself";

/// The source introduces itself and hears who is there.
pub(crate) fn introduce(wire: &mut Wire, purpose: Purpose) -> Result<Peer, MigrationError> {
    let session = new_session().map_err(|source| LinkError::Io { state: STATE, source })?;
    introduce_again(wire, session, purpose)
}

/// Likewise, for something that has to do with an earlier session.
pub(crate) fn introduce_again(
    wire: &mut Wire,
    session: SessionId,
    purpose: Purpose,
) -> Result<Peer, MigrationError> {
    send_hello(wire, session, purpose, 0, None)?;
    hear_answer(wire, session, purpose, 0)
}

/// The source introduces a further connection of its migration; [`joined`] hears the answer. Index 0 is the one for
/// urgent pages.
pub(crate) fn join(wire: &mut Wire, session: SessionId, index: u32) -> Result<(), MigrationError> {
    send_hello(wire, session, further(index), index, None)
}

/// The destination has taken that connection.
pub(crate) fn joined(wire: &mut Wire, session: SessionId, index: u32) -> Result<(), MigrationError> {
    hear_answer(wire, session, further(index), index).map(drop)
}

/// What a further connection is for.
fn further(index: u32) -> Purpose {
    if index == 0 { Purpose::Urgent } else { Purpose::Channel }
}

fn hear_answer(
    wire: &mut Wire,
    session: SessionId,
    purpose: Purpose,
    index: u32,
) -> Result<Peer, MigrationError> {
    wire.receive_magic()?;
    let peer: Hello = wire.expect(FrameType::Hello, STATE)?;
    if peer.session != session {
        let (found, expected) = (hex(&peer.session), hex(&session));
        return Err(ProtocolError::Session { found, expected }.into());
    }
    let peer = checked(peer)?;
    if peer.purpose != purpose {
        // Such as a release that knows nothing but migrations.
        return Err(ProtocolError::Purpose { peer_tern: peer.tern_version }.into());
    }
    if peer.index != index {
        let (frame, field, found, expected) = ("hello", "index", peer.index.into(), index.into());
        return Err(ProtocolError::Mismatch { frame, field, found, expected }.into());
    }
    Ok(peer)
}

/// The destination hears who is there and introduces itself, with the purpose that it has heard.
/// A source in doubt has its answer from `register`.
pub(crate) fn greet(wire: &mut Wire, register: &Register) -> Result<Peer, MigrationError> {
    wire.receive_magic()?;
    let peer: Hello = wire.expect(FrameType::Hello, STATE)?;
    let purpose = Purpose::from_role(peer.role).unwrap_or(Purpose::Migration);
    let asks = matches!(purpose, Purpose::Inquiry | Purpose::Recover);
    let answer = asks.then(|| register.answer(&hex(&peer.session)));
    send_hello(wire, peer.session, purpose, peer.index, answer)?;
    checked(peer)
}

fn send_hello(
    wire: &mut Wire,
    session: SessionId,
    purpose: Purpose,
    index: u32,
    answer: Option<Answer>,
) -> Result<(), MigrationError> {
    wire.send_magic()?;
    let hello = Hello {
        protocol_min: PROTOCOL_MIN,
        protocol_max: PROTOCOL_MAX,
        tern_version: TERN_VERSION.to_owned(),
        session,
        role: purpose as u8,
        index,
        answer: answer.map(Answer::number),
    };
    wire.send(FrameType::Hello, &hello, STATE)
}

fn checked(peer: Hello) -> Result<Peer, MigrationError> {
    let protocol_version = PROTOCOL_MAX.min(peer.protocol_max);
    if protocol_version < PROTOCOL_MIN || protocol_version < peer.protocol_min {
        return Err(MigrationError::Version {
            here_tern: TERN_VERSION,
            here_min: PROTOCOL_MIN,
            here_max: PROTOCOL_MAX,
            peer_tern: readable(&peer.tern_version),
            peer_min: peer.protocol_min,
            peer_max: peer.protocol_max,
        });
    }
    let mismatch = |field, found: u64, expected: u64| {
        Err(ProtocolError::Mismatch { frame: "hello", field, found, expected }.into())
    };
    let Some(purpose) = Purpose::from_role(peer.role) else {
        return mismatch("role", peer.role.into(), Purpose::Migration as u64);
    };
    let most = if purpose == Purpose::Channel { CHANNELS_MAX.saturating_sub(1) } else { 0 };
    let least = u32::from(purpose == Purpose::Channel);
    if !(least..=most).contains(&peer.index) {
        return mismatch("index", peer.index.into(), most.into());
    }
    let (tern_version, session) = (readable(&peer.tern_version), hex(&peer.session));
    let (session_id, index) = (peer.session, peer.index);
    let answer = peer.answer.and_then(Answer::from_number).unwrap_or(Answer::Unknown);
    Ok(Peer { answer, tern_version, session, protocol_version, purpose, session_id, index })
}

fn new_session() -> io::Result<[u8; 16]> {
    let mut session = [0; 16];
    File::open("/dev/urandom")?.read_exact(&mut session)?;
    Ok(session)
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut out, byte| {
        let _ = write!(out, "{byte:02x}");
        out
    })
}

/// A text of the peer's that is safe on a terminal.
pub(super) fn readable(text: &str) -> String {
    text.chars().take(NAME_MAX_CHARS).flat_map(char::escape_default).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_hello_without_a_common_version_names_both_ranges() {
        let hello = Hello {
            protocol_min: PROTOCOL_MAX + 1,
            protocol_max: PROTOCOL_MAX + 2,
            tern_version: "9\u{1b}[2J".into(),
            session: [0; 16],
            role: Purpose::Migration as u8,
            index: 0,
            answer: None,
        };
        let text = checked(hello).unwrap_err().text();
        assert!(text.contains("speaks 1 to 1") && text.contains("speaks 2 to 3") && !text.contains('\u{1b}'));
    }
}
