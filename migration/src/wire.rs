//! Frames over a connection: each has its number, its round and a checksum, and is checked against all
//! three and against its limits before anything looks at what it holds.

mod compare;
mod farewell;
mod frame;
mod handshake;
mod message;
mod page_set;
mod pages;

use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use tern_schema::{Record, Writer, decode_record};

pub(crate) use compare::{Compared, compare, refusal};
pub(crate) use frame::{
    FLAG_ANSWER, FLAG_LAST, FLAG_RUNNING, FRAMES, FrameType, HEADER_BYTES, Header, MAGIC,
};
pub(crate) use handshake::{Peer, SessionId, greet, introduce, introduce_again, join, joined};
pub(crate) use message::{
    Agreed, Answer, CHANNELS_MAX, Commit, Echo, Failed, HaveAll, Hello, Offer, PROBE_BYTES_MAX, PROTOCOL_MAX,
    PROTOCOL_MIN, Prepared, Purpose, Refused, RoundEnd, Running, Settled, Sync, TERN_VERSION,
};
pub(crate) use page_set::{PageSetReader, encode as encode_page_set};
pub(crate) use pages::Limit;

use crate::channel::halves::{Half, halves};
use crate::channel::span::{InSpan, OutSpan};
use crate::channel::stream::Stream;
use crate::channel::{Connection, Direction, TlsError, Woken};
use crate::control::Control;
use crate::error::{LinkError, MigrationError, ProtocolError};
use crate::stats::{Side, TlsReport};

/// State is read in pieces of this size: a length alone makes nobody allocate.
const PIECE_BYTES: usize = 1 << 20;
/// Buffers that are used while the guest is stopped have this size from the start.
const BUFFER_BYTES: usize = 1 << 20;

/// What all connections of a migration have moved.
#[derive(Debug, Default)]
pub(crate) struct Traffic {
    /// Bytes of all frames both ways, without page records, page data and state.
    message_bytes: AtomicU64,
    /// Rises whenever something moves.
    moves: AtomicU64,
}

/// One connection of a migration.
pub(crate) struct Wire {
    stream: Box<dyn Stream>,
    timeout: Duration,
    /// Nothing is waited for after this.
    deadline_us: Option<u64>,
    control: Arc<Control>,
    side: Side,
    cancellable: bool,
    /// Round; stands in each frame.
    pub(crate) epoch: u32,
    sent_frames: u32,
    received_frames: u32,
    /// A frame was begun and not ended: nothing that could be understood can follow.
    cut_sending: bool,
    /// The peer knows what this is: frames mean something to it.
    introduced: bool,
    cut_receiving: bool,
    traffic: Arc<Traffic>,
    out: Vec<u8>,
    payload: Vec<u8>,
}

impl Wire {
    pub(crate) fn new(connection: Connection, side: Side, control: &Arc<Control>) -> Self {
        Self {
            stream: connection.stream,
            timeout: connection.timeout,
            deadline_us: None,
            control: Arc::clone(control),
            side,
            cancellable: true,
            epoch: 0,
            sent_frames: 0,
            received_frames: 0,
            cut_sending: false,
            introduced: false,
            cut_receiving: false,
            traffic: Arc::default(),
            out: Vec::with_capacity(BUFFER_BYTES),
            payload: Vec::with_capacity(BUFFER_BYTES),
        }
    }

    /// From here on it is a further connection of the migration that `first` is the first one of: while anything moves on
    /// one of them, none has stalled.
    pub(crate) fn belong_to(&mut self, first: &Self) {
        // What it has said of itself before counts too.
        first.count(self.message_bytes() as usize);
        (self.epoch, self.traffic) = (first.epoch, Arc::clone(&first.traffic));
    }

    /// Bytes of all frames both ways and on all connections, without page records, page data and state.
    pub(crate) fn message_bytes(&self) -> u64 {
        self.traffic.message_bytes.load(Relaxed)
    }

    fn count(&self, message_bytes: usize) {
        self.traffic.message_bytes.fetch_add(message_bytes as u64, Relaxed);
    }

    /// How the connection is protected.
    pub(crate) fn tls(&self) -> Option<TlsReport> {
        self.stream.tls()
    }

    /// What to wait for until the peer says something.
    pub(crate) fn stream(&self) -> &dyn Stream {
        &*self.stream
    }

