//! Handshake: who is there, and does the guest fit?

use std::time::Instant;

use super::rounds::Rounds;
use super::{Attempt, vm_failed};
use crate::dirty::DirtyBitmap;
use crate::error::{MigrationError, ProtocolError};
use crate::ram::{ENCODINGS_MASK, PageSender, RamView};
use crate::stats::{Side, Status};
use crate::vm::{PAGE_BYTES, SourceVm};
use crate::wire::{Agreed as AgreedMessage, FrameType, Offer, introduce};

/// Nothing is known of the peer yet.
pub(super) struct Connected<'s, 'a, V> {
    pub(super) attempt: &'s mut Attempt<'a, V>,
    pub(super) ram: &'s RamView,
}

/// The peer will take the guest.
pub(super) struct Agreed<'s, 'a, V> {
    attempt: &'s mut Attempt<'a, V>,
    ram: &'s RamView,
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
        let asked = Instant::now();
        let peer = introduce(&mut attempt.wire, Side::Source)?;
        attempt.round_trip_us = asked.elapsed().as_micros() as u64;
        attempt.report.session = peer.session;
        attempt.report.peer_tern_version = peer.tern_version;
        attempt.report.protocol_version = peer.protocol_version;
        let facts = attempt.vm.facts();
        let limits = attempt.live.get();
        let offer = Offer {
            facts,
            page_bytes: PAGE_BYTES as u32,
            encodings: ENCODINGS_MASK,
            downtime_limit_ms: Some(limits.downtime_limit_ms),
            max_bandwidth_bytes_per_s: Some(limits.max_bandwidth_bytes_per_s),
            max_total_time_ms: Some(limits.max_total_time_ms),
        };
        attempt.wire.send(FrameType::Offer, &offer, "offering the guest")?;
        let answer: AgreedMessage =
            attempt.wire.expect(FrameType::Agreed, "waiting for the peer to agree")?;
        let chosen = [
            ("protocol version", u64::from(answer.protocol_version), u64::from(peer.protocol_version)),
            ("encodings", answer.encodings, ENCODINGS_MASK),
        ];
        for (field, found, expected) in chosen {
            if found != expected {
                return Err(ProtocolError::Mismatch { frame: "agreed", field, found, expected }.into());
            }
        }
        attempt.report.setup_us = attempt.control.elapsed_us();
        Ok(Agreed { attempt, ram })
    }
}

impl<'s, 'a, V: SourceVm> Agreed<'s, 'a, V> {
    /// Starts the dirty log. From here on every write is seen.
    pub(super) fn start(self) -> Result<Rounds<'s, 'a, V>, MigrationError> {
        let Self { attempt, ram } = self;
        attempt.set_status(Status::Active);
        attempt.undo.log_started = true;
        attempt.vm.dirty_log_start().map_err(vm_failed("starting the dirty log"))?;
        let mut pending = DirtyBitmap::new(ram.region_pages());
        // A host clears only what a fetch has reported.
        attempt.vm.dirty_log_fetch(&mut pending).map_err(vm_failed("reading the dirty log"))?;
        pending.set_all();
        Ok(Rounds::new(attempt, ram, pending, PageSender::new(ram)))
    }
}
