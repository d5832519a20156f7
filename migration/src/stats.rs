//! The report of a migration: one document, the same fields on both sides, every unit in a name, kept after
//! success, failure and cancel.

mod postcopy;
mod progress;
mod query;

pub use postcopy::PostcopyReport;
pub use query::query_migrate;

use serde::{Serialize, Serializer};

use crate::channel::Route;
use crate::config::{Capabilities, Parameters};
use crate::dirty::{DirtyLogMode, VcpuDirty};
use crate::error::{Blame, MigrationError};
use crate::pager::PagerReport;
use crate::policy::link::rate;
use crate::ram::job::Moved;
use crate::ram::{ENCODINGS, Encoding};

/// Most rounds that a report keeps; behind it the oldest but the first is forgotten.
pub const ROUNDS_KEPT: usize = 512;

/// Which end of the migration.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Side {
    /// Where the guest comes from.
    Source,
    /// Where it goes.
    Destination,
}

impl Side {
    /// `source` or `destination`.
    pub fn name(self) -> &'static str {
        match self {
            Self::Source => "source",
            Self::Destination => "destination",
        }
    }

    /// The other one.
    pub fn peer(self) -> Self {
        match self {
            Self::Source => Self::Destination,
            Self::Destination => Self::Source,
        }
    }
}

/// Where a migration stands, in QMP's words; `in-doubt` is tern's own.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Status {
    /// None was ever started.
    None,
    /// The two sides agree on what will happen.
    Setup,
    /// Memory moves, the guest runs on the source.
    Active,
    /// Little is left; the guest runs, and waits for the manager's `migrate-continue`.
    PreSwitchover,
    /// The guest is stopped.
    Device,
    /// The guest is the destination's, and part of its memory is still at the source.
    PostcopyActive,
    /// Likewise, and the connections have broken: both sides keep everything.
    PostcopyPaused,
    /// Likewise, and the connections are being made anew.
    PostcopyRecover,
    /// The guest runs on the destination.
    Completed,
    /// The guest stays on the source.
    Failed,
    /// A cancel was accepted and is being carried out.
    Cancelling,
    /// The guest stays on the source.
    Cancelled,
    /// Source only: the guest was given up and the destination did not answer. It stays stopped here, with
    /// its memory, until a person has looked at the destination.
    InDoubt,
}

impl Status {
    /// QMP's word.
    pub fn name(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Setup => "setup",
            Self::Active => "active",
            Self::PreSwitchover => "pre-switchover",
            Self::Device => "device",
            Self::PostcopyActive => "postcopy-active",
            Self::PostcopyPaused => "postcopy-paused",
            Self::PostcopyRecover => "postcopy-recover",
            Self::Completed => "completed",
            Self::Failed => "failed",
            Self::Cancelling => "cancelling",
            Self::Cancelled => "cancelled",
            Self::InDoubt => "in-doubt",
        }
    }

    /// The guest is the destination's, and part of its memory is still at the source.
    pub fn is_postcopy(self) -> bool {
        matches!(self, Self::PostcopyActive | Self::PostcopyPaused | Self::PostcopyRecover)
    }

    /// Is it over?
    pub fn is_final(self) -> bool {
        matches!(self, Self::Completed | Self::Failed | Self::Cancelled | Self::InDoubt)
    }
}

