//! A secret connection: a [`Stream`] over a [`Stream`].
//!
//! ```text
//! guest memory --volatile copy--> stage, 256 KiB --records of 16 KiB--> ciphertext, sent by one writev
//! socket --> raw, 256 KiB --records--> plaintext --copy--> guest memory
//! ```
//!
//! Buffers are made once and are bounded. New plaintext is taken only when the ciphertext before it has been sent.

use std::fmt;
use std::io::{self, BufRead, IoSlice, Read, Write};
use std::os::fd::BorrowedFd;
use std::time::{Duration, Instant};

use rustls::{ClientConnection, Connection, ServerConnection};

use super::error::{Means, explain};
use super::identity::names;
use super::{Identity, TlsError};
use crate::cancel::Cancel;
use crate::channel::span::{InSpan, OutSpan};
use crate::channel::stream::{Heard, Stream};
use crate::channel::{Direction, Woken};
use crate::stats::{Side, TlsReport};
use crate::wire::MAGIC;

/// Plaintext that becomes records at once: 16 of them.
const STAGE_BYTES: usize = 256 << 10;
/// Ciphertext that is received at once.
const RAW_BYTES: usize = 256 << 10;
/// Room for the ciphertext of a full stage, with all headers and tags.
const SEND_LIMIT_BYTES: usize = STAGE_BYTES + (64 << 10);
/// What a destination says when it accepts the source.
const ACCEPTED: u8 = 1;

/// How far it has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    /// The two sides look at each other.
    Handshake,
    /// The source is content and waits for the destination's word.
    Waiting,
    /// Bytes of ours may travel.
    Open,
}

/// A connection that only the two sides can read.
pub(in crate::channel) struct Secure {
    inner: Box<dyn Stream>,
    tls: Connection,
    side: Side,
    means: Means,
    /// Source: whose certificate the destination must have.
    expected: Option<String>,
    phase: Phase,
    /// How many of the peer's first bytes were looked at, and whether they are those of a peer without TLS.
    seen: usize,
    plain: bool,
    /// Plaintext on its way out.
    stage: Vec<u8>,
    /// Ciphertext as it came; `raw_from..raw_to` has not been looked at.
    raw: Vec<u8>,
    raw_from: usize,
    raw_to: usize,
    /// Plaintext that was looked at and not taken.
    ahead: Vec<u8>,
    /// The connection below has ended.
    ended: bool,
}

impl fmt::Debug for Secure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Secure")
            .field("inner", &self.inner)
            .field("phase", &self.phase)
            .finish_non_exhaustive()
    }
}

impl Secure {
    pub(in crate::channel) fn new(inner: Box<dyn Stream>, identity: &Identity) -> Result<Self, TlsError> {
        let (side, means) = (identity.side(), identity.means());
        let tls = match identity {
            Identity::Client(config, name, _) => {
                ClientConnection::new(config.clone(), name.clone()).map(Connection::Client)
            }
            Identity::Server(config, _) => ServerConnection::new(config.clone()).map(Connection::Server),
        };
        let mut tls = tls.map_err(|error| explain(side, means, &error))?;
        let expected = match identity {
            Identity::Client(_, name, Means::Certificates) => Some(name.to_str().into_owned()),
            _ => None,
        };
        tls.set_buffer_limit(Some(SEND_LIMIT_BYTES));
        Ok(Self {
            inner,
            tls,
            side,
            means,
            expected,
            phase: Phase::Handshake,
            seen: 0,
            plain: true,
            stage: Vec::with_capacity(STAGE_BYTES),
            raw: vec![0; RAW_BYTES],
            raw_from: 0,
            raw_to: 0,
            ahead: Vec::new(),
            ended: false,
        })
    }

    /// Sends the ciphertext that waits.
    fn push(&mut self) -> io::Result<()> {
        while self.tls.wants_write() {
            self.tls.write_tls(&mut Out(&mut *self.inner))?;
        }
        Ok(())
    }

    /// Makes records of what is staged, and sends them as far as they go.
    fn seal(&mut self) -> io::Result<()> {
        if !self.stage.is_empty() {
            self.tls.writer().write_all(&self.stage)?;
            self.stage.clear();
        }
        match self.push() {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(()),
            pushed => pushed,
        }
    }

    /// Receives ciphertext and looks at all of it. False: the connection below has ended.
    fn pull(&mut self) -> io::Result<bool> {
        if self.raw_from == self.raw_to && !self.ended {
            let got = self.inner.receive(&[InSpan::buffer(&mut self.raw)]);
            (self.raw_from, self.raw_to) = (0, 0);
            self.raw_to = got?;
            self.ended = self.raw_to == 0;
            self.look_at_first();
        }
        if self.ended {
            // It must hear that too, to tell a goodbye from a cut.
            self.tls.read_tls(&mut io::empty())?;
        }
        while self.raw_from < self.raw_to {
            let mut rest = self.raw.get(self.raw_from..self.raw_to).unwrap_or_default();
            match self.tls.read_tls(&mut rest) {
                Ok(0) => self.raw_from = self.raw_to,
                Ok(count) => self.raw_from += count,
                // Its plaintext is to be taken first.
                Err(_) if self.has_plaintext() => break,
                Err(error) => return Err(error),
            }
            self.process()?;
        }
        Ok(!self.ended)
    }