    /// Nothing more will be sent.
    pub(crate) fn finish(&mut self) {
        self.stream.finish();
    }

    /// What the last frame held; of a batch of pages its records.
    pub(crate) fn payload(&self) -> &[u8] {
        &self.payload
    }

    /// From here on the peer may be silent for `silence` at most, and nothing is waited for after
    /// `longest` from now.
    pub(crate) fn limit_time(&mut self, silence: Duration, longest: Duration) {
        let deadline_us = self.control.now_us().saturating_add(longest.as_micros() as u64);
        (self.timeout, self.deadline_us) = (silence.min(self.timeout), Some(deadline_us));
    }

    /// From here on the peer may be silent for `silence` at most. Returns how long it could be before.
    pub(crate) fn limit_silence(&mut self, silence: Duration) -> Duration {
        let limited = silence.min(self.timeout);
        std::mem::replace(&mut self.timeout, limited)
    }

    /// From here on the peer may be silent for so long.
    pub(crate) fn allow_silence(&mut self, silence: Duration) {
        self.timeout = silence;
    }

    /// From here on a cancel disturbs nothing.
    pub(crate) fn ignore_cancel(&mut self) {
        self.cancellable = false;
    }

    /// The same connection for two threads: one that sends, and one that receives.
    pub(crate) fn split(self) -> std::io::Result<[Self; 2]> {
        let half = |stream: Half| Self {
            stream: Box::new(stream),
            timeout: self.timeout,
            deadline_us: self.deadline_us,
            control: Arc::clone(&self.control),
            side: self.side,
            cancellable: self.cancellable,
            epoch: self.epoch,
            sent_frames: self.sent_frames,
            received_frames: self.received_frames,
            cut_sending: self.cut_sending,
            introduced: self.introduced,
            cut_receiving: self.cut_receiving,
            traffic: Arc::clone(&self.traffic),
            out: Vec::with_capacity(BUFFER_BYTES),
            payload: Vec::with_capacity(BUFFER_BYTES),
        };
        Ok(halves(self.stream)?.map(half))
    }

    /// From here on a halt ends what it waits for, again.
    pub(crate) fn heed_halt(&mut self) {
        self.cancellable = true;
    }

    /// Sends the eight bytes that say what this is.
    pub(crate) fn send_magic(&mut self) -> Result<(), MigrationError> {
        self.count(MAGIC.len());
        self.send_spans(&mut [OutSpan::bytes(&MAGIC)], false, "introducing itself")?;
        self.introduced = true;
        Ok(())
    }

    /// Receives the peer's eight bytes.
    pub(crate) fn receive_magic(&mut self) -> Result<(), MigrationError> {
        let mut first = [0; MAGIC.len()];
        let state = "waiting for the peer to introduce itself";
        let received = self.receive_spans(&mut [InSpan::buffer(&mut first)], state);
        // A record of TLS, which may be shorter than what is waited for (RFC 8446, 5.1).
        if let [20..=23, 3, ..] = first {
            return Err(LinkError::Tls(TlsError::Unexpected { side: self.side.name() }).into());
        }
        received?;
        self.count(MAGIC.len());
        if first != MAGIC {
            let first_bytes = format!("\"{}\"", first.escape_ascii());
            return Err(ProtocolError::NotTern { first_bytes }.into());
        }
        Ok(())
    }

    /// Sends a message.
    pub(crate) fn send<R: Record>(
        &mut self,
        frame: FrameType,
        message: &R,
        state: &'static str,
    ) -> Result<(), MigrationError> {
        self.send_with(frame, 0, state, |out| message.write(&mut Writer::new(out)))?;
        Ok(())
    }

    /// Sends a frame that `fill` writes; returns the number of its bytes.
    pub(crate) fn send_with(
        &mut self,
        frame: FrameType,
        flags: u8,
        state: &'static str,
        fill: impl FnOnce(&mut Vec<u8>),
    ) -> Result<u64, MigrationError> {
        let mut out = std::mem::take(&mut self.out);
        out.clear();
        out.resize(HEADER_BYTES, 0);
        fill(&mut out);
        let length = out.len() - HEADER_BYTES;
        let result = self.seal(frame, flags, &mut out, length).and_then(|()| {
            self.send_spans(&mut [OutSpan::bytes(&out)], false, state)?;
            self.frame_sent();
            Ok(out.len() as u64)
        });
        self.out = out;
        if let Ok(bytes) = result {
            let is_message = !matches!(frame, FrameType::State | FrameType::PageIn);
            self.count(if is_message { bytes as usize } else { HEADER_BYTES });
        }
        result
    }

