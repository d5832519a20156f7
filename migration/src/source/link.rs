//! The link: a guest goes to a peer, which takes it over.

use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use super::carrier::{Carrier, Hashed, Proposal, Terms};
use super::lanes::{Flow, Lane};
use super::opening::{self, Further};
use super::serving::{self, Lacking, Served, Serving};
use super::terms::{hear_missing, receive_known, terms};
use crate::channel::throttle::Throttle;
use crate::channel::{Address, Connection, Connector, Security, Uri};
use crate::config::LiveParameters;
use crate::control::{Control, Unobserved};
use crate::error::{LinkError, MigrationError};
use crate::handover::Answer;
use crate::ram::compress::{self, Method};
use crate::ram::job::{Job, Moved};
use crate::ram::pool::worker_threads;
use crate::ram::proof::MemoryProof;
use crate::ram::{Auto, Compression, Encoding, KnownSet, Outgoing, PageCache, RamView, encoding_names};
use crate::stats::{Downtime, Report, Side, XbzrleReport};
use crate::vm::GuestRam;
use crate::wire::{
    Agreed, Commit, FLAG_LAST, FLAG_RUNNING, FrameType, Offer, Prepared, Purpose, RoundEnd, Running,
    SessionId, Settled, Sync, Wire, encode_page_set, introduce, introduce_again,
};

/// Why there is no second connection.
const MADE_BY_OTHERS: &str = "it was made by others";
/// How long a destination that is looked for may take for its hello.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(3);

/// The connections to a destination.
pub(crate) struct Link {
    /// The first one, which messages and state take.
    main: Arc<Lane>,
    /// How further ones are made, if they can be.
    connector: Option<Arc<dyn Connector>>,
    live: LiveParameters,
    control: Arc<Control>,
    /// From `agree` on.
    flow: Option<Flow>,
    /// For post-copy, if that was agreed.
    urgent: Option<Wire>,
    /// That were agreed.
    encodings: u64,
    /// From the switch to post-copy on: what takes the pages, and its connections.
    serving: Option<Serving>,
    lanes: Vec<Arc<Lane>>,
    /// The destination, found again after a break.
    found: Option<(Wire, Arc<Control>)>,
    session: SessionId,
    channels: u32,
    /// The latest that is known while the first connection is in use.
    message_bytes: AtomicU64,
}

impl Link {
    pub(crate) fn new(
        connection: Connection,
        connector: Option<&Arc<dyn Connector>>,
        live: &LiveParameters,
        control: &Arc<Control>,
    ) -> Self {
        let main = Lane::new(Wire::new(connection, Side::Source, control));
        let (connector, live, control) = (connector.map(Arc::clone), live.clone(), Arc::clone(control));
        let (flow, urgent, serving) = (None, None, None);
        Self {
            main,
            connector,
            live,
            control,
            flow,
            urgent,
            encodings: 0,
            serving,
            lanes: Vec::new(),
            found: None,
            session: SessionId::default(),
            channels: 1,
            message_bytes: AtomicU64::new(0),
        }
    }

    /// Nothing is sent any more but last words.
    fn end(&mut self) {
        if let Some(flow) = &mut self.flow {
            flow.end();
        }
        self.serving = None;
    }

    fn flow(&self) -> Result<&Flow, MigrationError> {
        // The engine comes to terms before anything else.
        self.flow.as_ref().ok_or_else(|| self.control.halted("sending memory"))
    }

    /// Only one connection, if there can't be more.
    fn limit_channels(&self, offer: &mut Offer, report: &mut Report) -> Result<(), MigrationError> {
        let reason = match &self.connector {
            Some(connector) => connector.only_one(),
            None => Some(MADE_BY_OTHERS),
        };
        if let (Some(reason), Some(channels)) = (reason, offer.channels) {
            offer.channels = None;
            report.warnings.push(format!("1 connection instead of {channels}: {reason}"));
        }
        match reason {
            Some(reason) if offer.postcopy.is_some() => Err(MigrationError::NoPostcopy { reason }),
            _ => Ok(()),
        }
    }

