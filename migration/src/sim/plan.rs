//! What a seed decides before anything moves: the machine, how it is to be moved, the network, and what goes wrong.

use serde_json::{Map, Value, json};

use super::net::{Damage, Kind, LinkPlan};
use super::random::Random;
use crate::config::Parameters;
use crate::fake::{Call, DESTINATION_CALLS, LogMode, Options, SOURCE_CALLS};
use crate::stats::Side;

/// Connections that an attempt may have.
const CHANNELS_MAX: u64 = 4;

/// One attempt.
#[derive(Debug)]
pub(super) struct Plan {
    pub(super) source: Parameters,
    pub(super) destination: Parameters,
    /// None: this connection is refused.
    pub(super) links: Vec<Option<LinkPlan>>,
    /// The call of the source's or the destination's machine that fails.
    pub(super) failing: [Option<(Call, u32)>; 2],
    pub(super) faults: Vec<Fault>,
    /// After this a person cancels it.
    pub(super) patience_us: u64,
    /// A manager that is waited for answers after this.
    pub(super) manager_us: u64,
    /// Pages that the running guest writes: in how many steps of a hundred, and in a millisecond without steps.
    pub(super) writes: [u64; 2],
    /// The destination knows the guest as it is when the attempt begins.
    pub(super) known: bool,
}

/// What goes wrong when.
#[derive(Debug, Clone)]
pub(super) struct Fault {
    pub(super) phase: Phase,
    /// Turns since that phase has begun.
    pub(super) turns: u64,
    pub(super) what: What,
}

/// From when turns are counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Phase {
    /// The attempt has begun.
    Begun,
    /// Memory moves.
    Active,
    /// The guest is stopped.
    Stopped,
    /// The source lets the disks go, and COMMIT follows.
    Committing,
}

/// What happens.
#[derive(Debug, Clone)]
pub(super) enum What {
    /// The process of this side ends, or its host with it.
    Kill(Side, bool),
    /// It doesn't run for so long.
    Freeze(Side, u64),
    /// A person cancels on this side.
    Cancel(Side),
    /// A person changes the limits.
    Change(Map<String, Value>),
    /// Nothing arrives for so long.
    Partition(u64),
}

/// A machine of any layout.
pub(super) fn options(random: &mut Random) -> Options {
    let mut region_pages: Vec<u64> = (0..random.between(1, 3)).map(|_| 1 + random.spread(200)).collect();
    if let Some(first) = region_pages.first_mut() {
        // Saving writes the second page of the first region.
        *first += 1;
    }
    let logs = [
        LogMode::Manual { initially_set: true },
        LogMode::Manual { initially_set: false },
        LogMode::Plain,
        LogMode::Ring,
    ];
    Options {
        region_pages,
        log: random.pick(&logs).unwrap_or(LogMode::Plain),
        writes_per_call: random.spread(4) as u32,
        working_set_pages: 1 + random.spread(60),
        touched_every: random.between(1, 5) as usize,
        ..Options::default()
    }
}

impl Plan {
    /// An attempt in which anything may happen.
    pub(super) fn wild(random: &mut Random) -> Result<Self, String> {
        let mut plan = Self::calm(random)?;
        plan.source = limited(&plan.source, random)?;
        // A guest that never converges goes round after round until somebody has had enough.
        let hopeless = plan.source.downtime_limit_ms < 100 && plan.source.max_total_time_ms == 0;
        plan.patience_us =
            if hopeless { random.spread(500_000) } else { random.between(1_000_000, 100_000_000) };
        let troubles = random.pick(&[0, 1, 1, 1, 1, 2, 2, 3]).unwrap_or(0);
        for _ in 0..troubles {
            plan.trouble(random);
        }
        Ok(plan)
    }

    /// An attempt that must succeed.
    pub(super) fn calm(random: &mut Random) -> Result<Self, String> {
        let links = (0..CHANNELS_MAX).map(|_| Some(link(random))).collect();
        let writes = [random.spread(60), random.spread(20)];
        Ok(Self {
            source: source(random)?,
            destination: merged(&json!({"decompress-threads": random.between(1, 4)}))?,
            links,
            failing: [None; 2],
            faults: Vec::new(),
            patience_us: u64::MAX,
            manager_us: random.spread(1_000_000),
            writes,
            known: random.percent(30),
        })
    }

