//! The answer to a source that only asks (`migrate --check`): all that was compared, and an echo for its
//! measurements. The machine is looked at and stays with whoever waits for a real source.

use std::sync::Arc;
use std::time::Duration;

use super::agree::{compare_all, pages, postcopy, terms};
use crate::error::{LinkError, MigrationError, ProtocolError};
use crate::known::KnownPages;
use crate::ram::RamView;
use crate::vm::{Aspect, DestinationVm};
use crate::wire::{
    Answer, CHANNELS_MAX, Compared, Echo, FLAG_ANSWER, FrameType, Offer, PROBE_BYTES_MAX, Peer, Wire,
};

/// A real source may be waiting meanwhile: longer than this nobody is answered.
const TIME_MAX: Duration = Duration::from_secs(10);
/// Longest silence of one who asks.
const SILENCE_MAX: Duration = Duration::from_secs(3);

/// Answers until the source has heard enough. Returns what differs.
pub(super) fn answer<V: DestinationVm>(
    vm: &V,
    known: Option<&Arc<KnownPages>>,
    wire: &mut Wire,
    peer: &Peer,
) -> Result<Vec<Aspect>, MigrationError> {
    const STATE: &str = "answering a check";
    wire.limit_time(SILENCE_MAX, TIME_MAX);
    let offer: Offer = wire.expect(FrameType::Offer, STATE)?;
    let Compared { mut aspects, chosen } = compare_all(vm, &offer.facts, offer.page_bytes)?;
    aspects.extend(postcopy(vm, &offer, None));
    // Nobody waits for files that are still read.
    let known = known.and_then(|known| known.now().ok());
    let known_pages = known.map_or(0, |known| known.digests(pages(&RamView::new(vm.ram()))).len() as u64);
    let agreed = terms(&offer, peer.protocol_version, chosen, CHANNELS_MAX, known_pages);
    let answer = Answer { aspects, agreed };
    wire.send(FrameType::Answer, &answer, STATE)?;
    let (mut bytes, mut all) = (0, 0);
    loop {
        let header = match wire.receive(STATE) {
            Ok(header) => header,
            Err(MigrationError::Link(LinkError::Closed { .. })) => break,
            Err(error) => return Err(error),
        };
        if header.frame != FrameType::Probe {
            return Err(wire.unexpected(&header, STATE, "probe"));
        }
        bytes += u64::from(header.length);
        all += u64::from(header.length);
        if all > PROBE_BYTES_MAX {
            let (frame, field, found, max) = ("probe", "bytes of all", all, PROBE_BYTES_MAX);
            return Err(ProtocolError::Limit { frame, field, found, max }.into());
        }
        if header.flags & FLAG_ANSWER != 0 {
            wire.send(FrameType::Echo, &Echo { bytes }, STATE)?;
            bytes = 0;
        }
    }
    Ok(answer.aspects.into_iter().filter(|aspect| !aspect.is_ok()).collect())
}