/// The whole document.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Report {
    /// Which side wrote it.
    pub side: Side,
    /// Where it stands.
    pub status: Status,
    /// Number of this migration, hexadecimal; the same on both sides. Empty until the peer was heard.
    pub session: String,
    /// `unix` or `tcp`.
    pub transport: &'static str,
    /// Source: where it connected to. Destination: where it listened. None for a connection made by others.
    pub uri: Option<String>,
    /// TCP: the peer's address and port.
    pub peer_address: Option<String>,
    /// How the link was protected against others; none: it was not, or the peer was not heard yet.
    pub tls: Option<TlsReport>,
    /// The peer's release; empty until the peer was heard.
    pub peer_tern_version: String,
    /// Protocol version agreed on; 0 before.
    pub protocol_version: u32,
    /// Destination: connections that were turned away before this one, since nobody there introduced itself
    /// as a source.
    pub strangers: u64,
    /// When it ended, in milliseconds since 1970 by this host's clock; none while it runs.
    pub ended_at_unix_ms: Option<u64>,
    /// How much of it is done. Never falls; 100 is a guest that has arrived.
    pub progress_percent: u64,
    /// How long it will still take if the guest goes on as it does; none where that isn't known, or if it would never
    /// end so.
    pub eta_ms: Option<u64>,
    /// From the start until now, or until the end; at the destination since the source introduced itself.
    pub total_us: u64,
    /// Handshake.
    pub setup_us: u64,
    /// Rounds with the guest running. The destination measures until the last round has come, and takes the source's
    /// figure when that has handed the guest over.
    pub live_us: u64,
    /// Bytes of a page.
    pub page_bytes: u64,
    /// Guest memory.
    pub memory_bytes: u64,
    /// Dirty memory not yet sent; what the guest has written since the dirty log was last read isn't in it.
    /// None where it isn't known: at the destination before all has come.
    pub remaining_bytes: Option<u64>,
    /// Pages sent by this side, or received.
    pub pages: Pages,
    /// The same by encoding, those that were used.
    pub encodings: Vec<EncodingCount>,
    /// The same by connection, in the order of their numbers; empty before memory moves.
    pub channels: Vec<ChannelCount>,
    /// Source: what the cache for deltas does; none where they were not agreed.
    pub xbzrle: Option<XbzrleReport>,
    /// Source, with `compress=auto`: what was chosen last, and why.
    pub compression: Option<String>,
    /// Bytes on the wire by kind.
    pub bytes: Bytes,
    /// One entry a round; the last is the one with the guest stopped.
    pub rounds: Vec<Round>,
    /// Rounds that are no longer listed.
    pub rounds_forgotten: u64,
    /// Pages dirtied a second during the last round with the guest running; none before it has ended.
    pub dirty_pages_per_s: Option<u64>,
    /// Source: how the pages that the guest writes are found; none before that has begun.
    pub dirty_log: Option<DirtyLogMode>,
    /// Source: what each vCPU writes; empty unless `dirty_log` is `ring`.
    pub dirty_by_vcpu: Vec<VcpuWrites>,
    /// What the link carries while it is busy, as the source measured it; none when it didn't. Not the average under
    /// a limit.
    pub link_bytes_per_s: Option<u64>,
    /// What moved in the last whole round, limit and waiting included; none before the first has ended.
    pub moved_bytes_per_s: Option<u64>,
    /// Source: requests to the guest's disks that failed on this host since the start, so that the guest saw I/O errors.
    pub disk_errors: Option<u64>,
    /// Downtime if the guest were stopped now; none before the first round has ended, and at the
    /// destination.
    pub expected_downtime_ms: Option<u64>,
    /// Limit as it was last.
    pub downtime_limit_ms: Option<u64>,
    /// Limit as it was last; 0 is none.
    pub max_bandwidth_bytes_per_s: Option<u64>,
    /// Limit as it was last; 0 is none.
    pub max_total_time_ms: Option<u64>,
    /// Source: what was switched on.
    pub capabilities: Option<Capabilities>,
    /// The stop of the guest, part by part.
    pub downtime: Option<Downtime>,
    /// What both sides compare at the switch; none where it was not agreed.
    pub proof: Option<Proof>,
    /// Post-copy; none before it has begun.
    pub postcopy: Option<PostcopyReport>,
    /// A guest from a file whose memory comes on demand: how far that is; none for any other. It goes on when the
    /// status is `completed`, which says that the guest runs.
    pub on_demand: Option<PagerReport>,
    /// Why it did not complete.
    pub error: Option<ErrorReport>,
    /// What else went wrong without deciding anything.
    pub warnings: Vec<String>,
}

/// How TLS has protected a link.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct TlsReport {
    /// Of the protocol.
    pub version: &'static str,
    /// The cipher suite, by its name in RFC 8446, B.4.
    pub cipher: String,
    /// By what the two sides have proven who they are: `certificates` or `shared-secret`.
    pub proven_by: &'static str,
    /// Whom this side has found at the other end: at a source the name that it expected in the certificate, at a destination the
    /// names in the source's; none with a shared secret, which names nobody.
    pub peer: Option<String>,
}

/// What one vCPU writes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct VcpuWrites {
    /// Pages that it made dirty since the start; one that was written again after it was read counts again.
    pub pages: u64,
    /// The same a second, in the last whole round.
    pub dirty_pages_per_s: u64,
    /// How often it had to wait since its ring was full.
    pub ring_full_exits: u64,
}

/// Pages by what became of them.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct Pages {
    /// Sent as they are.
    pub raw: u64,
    /// Found to be zero and sent as a mark.
    pub zero: u64,
    /// Sent compressed, or as what has changed in them.
    pub encoded: u64,
    /// Never touched by anyone, and neither read nor sent. The destination is told at the end of a round.
    pub untouched: Option<u64>,
}

