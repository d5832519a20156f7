//! Several connections: what arrives is the guest, whatever one of them suffers.

use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use serde_json::{Value, json};
use tern_migration::channel::{Acceptor, Connection, Connector, Ready, Route};
use tern_migration::destination::receive_with;
use tern_migration::fake::{Direction, FakeVm, Fault, LogMode, Options, relay};
use tern_migration::known::KnownPages;
use tern_migration::source::{Outcome, migrate_by};
use tern_migration::{Control, LiveParameters, MigrationError, Side};

use crate::encodings::{parameters, several_rounds, xbzrle};
use crate::harness::{Ends, PATIENT, assert_invariant, assert_moved, control, on_threads};

/// Connections to a destination in this process, with a relay in each that may do damage.
#[derive(Debug)]
struct Relays {
    far: Arc<Ready>,
    made: AtomicU32,
    faulty: u32,
    way: Direction,
    at: u32,
    fault: Mutex<Fault>,
    hit: Mutex<Option<[Arc<AtomicU32>; 2]>>,
    timeout: Duration,
}

impl Connector for Relays {
    fn connect(&self, _: &Control) -> Result<Connection, MigrationError> {
        let number = self.made.fetch_add(1, Ordering::SeqCst);
        let faulty = number == self.faulty;
        let fault = if faulty { self.fault.lock().unwrap().clone() } else { Fault::None };
        let (near, far, counters) = relay(self.way, self.at, fault).unwrap();
        if faulty {
            *self.hit.lock().unwrap() = Some(counters);
        }
        self.far.push(far.with_timeout(self.timeout)).unwrap();
        Ok(near.with_timeout(self.timeout))
    }

    fn only_one(&self) -> Option<&'static str> {
        None
    }

    fn route(&self) -> Route {
        Route::default()
    }
}

/// What happens to one of the connections.
#[derive(Debug, Clone)]
pub struct Damage {
    pub channel: u32,
    pub way: Direction,
    pub at: u32,
    pub fault: Fault,
    pub timeout: Duration,
}

pub const NONE: Damage =
    Damage { channel: 0, way: Direction::ToSource, at: u32::MAX, fault: Fault::None, timeout: PATIENT };

pub struct Ran {
    pub ends: Ends,
    /// Messages of the damaged connection, to the destination and to the source.
    pub messages: [u32; 2],
}

fn run(options: &Options, live: &LiveParameters, damage: Damage, controls: [Arc<Control>; 2]) -> Ran {
    let mut source = FakeVm::booted(options.clone()).unwrap();
    source.start_writer();
    run_from(source, options, None, live, damage, controls)
}

/// The same with a guest that is there, and with pages that its destination knows.
pub fn run_from(
    source: FakeVm,
    options: &Options,
    known: Option<&Arc<KnownPages>>,
    live: &LiveParameters,
    damage: Damage,
    controls: [Arc<Control>; 2],
) -> Ran {
    let far = Arc::new(Ready::new().unwrap());
    let Damage { channel, way, at, fault, timeout } = damage;
    let relays = Arc::new(Relays {
        far: Arc::clone(&far),
        made: AtomicU32::new(0),
        faulty: channel,
        way,
        at,
        fault: Mutex::new(fault),
        hit: Mutex::default(),
        timeout,
    });
    let (connector, acceptor): (Arc<dyn Connector>, Arc<dyn Acceptor>) = (relays.clone(), far.clone());
    let destination = FakeVm::new(options.clone()).unwrap();
    let [near_control, far_control] = controls;
    let there = parameters(&json!({"decompress-threads": 3}));
    let (source, destination) = std::thread::scope(|scope| {
        let receiving = scope
            .spawn(|| receive_with(destination, &acceptor, &there, &Arc::default(), known, &far_control));
        let source = migrate_by(source, &connector, live, &near_control);
        // Nobody has come who could be waited for.
        far.close();
        if !matches!(source.outcome, Outcome::Completed) {
            far_control.cancel();
        }
        (source, receiving.join().unwrap())
    });
    let messages = relays.hit.lock().unwrap().as_ref().map_or([0; 2], |counters| {
        [&counters[0], &counters[1]].map(|counter| counter.load(Ordering::SeqCst))
    });
    let (source_report, destination_report) = (near_control.report(), far_control.report());
    Ran { ends: Ends { source, destination, source_report, destination_report }, messages }
}

pub fn several(channels: u32, method: &str, deltas: bool) -> LiveParameters {
    let (threads, capabilities): (u32, Value) = (3, xbzrle(deltas));
    parameters(&json!({
        "channels": channels, "compress": method, "compress-threads": threads, "capabilities": capabilities,
    }))
}

pub fn options(log: LogMode) -> Options {
    Options { log, region_pages: vec![70, 1400], working_set_pages: 400, ..Options::default() }
}

