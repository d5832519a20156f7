//! The further connections of a migration: for more memory at once, and for urgent pages.

use std::sync::Arc;
use std::time::Duration;

use crate::channel::{CONNECT_TIMEOUT, Connector};
use crate::control::Control;
use crate::error::{LinkError, MigrationError};
use crate::stats::Side;
use crate::wire::{SessionId, Wire, join, joined};

/// The first connection is looked at so often while another one is waited for.
const LOOK_EVERY: Duration = Duration::from_millis(20);
/// Connections that are opened before an answer is waited for.
const OPENED_AT_ONCE: usize = 8;

/// The connections of a migration but the first.
#[derive(Default)]
pub(super) struct Further {
    /// In the order of their numbers.
    pub(super) channels: Vec<Wire>,
    /// For pages that somebody waits for, in post-copy.
    pub(super) urgent: Option<Wire>,
}

/// Opens all connections but the first: `channels` with that one, and one for urgent pages.
pub(super) fn further(
    connector: &dyn Connector,
    first: &mut Wire,
    session: SessionId,
    (channels, urgent): (u32, bool),
    control: &Arc<Control>,
) -> Result<Further, MigrationError> {
    let numbers: Vec<u32> = (1..channels).chain(urgent.then_some(0)).collect();
    let mut all = Vec::with_capacity(numbers.len());
    // Few at once: the other side looks at so many strangers only.
    for numbers in numbers.chunks(OPENED_AT_ONCE) {
        let begun = all.len();
        for number in numbers {
            let mut wire = Wire::new(connector.connect(control)?, Side::Source, control);
            join(&mut wire, session, *number)?;
            wire.belong_to(first);
            all.push(wire);
        }
        for (number, wire) in numbers.iter().zip(all.iter_mut().skip(begun)) {
            await_answer(first, wire, control)?;
            joined(wire, session, *number)?;
        }
    }
    let urgent = if urgent { all.pop() } else { None };
    Ok(Further { channels: all, urgent })
}

/// Until the other end has said something on a further connection; if it gives up it says so on the first one.
fn await_answer(first: &mut Wire, wire: &mut Wire, control: &Control) -> Result<(), MigrationError> {
    const STATE: &str = "opening further connections";
    let began_us = control.now_us();
    while !wire.peer_speaks_within(LOOK_EVERY) {
        control.check(STATE)?;
        if first.peer_spoke() {
            let header = first.receive(STATE)?;
            return Err(first.unexpected(&header, STATE, "nothing"));
        }
        if control.since_us(began_us) > CONNECT_TIMEOUT.as_micros() as u64 {
            let timeout_ms = CONNECT_TIMEOUT.as_millis() as u64;
            return Err(LinkError::Stalled { state: STATE, timeout_ms }.into());
        }
    }
    Ok(())
}