    /// Starts what pages flow through.
    fn open(
        &mut self,
        ram: &GuestRam,
        terms: &Terms,
        known: Option<KnownSet>,
        further: Vec<Wire>,
    ) -> Result<(), MigrationError> {
        let ram = Arc::new(RamView::new(ram));
        let lanes: Vec<_> =
            [Arc::clone(&self.main)].into_iter().chain(further.into_iter().map(Lane::new)).collect();
        let threads = self.threads_for(terms.encodings, lanes.len());
        let deltas = terms.encodings & Encoding::Xbzrle.bit() != 0;
        let outgoing = Outgoing {
            proof: terms.hashes.then(|| Arc::new(MemoryProof::new(ram.region_pages()))),
            cache: deltas.then(|| PageCache::new(self.live.get().xbzrle_cache_bytes)),
            overflows: AtomicU64::new(0),
            known,
            compression: self.compression(terms.encodings, threads),
            ram,
        };
        let throttle = Throttle::new(&self.live, &self.control);
        self.flow = Some(Flow::start(lanes, outgoing, throttle, threads, &self.control)?);
        self.encodings = terms.encodings;
        Ok(())
    }

    /// The method of compression that these parameters ask for, if it was agreed.
    fn method(&self, encodings: u64) -> Option<&'static Method> {
        let agreed = |row: &&'static Method| encodings & (1 << row.encoding) != 0;
        compress::method(self.live.get().compress).filter(agreed)
    }

    fn threads_for(&self, encodings: u64, channels: usize) -> usize {
        let parameters = self.live.get();
        let compressed = parameters.compress == compress::AUTO || self.method(encodings).is_some();
        threads(channels, compressed, parameters.compress_threads)
    }

    /// How groups are compressed by so many threads, if they are.
    fn compression(&self, encodings: u64, threads: usize) -> Option<Compression> {
        let parameters = self.live.get();
        if parameters.compress == compress::AUTO {
            let auto = Auto::new(encodings, threads, &self.live, &self.control);
            return Some(Compression::Auto(Box::new(auto)));
        }
        let method = self.method(encodings)?;
        let level = match parameters.compress_level {
            0 => method.default_level,
            level => u32::try_from(level).unwrap_or(u32::MAX),
        };
        Some(Compression::Fixed(method, level))
    }

    /// How pages are encoded in post-copy: without deltas, and one that somebody waits for as it is.
    fn postcopy_encoding(&self, channels: usize) -> Result<serving::Encoding, MigrationError> {
        let Outgoing { ram, proof, .. } = &*self.flow()?.shared.outgoing;
        let threads = self.threads_for(self.encodings, channels);
        let outgoing = |compression| {
            Arc::new(Outgoing {
                ram: Arc::clone(ram),
                proof: proof.as_ref().map(Arc::clone),
                cache: None,
                overflows: AtomicU64::new(0),
                known: None,
                compression,
            })
        };
        let push = outgoing(self.compression(self.encodings, threads));
        Ok(serving::Encoding { push, urgent: outgoing(None), threads })
    }
}

/// How many threads send; 0: the engine's own, which is fastest over one connection when nothing is compressed.
fn threads(channels: usize, compressed: bool, compress_threads: u64) -> usize {
    let compressing = if compressed { worker_threads(compress_threads) } else { 0 };
    match channels.max(compressing) {
        1 if !compressed => 0,
        threads => threads,
    }
}

impl Carrier for Link {
    fn gives_away(&self) -> bool {
        true
    }

    fn agree(&mut self, proposal: Proposal<'_>, report: &mut Report) -> Result<Terms, MigrationError> {
        let Proposal { mut offer, ram, .. } = proposal;
        self.limit_channels(&mut offer, report)?;
        let mut wire = self.main.wire();
        let asked_us = self.control.now_us();
        let peer = introduce(&mut wire, Purpose::Migration)?;
        let round_trip_us = self.control.since_us(asked_us);
        report.session.clone_from(&peer.session);
        report.peer_tern_version.clone_from(&peer.tern_version);
        report.tls = wire.tls();
        report.protocol_version = peer.protocol_version;
        let offered_us = self.control.now_us();
        wire.send(FrameType::Offer, &offer, "offering the guest")?;
        let answer: Agreed = wire.expect(FrameType::Agreed, "waiting for the peer to agree")?;
        // One that was late by chance would make every downtime look too long, to the end.
        let round_trip_us = round_trip_us.min(self.control.since_us(offered_us));
        let terms = Terms { round_trip_us, ..terms(&offer, &answer, peer.protocol_version)? };
        let known = receive_known(&mut wire, terms.known_pages)?;
        let channels = answer.channels.unwrap_or(1).max(1);
        let further = match &self.connector {
            Some(connector) => {
                let wanted = (channels, terms.postcopy);
                opening::further(&**connector, &mut wire, peer.session_id, wanted, &self.control)?
            }
            None => Further::default(),
        };
        drop(wire);
        (self.session, self.channels) = (peer.session_id, channels);
        if offer.postcopy.is_some() && !terms.postcopy {
            report
                .warnings
                .push("the destination's release does not know post-copy: moved without".to_owned());
        }
        if offer.channels.is_some_and(|wanted| wanted != channels) {
            report.warnings.push(format!("the destination takes {channels} connections"));
        }
        // That nothing is known there needs no word.
        let refused = offer.encodings & !terms.encodings & !Encoding::Known.bit();
        if refused != 0 {
            let names = encoding_names(refused).join(", ");
            report.warnings.push(format!("the destination's release does not know {names}: sent without"));
        }
        self.open(ram, &terms, known, further.channels)?;
        self.urgent = further.urgent;
        Ok(terms)
    }