    fn has_plaintext(&mut self) -> bool {
        self.tls.reader().fill_buf().is_ok_and(|bytes| !bytes.is_empty())
    }

    fn process(&mut self) -> io::Result<()> {
        let Err(error) = self.tls.process_new_packets().map(drop) else { return Ok(()) };
        // The peer shall hear why.
        let _ = self.push();
        self.inner.finish();
        if self.plain && self.seen > 0 {
            let found = "speaks without it".to_owned();
            return Err(TlsError::NotTls { side: self.side.name(), found }.into());
        }
        Err(explain(self.side, self.means, &error).into())
    }

    /// A peer without TLS is told as what it is; no record begins as our own first bytes do.
    fn look_at_first(&mut self) {
        let expected = MAGIC.get(self.seen..).unwrap_or_default();
        let first = self.raw.get(..self.raw_to.min(expected.len())).unwrap_or_default();
        self.plain &= expected.starts_with(first);
        self.seen += first.len();
    }

    /// Goes on with the handshake, as far as it can be gone without waiting.
    fn open(&mut self) -> io::Result<()> {
        loop {
            if self.phase == Phase::Open {
                return Ok(());
            }
            self.push()?;
            if self.phase == Phase::Handshake && !self.tls.is_handshaking() {
                self.phase = Phase::Waiting;
                if self.side == Side::Destination {
                    self.tls.writer().write_all(&[ACCEPTED])?;
                    self.phase = Phase::Open;
                    self.seal()?;
                }
                continue;
            }
            if self.phase == Phase::Waiting && self.has_plaintext() {
                let mut word = [0];
                self.tls.reader().read_exact(&mut word)?;
                let [found] = word;
                if found != ACCEPTED {
                    let found = format!("has said {found} in place of its consent");
                    return Err(TlsError::NotTls { side: self.side.name(), found }.into());
                }
                self.phase = Phase::Open;
                continue;
            }
            let open = match self.pull() {
                Err(error) if error.kind() == io::ErrorKind::ConnectionReset => false,
                pulled => pulled?,
            };
            if !open {
                let there = self.side.peer().name();
                return Err(TlsError::Handshake {
                    problem: format!("the {there} has closed the connection in the TLS handshake"),
                    remedy: "does it have --tls-creds or --tls-psk too? Its log says why it went",
                }
                .into());
            }
        }
    }

