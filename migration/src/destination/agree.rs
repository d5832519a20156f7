//! Does the source's guest fit?

use std::sync::Arc;

use tern_schema::ChosenVersion;

use super::Attempt;
use super::handover::Prepared;
use super::load::Loading;
use super::lobby::{self, Gathered};
use super::vm_failed;
use crate::error::{MigrationError, ProtocolError};
use crate::handover::destination::Event;
use crate::known::KnownIndex;
use crate::ram::proof::PROOF_XXH3;
use crate::ram::{DIGEST_BYTES, DIGESTS_PER_FRAME, ENCODINGS_MASK, Encoding, PageDigest, RamView};
use crate::stats::{Proof, Status};
use crate::vm::{Aspect, DestinationVm, VmFacts};
use crate::wire::{
    Agreed as AgreedMessage, CHANNELS_MAX, Compared, FrameType, Offer, Peer, Wire, compare, refusal,
};

/// The source has introduced itself.
pub(super) struct Connected<'s, V> {
    pub(super) attempt: &'s mut Attempt<V>,
    pub(super) ram: &'s Arc<RamView>,
    pub(super) peer: Peer,
}

/// The guest will be taken.
pub(super) struct Agreed<'s, V> {
    attempt: &'s mut Attempt<V>,
    ram: &'s Arc<RamView>,
    encodings: u64,
    known: Option<Arc<KnownIndex>>,
    further: Gathered,
}

impl<'s, V: DestinationVm> Connected<'s, V> {
    pub(super) fn agree(self) -> Result<Agreed<'s, V>, MigrationError> {
        let Self { attempt, ram, peer } = self;
        attempt.report.session.clone_from(&peer.session);
        attempt.report.peer_tern_version.clone_from(&peer.tern_version);
        attempt.report.tls = attempt.wire.tls();
        attempt.report.protocol_version = peer.protocol_version;
        let offer: Offer = attempt.wire.expect(FrameType::Offer, "waiting for the offer")?;
        attempt.report.downtime_limit_ms = offer.downtime_limit_ms;
        attempt.report.max_bandwidth_bytes_per_s = offer.max_bandwidth_bytes_per_s;
        attempt.report.max_total_time_ms = offer.max_total_time_ms;
        let one = attempt.acceptor.as_ref().map_or(Some("it was made by others"), |from| from.only_one());
        let Compared { mut aspects, chosen } = compare_all(&attempt.vm, &offer.facts, offer.page_bytes)?;
        aspects.extend(postcopy(&attempt.vm, &offer, one));
        let sections = refusal(&aspects).map_or(Ok(chosen), Err)?;
        let most_channels = match &attempt.acceptor {
            Some(acceptor) if acceptor.only_one().is_none() => CHANNELS_MAX,
            _ => 1,
        };
        let known = known_for(attempt, &offer)?;
        let known_pages = known.as_ref().map_or(0, |known| known.digests(pages(ram)).len() as u64);
        let agreed = terms(&offer, peer.protocol_version, sections, most_channels, known_pages);
        let hashes = agreed.proofs.is_some_and(|proofs| proofs != 0);
        attempt.report.proof = hashes.then(Proof::default);
        attempt.wire.send(FrameType::Agreed, &agreed, "agreeing")?;
        if let Some(known) = &known {
            tell_known(&mut attempt.wire, known.digests(known_pages))?;
        }
        let wanted = (agreed.channels.unwrap_or(1), agreed.postcopy == Some(true));
        let further = gather(attempt, &peer, wanted)?;
        attempt.report.setup_us = attempt.control.elapsed_us();
        Ok(Agreed { attempt, ram, encodings: agreed.encodings, known, further })
    }
}

/// How the guest will come if it fits.
pub(super) fn terms(
    offer: &Offer,
    protocol_version: u32,
    sections: Vec<ChosenVersion>,
    most_channels: u32,
    known_pages: u64,
) -> AgreedMessage {
    let known_pages =
        Some(known_pages).filter(|pages| *pages > 0 && offer.encodings & Encoding::Known.bit() != 0);
    let readable =
        if known_pages.is_some() { ENCODINGS_MASK } else { ENCODINGS_MASK & !Encoding::Known.bit() };
    AgreedMessage {
        protocol_version,
        encodings: offer.encodings & readable,
        proofs: offer.proofs.map(|proofs| proofs & PROOF_XXH3),
        sections,
        channels: offer.channels.map(|channels| channels.clamp(1, most_channels)),
        postcopy: offer.postcopy,
        known_pages,
    }
}

