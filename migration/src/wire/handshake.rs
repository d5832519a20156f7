//! Who is there, and do the two machines fit together?

use std::fmt::Write as _;
use std::fs::File;
use std::io::{self, Read};

use super::{FrameType, Hello, PROTOCOL_MAX, PROTOCOL_MIN, ROLE_MAIN, TERN_VERSION, Wire};
use crate::error::{LinkError, MigrationError, ProtocolError};
use crate::stats::Side;
use crate::vm::{PAGE_BYTES, SectionOffer, VmFacts};

/// Most differences that a refusal lists.
const DIFFERENCES_MAX: usize = 16;
/// Longest name of the peer's that a text of ours repeats.
const NAME_MAX_CHARS: usize = 64;

/// What the peer said of itself.
#[derive(Debug, Clone)]
pub(crate) struct Peer {
    pub(crate) tern_version: String,
    pub(crate) session: String,
    pub(crate) protocol_version: u32,
}

/// Each side introduces itself, the source first.
pub(crate) fn introduce(wire: &mut Wire<'_>, side: Side) -> Result<Peer, MigrationError> {
    const STATE: &str = "introducing itself";
    match side {
        Side::Source => {
            let session = new_session().map_err(|source| LinkError::Io { state: STATE, source })?;
            send_hello(wire, session)?;
            wire.receive_magic()?;
            let peer: Hello = wire.expect(FrameType::Hello, STATE)?;
            if peer.session != session {
                let (found, expected) = (hex(&peer.session), hex(&session));
                return Err(ProtocolError::Session { found, expected }.into());
            }
            checked(peer)
        }
        Side::Destination => {
            wire.receive_magic()?;
            let peer: Hello = wire.expect(FrameType::Hello, STATE)?;
            send_hello(wire, peer.session)?;
            checked(peer)
        }
    }
}