    fn hear(&mut self) -> Result<(), MigrationError> {
        // While somebody sends over it, that is where it shows that the peer has gone.
        let Some(mut wire) = self.main.idle_wire() else { return Ok(()) };
        if wire.peer_spoke() {
            let state = "sending memory";
            let header = wire.receive(state)?;
            return Err(wire.unexpected(&header, state, "nothing"));
        }
        Ok(())
    }

    fn pages(&mut self, job: Job) -> Result<(), MigrationError> {
        self.flow()?.pool()?.put(job)
    }

    fn has_room(&mut self, most: Duration) -> Result<bool, MigrationError> {
        self.flow()?.pool()?.has_room(Some(most))
    }

    fn is_idle(&mut self, most: Duration) -> Result<bool, MigrationError> {
        self.flow()?.pool()?.is_idle(Some(most))
    }

    fn threads(&self) -> usize {
        self.flow.as_ref().map_or(0, |flow| flow.threads)
    }

    fn take_moved(&mut self) -> Moved {
        let flow = || self.flow.as_ref().map_or_else(Moved::default, Flow::take_moved);
        self.serving.as_ref().map_or_else(flow, Serving::take_moved)
    }

    fn deltas(&self) -> Option<XbzrleReport> {
        self.flow.as_ref()?.shared.outgoing.deltas()
    }

    fn chosen(&self) -> Option<String> {
        Some(self.flow.as_ref()?.shared.outgoing.auto()?.reason())
    }

    fn hashed(&self) -> Option<Hashed> {
        let proof = self.flow.as_ref()?.shared.outgoing.proof.as_ref()?;
        Some(Hashed { memory: proof.sum(), spent_us: proof.spent_us() })
    }

    fn end_round(&mut self, end: &RoundEnd) -> Result<(), MigrationError> {
        const STATE: &str = "ending a round";
        let before = self.message_bytes();
        let lanes = if self.serving.is_some() { &self.lanes } else { &self.flow()?.shared.lanes };
        for lane in lanes.iter().skip(1) {
            let mut wire = lane.wire();
            wire.send(FrameType::Sync, &Sync { pages: lane.take_round_pages() }, STATE)?;
            wire.epoch = wire.epoch.wrapping_add(1);
        }
        let mut wire = self.main.wire();
        wire.send(FrameType::RoundEnd, end, STATE)?;
        wire.epoch = wire.epoch.wrapping_add(1);
        drop(wire);
        if end.last || self.serving.is_some() {
            return Ok(());
        }
        // Rounds of a guest that writes little are short and many.
        let bytes = self.message_bytes().saturating_sub(before);
        self.flow()?.shared.throttle.pass(bytes)
    }

    fn state(&mut self, state: &[u8], running: bool) -> Result<u64, MigrationError> {
        let flags = if running { FLAG_RUNNING } else { 0 };
        let fill = |out: &mut Vec<u8>| out.extend_from_slice(state);
        let mut wire = self.main.wire();
        wire.send_with(FrameType::State, flags, "sending the state", fill)?;
        // Whoever loads it may wait for pages.
        if let (Some(serving), Some(mut urgent)) = (&mut self.serving, self.urgent.take()) {
            urgent.epoch = wire.epoch;
            let missing = serving.missing().clone();
            serving.answer(urgent, &missing, &self.control)?;
        }
        let waiting = "waiting for the peer to load the state";
        let prepared: Prepared = wire.expect(FrameType::Prepared, waiting)?;
        Ok(prepared.load_us)
    }

    fn commit(&mut self, commit: &Commit, _: &mut Report) -> Result<u64, MigrationError> {
        let mut wire = self.main.wire();
        wire.ignore_cancel();
        wire.send(FrameType::Commit, commit, "handing the guest over")?;
        if self.serving.is_some() {
            // Who starts the guest may need a page: a break of the urgent connection is to be mended at once.
            wire.heed_halt();
        }
        let waiting = "waiting for the peer to say that the guest runs";
        let answer: Running = wire.expect(FrameType::Running, waiting)?;
        Ok(answer.resume_us)
    }