    /// Numbers are for frames that were sent: one that a cancel kept back leaves its number to the farewell.
    fn frame_sent(&mut self) {
        self.sent_frames = self.sent_frames.wrapping_add(1);
    }

    /// Writes the header in front of `out`, of which all behind the header is covered by the checksum.
    fn seal(
        &mut self,
        frame: FrameType,
        flags: u8,
        out: &mut [u8],
        length: usize,
    ) -> Result<(), MigrationError> {
        let info = frame.info();
        if length as u64 > info.max_bytes {
            let (found, max) = (length as u64, info.max_bytes);
            return Err(ProtocolError::Limit { frame: info.name, field: "length", found, max }.into());
        }
        let header = Header {
            frame,
            flags,
            epoch: self.epoch,
            sequence: self.sent_frames,
            length: length as u32,
            head: (out.len() - HEADER_BYTES) as u32,
            checksum: 0,
        };
        header.seal(out);
        Ok(())
    }

    /// Receives the next frame; of a batch of pages the header and the records.
    pub(crate) fn receive(&mut self, state: &'static str) -> Result<Header, MigrationError> {
        let mut bytes = [0; HEADER_BYTES];
        self.receive_spans(&mut [InSpan::buffer(&mut bytes)], state)?;
        self.cut_receiving = true;
        let header = Header::read(&bytes)?;
        let mut payload = std::mem::take(&mut self.payload);
        payload.clear();
        let result = self.fill(&mut payload, header.head as usize, state);
        self.payload = payload;
        result?;
        header.check(&bytes, &self.payload)?;
        let due = self.received_frames;
        if header.sequence != due {
            return Err(ProtocolError::Sequence { found: header.sequence, expected: due }.into());
        }
        if header.epoch != self.epoch && header.frame != FrameType::Failed {
            return Err(ProtocolError::Epoch { found: header.epoch, expected: self.epoch }.into());
        }
        self.received_frames = due.wrapping_add(1);
        self.cut_receiving = header.head != header.length;
        self.count(match header.frame {
            FrameType::State | FrameType::Pages | FrameType::PageIn => HEADER_BYTES,
            _ => HEADER_BYTES + header.length as usize,
        });
        Ok(header)
    }

    fn fill(
        &mut self,
        payload: &mut Vec<u8>,
        bytes: usize,
        state: &'static str,
    ) -> Result<(), MigrationError> {
        while payload.len() < bytes {
            let start = payload.len();
            payload.resize(bytes.min(start + PIECE_BYTES), 0);
            let piece = payload.get_mut(start..).unwrap_or_default();
            self.receive_spans(&mut [InSpan::buffer(piece)], state)?;
        }
        Ok(())
    }

