//! The network: connections of two pipes each. Bytes take time, come in pieces of any size, wait for room, and stop, change
//! or are lost wherever the plan says.

use std::collections::VecDeque;
use std::io::{self, ErrorKind};

use super::random::Random;
use crate::stats::Side;

/// How a connection is.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct LinkPlan {
    pub(super) bytes_per_ms: u64,
    pub(super) delay_us: u64,
    /// Most that a piece is late.
    pub(super) jitter_us: u64,
    /// Bytes that may be on their way or unread, each way.
    pub(super) room_bytes: usize,
    /// Longest piece.
    pub(super) piece_bytes: u64,
    /// What happens to the pipe to the destination, and to the one back.
    pub(super) damage: [Option<Damage>; 2],
}

/// What happens at a byte of a pipe.
#[derive(Debug, Clone, Copy)]
pub(super) struct Damage {
    pub(super) at_byte: u64,
    pub(super) kind: Kind,
}

/// Which.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// The connection is reset, both ways.
    Cut,
    /// Nothing arrives any more, this way.
    Silent,
    /// Nothing arrives any more, either way.
    SilentBoth,
    /// One bit of it arrives changed.
    Flip(u8),
}

/// One end of a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct End {
    pub(super) connection: usize,
    pub(super) side: Side,
}

#[derive(Debug, Default)]
struct Pipe {
    link: LinkPlan,
    damage: Option<Damage>,
    flight: VecDeque<Piece>,
    /// On their way, unread, or lost.
    held_bytes: usize,
    accepted_bytes: u64,
    free_us: u64,
    last_us: u64,
    silent: bool,
    /// Nothing follows: from when the reader knows.
    finished_us: Option<u64>,
    /// The connection is gone: from when each end knows.
    reset_us: Option<u64>,
    /// Nobody reads any more.
    closed: bool,
}

#[derive(Debug)]
struct Piece {
    at_us: u64,
    bytes: Vec<u8>,
    read_bytes: usize,
}

impl Piece {
    fn rest(&self) -> &[u8] {
        self.bytes.get(self.read_bytes..).unwrap_or_default()
    }
}

/// All connections.
#[derive(Debug, Default)]
pub(super) struct Net {
    pipes: Vec<[Pipe; 2]>,
    /// Plans of the connections that are still to come.
    pub(super) plans: VecDeque<Option<LinkPlan>>,
    /// Those that nobody has accepted: from when they can be.
    backlog: VecDeque<(u64, usize)>,
    /// Does anybody listen?
    pub(super) listening: bool,
    /// No host reaches the other one: what is sent arrives when this is over.
    partition_until_us: u64,
    pub(super) hits: u32,
    /// When how many bytes were taken on their way to the destination.
    pub(super) log: Vec<(u64, u64)>,
}

impl Net {
    /// A new attempt: nothing of the one before is left.
    pub(super) fn begin(&mut self, plans: VecDeque<Option<LinkPlan>>) {
        *self = Self { plans, listening: true, ..Self::default() };
    }

    /// A new connection; none: refused.
    pub(super) fn connect(&mut self, now_us: u64) -> Option<End> {
        let link = self.plans.pop_front()?.filter(|_| self.listening)?;
        let pipe =
            |way: usize| Pipe { link, damage: link.damage.get(way).copied().flatten(), ..Pipe::default() };
        self.pipes.push([pipe(0), pipe(1)]);
        let connection = self.pipes.len() - 1;
        self.backlog.push_back((now_us + link.delay_us, connection));
        Some(End { connection, side: Side::Source })
    }

    pub(super) fn accept(&mut self, now_us: u64) -> Option<End> {
        let (_, connection) = self.backlog.pop_front_if(|(at_us, _)| *at_us <= now_us)?;
        Some(End { connection, side: Side::Destination })
    }

    pub(super) fn has_backlog(&self, now_us: u64) -> bool {
        self.backlog.front().is_some_and(|(at_us, _)| *at_us <= now_us)
    }

    /// Whoever has connected and was not accepted is turned away.
    pub(super) fn stop_listening(&mut self, now_us: u64) {
        self.listening = false;
        for (_, connection) in std::mem::take(&mut self.backlog) {
            self.reset(connection, now_us);
        }
    }

    fn pair(&mut self, end: End) -> Option<(&mut Pipe, &mut Pipe)> {
        let [there, back] = self.pipes.get_mut(end.connection)?;
        Some(if end.side == Side::Source { (there, back) } else { (back, there) })
    }

    /// Most that the next send takes.
    pub(super) fn piece_bytes(&self, end: End, random: &mut Random) -> usize {
        let most = self.pipes.get(end.connection).map_or(0, |[there, _]| there.link.piece_bytes);
        let piece = if random.percent(50) { most } else { random.spread(most) };
        usize::try_from(piece).unwrap_or(usize::MAX).max(1)
    }