fn send_hello(wire: &mut Wire<'_>, session: [u8; 16]) -> Result<(), MigrationError> {
    wire.send_magic()?;
    let hello = Hello {
        protocol_min: PROTOCOL_MIN,
        protocol_max: PROTOCOL_MAX,
        tern_version: TERN_VERSION.to_owned(),
        session,
        role: ROLE_MAIN,
        index: 0,
    };
    wire.send(FrameType::Hello, &hello, "introducing itself")
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
    if peer.role != ROLE_MAIN {
        return mismatch("role", peer.role.into(), ROLE_MAIN.into());
    }
    if peer.index != 0 {
        return mismatch("index", peer.index.into(), 0);
    }
    let (tern_version, session) = (readable(&peer.tern_version), hex(&peer.session));
    Ok(Peer { tern_version, session, protocol_version })
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

/// What the engine itself compares, each difference with both sides' values; the code is the first one's.
pub(crate) fn differences(
    source: &VmFacts,
    page_bytes: u32,
    destination: &VmFacts,
) -> Option<(&'static str, String)> {
    let mut found: Vec<(&'static str, String)> = Vec::new();
    let mut compare = |code, what: &str, theirs: String, ours: String, remedy: &str| {
        if theirs != ours {
            found.push((code, format!("{what}: source {theirs}, destination {ours}; {remedy}")));
        }
    };
    let ours = PAGE_BYTES.to_string();
    compare("page-size", "page size in bytes", page_bytes.to_string(), ours, "use the same release");
    let (theirs, ours) = (readable(&source.profile), readable(&destination.profile));
    compare("profile", "machine profile", theirs, ours, "start the destination with the source's profile");
    let (theirs, ours) = (source.cpus.to_string(), destination.cpus.to_string());
    compare("cpus", "vCPUs", theirs, ours, "start the destination with the source's --cpus");
    let (theirs, ours) = (layout(source), layout(destination));
    compare("memory-layout", "memory", theirs, ours, "start the destination with the source's --memory");
    found.extend(section_differences(&source.sections, &destination.sections));
    let (code, _) = found.first()?;
    let more = found.len().saturating_sub(DIFFERENCES_MAX);
    let mut texts: Vec<_> = found.iter().take(DIFFERENCES_MAX).map(|(_, text)| text.clone()).collect();
    if more > 0 {
        texts.push(format!("and {more} more differences"));
    }
    Some((code, texts.join("\n")))
}

fn layout(facts: &VmFacts) -> String {
    let total: u64 = facts.memory.iter().map(|r| r.length_bytes).fold(0, u64::saturating_add);
    let shown = facts.memory.iter().take(DIFFERENCES_MAX);
    let mut out = format!("{total} bytes in {} regions (", facts.memory.len());
    for (index, region) in shown.enumerate() {
        let comma = if index == 0 { "" } else { ", " };
        let _ = write!(out, "{comma}{:#x}+{:#x}", region.gpa, region.length_bytes);
    }
    out + ")"
}

fn section_differences(source: &[SectionOffer], destination: &[SectionOffer]) -> Vec<(&'static str, String)> {
    let name = |s: &SectionOffer| format!("{}#{}", readable(&s.name), s.instance);
    let same = |a: &SectionOffer, b: &SectionOffer| a.name == b.name && a.instance == b.instance;
    let mut found = Vec::new();
    for theirs in source {
        match destination.iter().find(|ours| same(theirs, ours)) {
            None => found.push((
                "section-missing",
                format!(
                    "{}: source has it (version {}), destination has not; give the destination that device",
                    name(theirs),
                    theirs.version
                ),
            )),
            Some(ours) if ours.version != theirs.version => found.push((
                "section-version",
                format!(
                    "{}: source has version {}, destination {}; use releases that are closer",
                    name(theirs),
                    theirs.version,
                    ours.version
                ),
            )),
            Some(_) => {}
        }
    }
    let only_here = destination.iter().filter(|ours| !source.iter().any(|theirs| same(theirs, ours)));
    found.extend(only_here.map(|ours| {
        let text = format!(
            "{}: source has not, destination has it (version {}); start the destination without that device",
            name(ours),
            ours.version
        );
        ("section-missing", text)
    }));
    found
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::vm::MemoryRegion;

    fn facts() -> VmFacts {
        let section = |name: &str, version| SectionOffer {
            name: name.into(),
            instance: 0,
            version,
            oldest: None,
            optional: None,
        };
        VmFacts {
            name: "a".into(),
            profile: "tern-1".into(),
            tern_version: "1".into(),
            cpus: 2,
            memory: vec![MemoryRegion { gpa: 0, length_bytes: 1 << 20 }],
            sections: vec![section("vcpu", 1), section("serial", 1)],
            platform: Vec::new(),
        }
    }

    #[test]
    fn each_difference_is_named_with_both_values() {
        let source = facts();
        assert_eq!(differences(&source, 4096, &facts()), None);
        let mut destination = facts();
        destination.cpus = 4;
        destination.memory[0].length_bytes = 2 << 20;
        destination.sections[0].version = 2;
        destination.sections[1].name = "rtc".into();
        let (code, text) = differences(&source, 16384, &destination).unwrap();
        assert_eq!(code, "page-size");
        for part in [
            "source 16384, destination 4096",
            "vCPUs: source 2, destination 4",
            "source 1048576 bytes in 1 regions (0x0+0x100000), destination 2097152",
            "vcpu#0: source has version 1, destination 2",
            "serial#0: source has it",
            "rtc#0: source has not",
        ] {
            assert!(text.contains(part), "{part} is not in {text}");
        }
    }

    #[test]
    fn a_hello_without_a_common_version_names_both_ranges() {
        let hello = Hello {
            protocol_min: PROTOCOL_MAX + 1,
            protocol_max: PROTOCOL_MAX + 2,
            tern_version: "9\u{1b}[2J".into(),
            session: [0; 16],
            role: ROLE_MAIN,
            index: 0,
        };
        let text = checked(hello).unwrap_err().text();
        assert!(text.contains("speaks 1 to 1") && text.contains("speaks 2 to 3") && !text.contains('\u{1b}'));
    }
}
