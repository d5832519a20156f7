//! `migrate --check`: would the guest fit there, and how far away is it? The handshake of a migration and a few
//! measurements, with neither machine touched: this side needs only what its machine says of itself.

use std::sync::Arc;

use serde::Serialize;
use tern_schema::ChosenVersion;

use super::{agree, terms};
use crate::channel::{Address, Connector, Security, Uri};
use crate::config::Parameters;
use crate::config::legal::Peer;
use crate::control::Control;
use crate::error::{MigrationError, ProtocolError};
use crate::policy::link::rate;
use crate::ram::proof::PROOF_XXH3;
use crate::ram::{ENCODINGS_MASK, encoding_names};
use crate::stats::Side;
use crate::vm::{Aspect, VmFacts};
use crate::wire::{
    Agreed, Answer, CHANNELS_MAX, Echo, FLAG_ANSWER, FrameType, Offer, PROBE_BYTES_MAX, Purpose, Wire,
    introduce,
};

/// Code of the aspect of post-copy.
const POSTCOPY: &str = "postcopy";
/// Questions whose answers are timed.
const ROUND_TRIPS: usize = 9;
/// The first measurement of bandwidth, to know how long the second may be.
const FIRST_PROBE_BYTES: u64 = 256 << 10;
/// How long the second shall take.
const PROBE_TIME_US: u64 = 200_000;
const PIECE_BYTES: usize = 64 << 10;
/// The measurements stay below what the destination takes, with the first one in front.
const PROBE_MOST_BYTES: u64 = PROBE_BYTES_MAX / 2;

/// What a check has found.
#[derive(Debug, Clone, Serialize)]
pub struct CheckReport {
    /// Where the destination is.
    pub uri: String,
    /// The guest can run there, as far as can be known before it moves.
    pub fits: bool,
    /// Everything that was compared, in an order for people.
    pub aspects: Vec<Aspect>,
    /// The destination's release.
    pub peer_tern_version: String,
    /// Protocol version that both would speak.
    pub protocol_version: u32,
    /// In which version each part of the machine would be sent; those that the destination lacks are missing.
    pub sections: Vec<SectionChoice>,
    /// How pages may be written.
    pub encodings: Vec<&'static str>,
    /// Memory and state would be proven equal at the switch.
    pub proof: bool,
    /// How long an answer takes: the median of several.
    pub round_trip_us: u64,
    /// What the link carried in a fraction of a second, with nothing else going on.
    pub link_bytes_per_s: u64,
    /// How long all of this took.
    pub total_us: u64,
    /// All that the destination could do for this guest, asked for or not.
    pub peer: Peer,
}

/// The version in which a part of the machine would be sent.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct SectionChoice {
    /// Section's name.
    pub name: String,
    /// Which of several equal parts.
    pub instance: u32,
    /// The version.
    pub version: u16,
}

impl From<ChosenVersion> for SectionChoice {
    fn from(ChosenVersion { name, instance, version }: ChosenVersion) -> Self {
        Self { name, instance, version }
    }
}

/// Asks the destination at `uri` whether the guest of a machine with these `facts` could run there, and measures
/// the way. An error: it can't be asked. That it doesn't fit is no error. Blocks; `control` can cancel it.
pub fn check(
    facts: VmFacts,
    uri: &Uri,
    parameters: &Parameters,
    control: &Arc<Control>,
) -> Result<CheckReport, MigrationError> {
    let mut wire =
        Wire::new(Address::new(uri, Security::of(parameters)).connect(control)?, Side::Source, control);
    let result = ask(facts, uri, parameters, &mut wire, control);
    control.cancel.close();
    result.map(|report| CheckReport { total_us: control.elapsed_us(), ..report }).map_err(|error| {
        let error = wire.last_words(error);
        wire.farewell(&error);
        error
    })
}

