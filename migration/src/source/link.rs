//! The link: a guest goes to a peer, which takes it over.

use std::sync::Arc;

use tern_schema::ChosenVersion;

use super::carrier::{Carrier, Proposal, Terms};
use crate::channel::Connection;
use crate::control::Control;
use crate::error::{MigrationError, ProtocolError};
use crate::ram::proof::PROOF_XXH3;
use crate::ram::{Batch, ENCODINGS_MASK};
use crate::stats::{Report, Side};
use crate::vm::SectionOffer;
use crate::wire::{
    Agreed, Commit, FLAG_RUNNING, FrameType, Offer, Prepared, Purpose, RoundEnd, Running, Wire, introduce,
};

/// A connection to a destination.
pub(crate) struct Link {
    wire: Wire,
    control: Arc<Control>,
}

impl Link {
    pub(crate) fn new(connection: Connection, control: &Arc<Control>) -> Self {
        Self { wire: Wire::new(connection, Side::Source, control), control: Arc::clone(control) }
    }
}

/// What the destination's answer means; only what was offered can be chosen.
pub(super) fn terms(offer: &Offer, answer: &Agreed, protocol_version: u32) -> Result<Terms, ProtocolError> {
    let proofs = answer.proofs.unwrap_or(0);
    let chosen = [
        ("protocol version", u64::from(answer.protocol_version), u64::from(protocol_version)),
        ("encodings", answer.encodings, ENCODINGS_MASK),
        ("proofs that were not offered", proofs & !offer.proofs.unwrap_or(0), 0),
    ];
    for (field, found, expected) in chosen {
        if found != expected {
            return Err(ProtocolError::Mismatch { frame: "agreed", field, found, expected });
        }
    }
    check_versions(&offer.facts.sections, &answer.sections)?;
    let sections = Some(answer.sections.clone());
    Ok(Terms { round_trip_us: 0, hashes: proofs & PROOF_XXH3 != 0, sections })
}

fn check_versions(offered: &[SectionOffer], chosen: &[ChosenVersion]) -> Result<(), ProtocolError> {
    for ChosenVersion { name, instance, version } in chosen {
        let section = offered.iter().find(|s| s.name == *name && s.instance == *instance);
        let range = section.map_or(0..=0, |s| s.oldest.unwrap_or(s.version)..=s.version);
        if !range.contains(version) {
            let (frame, field, found, max) = ("agreed", "section version", *version, *range.end());
            return Err(ProtocolError::Limit { frame, field, found: found.into(), max: max.into() });
        }
    }
    Ok(())
}

impl Carrier for Link {
    fn gives_away(&self) -> bool {
        true
    }

    fn agree(&mut self, proposal: Proposal<'_>, report: &mut Report) -> Result<Terms, MigrationError> {
        let asked_us = self.control.now_us();
        let peer = introduce(&mut self.wire, Purpose::Migration)?;
        let round_trip_us = self.control.since_us(asked_us);
        report.session = peer.session;
        report.peer_tern_version = peer.tern_version;
        report.protocol_version = peer.protocol_version;
        let offer: Offer = proposal.offer;
        self.wire.send(FrameType::Offer, &offer, "offering the guest")?;
        let answer: Agreed = self.wire.expect(FrameType::Agreed, "waiting for the peer to agree")?;
        Ok(Terms { round_trip_us, ..terms(&offer, &answer, peer.protocol_version)? })
    }

    fn hear(&mut self) -> Result<(), MigrationError> {
        if self.wire.peer_spoke() {
            let state = "sending memory";
            let header = self.wire.receive(state)?;
            return Err(self.wire.unexpected(&header, state, "nothing"));
        }
        Ok(())
    }

    fn pages(&mut self, batch: &mut Batch<'_, '_>) -> Result<(), MigrationError> {
        self.wire.send_pages(batch)
    }

    fn end_round(&mut self, end: &RoundEnd) -> Result<(), MigrationError> {
        self.wire.send(FrameType::RoundEnd, end, "ending a round")?;
        self.wire.epoch = self.wire.epoch.wrapping_add(1);
        Ok(())
    }

    fn state(&mut self, state: &[u8], running: bool) -> Result<u64, MigrationError> {
        let flags = if running { FLAG_RUNNING } else { 0 };
        let fill = |out: &mut Vec<u8>| out.extend_from_slice(state);
        self.wire.send_with(FrameType::State, flags, "sending the state", fill)?;
        let waiting = "waiting for the peer to load the state";
        let prepared: Prepared = self.wire.expect(FrameType::Prepared, waiting)?;
        Ok(prepared.load_us)
    }

    fn commit(&mut self, commit: &Commit, _: &mut Report) -> Result<u64, MigrationError> {
        self.wire.ignore_cancel();
        self.wire.send(FrameType::Commit, commit, "handing the guest over")?;
        let waiting = "waiting for the peer to say that the guest runs";
        let answer: Running = self.wire.expect(FrameType::Running, waiting)?;
        Ok(answer.resume_us)
    }

    fn message_bytes(&self) -> u64 {
        self.wire.message_bytes
    }

    fn last_words(&mut self, error: MigrationError) -> MigrationError {
        self.wire.last_words(error)
    }

    fn abandon(&mut self, error: &MigrationError) {
        self.wire.farewell(error);
    }
}