/// Whether post-copy is possible, if the source asks for it. `one`: why there can't be a second connection, if that is so.
pub(super) fn postcopy<V: DestinationVm>(vm: &V, offer: &Offer, one: Option<&str>) -> Option<Aspect> {
    const NAMES: (&str, &str) = ("postcopy", "post-copy");
    const WANTED: &str = "asks for it";
    if offer.postcopy != Some(true) {
        return None;
    }
    let more = one.map(|reason| {
        let remedy = "let the destination wait at an address where it can be reached again, or migrate with \
                      postcopy=off";
        (format!("has one connection: {reason}"), remedy.to_owned())
    });
    let able = || {
        let error = vm_failed("post-copy")(vm.can_page_in().err()?);
        Some(("can't do it".to_owned(), error.chain().split_off(1).join(": ")))
    };
    Some(match more.or_else(able) {
        Some((has, remedy)) => Aspect::differs(NAMES.0, NAMES.1, WANTED, has, remedy),
        None => Aspect::fits(NAMES.0, NAMES.1, WANTED, "can do it"),
    })
}

/// What the source needn't send, if it can be told so.
fn known_for<V>(attempt: &mut Attempt<V>, offer: &Offer) -> Result<Option<Arc<KnownIndex>>, MigrationError> {
    let Some(known) = attempt.known.clone() else { return Ok(None) };
    let found = if offer.encodings & Encoding::Known.bit() == 0 {
        Err("no page is known: the source's release can't use it".to_owned())
    } else {
        known.ready(&attempt.control)?
    };
    found.map(Some).or_else(|reason| {
        attempt.report.warnings.push(reason);
        Ok(None)
    })
}

pub(super) fn pages(ram: &RamView) -> u64 {
    ram.region_pages().sum()
}

/// Tells the source which pages it needn't send.
fn tell_known(
    wire: &mut Wire,
    digests: impl ExactSizeIterator<Item = PageDigest>,
) -> Result<(), MigrationError> {
    let mut digests = digests.peekable();
    while digests.peek().is_some() {
        let fill = |out: &mut Vec<u8>| {
            out.reserve(DIGESTS_PER_FRAME * DIGEST_BYTES);
            digests.by_ref().take(DIGESTS_PER_FRAME).for_each(|digest| out.extend(digest.to_bytes()));
        };
        wire.send_with(FrameType::Known, 0, "telling which pages are known", fill)?;
    }
    Ok(())
}

/// The further connections.
fn gather<V>(attempt: &mut Attempt<V>, peer: &Peer, wanted: (u32, bool)) -> Result<Gathered, MigrationError> {
    let Some(acceptor) = &attempt.acceptor else { return Ok(Gathered::default()) };
    let (further, strangers) = lobby::gather(&**acceptor, &attempt.control, &mut attempt.wire, peer, wanted)?;
    attempt.report.strangers += strangers.count;
    attempt.report.warnings.extend(strangers.texts);
    Ok(further)
}

/// What the engine compares, and then what the machine does. An error: it can't be compared.
pub(super) fn compare_all<V: DestinationVm>(
    vm: &V,
    source: &VmFacts,
    page_bytes: u32,
) -> Result<Compared, MigrationError> {
    let VmFacts { sections, memory, .. } = source;
    let counts =
        [("sections", sections.len(), tern_schema::SECTIONS_MAX), ("regions", memory.len(), 1 << 10)];
    for (field, found, max) in counts {
        if found > max {
            let (found, max) = (found as u64, max as u64);
            return Err(ProtocolError::Limit { frame: "offer", field, found, max }.into());
        }
    }
    let mut compared = compare(source, page_bytes, &vm.facts());
    match vm.check(source).map_err(vm_failed("comparing the two machines")) {
        Ok(aspects) => compared.aspects.extend(aspects),
        Err(error) => {
            let text = error.chain().split_off(1).join(": ");
            let remedy = "use releases that are closer to each other";
            compared.aspects.push(Aspect::differs("platform", "platform", "not compared", text, remedy));
        }
    }
    Ok(compared)
}

/// The version in which each section will come, or a refusal that lists everything that differs.
pub(super) fn check<V: DestinationVm>(
    vm: &V,
    source: &VmFacts,
    page_bytes: u32,
) -> Result<Vec<ChosenVersion>, MigrationError> {
    let Compared { aspects, chosen } = compare_all(vm, source, page_bytes)?;
    refusal(&aspects).map_or(Ok(chosen), Err)
}

impl<'s, V: DestinationVm> Agreed<'s, V> {
    pub(super) fn load(self) -> Result<Prepared<'s, V>, MigrationError> {
        let Self { attempt, ram, encodings, known, further } = self;
        attempt.step(Event::Agreed)?;
        attempt.set_status(Status::Active);
        Loading::new(attempt, ram, encodings, known, further)?.run()
    }
}