    /// Sends what there is room for of `bytes`.
    pub(super) fn send(
        &mut self,
        end: End,
        bytes: &[u8],
        now_us: u64,
        random: &mut Random,
    ) -> io::Result<usize> {
        let partition_until_us = self.partition_until_us;
        let Some((out, _)) = self.pair(end) else { return Err(ErrorKind::NotConnected.into()) };
        if out.reset_us.is_some_and(|at| at <= now_us) || out.finished_us.is_some() {
            return Err(ErrorKind::ConnectionReset.into());
        }
        let room = out.link.room_bytes.saturating_sub(out.held_bytes);
        let count = bytes.len().min(room);
        if count == 0 {
            return Err(ErrorKind::WouldBlock.into());
        }
        let bytes = bytes.get(..count).unwrap_or_default();
        if out.closed {
            // Nobody is there: that is told when the bytes have come.
            out.accepted_bytes += count as u64;
            let at_us = now_us + 2 * out.link.delay_us;
            self.reset(end.connection, at_us);
            return Ok(count);
        }
        let hit = out.send(bytes, now_us.max(partition_until_us), random);
        if end.side == Side::Source {
            self.log.push((now_us, count as u64));
        }
        if let Some(kind) = hit {
            self.damage(end, kind, now_us);
        }
        Ok(count)
    }

    fn damage(&mut self, end: End, kind: Kind, now_us: u64) {
        self.hits += 1;
        match kind {
            Kind::Cut => self.reset(end.connection, now_us),
            Kind::SilentBoth => {
                if let Some((_, back)) = self.pair(end) {
                    back.silent = true;
                }
            }
            Kind::Silent | Kind::Flip(_) => {}
        }
    }

    /// Receives what has come, at most `most` bytes; empty at the end.
    pub(super) fn receive(
        &mut self,
        end: End,
        most: usize,
        now_us: u64,
        out: &mut Vec<u8>,
    ) -> io::Result<()> {
        let Some((_, pipe)) = self.pair(end) else { return Err(ErrorKind::NotConnected.into()) };
        if pipe.reset_us.is_some_and(|at| at <= now_us) {
            return Err(ErrorKind::ConnectionReset.into());
        }
        while out.len() < most {
            let Some(piece) = pipe.flight.front_mut().filter(|piece| piece.at_us <= now_us) else { break };
            let rest = piece.rest();
            let count = rest.len().min(most - out.len());
            out.extend_from_slice(rest.get(..count).unwrap_or_default());
            piece.read_bytes += count;
            pipe.held_bytes = pipe.held_bytes.saturating_sub(count);
            if piece.rest().is_empty() {
                pipe.flight.pop_front();
            }
        }
        let ended = pipe.flight.is_empty() && pipe.finished_us.is_some_and(|at| at <= now_us);
        if out.is_empty() && !ended { Err(ErrorKind::WouldBlock.into()) } else { Ok(()) }
    }

    /// The first bytes that have come, and whether nothing follows them.
    pub(super) fn peek(&mut self, end: End, first: &mut [u8], now_us: u64) -> io::Result<(usize, bool)> {
        let Some((_, pipe)) = self.pair(end) else { return Err(ErrorKind::NotConnected.into()) };
        if pipe.reset_us.is_some_and(|at| at <= now_us) {
            return Err(ErrorKind::ConnectionReset.into());
        }
        let come = pipe.flight.iter().take_while(|piece| piece.at_us <= now_us);
        let bytes = come.flat_map(Piece::rest);
        let count = first.iter_mut().zip(bytes).map(|(place, byte)| *place = *byte).count();
        let all = pipe.flight.iter().all(|piece| piece.at_us <= now_us);
        Ok((count, all && pipe.finished_us.is_some_and(|at| at <= now_us)))
    }

    pub(super) fn can_receive(&mut self, end: End, now_us: u64) -> bool {
        self.pair(end).is_none_or(|(_, pipe)| {
            let due = |at: Option<u64>| at.is_some_and(|at| at <= now_us);
            due(pipe.flight.front().map(|piece| piece.at_us)) || due(pipe.finished_us) || due(pipe.reset_us)
        })
    }

    pub(super) fn can_send(&mut self, end: End, now_us: u64) -> bool {
        self.pair(end).is_none_or(|(pipe, _)| {
            pipe.held_bytes < pipe.link.room_bytes || pipe.reset_us.is_some_and(|at| at <= now_us)
        })
    }

    /// Nothing more will be sent from this end.
    pub(super) fn finish(&mut self, end: End, now_us: u64) {
        if let Some((out, _)) = self.pair(end)
            && !out.silent
        {
            let at_us = out.last_us.max(now_us + out.link.delay_us);
            out.finished_us.get_or_insert(at_us);
        }
    }