impl Pages {
    fn of(moved: &Moved) -> Self {
        let pages =
            |encoding: Encoding| moved.encodings.get(encoding as usize).map_or(0, |count| count.pages);
        let (raw, zero) = (pages(Encoding::Raw), pages(Encoding::Zero));
        Self { raw, zero, encoded: moved.pages() - raw - zero, untouched: None }
    }

    /// Pages that have a record on the wire.
    pub fn sent(self) -> u64 {
        self.raw + self.zero + self.encoded
    }
}

/// Bytes on the wire by kind.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct Bytes {
    /// Contents of pages.
    pub page_data: u64,
    /// Records that say which page it is.
    pub page_records: u64,
    /// State of vCPUs, interrupt controllers, clocks and devices.
    pub state: u64,
    /// Frame headers and all other messages.
    pub messages: u64,
}

impl Bytes {
    /// All of them.
    pub fn total(self) -> u64 {
        self.page_data + self.page_records + self.state + self.messages
    }
}

/// One pass over the dirty pages.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct Round {
    /// From 0, which sends all of memory.
    pub round: u32,
    /// Was the guest stopped?
    pub stopped: bool,
    /// Has it come to its end? Only the last one hasn't: it is under way, or the migration ended in it.
    pub finished: bool,
    /// Pages sent as they are.
    pub pages_raw: u64,
    /// Pages sent as zero.
    pub pages_zero: u64,
    /// Pages sent compressed, or as what has changed in them.
    pub pages_encoded: u64,
    /// Pages never touched, round 0 only.
    pub pages_untouched: Option<u64>,
    /// Pages found dirty at its end; none for the stopped one. The destination is told a round later.
    pub pages_dirty_at_end: Option<u64>,
    /// Bytes on the wire.
    pub wire_bytes: u64,
    /// How long it took.
    pub duration_us: u64,
    /// Pages dirtied a second while it ran; known as `pages_dirty_at_end` is.
    pub dirty_pages_per_s: Option<u64>,
}

impl Round {
    /// Pages that have a record on the wire.
    pub fn pages(&self) -> u64 {
        self.pages_raw + self.pages_zero + self.pages_encoded
    }

    pub(crate) fn add(&mut self, moved: &Moved) {
        let Pages { raw, zero, encoded, .. } = Pages::of(moved);
        self.pages_raw += raw;
        self.pages_zero += zero;
        self.pages_encoded += encoded;
        self.wire_bytes += moved.bytes();
    }
}

/// Pages in one encoding.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct EncodingCount {
    /// Its name.
    pub name: &'static str,
    /// Pages sent so, or received.
    pub pages: u64,
    /// Their bytes on the wire, records included.
    pub bytes: u64,
}

/// What has become of pages where only their changes could be sent.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct XbzrleReport {
    /// Pages whose former content was still known.
    pub hits: u64,
    /// Pages whose former content was not.
    pub misses: u64,
    /// Of the misses: another page's content was forgotten for it.
    pub evictions: u64,
    /// Of the misses: not kept, since all others are in use.
    pub refusals: u64,
    /// Of the hits: sent whole, since too much had changed.
    pub overflows: u64,
}

/// Pages of one connection.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct ChannelCount {
    /// Pages sent over it, or received.
    pub pages: u64,
    /// Their bytes on the wire, records included.
    pub bytes: u64,
}

/// The stop of the guest. What only one side can measure, the other is told, or has none.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct Downtime {
    /// Source: from the order to stop until the answer that the guest runs. The destination isn't told.
    pub total_us: Option<u64>,
    /// Source: stopping vCPUs and draining devices.
    pub stop_us: u64,
    /// Source: reading the state out of them.
    pub state_save_us: u64,
    /// Source: last look at the dirty log and sending what it showed.
    pub final_ram_us: u64,
    /// Source: sending the state until the destination said that all is loaded; `load_us` is a part of it.
    pub state_send_us: Option<u64>,
    /// Destination: loading and checking the state.
    pub load_us: u64,
    /// Source: from sending COMMIT until the answer; `resume_us` is a part of it. The destination
    /// isn't told.
    pub commit_us: Option<u64>,
    /// Destination: starting the guest.
    pub resume_us: u64,
}