    fn lacks(&mut self, lacking: Lacking) -> Result<(), MigrationError> {
        const STATE: &str = "saying which pages are missing";
        self.lanes = self.flow.as_mut().map_or_else(Vec::new, Flow::retire);
        let encoding = self.postcopy_encoding(self.lanes.len())?;
        if let Some(proof) = &encoding.push.proof {
            proof.forget(&lacking.missing);
        }
        let frames = encode_page_set(&lacking.missing);
        let (mut wire, count) = (self.main.wire(), frames.len());
        for (number, frame) in (1..).zip(frames) {
            let flags = if number == count { FLAG_LAST } else { 0 };
            wire.send_with(FrameType::Missing, flags, STATE, |out| out.extend_from_slice(&frame))?;
        }
        drop(wire);
        let channels = self.lanes.len();
        self.serving = Some(Serving::new(lacking, encoding, channels, &self.live, &self.control));
        Ok(())
    }

    fn serve(&mut self, most: Duration) -> Result<bool, MigrationError> {
        self.serving.as_mut().map_or(Ok(true), |serving| serving.serve(&self.lanes, most))
    }

    fn part(&mut self) {
        self.found = None;
        if let Some(serving) = &mut self.serving {
            serving.part();
        }
        // The threads have ended; who has connected sees it too.
        self.main.wire().finish();
        self.lanes.drain(..).for_each(|lane| lane.wire().finish());
    }

    fn find(&mut self) -> Result<Answer, MigrationError> {
        let connector =
            self.connector.as_ref().ok_or(MigrationError::NoPostcopy { reason: MADE_BY_OTHERS })?;
        let failed = |source| MigrationError::Thread { action: "look for the destination", source };
        let control = Control::new(Side::Source, Box::new(Unobserved)).map_err(failed)?;
        let mut wire = Wire::new(connector.connect(&control)?, Side::Source, &control);
        wire.belong_to(&self.main.wire());
        wire.epoch = 0;
        let patience = wire.limit_silence(ANSWER_TIMEOUT);
        let peer = introduce_again(&mut wire, self.session, Purpose::Recover)?;
        wire.allow_silence(patience);
        self.found = Some((wire, control));
        Ok(peer.answer)
    }

    fn go_on(&mut self) -> Result<(), MigrationError> {
        const STATE: &str = "hearing which pages are missing";
        let (Some((mut wire, control)), Some(connector)) = (self.found.take(), &self.connector) else {
            return Err(self.control.halted(STATE));
        };
        let wanted = (self.channels, true);
        let Further { channels, urgent } =
            opening::further(&**connector, &mut wire, self.session, wanted, &control)?;
        let (Some(serving), Some(urgent)) = (&mut self.serving, urgent) else {
            return Err(self.control.halted(STATE));
        };
        let left = hear_missing(&mut wire, serving.missing())?;
        self.main = Lane::new(wire);
        self.lanes =
            [Arc::clone(&self.main)].into_iter().chain(channels.into_iter().map(Lane::new)).collect();
        serving.answer(urgent, &left, &control)
    }

    fn look_at(&mut self, uri: &Uri) {
        self.connector = Some(Arc::new(Address::new(uri, Security::of(&self.live.get()))));
    }

    fn served(&self) -> Served {
        self.serving.as_ref().map_or_else(Served::default, Serving::served)
    }

    fn settled(&mut self, downtime: &Downtime) {
        let Downtime { total_us, commit_us, .. } = *downtime;
        let settled = Settled { total_us: total_us.unwrap_or(0), commit_us: commit_us.unwrap_or(0) };
        // Who doesn't hear of it goes on answering, and nobody asks.
        let _ = self.main.wire().send(FrameType::Settled, &settled, "thanking");
    }

    fn message_bytes(&self) -> u64 {
        // Who sends over it may be waiting for a peer that has gone.
        if let Some(wire) = self.main.idle_wire() {
            self.message_bytes.store(wire.message_bytes(), Relaxed);
        }
        self.message_bytes.load(Relaxed)
    }

    fn last_words(&mut self, error: MigrationError) -> MigrationError {
        let is_trace = matches!(error, MigrationError::Link(LinkError::Halted { .. }));
        let cause = self.serving.as_ref().filter(|_| is_trace).and_then(Serving::fault);
        let error = cause.unwrap_or(error);
        self.end();
        self.main.wire().last_words(error)
    }

    fn abandon(&mut self, error: &MigrationError) {
        self.end();
        self.main.wire().farewell(error);
    }
}
