//! Where an arrival waits for its source: a connection that breaks is made anew by the source, whichever side has noticed.

use std::sync::atomic::Ordering;
use std::sync::{Arc, MutexGuard, PoisonError};
use std::time::Duration;

use super::arrival::Shared;
use super::lobby::{self, Lobby};
use crate::channel::{Acceptor, Connection};
use crate::control::{Control, Unobserved};
use crate::dirty::DirtyBitmap;
use crate::error::MigrationError;
use crate::stats::{Side, Status};
use crate::wire::{FLAG_LAST, FrameType, Peer, Purpose, Wire, encode_page_set, greet};

/// The report is kept fresh so often, and a break is noticed by a person within this.
const LOOK_EVERY: Duration = Duration::from_millis(100);

/// Looks after an arrival until the source knows that all is here, or it is called off. Several threads may, each where
/// somebody can come.
pub(super) fn attend(shared: &Arc<Shared>, acceptor: &Arc<dyn Acceptor>) {
    let look = || shared.watch().look(shared);
    let mut lobby = Lobby::new(&**acceptor, &shared.attending, Some(LOOK_EVERY));
    while !look() {
        match lobby.next(None) {
            Ok(Some(connection)) => shared.watch().hear(shared, connection, &**acceptor),
            Ok(None) => {}
            Err(MigrationError::Cancelled) => {
                look();
                return;
            }
            // Nobody will come here any more: what is there may still be enough.
            Err(error) => {
                shared.warn(format!("the source can't come again: {}", error.text()));
                while shared.attending.pause(LOOK_EVERY).is_ok() && !look() {}
                look();
                return;
            }
        }
    }
}

/// What was noticed last.
#[derive(Debug, Default)]
pub(super) struct Watch {
    /// Since when nothing comes.
    broken_us: Option<u64>,
    complete: bool,
}

impl Watch {
    /// Notes what has changed. True: nothing is left to do.
    fn look(&mut self, shared: &Arc<Shared>) -> bool {
        let progress = &shared.progress;
        if progress.all_there.load(Ordering::SeqCst) && !self.complete {
            self.complete = true;
            shared.set_status(Status::Completed, None);
        }
        if self.complete {
            return progress.settled.load(Ordering::SeqCst);
        }
        let broken = shared.is_broken();
        if broken && self.broken_us.is_none() {
            self.broken_us = Some(shared.control.now_us());
            let why = shared.part().err();
            shared.set_status(Status::PostcopyPaused, why.as_ref());
        }
        shared.publish();
        false
    }

    /// Somebody has come.
    fn hear(&mut self, shared: &Arc<Shared>, connection: Connection, acceptor: &dyn Acceptor) {
        let Ok(control) = Control::new(Side::Destination, Box::new(Unobserved)) else { return };
        let mut wire = Wire::new(connection, Side::Destination, &control);
        match greet(&mut wire, &shared.register) {
            Ok(peer) if peer.purpose == Purpose::Recover && peer.session == shared.session => {
                self.recover(shared, wire, &peer, acceptor, &control);
            }
            // His answer was in the hello.
            Ok(peer) if matches!(peer.purpose, Purpose::Inquiry | Purpose::Recover) => {}
            Ok(_) => wire.farewell(&MigrationError::NotWaiting),
            Err(error) => wire.farewell(&error),
        }
    }

    fn recover(
        &mut self,
        shared: &Arc<Shared>,
        first: Wire,
        peer: &Peer,
        acceptor: &dyn Acceptor,
        control: &Arc<Control>,
    ) {
        let broken_us = *self.broken_us.get_or_insert_with(|| shared.control.now_us());
        // This side may not have noticed yet.
        let why = shared.part().err();
        if !self.complete {
            shared.set_status(Status::PostcopyRecover, why.as_ref());
        }
        match go_on(shared, first, peer, acceptor, control) {
            Ok(()) => {
                self.broken_us = None;
                shared.note_healed(shared.control.since_us(broken_us));
                if !self.complete {
                    shared.set_status(Status::PostcopyActive, None);
                }
            }
            Err(error) if !self.complete => shared.set_status(Status::PostcopyPaused, Some(&error)),
            Err(_) => {}
        }
    }
}

/// All connections anew, and what has not come.
fn go_on(
    shared: &Arc<Shared>,
    mut first: Wire,
    peer: &Peer,
    acceptor: &dyn Acceptor,
    control: &Arc<Control>,
) -> Result<(), MigrationError> {
    const STATE: &str = "saying which pages are missing";
    let (gathered, _) = lobby::gather(acceptor, control, &mut first, peer, (shared.channels, true))?;
    let frames = encode_page_set(&shared.lacking());
    let count = frames.len();
    for (number, frame) in (1..).zip(frames) {
        let flags = if number == count { FLAG_LAST } else { 0 };
        first.send_with(FrameType::Missing, flags, STATE, |out| out.extend_from_slice(&frame))?;
    }
    shared.reconnect(first, gathered, control)
}

impl Shared {
    /// One source is heard at a time.
    fn watch(&self) -> MutexGuard<'_, Watch> {
        self.watch.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Pages that have not come.
    fn lacking(&self) -> DirtyBitmap {
        let mut lacking = DirtyBitmap::new(self.ram.region_pages());
        let mut runs = Vec::new();
        for region in 0..lacking.regions() {
            runs.clear();
            self.placer.missing(region, 0..lacking.pages(region), &mut runs);
            runs.iter().cloned().flatten().for_each(|page| lacking.set(region, page));
        }
        lacking
    }
}