    /// This end is gone. What it has not read is answered by a reset, as TCP does.
    pub(super) fn close(&mut self, end: End, now_us: u64) {
        let Some((_, inward)) = self.pair(end) else { return };
        inward.closed = true;
        let (unread, delay_us) = (inward.held_bytes > 0, inward.link.delay_us);
        self.finish(end, now_us);
        if unread {
            self.reset(end.connection, now_us + delay_us);
        }
    }

    fn reset(&mut self, connection: usize, at_us: u64) {
        for pipe in self.pipes.get_mut(connection).into_iter().flatten() {
            if !pipe.silent {
                pipe.reset_us = Some(pipe.reset_us.map_or(at_us, |known| known.min(at_us)));
            }
        }
    }

    /// A process has ended: its host closes its connections, or is gone itself.
    pub(super) fn kill(&mut self, side: Side, silently: bool, now_us: u64) {
        if side == Side::Destination {
            self.stop_listening(now_us);
        }
        for connection in 0..self.pipes.len() {
            if silently {
                self.pipes.get_mut(connection).into_iter().flatten().for_each(|pipe| pipe.silent = true);
            } else {
                self.close(End { connection, side }, now_us);
            }
        }
    }

    /// Nothing arrives for a while, and then all of it.
    pub(super) fn partition(&mut self, until_us: u64) {
        self.partition_until_us = until_us;
        for piece in self.pipes.iter_mut().flatten().flat_map(|pipe| &mut pipe.flight) {
            piece.at_us = piece.at_us.max(until_us);
        }
        for pipe in self.pipes.iter_mut().flatten() {
            pipe.last_us = pipe.last_us.max(until_us);
            pipe.finished_us = pipe.finished_us.map(|at| at.max(until_us));
        }
    }

    /// All bytes that were taken for sending, both ways.
    pub(super) fn sent_bytes(&self) -> u64 {
        self.pipes.iter().flatten().map(|pipe| pipe.accepted_bytes).sum()
    }

    /// How much has come to a destination and was not read, ends included: a change is something new.
    pub(super) fn arrived(&self, now_us: u64) -> usize {
        let due = |at: Option<u64>| usize::from(at.is_some_and(|at| at <= now_us));
        let pieces = |pipe: &Pipe| pipe.flight.iter().take_while(|piece| piece.at_us <= now_us).count();
        let news = |pipe: &Pipe| pieces(pipe) + due(pipe.finished_us) + due(pipe.reset_us);
        self.pipes.iter().map(|[there, _]| news(there)).sum()
    }

    /// When something arrives by itself.
    pub(super) fn next_us(&self, now_us: u64) -> Option<u64> {
        let pieces = |pipe: &Pipe| pipe.flight.iter().map(|piece| piece.at_us).find(|at| *at > now_us);
        let pipes = self.pipes.iter().flatten();
        let ends = pipes.flat_map(|pipe| [pieces(pipe), pipe.finished_us, pipe.reset_us]).flatten();
        ends.chain(self.backlog.iter().map(|(at_us, _)| *at_us)).filter(|at| *at > now_us).min()
    }
}

impl Pipe {
    /// Takes these bytes; what has happened to them.
    fn send(&mut self, bytes: &[u8], now_us: u64, random: &mut Random) -> Option<Kind> {
        let (before, count) = (self.accepted_bytes, bytes.len());
        self.accepted_bytes += count as u64;
        self.held_bytes += count;
        let due = |damage: &mut Damage| damage.at_byte < before + count as u64;
        let hit = self.damage.take_if(due).map(|damage| (damage.kind, damage.at_byte.saturating_sub(before)));
        let mut bytes = bytes.to_vec();
        if let Some((kind, place)) = hit {
            match kind {
                Kind::Flip(bit) => {
                    if let Some(byte) = bytes.get_mut(place as usize) {
                        *byte ^= 1 << (bit % 8);
                    }
                }
                Kind::Cut | Kind::Silent | Kind::SilentBoth => bytes.truncate(place as usize),
            }
        }
        if !bytes.is_empty() && !self.silent {
            let took_us = (count as u64 * 1000) / self.link.bytes_per_ms.max(1);
            self.free_us = self.free_us.max(now_us) + took_us;
            let late_us = self.link.delay_us + random.below(self.link.jitter_us + 1);
            self.last_us = self.last_us.max(self.free_us + late_us);
            self.flight.push_back(Piece { at_us: self.last_us, bytes, read_bytes: 0 });
        }
        self.silent |= matches!(hit, Some((Kind::Silent | Kind::SilentBoth, _)));
        hit.map(|(kind, _)| kind)
    }
}