fn ask(
    facts: VmFacts,
    uri: &Uri,
    parameters: &Parameters,
    wire: &mut Wire,
    control: &Control,
) -> Result<CheckReport, MigrationError> {
    let peer = introduce(wire, Purpose::Check)?;
    let wanted = agree::offer(facts, parameters);
    let offer = whole(&wanted);
    wire.send(FrameType::Offer, &offer, "asking whether the guest fits")?;
    let Answer { aspects, agreed } =
        wire.expect(FrameType::Answer, "waiting for what the peer thinks of it")?;
    let terms = terms::terms(&offer, &agreed, peer.protocol_version)?;
    let mut trips = [0; ROUND_TRIPS];
    for trip in &mut trips {
        *trip = probe(wire, control, 0)?;
    }
    trips.sort_unstable();
    let mut aspects: Vec<Aspect> = aspects.iter().map(Aspect::readable).collect();
    let peer_can = peer_can(&agreed, &aspects, peer.tern_version.clone());
    // What wasn't asked for is nothing that could prevent it.
    aspects.retain(|aspect| aspect.code != POSTCOPY || wanted.postcopy.is_some());
    Ok(CheckReport {
        uri: uri.to_string(),
        fits: aspects.iter().all(Aspect::is_ok),
        aspects,
        peer_tern_version: peer.tern_version,
        protocol_version: peer.protocol_version,
        sections: agreed.sections.into_iter().map(SectionChoice::from).collect(),
        encodings: encoding_names(agreed.encodings & wanted.encodings),
        proof: terms.hashes && wanted.proofs.is_some(),
        round_trip_us: trips.get(ROUND_TRIPS / 2).copied().unwrap_or(0),
        link_bytes_per_s: measure(wire, control)?,
        total_us: 0,
        peer: peer_can,
    })
}

/// The offer with everything in it that this build can do.
fn whole(wanted: &Offer) -> Offer {
    Offer {
        encodings: ENCODINGS_MASK,
        proofs: Some(PROOF_XXH3),
        channels: Some(CHANNELS_MAX),
        postcopy: Some(true),
        ..wanted.clone()
    }
}

fn peer_can(agreed: &Agreed, aspects: &[Aspect], tern_version: String) -> Peer {
    let postcopy = aspects.iter().find(|aspect| aspect.code == POSTCOPY && !aspect.is_ok());
    let unknown = || ("its release does not have it".to_owned(), "take a newer release there".to_owned());
    let postcopy = match postcopy {
        Some(aspect) => Some((aspect.destination.clone(), aspect.remedy.clone().unwrap_or_default())),
        None => (agreed.postcopy != Some(true)).then(unknown),
    };
    Peer {
        tern_version,
        encodings: encoding_names(agreed.encodings),
        channels: agreed.channels.unwrap_or(1),
        proof: agreed.proofs.is_some_and(|proofs| proofs != 0),
        postcopy,
        known_pages: agreed.known_pages.unwrap_or(0),
    }
}

/// Bytes a second: once with little, to see how much makes a good measurement.
fn measure(wire: &mut Wire, control: &Control) -> Result<u64, MigrationError> {
    let first = rate(FIRST_PROBE_BYTES, probe(wire, control, FIRST_PROBE_BYTES)?);
    let bytes = (u128::from(first) * u128::from(PROBE_TIME_US) / 1_000_000) as u64;
    let bytes = bytes.clamp(FIRST_PROBE_BYTES, PROBE_MOST_BYTES);
    Ok(rate(bytes, probe(wire, control, bytes)?))
}

/// Sends so many bytes; microseconds until the peer says that it has them.
fn probe(wire: &mut Wire, control: &Control, bytes: u64) -> Result<u64, MigrationError> {
    const STATE: &str = "measuring the link";
    let piece = [0; PIECE_BYTES];
    let started_us = control.now_us();
    let mut left = bytes;
    loop {
        let now = left.min(PIECE_BYTES as u64);
        left -= now;
        let flags = if left == 0 { FLAG_ANSWER } else { 0 };
        let piece = piece.get(..now as usize).unwrap_or_default();
        wire.send_with(FrameType::Probe, flags, STATE, |out| out.extend_from_slice(piece))?;
        if left == 0 {
            break;
        }
    }
    let echo: Echo = wire.expect(FrameType::Echo, STATE)?;
    if echo.bytes != bytes {
        let (frame, field, found) = ("echo", "bytes", echo.bytes);
        return Err(ProtocolError::Mismatch { frame, field, found, expected: bytes }.into());
    }
    Ok(control.since_us(started_us))
}
