//! What the engine asks of a connection. Transports implement it; everything else knows only this.
//!
//! Nothing here blocks but [`Stream::wait`]: an operation that can't go on is [`WouldBlock`], and the caller waits for
//! the connection, the cancel token and its time limit at once.
//!
//! **Registered memory** (RDMA) fits here: spans point into guest memory that stays mapped for a whole attempt, so such a
//! transport would get two more methods, empty for all others: `register(regions)`, called once before memory moves, and
//! `complete()`, called at each round's barrier. [`Stream::send`] would post the spans by their keys and return at once.
//!
//! [`WouldBlock`]: io::ErrorKind::WouldBlock

use std::fmt;
use std::io;
use std::os::fd::BorrowedFd;
use std::time::Duration;

use super::span::{InSpan, OutSpan};
use super::{Direction, Woken};
use crate::cancel::Cancel;
use crate::stats::TlsReport;

/// What a peer has said so far.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Heard {
    /// How many bytes were put into the buffer.
    pub bytes: usize,
    /// Nothing will follow what is there.
    pub ended: bool,
    /// More may come, or have to be done, without the descriptor becoming readable anew: look again soon.
    pub unfinished: bool,
}

/// A connection: bytes both ways, in order.
pub trait Stream: Send + fmt::Debug {
    /// Sends what it can of `spans`, which may be guest memory that is being written. `more`: the rest of a frame
    /// follows at once. What is sent may stay in a bounded buffer until [`Self::flush`].
    fn send(&mut self, spans: &[OutSpan<'_>], more: bool) -> io::Result<usize>;

    /// Receives what there is into `spans`; 0 at the end of the stream.
    fn receive(&mut self, spans: &[InSpan<'_>]) -> io::Result<usize>;

    /// Sends what [`Self::send`] has kept back.
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }

    /// Waits until it can go on that way, until `cancel` is cancelled, or for `timeout`.
    fn wait(&mut self, direction: Direction, cancel: Option<&Cancel>, timeout: Duration)
    -> io::Result<Woken>;

    /// Looks at what can be received, and leaves it there.
    fn peek(&mut self, first: &mut [u8]) -> io::Result<Heard>;

    /// Says that nothing more will be sent. Receiving goes on.
    fn finish(&mut self);

    /// How it is protected; none: it is plain, or the two sides have not come to trust each other yet.
    fn tls(&self) -> Option<TlsReport> {
        None
    }

    /// What becomes readable when [`Self::peek`] has something new; none if no descriptor tells, as in a simulation.
    fn descriptor(&self) -> Option<BorrowedFd<'_>>;
}