    /// Receives the data of the batch whose records were just received.
    pub(crate) fn receive_data(&mut self, data: &mut [InSpan<'_>]) -> Result<(), MigrationError> {
        self.receive_spans(data, "receiving memory")?;
        self.cut_receiving = false;
        Ok(())
    }

    /// Receives a message of type `frame`; the peer may give up instead.
    pub(crate) fn expect<R: Record>(
        &mut self,
        frame: FrameType,
        state: &'static str,
    ) -> Result<R, MigrationError> {
        let header = self.receive(state)?;
        if header.frame != frame {
            return Err(self.unexpected(&header, state, frame.info().name));
        }
        self.message(frame)
    }

    /// Reads the last frame's message.
    pub(crate) fn message<R: Record>(&self, frame: FrameType) -> Result<R, MigrationError> {
        let name = frame.info().name;
        decode_record(&self.payload).map_err(|source| ProtocolError::Message { frame: name, source }.into())
    }

    /// What it means that another frame came than the one that was due.
    pub(crate) fn unexpected(
        &self,
        header: &Header,
        state: &'static str,
        expected: &'static str,
    ) -> MigrationError {
        let read = match header.frame {
            FrameType::Failed => self.message(FrameType::Failed).map(|Failed { code, text }| {
                let (code, text) = (handshake::readable(&code), plain(&text));
                MigrationError::Peer { peer: self.side.peer().name(), code, text }
            }),
            FrameType::Refused => self.message(FrameType::Refused).map(|Refused { code, text }| {
                MigrationError::Refused { code: handshake::readable(&code), text: plain(&text) }
            }),
            other => {
                let found = other.info().name;
                return ProtocolError::Unexpected { found, state, expected }.into();
            }
        };
        read.unwrap_or_else(|error| error)
    }

    /// Has the peer said something, or gone? Doesn't wait.
    pub(crate) fn peer_spoke(&mut self) -> bool {
        self.peer_speaks_within(Duration::ZERO)
    }

    /// The same, waiting for that; a cancel ends it.
    pub(crate) fn peer_speaks_within(&mut self, most: Duration) -> bool {
        let woken = self.stream.wait(Direction::Receive, Some(&self.control.halt), most);
        woken.is_ok_and(|woken| woken == Woken::Ready)
    }

    fn send_spans(
        &mut self,
        mut spans: &mut [OutSpan<'_>],
        more: bool,
        state: &'static str,
    ) -> Result<(), MigrationError> {
        while spans.iter().any(|span| span.len() > 0) {
            self.check_cancel(state)?;
            match self.stream.send(spans, more) {
                Ok(done) => {
                    self.cut_sending = true;
                    self.moved();
                    let empty = OutSpan::advance(spans, done);
                    spans = spans.get_mut(empty..).unwrap_or_default();
                }
                Err(error) => self.wait_for(Direction::Send, error, state)?,
            }
        }
        while !more && let Err(error) = self.stream.flush() {
            self.check_cancel(state)?;
            self.wait_for(Direction::Send, error, state)?;
        }
        self.cut_sending = false;
        Ok(())
    }

    fn receive_spans(
        &mut self,
        mut spans: &mut [InSpan<'_>],
        state: &'static str,
    ) -> Result<(), MigrationError> {
        while spans.iter().any(|span| span.len() > 0) {
            self.check_cancel(state)?;
            match self.stream.receive(spans) {
                Ok(0) => return Err(LinkError::Closed { state }.into()),
                Ok(done) => {
                    self.moved();
                    let empty = InSpan::advance(spans, done);
                    spans = spans.get_mut(empty..).unwrap_or_default();
                }
                Err(error) => self.wait_for(Direction::Receive, error, state)?,
            }
        }
        Ok(())
    }

    fn check_cancel(&self, state: &'static str) -> Result<(), MigrationError> {
        if self.cancellable { self.control.check(state) } else { Ok(()) }
    }

    fn moved(&self) {
        self.traffic.moves.fetch_add(1, Relaxed);
    }

    fn wait_for(
        &mut self,
        direction: Direction,
        error: std::io::Error,
        state: &'static str,
    ) -> Result<(), MigrationError> {
        if error.kind() != std::io::ErrorKind::WouldBlock {
            return Err(LinkError::of(state, error).into());
        }
        let moves = self.traffic.moves.load(Relaxed);
        let cancel = self.cancellable.then_some(&self.control.halt);
        let now_us = self.control.now_us();
        let left = self.deadline_us.map(|deadline| Duration::from_micros(deadline.saturating_sub(now_us)));
        let timeout = left.map_or(self.timeout, |left| left.min(self.timeout));
        match self.stream.wait(direction, cancel, timeout) {
            Ok(Woken::Ready) => Ok(()),
            Ok(Woken::Cancelled) => Err(self.control.halted(state)),
            // Others do move, and no time is over.
            Ok(Woken::TimedOut) if left.is_none() && self.traffic.moves.load(Relaxed) != moves => Ok(()),
            Ok(Woken::TimedOut) => {
                let timeout_ms = timeout.as_millis() as u64;
                Err(LinkError::Stalled { state, timeout_ms }.into())
            }
            Err(error) => Err(LinkError::of(state, error).into()),
        }
    }
}

/// A text of the peer's without what could steer a terminal.
fn plain(text: &str) -> String {
    text.chars().filter(|c| *c == '\n' || !c.is_control()).collect()
}