    fn trouble(&mut self, random: &mut Random) {
        match random.below(10) {
            0..3 => {
                let place = random.below(self.source.channels);
                let way = random.below(2) as usize;
                let link = self.links.get_mut(place as usize).and_then(Option::as_mut);
                if let Some(damage) = link.and_then(|link| link.damage.get_mut(way)) {
                    *damage = Some(damaged(random, way));
                }
            }
            3 => {
                let place = random.below(self.source.channels) as usize;
                if let Some(link) = self.links.get_mut(place) {
                    *link = None;
                }
            }
            4..6 => {
                let calls: &[Call] = if random.percent(60) { &SOURCE_CALLS } else { &DESTINATION_CALLS };
                let side = usize::from(calls == DESTINATION_CALLS);
                if let (Some(place), Some(call)) = (self.failing.get_mut(side), random.pick(calls)) {
                    *place = Some((call, random.spread(4) as u32));
                }
            }
            _ => self.faults.push(fault(random)),
        }
    }
}

fn fault(random: &mut Random) -> Fault {
    let side = if random.percent(50) { Side::Source } else { Side::Destination };
    let what = match random.below(12) {
        0..4 => What::Kill(side, random.percent(30)),
        4..6 => What::Freeze(side, random.spread(40_000_000)),
        6..9 => What::Cancel(side),
        9..11 => {
            let limits = json!({
                "max-bandwidth": 262_144 + random.spread(1 << 30),
                "downtime-limit": 100 + random.spread(2000),
            });
            What::Change(limits.as_object().cloned().unwrap_or_default())
        }
        _ => What::Partition(random.spread(40_000_000)),
    };
    let phases = [Phase::Begun, Phase::Active, Phase::Stopped, Phase::Committing, Phase::Committing];
    let phase = random.pick(&phases).unwrap_or(Phase::Begun);
    let most = if phase == Phase::Committing { 40 } else { 300 };
    Fault { phase, turns: random.spread(most), what }
}

fn damaged(random: &mut Random, way: usize) -> Damage {
    let bit = random.below(8) as u8;
    let kinds = [Kind::Cut, Kind::Silent, Kind::SilentBoth, Kind::Flip(bit), Kind::Flip(bit)];
    let kind = random.pick(&kinds).unwrap_or(Kind::Cut);
    // What a destination says in a whole migration is some 300 bytes.
    let most = if way == 0 { 1 << 20 } else { 400 };
    Damage { at_byte: if way == 0 { random.spread(most) } else { random.below(most) }, kind }
}

fn link(random: &mut Random) -> LinkPlan {
    let slow = random.percent(20);
    LinkPlan {
        bytes_per_ms: if slow { random.between(300, 5_000) } else { random.between(5_000, 5_000_000) },
        delay_us: random.spread(20_000),
        jitter_us: random.spread(5_000),
        room_bytes: 1 + random.between(512, 4096) as usize * random.between(1, 128) as usize,
        piece_bytes: random.between(64, 1 << 16),
        damage: [None; 2],
    }
}

fn source(random: &mut Random) -> Result<Parameters, String> {
    let compress = random.pick(&["none", "none", "lz4", "zstd", "zlib"]).unwrap_or("none");
    let capabilities = json!([
        {"capability": "verify", "state": random.percent(75)},
        {"capability": "xbzrle", "state": random.percent(40)},
        {"capability": "stop-first", "state": random.percent(5)},
        {"capability": "arrive-paused", "state": random.percent(5)},
        {"capability": "pause-before-switchover", "state": random.percent(10)},
    ]);
    merged(&json!({
        "channels": random.between(1, CHANNELS_MAX),
        "compress": compress,
        "compress-level": random.between(0, 2),
        "compress-threads": random.between(1, 4),
        "xbzrle-cache-size": 1 << 20,
        // Whatever the guest writes fits into this.
        "downtime-limit": 2_000_000,
        "capabilities": capabilities,
    }))
}

/// With limits that may make it fail.
fn limited(source: &Parameters, random: &mut Random) -> Result<Parameters, String> {
    let mut limits = Map::new();
    if random.percent(30) {
        limits.insert("max-bandwidth".to_owned(), json!(262_144 + random.spread(4 << 20)));
    }
    if random.percent(60) {
        limits.insert("downtime-limit".to_owned(), json!(random.spread(500)));
    }
    if random.percent(30) {
        limits.insert("max-total-time".to_owned(), json!(1 + random.spread(4000)));
        let then = random.pick(&["fail", "stop"]).unwrap_or("fail");
        limits.insert("on-timeout".to_owned(), json!(then));
    }
    source.merged(&limits).map_err(|error| error.to_string())
}

fn merged(values: &Value) -> Result<Parameters, String> {
    let values = values.as_object().cloned().unwrap_or_default();
    Parameters::default().merged(&values).map_err(|error| error.to_string())
}
