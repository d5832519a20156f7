//! Post-copy as the main thread sees it: what persons say to it.

use tern_migration::channel::Uri;
use tern_migration::destination::Arrival;
use tern_migration::{PostcopyOrder, Side, Status};

use crate::control::{CommandError, Resolution};

use super::Machine;
use super::migration::parse_uri;
use super::state::Attempt;

/// Nothing of it goes on in this process.
fn none_here() -> CommandError {
    CommandError::illegal("no post-copy goes on here")
}

impl Machine {
    /// The guest is on its way from here in post-copy.
    fn serving(&self) -> Option<&Attempt> {
        let is_serving = |attempt: &&Attempt| {
            let report = attempt.control.report();
            attempt.running && report.side == Side::Source && report.status.is_postcopy()
        };
        self.attempt.as_ref().filter(is_serving)
    }

    /// Pages of the guest's memory that are still at the source.
    pub(super) fn pages_left(&self) -> u64 {
        self.arrival.as_ref().map_or(0, Arrival::pages_left)
    }

    /// Refuses what needs all of the guest's memory here.
    pub(super) fn has_all_memory(&self) -> Result<(), CommandError> {
        match self.pages_left() {
            0 => Ok(()),
            left => Err(CommandError::illegal(format!(
                "{left} pages of the guest's memory are still at the source: wait until post-copy has completed"
            ))),
        }
    }

    /// Refuses to stop a guest whose vCPUs can't come to rest, and the control socket with them.
    pub(super) fn can_stop(&self) -> Result<(), CommandError> {
        let status = self.attempt.as_ref().map(|attempt| attempt.control.report().status);
        let is_cut_off = matches!(status, Some(Status::PostcopyPaused | Status::PostcopyRecover));
        if is_cut_off && self.pages_left() > 0 {
            return Err(CommandError::illegal(
                "a vCPU may wait for a page that is still at the source, and the connections are broken: when they are mended, \
                 the guest can be stopped",
            ));
        }
        Ok(())
    }

    /// Refuses to end a process which has what the guest, elsewhere, still needs.
    pub(super) fn is_needed_by_destination(&self) -> Result<(), CommandError> {
        let Some(serving) = self.serving() else { return Ok(()) };
        let left = serving.control.report().postcopy.map_or(0, |postcopy| postcopy.pages_left);
        Err(CommandError::illegal(format!(
            "the guest goes on at the destination, and {left} pages of its memory may be only here: wait until post-copy has \
             completed, or give them up by migrate-resolve (discard)"
        )))
    }

    /// The process ends, and with it a guest of which the source has a part.
    pub(super) fn warn_if_incomplete(&mut self) {
        let left = self.pages_left();
        if left > 0 {
            self.memory_lost = true;
            crate::cli::tell(&format!(
                "tern: {left} pages of the guest's memory were still at the source, and the guest ends here: the source can \
                 run it again from where it was at the switch (tern migrate --resolve run)"
            ));
        }
    }

    /// Lets it begin. That it has begun already, or is over, may be news to whoever asks.
    pub(super) fn start_postcopy(&mut self) -> Result<(), CommandError> {
        let Some(attempt) = &self.attempt else {
            return Err(CommandError::illegal(
                "no migration runs: start one with parameter postcopy (tern migrate --postcopy)",
            ));
        };
        let report = attempt.control.report();
        if report.side == Side::Destination {
            return Err(CommandError::illegal(
                "post-copy is begun at the source, and this is the destination",
            ));
        }
        if !attempt.live.get().may_postcopy() {
            return Err(CommandError::illegal(
                "this migration was started without post-copy: start it with parameter postcopy (tern migrate \
                 --postcopy=manual)",
            ));
        }
        attempt.control.start_postcopy();
        Ok(())
    }

    /// Breaks its connections.
    pub(super) fn pause_postcopy(&mut self) -> Result<(), CommandError> {
        let broken =
            || CommandError::illegal("its connections are broken already: the source makes new ones");
        if let Some(arrival) = self.arrival.as_ref().filter(|arrival| arrival.pages_left() > 0) {
            return if arrival.pause() { Ok(()) } else { Err(broken()) };
        }
        let serving = self.serving().ok_or_else(none_here)?;
        if serving.control.report().status == Status::PostcopyPaused {
            return Err(broken());
        }
        serving.control.order(PostcopyOrder::Pause);
        Ok(())
    }

    /// Makes its connections elsewhere.
    pub(super) fn recover_postcopy(&mut self, uri: &str) -> Result<(), CommandError> {
        let uri = parse_uri(uri)?;
        if !matches!(uri, Uri::Tcp { .. } | Uri::Unix { .. } | Uri::Vsock { .. }) {
            return Err(CommandError::invalid(
                "post-copy needs an address where several connections can be made: tcp:HOST:PORT, unix:PATH or \
                 vsock:CID:PORT",
            ));
        }
        if self.pages_left() > 0 {
            return Err(CommandError::illegal(
                "the source comes back to the address at which this destination listens; where that can be reached otherwise, \
                 say so to the source",
            ));
        }
        self.serving().ok_or_else(none_here)?.control.order(PostcopyOrder::Recover(uri));
        Ok(())
    }

    /// A person gives the destination up. False: there is no post-copy to end.
    pub(super) fn resolve_postcopy(&self, resolution: Resolution) -> Result<bool, CommandError> {
        let Some(serving) = self.serving() else { return Ok(false) };
        if serving.control.report().status == Status::PostcopyActive {
            return Err(CommandError::illegal(
                "the destination is there and has the guest: migrate-pause breaks the connections first",
            ));
        }
        serving.control.order(PostcopyOrder::Resolve(super::doubt::of(resolution)));
        Ok(true)
    }
}
