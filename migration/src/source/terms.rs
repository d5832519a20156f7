//! What a destination answers before memory moves, read and compared with what was offered.

use tern_schema::ChosenVersion;

use super::carrier::Terms;
use crate::dirty::DirtyBitmap;
use crate::error::{MigrationError, ProtocolError};
use crate::ram::proof::PROOF_XXH3;
use crate::ram::{ENCODINGS_PLAIN, Encoding, KnownSet};
use crate::vm::{MemoryRegion, PAGE_BYTES, SectionOffer};
use crate::wire::{Agreed, FLAG_LAST, FrameType, Offer, PageSetReader, Wire};

/// What the destination's answer means; only what was offered can be chosen.
pub(super) fn terms(offer: &Offer, answer: &Agreed, protocol_version: u32) -> Result<Terms, ProtocolError> {
    let (proofs, postcopy) = (answer.proofs.unwrap_or(0), answer.postcopy.unwrap_or(false));
    let known_pages = answer.known_pages.unwrap_or(0);
    let unagreed = if answer.encodings & Encoding::Known.bit() == 0 { known_pages } else { 0 };
    let (offered, channels) = (offer.channels.unwrap_or(1), u64::from(answer.channels.unwrap_or(1).max(1)));
    let chosen = [
        ("protocol version", u64::from(answer.protocol_version), u64::from(protocol_version)),
        ("encodings that were not offered", answer.encodings & !offer.encodings, 0),
        ("encodings that are always there", answer.encodings & ENCODINGS_PLAIN, ENCODINGS_PLAIN),
        ("connections beyond what was offered", channels.saturating_sub(offered.into()), 0),
        ("proofs that were not offered", proofs & !offer.proofs.unwrap_or(0), 0),
        ("post-copy", u64::from(postcopy && offer.postcopy != Some(true)), 0),
        ("known pages without their encoding", unagreed, 0),
    ];
    for (field, found, expected) in chosen {
        if found != expected {
            return Err(ProtocolError::Mismatch { frame: "agreed", field, found, expected });
        }
    }
    let all_pages = pages(&offer.facts.memory);
    if known_pages > all_pages {
        let (frame, field) = ("agreed", "known pages");
        return Err(ProtocolError::Limit { frame, field, found: known_pages, max: all_pages });
    }
    check_versions(&offer.facts.sections, &answer.sections)?;
    let sections = Some(answer.sections.clone());
    let (hashes, encodings) = (proofs & PROOF_XXH3 != 0, answer.encodings);
    Ok(Terms { round_trip_us: 0, hashes, encodings, postcopy, known_pages, sections })
}

/// What of `missing` the destination lacks.
pub(super) fn hear_missing(wire: &mut Wire, missing: &DirtyBitmap) -> Result<DirtyBitmap, MigrationError> {
    const STATE: &str = "hearing which pages are missing";
    let regions = 0..missing.regions();
    let mut told = PageSetReader::new(regions.map(|region| missing.pages(region)));
    loop {
        let header = wire.receive(STATE)?;
        if header.frame != FrameType::Missing {
            return Err(wire.unexpected(&header, STATE, "missing"));
        }
        told.read(wire.payload())?;
        if header.flags & FLAG_LAST != 0 {
            break;
        }
    }
    let left = told.finish();
    let mut more = left.clone();
    more.remove(missing);
    for region in 0..more.regions() {
        if let (Some(run), Ok(region)) = (more.runs(region).first(), u16::try_from(region)) {
            return Err(ProtocolError::NotMissing { frame: "missing", region, page: run.start }.into());
        }
    }
    Ok(left)
}

fn pages(memory: &[MemoryRegion]) -> u64 {
    memory.iter().fold(0, |pages, region| pages.saturating_add(region.length_bytes / PAGE_BYTES))
}

/// What the destination has, if it has something.
pub(super) fn receive_known(wire: &mut Wire, pages: u64) -> Result<Option<KnownSet>, MigrationError> {
    const STATE: &str = "hearing which pages the destination knows";
    let mut known = KnownSet::default();
    while known.len() < pages {
        let header = wire.receive(STATE)?;
        if header.frame != FrameType::Known {
            return Err(wire.unexpected(&header, STATE, "known"));
        }
        known.add(wire.payload(), pages)?;
    }
    Ok((pages > 0).then_some(known))
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
