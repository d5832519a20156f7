//! The end of a connection that failed: saying why, and finding out what the peer said.

use std::io::ErrorKind;
use std::time::Duration;

use super::{Failed, FrameType, Refused, Wire};
use crate::channel::Direction;
use crate::channel::span::InSpan;
use crate::error::MigrationError;
use crate::stats::Side;

/// How long a side that gives up tries to say so, and then waits for the peer to have heard it.
const FAREWELL: Duration = Duration::from_millis(500);
/// Likewise when a person has cancelled and waits.
const CANCELLED_FAREWELL: Duration = Duration::from_millis(60);

impl Wire {
    /// If `error` is the connection's, and the peer has left a word on why it closed it, then that.
    pub(crate) fn last_words(&mut self, error: MigrationError) -> MigrationError {
        if !matches!(error, MigrationError::Link(_)) || self.cut_receiving {
            return error;
        }
        (self.cancellable, self.timeout) = (false, FAREWELL.min(self.timeout));
        match self.receive("looking for a reason") {
            Ok(header) if matches!(header.frame, FrameType::Failed | FrameType::Refused) => {
                self.unexpected(&header, "looking for a reason", "")
            }
            _ => error,
        }
    }

    /// Tells the peer that this side gives up and why, and waits briefly until it has heard: closing with
    /// bytes unread would make TCP throw away the message.
    pub(crate) fn farewell(&mut self, error: &MigrationError) {
        let peer_is_gone = matches!(error, MigrationError::Link(_) | MigrationError::Peer { .. });
        if self.introduced && !peer_is_gone && !self.cut_sending {
            let is_cancelled = matches!(error, MigrationError::Cancelled);
            let limit = if is_cancelled { CANCELLED_FAREWELL } else { FAREWELL };
            (self.cancellable, self.timeout) = (false, limit.min(self.timeout));
            let said = match error {
                MigrationError::Refused { code, text } if self.side == Side::Destination => {
                    let refused = Refused { code: code.clone(), text: text.clone() };
                    self.send(FrameType::Refused, &refused, "refusing")
                }
                _ => {
                    let failed = Failed { code: error.code().to_owned(), text: error.text() };
                    self.send(FrameType::Failed, &failed, "giving up")
                }
            };
            self.stream.finish();
            if said.is_ok() {
                self.drain();
            }
        }
    }

    fn drain(&mut self) {
        let began_us = self.control.now_us();
        let mut rest = vec![0; 64 << 10];
        loop {
            let left = self.timeout.saturating_sub(Duration::from_micros(self.control.since_us(began_us)));
            match self.stream.receive(&[InSpan::buffer(&mut rest)]) {
                Err(error) if error.kind() == ErrorKind::WouldBlock && !left.is_zero() => {
                    if self.stream.wait(Direction::Receive, None, left).is_err() {
                        return;
                    }
                }
                Ok(1..) if !left.is_zero() => {}
                _ => return,
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::channel::Connection;
    use crate::control::{Control, Unobserved};
    use crate::wire::Prepared;

    #[test]
    fn a_message_that_a_cancel_kept_back_leaves_no_gap_before_the_farewell() {
        let control = |side| Control::new(side, Box::new(Unobserved)).unwrap();
        let (ours, theirs) = (control(Side::Source), control(Side::Destination));
        let (one, other) = Connection::pair().unwrap();
        let mut source = Wire::new(one.with_timeout(Duration::from_millis(50)), Side::Source, &ours);
        let mut destination = Wire::new(other, Side::Destination, &theirs);
        source.send_magic().unwrap();
        destination.receive_magic().unwrap();
        assert!(ours.cancel());
        let message = Prepared { load_us: 0 };
        let error = source.send(FrameType::Prepared, &message, "telling").unwrap_err();
        assert!(matches!(error, MigrationError::Cancelled));
        source.farewell(&error);
        let heard = destination.expect::<Prepared>(FrameType::Prepared, "listening").unwrap_err();
        assert!(matches!(heard, MigrationError::Peer { .. }), "{heard}");
    }
}