    /// What can be taken without waiting; `None` if there is nothing.
    fn take(&mut self, spans: &[InSpan<'_>]) -> io::Result<Option<usize>> {
        let mut total = 0;
        for span in spans {
            let mut done = 0;
            while done < span.len() {
                let count = if self.ahead.is_empty() {
                    let count = match self.tls.reader().fill_buf() {
                        Ok([]) if total == 0 => return Ok(Some(0)),
                        Ok(bytes) => span.fill(done, bytes),
                        Err(error) if total > 0 || error.kind() == io::ErrorKind::WouldBlock => 0,
                        Err(error) => return Err(cut(error)),
                    };
                    self.tls.reader().consume(count);
                    count
                } else {
                    let count = span.fill(done, &self.ahead);
                    self.ahead.drain(..count);
                    count
                };
                if count == 0 {
                    return Ok((total > 0).then_some(total));
                }
                (done, total) = (done + count, total + count);
            }
        }
        Ok(Some(total))
    }

    /// Is there something to take, or an end to be told?
    fn readable(&mut self) -> bool {
        if !self.ahead.is_empty() {
            return true;
        }
        let found = self.tls.reader().fill_buf().map(drop);
        !found.is_err_and(|error| error.kind() == io::ErrorKind::WouldBlock)
    }

    /// One step towards being able to go on that way.
    fn step(&mut self, direction: Direction) -> io::Result<bool> {
        let done = match (self.phase, direction) {
            (Phase::Handshake | Phase::Waiting, _) => self.open(),
            (Phase::Open, Direction::Send) => self.push(),
            (Phase::Open, Direction::Receive) if self.readable() => Ok(()),
            (Phase::Open, Direction::Receive) => self.pull().map(drop),
        };
        match done {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(false),
            done => done.map(|()| direction == Direction::Send || self.readable()),
        }
    }
}

/// An end that the peer has not announced: TLS tells it from a goodbye.
fn cut(error: io::Error) -> io::Error {
    if error.kind() == io::ErrorKind::UnexpectedEof {
        let text = "it ended without TLS's goodbye: it was cut, or the peer's process has died";
        return io::Error::new(io::ErrorKind::UnexpectedEof, text);
    }
    error
}

impl Stream for Secure {
    fn send(&mut self, spans: &[OutSpan<'_>], more: bool) -> io::Result<usize> {
        self.open()?;
        self.push()?;
        let mut taken = 0;
        for span in spans {
            taken += span.append_to(&mut self.stage, STAGE_BYTES);
            if self.stage.len() >= STAGE_BYTES {
                break;
            }
        }
        if !more || self.stage.len() >= STAGE_BYTES {
            self.seal()?;
        }
        Ok(taken)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.open()?;
        self.seal()?;
        self.push()
    }

    fn receive(&mut self, spans: &[InSpan<'_>]) -> io::Result<usize> {
        self.open()?;
        loop {
            if let Some(count) = self.take(spans)? {
                return Ok(count);
            }
            self.pull()?;
        }
    }

    fn wait(
        &mut self,
        direction: Direction,
        cancel: Option<&Cancel>,
        timeout: Duration,
    ) -> io::Result<Woken> {
        let started = Instant::now();
        loop {
            if cancel.is_some_and(Cancel::is_cancelled) {
                return Ok(Woken::Cancelled);
            }
            if self.step(direction)? {
                return Ok(Woken::Ready);
            }
            let left = timeout.saturating_sub(started.elapsed());
            let below = if self.tls.wants_write() { Direction::Send } else { Direction::Receive };
            match self.inner.wait(below, cancel, left)? {
                Woken::Ready => {}
                woken => return Ok(woken),
            }
        }
    }

    fn peek(&mut self, first: &mut [u8]) -> io::Result<Heard> {
        let mut ended = false;
        loop {
            let wanted = first.len().saturating_sub(self.ahead.len());
            match self.open().and_then(|()| {
                let bytes = self.tls.reader().fill_buf().map_err(cut)?.len().min(wanted);
                let start = self.ahead.len();
                self.ahead.resize(start + bytes, 0);
                self.tls.reader().read_exact(self.ahead.get_mut(start..).unwrap_or_default())?;
                Ok(bytes)
            }) {
                Ok(0) => {
                    ended = wanted > 0;
                    break;
                }
                Ok(_) => continue,
                Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => {
                    ended = true;
                    break;
                }
                Err(error) if error.kind() != io::ErrorKind::WouldBlock => return Err(error),
                Err(_) => {}
            }
            match self.pull() {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                pulled => pulled?,
            };
        }
        let bytes = self.ahead.len().min(first.len());
        first.iter_mut().zip(&self.ahead).for_each(|(to, from)| *to = *from);
        Ok(Heard { bytes, ended, unfinished: self.tls.wants_write() })
    }

    fn finish(&mut self) {
        let _ = self.seal();
        self.tls.send_close_notify();
        let _ = self.push();
        self.inner.finish();
    }

    fn tls(&self) -> Option<TlsReport> {
        let suite = self.tls.negotiated_cipher_suite().filter(|_| self.phase == Phase::Open)?;
        // rustls has its own prefix for those of TLS 1.3.
        let cipher = format!("{:?}", suite.suite()).replacen("TLS13_", "TLS_", 1);
        let (proven_by, peer) = match (self.means, &self.expected) {
            (Means::Secret, _) => ("shared-secret", None),
            (Means::Certificates, Some(name)) => ("certificates", Some(name.clone())),
            (Means::Certificates, None) => {
                let shown = self.tls.peer_certificates().and_then(<[_]>::first);
                ("certificates", shown.and_then(|shown| names(shown).ok()).filter(|names| !names.is_empty()))
            }
        };
        Some(TlsReport { version: "1.3", cipher, proven_by, peer })
    }

    fn descriptor(&self) -> Option<BorrowedFd<'_>> {
        self.inner.descriptor()
    }
}

/// So that the peer can tell an end from a cut. What can't be sent at once is not waited for.
impl Drop for Secure {
    fn drop(&mut self) {
        self.tls.send_close_notify();
        let _ = self.push();
    }
}

/// Where ciphertext goes.
struct Out<'a>(&'a mut dyn Stream);

/// As many records as are sent at once.
const RECORDS_MAX: usize = 64;

impl Write for Out<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.send(&[OutSpan::bytes(bytes)], false)
    }

    fn write_vectored(&mut self, slices: &[IoSlice<'_>]) -> io::Result<usize> {
        let mut spans = [const { OutSpan::bytes(&[]) }; RECORDS_MAX];
        let count = slices.len().min(RECORDS_MAX);
        spans.iter_mut().zip(slices).for_each(|(span, slice)| *span = OutSpan::bytes(slice));
        self.0.send(spans.get(..count).unwrap_or_default(), false)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
