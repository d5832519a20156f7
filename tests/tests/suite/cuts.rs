//! The link is cut at random bytes, in both directions, while real guests move: each attempt ends in a state that
//! PROTOCOL.md names, the guest runs on exactly one side, and the next migration works.
//!
//! A seed decides where. It is another one in each run and is printed by a test that fails; `TERN_TEST_SEED` gives
//! it again, and `TERN_TEST_CUTS` makes more attempts.

use std::hash::{BuildHasher, RandomState};

use serde_json::{Value, json};
use tern_tests::{
    Direction, Fault, Incoming, Place, Proxy, PulseLog, Tern, TernBuilder, kvm_or_skip, migrate,
};

const WORDS: &str = "ws=4M rate=500 content=random interval=20";
const CUTS: u64 = 24;
/// The end of the stream, with the state and the handover, is short: every second cut is there.
const TAIL_BYTES: u64 = 24 << 10;

/// SplitMix64: one number of the seed's series after the other.
struct Series(u64);

impl Series {
    fn below(&mut self, limit: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (mixed ^ (mixed >> 31)) % limit.max(1)
    }
}

fn given(name: &str) -> Option<u64> {
    let text = std::env::var(name).ok()?;
    let number: Result<u64, _> = text.parse();
    assert!(number.is_ok(), "{name}={text}: {number:?}");
    number.ok()
}

/// A guest that is moved on and on, and what it has printed where it was.
struct Wanderer {
    machine: TernBuilder,
    here: Tern,
    there: Tern,
    told: String,
}

impl Wanderer {
    fn new() -> Self {
        let machine = Tern::pulse(WORDS);
        let (here, there) = machine.clone().start_pair(Incoming::Tcp);
        here.wait_beats(1, 2);
        Self { machine, here, there, told: String::new() }
    }

    /// The guest has moved: where it is now is the next source.
    fn step(&mut self) {
        let next = self.machine.clone().incoming(Incoming::Tcp).start();
        let old = std::mem::replace(&mut self.here, std::mem::replace(&mut self.there, next));
        self.told += &old.serial().text();
        assert!(old.quit().success());
    }

    /// Bytes of a whole migration, to the destination and back.
    fn measure(&mut self, capabilities: &Value) -> [u64; 2] {
        let proxy = Proxy::new(&self.there.uri());
        let mut near = self.here.qmp();
        near.execute("migrate", json!({ "uri": proxy.uri(), "capabilities": capabilities }));
        near.wait_migrate(&["completed"]);
        self.there.qmp().wait_migrate(&["completed"]);
        self.step();
        [Direction::ToDestination, Direction::ToSource].map(|direction| proxy.bytes(direction))
    }

    /// One attempt with a cut; true: the guest has moved nevertheless. Whatever came of it, one side runs the guest.
    fn cut(&mut self, direction: Direction, byte: u64, channels: u64, capabilities: &Value) -> bool {
        let proxy = Proxy::with(&self.there.uri(), direction, Place::Byte(byte), Fault::Cut);
        let mut near = self.here.qmp();
        let parameters = json!({ "channels": channels });
        let request = json!({ "uri": proxy.uri(), "capabilities": capabilities, "parameters": parameters });
        near.execute("migrate", request);
        // A doubt settles by itself: the next connection goes through.
        let ended = near.wait_migrate(&["completed", "failed"]);
        let has_moved = ended["status"] == "completed";
        let expected = if has_moved { ["postmigrate", "running"] } else { ["running", "inmigrate"] };
        near.wait_state(&expected[..1]);
        let mut far = self.there.qmp();
        far.wait_state(&expected[1..]);
        let runs =
            [&mut near, &mut far].map(|side| side.execute("query-status", json!({}))["running"] == true);
        assert_eq!(runs, [!has_moved, has_moved], "{ended:#}");
        let owner = if has_moved { &self.there } else { &self.here };
        let beats = owner.serial().text().matches("\nB ").count();
        owner.serial().wait("beats", |text| (text.matches("\nB ").count() > beats + 1).then_some(()));
        if has_moved {
            self.step();
        }
        has_moved
    }
}

#[test]
fn a_link_that_is_cut_at_random_bytes_leaves_one_guest_and_the_next_migration_works() {
    if !kvm_or_skip() {
        return;
    }
    let seed = given("TERN_TEST_SEED").unwrap_or_else(|| RandomState::new().hash_one(0));
    println!("TERN_TEST_SEED={seed} cuts at the same bytes again");
    let mut series = Series(seed);
    let mut guest = Wanderer::new();
    // Stopped first, the stream is as long each time; running, its end is anywhere.
    let ways = [false, true].map(|state| json!([{ "capability": "stop-first", "state": state }]));
    let lengths = [guest.measure(&ways[0]), guest.measure(&ways[1])];
    let mut moved = 0;
    for number in 0..given("TERN_TEST_CUTS").unwrap_or(CUTS) {
        let way = usize::from(number % 2 == 0);
        let channels = if number % 4 == 1 { 4 } else { 1 };
        let [there, back] = lengths[way];
        let (direction, byte) = match number % 3 {
            0 => (Direction::ToSource, series.below(back)),
            1 => (Direction::ToDestination, there - 1 - series.below(TAIL_BYTES.min(there))),
            _ => (Direction::ToDestination, series.below(there / channels)),
        };
        println!(
            "cut {number}: {direction:?}, byte {byte} of {there}/{back}, {channels} channels, {}",
            ways[way]
        );
        moved += u64::from(guest.cut(direction, byte, channels, &ways[way]));
    }
    println!("{moved} attempts completed nevertheless");
    migrate(&guest.here, &guest.there);
    guest.there.wait_beats(1, 2);
    PulseLog::read(&(guest.told + &guest.here.serial().text() + &guest.there.serial().text()));
}