/// The proof that the destination has what the source had, as this side has computed it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct Proof {
    /// Of all memory, hexadecimal; none before the last page.
    #[serde(serialize_with = "hexadecimal")]
    pub memory: Option<u64>,
    /// Of the encoded state, hexadecimal; none before it was saved or received.
    #[serde(serialize_with = "hexadecimal")]
    pub state: Option<u64>,
    /// What it has cost this side.
    pub hash_us: u64,
    /// The part of that for which the guest has waited.
    pub stopped_hash_us: u64,
}

/// JSON's numbers have 53 bits.
fn hexadecimal<S: Serializer>(hash: &Option<u64>, to: S) -> Result<S::Ok, S::Error> {
    hash.map(|hash| format!("{hash:016x}")).serialize(to)
}

/// Why a migration did not complete.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ErrorReport {
    /// For programs; doesn't change between releases.
    pub code: String,
    /// Who is to blame.
    pub blame: Blame,
    /// For people: the error and each cause below it.
    pub chain: Vec<String>,
}

impl ErrorReport {
    /// The error and its causes in one line.
    pub fn text(&self) -> String {
        self.chain.join(": ")
    }
}

impl From<&MigrationError> for ErrorReport {
    fn from(error: &MigrationError) -> Self {
        Self { code: error.code().to_owned(), blame: error.blame(), chain: error.chain() }
    }
}

impl Report {
    /// Takes in what a pager has done since the guest began to run: what has come, and what is left.
    pub fn add_on_demand(&mut self, pager: PagerReport) {
        let brought = pager.pages_by_fault.saturating_add(pager.pages_by_prefetch);
        self.pages.zero = pager.pages_zero;
        self.pages.raw = brought.saturating_sub(pager.pages_zero);
        self.bytes.page_data = self.pages.raw.saturating_mul(self.page_bytes);
        self.remaining_bytes = Some(pager.pages_left.saturating_mul(self.page_bytes));
        self.on_demand = Some(pager);
    }

    /// Nothing has happened yet.
    pub fn new(side: Side) -> Self {
        Self {
            side,
            status: Status::None,
            session: String::new(),
            transport: "",
            uri: None,
            peer_address: None,
            tls: None,
            peer_tern_version: String::new(),
            protocol_version: 0,
            strangers: 0,
            ended_at_unix_ms: None,
            progress_percent: 0,
            eta_ms: None,
            total_us: 0,
            setup_us: 0,
            live_us: 0,
            page_bytes: crate::vm::PAGE_BYTES,
            memory_bytes: 0,
            remaining_bytes: None,
            pages: Pages::default(),
            encodings: Vec::new(),
            channels: Vec::new(),
            xbzrle: None,
            compression: None,
            bytes: Bytes::default(),
            rounds: Vec::with_capacity(ROUNDS_KEPT),
            rounds_forgotten: 0,
            dirty_pages_per_s: None,
            dirty_log: None,
            dirty_by_vcpu: Vec::new(),
            link_bytes_per_s: None,
            moved_bytes_per_s: None,
            disk_errors: None,
            expected_downtime_ms: None,
            downtime_limit_ms: None,
            max_bandwidth_bytes_per_s: None,
            max_total_time_ms: None,
            capabilities: None,
            downtime: None,
            proof: None,
            postcopy: None,
            on_demand: None,
            error: None,
            warnings: Vec::new(),
        }
    }

    pub(crate) fn set_route(&mut self, route: Route) {
        (self.transport, self.uri, self.peer_address) = (route.transport, route.uri, route.peer_address);
    }

    pub(crate) fn set_parameters(&mut self, parameters: &Parameters) {
        self.downtime_limit_ms = Some(parameters.downtime_limit_ms);
        self.max_bandwidth_bytes_per_s = Some(parameters.max_bandwidth_bytes_per_s);
        self.max_total_time_ms = Some(parameters.max_total_time_ms);
        self.capabilities = Some(parameters.capabilities);
    }