#[test]
fn any_number_of_channels_with_each_encoding() {
    let (mut cases, spread) = (Vec::new(), AtomicU32::new(0));
    for channels in [1, 2, 7, 64] {
        for method in ["none", "lz4", "zstd", "zlib"] {
            for deltas in [false, true] {
                cases.push((channels, method, deltas));
            }
        }
    }
    on_threads(&cases, |(channels, method, deltas)| {
        let what = format!("{channels} channels, {method}, deltas {deltas}");
        let live = several(*channels, method, *deltas);
        let controls = [several_rounds(&live), control(Side::Destination)];
        let Ran { ends, .. } = run(&options(LogMode::Manual { initially_set: true }), &live, NONE, controls);
        assert_moved(&ends, true);
        let (near, far) = (&ends.source_report, &ends.destination_report);
        assert_eq!(
            (near.channels.len(), far.channels.len()),
            (*channels as usize, *channels as usize),
            "{what}"
        );
        assert_eq!((&near.channels, &near.pages.sent()), (&far.channels, &far.pages.sent()), "{what}");
        assert_eq!(
            near.channels.iter().map(|channel| channel.pages).sum::<u64>(),
            near.pages.sent(),
            "{what}"
        );
        // The hellos of further connections too, which the simulator's first seed with two channels found missing.
        assert_eq!(near.bytes, far.bytes, "{what}");
        assert!(near.warnings.is_empty(), "{what}: {:?}", near.warnings);
        if near.channels.len() > 1 && near.channels.iter().skip(1).any(|channel| channel.pages > 0) {
            spread.fetch_add(1, Ordering::SeqCst);
        }
    });
    // Which connection is free is the scheduler's, so not in each case.
    assert!(spread.load(Ordering::SeqCst) > 0, "no further connection was ever used");
}

/// Every fault at every message of the first and of a further connection.
fn at_every_message(name: &str, timeout: Duration, fault: &Fault) {
    let mut cases = Vec::new();
    for channel in [0, 2] {
        let live = several(3, "lz4", true);
        let count = Damage { channel, ..NONE };
        let controls = [control(Side::Source), control(Side::Destination)];
        let ran = run(&options(LogMode::Plain), &live, count, controls);
        assert_moved(&ran.ends, true);
        for (way, count) in [Direction::ToDestination, Direction::ToSource].into_iter().zip(ran.messages) {
            assert!(count >= 2, "{count} messages on channel {channel} {way:?}");
            cases.extend((0..count).map(|at| Damage { channel, way, at, fault: fault.clone(), timeout }));
        }
    }
    on_threads(&cases, |damage| {
        let what = format!("{name} {damage:?}");
        let live = several(3, "lz4", true);
        let options = options(LogMode::Plain);
        let controls = [control(Side::Source), control(Side::Destination)];
        let ran = run(&options, &live, damage.clone(), controls);
        let way = usize::from(damage.way == Direction::ToSource);
        let hit = ran.messages[way] > damage.at;
        let completed = matches!(ran.ends.source.outcome, Outcome::Completed);
        // Twice the last message of a side harms nobody, and nothing harms the last word of all.
        let last_word = (damage.channel, damage.way) == (0, Direction::ToDestination) && completed;
        assert!(
            completed != hit || last_word || matches!(damage.fault, Fault::Double),
            "{what}: {:?}",
            ran.ends.source.outcome
        );
        assert_invariant(ran.ends, &options, &what);
    });
}

const IMPATIENT: Duration = Duration::from_millis(300);

#[test]
fn a_cut_before_every_message_of_a_channel() {
    at_every_message("cut before", PATIENT, &Fault::CutBefore);
}

#[test]
fn a_cut_inside_every_message_of_a_channel() {
    at_every_message("cut inside", PATIENT, &Fault::CutInside);
}

#[test]
fn every_message_of_a_channel_twice() {
    at_every_message("double", PATIENT, &Fault::Double);
}

#[test]
fn a_stall_from_every_message_of_a_channel_on() {
    at_every_message("stall", IMPATIENT, &Fault::Stall);
}

#[test]
fn a_flipped_bit_in_every_message_of_a_channel() {
    at_every_message("flip", IMPATIENT, &Fault::Flip(33));
}

#[test]
fn a_flipped_bit_of_page_data_on_any_channel_is_found() {
    let cases: Vec<_> = (0..3).flat_map(|channel| (2..6).map(move |at| (channel, at))).collect();
    let found = AtomicU32::new(0);
    on_threads(&cases, |(channel, at)| {
        let options = Options { writes_per_call: 0, ..options(LogMode::Plain) };
        let damage = Damage {
            channel: *channel,
            way: Direction::ToDestination,
            at: *at,
            fault: Fault::FlipData(77),
            timeout: PATIENT,
        };
        let live = several(3, "none", false);
        let controls = [control(Side::Source), control(Side::Destination)];
        let Ran { ends, .. } = run(&options, &live, damage, controls);
        if !matches!(ends.source.outcome, Outcome::Completed) {
            found.fetch_add(1, Ordering::SeqCst);
        }
        assert_invariant(ends, &options, &format!("page data of channel {channel} at {at}"));
    });
    assert!(found.load(Ordering::SeqCst) > 0);
}
