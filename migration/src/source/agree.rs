//! Coming to terms with the other end, and the start of the dirty log.

use tern_schema::StateSet;

use super::carrier::{Proposal, Terms};
use super::rounds::Rounds;
use super::{Attempt, vm_failed};
use crate::config::Parameters;
use crate::dirty::DirtyBitmap;
use crate::error::MigrationError;
use crate::handover::source::Event;
use crate::ram::proof::PROOF_XXH3;
use crate::ram::{ENCODINGS_PLAIN, Encoding, RamView, compress};
use crate::stats::{Proof, Status};
use crate::vm::{PAGE_BYTES, SourceVm, VmFacts};
use crate::wire::Offer;

/// Nothing is known of the peer yet.
pub(super) struct Connected<'s, 'a, V> {
    pub(super) attempt: &'s mut Attempt<'a, V>,
    pub(super) ram: &'s RamView,
}

/// The peer will take the guest.
pub(super) struct Agreed<'s, 'a, V> {
    attempt: &'s mut Attempt<'a, V>,
    ram: &'s RamView,
    terms: Terms,
}

impl<'s, 'a, V: SourceVm> Connected<'s, 'a, V> {
    pub(super) fn agree(self) -> Result<Agreed<'s, 'a, V>, MigrationError> {
        let Self { attempt, ram } = self;
        attempt.report.memory_bytes = ram.region_pages().sum::<u64>() * PAGE_BYTES;
        attempt.report.remaining_bytes = Some(attempt.report.memory_bytes);
        // `migrate_to` has said so before it connected: one event for one change.
        if attempt.control.report().status == Status::Setup {
            attempt.report.status = Status::Setup;
        } else {
            attempt.set_status(Status::Setup);
        }
        let limits = attempt.live.get();
        let offer = offer(attempt.vm.facts(), &limits);
        let configuration = attempt.vm.configuration();
        let proposal = Proposal { offer, configuration, ram: attempt.vm.ram() };
        let terms = attempt.carrier.agree(proposal, &mut attempt.report)?;
        attempt.round_trip_us = terms.round_trip_us;
        attempt.report.proof = terms.hashes.then(Proof::default);
        attempt.report.setup_us = attempt.control.elapsed_us();
        Ok(Agreed { attempt, ram, terms })
    }
}

/// What is to be moved, and all the ways in which that can be done.
pub(super) fn offer(facts: VmFacts, limits: &Parameters) -> Offer {
    Offer {
        facts,
        page_bytes: PAGE_BYTES as u32,
        encodings: wanted_encodings(limits),
        downtime_limit_ms: Some(limits.downtime_limit_ms),
        max_bandwidth_bytes_per_s: Some(limits.max_bandwidth_bytes_per_s),
        max_total_time_ms: Some(limits.max_total_time_ms),
        proofs: limits.capabilities.verify.then_some(PROOF_XXH3),
        channels: u32::try_from(limits.channels).ok().filter(|channels| *channels > 1),
        postcopy: limits.may_postcopy().then_some(true),
    }
}

/// All that these parameters ask for.
fn wanted_encodings(parameters: &Parameters) -> u64 {
    let wanted =
        |row: &&compress::Method| parameters.compress == compress::AUTO || parameters.compress == row.name;
    let method = compress::METHODS.iter().filter(wanted).fold(0, |set, row| set | 1 << row.encoding);
    let deltas = if parameters.capabilities.xbzrle { Encoding::Xbzrle.bit() } else { 0 };
    // It is the destination that knows something, or doesn't.
    ENCODINGS_PLAIN | Encoding::Known.bit() | method | deltas
}

impl<'s, 'a, V: SourceVm> Agreed<'s, 'a, V> {
    /// Starts the dirty log. From here on every write is seen.
    pub(super) fn start(self) -> Result<Rounds<'s, 'a, V>, MigrationError> {
        let Self { attempt, ram, terms } = self;
        attempt.step(Event::Agreed)?;
        attempt.set_status(Status::Active);
        attempt.log_started = true;
        let wanted = attempt.live.get().dirty_log_mode();
        let mode = attempt.vm.dirty_log_start(wanted).map_err(vm_failed("starting the dirty log"))?;
        attempt.report.dirty_log = Some(mode);
        let set = terms.sections.map_or_else(StateSet::default, StateSet::choosing);
        let mut pending = DirtyBitmap::new(ram.region_pages());
        // A host clears only what a fetch has reported.
        attempt.vm.dirty_log_fetch(&mut pending).map_err(vm_failed("reading the dirty log"))?;
        pending.set_all();
        Ok(Rounds::new(attempt, ram, pending, terms.postcopy, set))
    }
}