    /// Takes in what has moved.
    pub(crate) fn add_moved(&mut self, moved: &Moved) {
        let Pages { raw, zero, encoded, .. } = Pages::of(moved);
        self.pages.raw += raw;
        self.pages.zero += zero;
        self.pages.encoded += encoded;
        self.bytes.page_data += moved.data_bytes;
        self.bytes.page_records += moved.record_bytes;
        for (row, count) in ENCODINGS.iter().zip(&moved.encodings).filter(|(_, count)| count.pages > 0) {
            match self.encodings.iter_mut().find(|known| known.name == row.name) {
                Some(known) => {
                    (known.pages, known.bytes) = (known.pages + count.pages, known.bytes + count.bytes)
                }
                None => {
                    let (name, pages, bytes) = (row.name, count.pages, count.bytes);
                    self.encodings.push(EncodingCount { name, pages, bytes });
                    // In the table's order, whichever thread was first: both sides show the same.
                    let place = |name: &str| ENCODINGS.iter().position(|row| row.name == name);
                    self.encodings.sort_by_key(|count| place(count.name));
                }
            }
        }
        if self.channels.len() < moved.channels.len() {
            self.channels.resize(moved.channels.len(), ChannelCount::default());
        }
        for (known, count) in self.channels.iter_mut().zip(&moved.channels) {
            (known.pages, known.bytes) = (known.pages + count.pages, known.bytes + count.bytes);
        }
    }

    /// What each vCPU has written, as the dirty log says at the end of a round that took `time_us`.
    pub(crate) fn note_vcpus(&mut self, written: &[VcpuDirty], time_us: u64) {
        self.dirty_by_vcpu.resize(written.len(), VcpuWrites::default());
        for (noted, now) in self.dirty_by_vcpu.iter_mut().zip(written) {
            let dirty_pages_per_s = rate(now.pages.saturating_sub(noted.pages), time_us);
            let VcpuDirty { pages, ring_full_exits } = *now;
            *noted = VcpuWrites { pages, dirty_pages_per_s, ring_full_exits };
        }
    }

    /// Adds a round; forgets the oldest but the first when there are too many.
    pub fn push_round(&mut self, round: Round) {
        if self.rounds.len() >= ROUNDS_KEPT {
            self.rounds.remove(1);
            self.rounds_forgotten += 1;
        }
        self.rounds.push(round);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_list_of_rounds_is_bounded_and_keeps_the_first() {
        let mut report = Report::new(Side::Source);
        (0..2000).for_each(|round| report.push_round(Round { round, ..Round::default() }));
        assert_eq!(report.rounds.len(), ROUNDS_KEPT);
        assert_eq!((report.rounds[0].round, report.rounds[ROUNDS_KEPT - 1].round), (0, 1999));
        assert_eq!(report.rounds_forgotten, 2000 - ROUNDS_KEPT as u64);
    }

    #[test]
    fn a_vcpus_rate_is_of_the_last_round() {
        let mut report = Report::new(Side::Source);
        let written = |pages| [VcpuDirty { pages, ring_full_exits: pages / 100 }];
        report.note_vcpus(&written(1000), 1_000_000);
        report.note_vcpus(&written(1500), 250_000);
        let expected = VcpuWrites { pages: 1500, dirty_pages_per_s: 2000, ring_full_exits: 15 };
        assert_eq!(report.dirty_by_vcpu, [expected]);
    }

    #[test]
    fn every_number_has_its_unit_in_its_name() {
        let mut report = Report::new(Side::Source);
        report.push_round(Round::default());
        report.downtime = Some(Downtime::default());
        report.proof = Some(Proof::default());
        report.note_vcpus(&[VcpuDirty::default()], 1);
        report.add_on_demand(PagerReport::default());
        let mut postcopy = PostcopyReport::default();
        postcopy.note_pager(PagerReport::default());
        report.postcopy = Some(postcopy);
        let json = serde_json::to_value(&report).unwrap();
        let counts = [
            "faults",
            "pages",
            "ring_full_exits",
            "rounds",
            "strangers",
            "raw",
            "zero",
            "encoded",
            "untouched",
            "round",
            "bytes",
            "protocol_version",
            "requests",
            "pauses",
        ];
        let units =
            ["_us", "_ms", "_percent", "_bytes", "_per_s", "page_data", "page_records", "state", "messages"];
        let check = |name: &str, value: &serde_json::Value| {
            let plain = counts.iter().any(|c| name.starts_with(c)) || units.iter().any(|u| name.ends_with(u));
            assert!(!value.is_number() || plain, "{name} has no unit");
        };
        let on_demand = &json["on_demand"];
        let objects = [
            &json,
            &json["pages"],
            &json["bytes"],
            &json["rounds"][0],
            &json["dirty_by_vcpu"][0],
            &json["downtime"],
            &json["proof"],
            on_demand,
            &on_demand["fault_latency"],
            &on_demand["blocked"],
            &json["postcopy"],
            &json["postcopy"]["placing"],
        ];
        for object in objects {
            object.as_object().unwrap().iter().for_each(|(name, value)| check(name, value));
        }
    }
}
