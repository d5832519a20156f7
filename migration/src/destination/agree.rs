//! Does the source's guest fit?

use super::Attempt;
use super::load::{Loading, Prepared};
use super::vm_failed;
use crate::error::{MigrationError, ProtocolError};
use crate::ram::proof::PROOF_XXH3;
use crate::ram::{ENCODINGS_MASK, RamView};
use crate::stats::{Proof, Status};
use crate::vm::{DestinationVm, VmFacts};
use crate::wire::{Agreed as AgreedMessage, FrameType, Offer, Peer, differences};

/// The source has introduced itself.
pub(super) struct Connected<'s, 'a, V> {
    pub(super) attempt: &'s mut Attempt<'a, V>,
    pub(super) ram: &'s RamView,
    pub(super) peer: Peer,
}

/// The guest will be taken.
pub(super) struct Agreed<'s, 'a, V> {
    attempt: &'s mut Attempt<'a, V>,
    ram: &'s RamView,
}

impl<'s, 'a, V: DestinationVm> Connected<'s, 'a, V> {
    pub(super) fn agree(self) -> Result<Agreed<'s, 'a, V>, MigrationError> {
        let Self { attempt, ram, peer } = self;
        attempt.report.session = peer.session;
        attempt.report.peer_tern_version = peer.tern_version;
        attempt.report.protocol_version = peer.protocol_version;
        let offer: Offer = attempt.wire.expect(FrameType::Offer, "waiting for the offer")?;
        attempt.report.downtime_limit_ms = offer.downtime_limit_ms;
        attempt.report.max_bandwidth_bytes_per_s = offer.max_bandwidth_bytes_per_s;
        attempt.report.max_total_time_ms = offer.max_total_time_ms;
        check(&attempt.vm, &offer.facts, offer.page_bytes)?;
        let (protocol_version, encodings) = (peer.protocol_version, offer.encodings & ENCODINGS_MASK);
        let proofs = offer.proofs.map(|proofs| proofs & PROOF_XXH3);
        let hashes = proofs.is_some_and(|proofs| proofs != 0);
        attempt.report.proof = hashes.then(Proof::default);
        let agreed = AgreedMessage { protocol_version, encodings, proofs };
        attempt.wire.send(FrameType::Agreed, &agreed, "agreeing")?;
        attempt.report.setup_us = attempt.control.elapsed_us();
        Ok(Agreed { attempt, ram })
    }
}

/// What the engine compares, and then what the machine does; everything that differs is in one text.
pub(super) fn check<V: DestinationVm>(
    vm: &V,
    source: &VmFacts,
    page_bytes: u32,
) -> Result<(), MigrationError> {
    let VmFacts { sections, memory, .. } = source;
    let counts =
        [("sections", sections.len(), tern_schema::SECTIONS_MAX), ("regions", memory.len(), 1 << 10)];
    for (field, found, max) in counts {
        if found > max {
            let (found, max) = (found as u64, max as u64);
            return Err(ProtocolError::Limit { frame: "offer", field, found, max }.into());
        }
    }
    let ours = differences(source, page_bytes, &vm.facts());
    let compared = vm.check(source).map_err(vm_failed("comparing the two machines"));
    let theirs = compared.map_or_else(
        |error| vec![("platform".to_owned(), error.chain().split_off(1).join(": "))],
        |aspects| {
            let differing = aspects.into_iter().filter(|aspect| !aspect.is_ok());
            differing.map(|aspect| (aspect.code.clone(), aspect.text())).collect()
        },
    );
    let ours = ours.map(|(code, text)| (code.to_owned(), text));
    let found: Vec<(String, String)> = ours.into_iter().chain(theirs).collect();
    let Some((code, _)) = found.first() else { return Ok(()) };
    let text = found.iter().map(|(_, text)| text.as_str()).collect::<Vec<_>>().join("\n");
    Err(MigrationError::Refused { code: code.clone(), text })
}

impl<'s, 'a, V: DestinationVm> Agreed<'s, 'a, V> {
    pub(super) fn load(self) -> Result<Prepared<'s, 'a, V>, MigrationError> {
        let Self { attempt, ram } = self;
        attempt.set_status(Status::Active);
        Loading::new(attempt, ram).run()
    }
}
