//! Post-copy over connections that break: at any moment, many times, while they are made anew, and with either side gone.

use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use serde_json::json;
use tern_migration::channel::{Acceptor, Connection, Connector, Ready, Route, Security, Uri, listen};
use tern_migration::destination::{Arrival, attend, receive_with};
use tern_migration::fake::{Direction, FakeVm, Fault, LogMode, Options, relay};
use tern_migration::handover::{Register, Resolution};
use tern_migration::source::{Outcome, SourceEnd, migrate_by};
use tern_migration::{Control, LiveParameters, MigrationError, PostcopyOrder, Side, Status};

use crate::harness::{PATIENT, control, on_threads};
use crate::postcopy::{Moved, assert_arrived, by, can_page, options, still, until_over};

/// Connections that can be cut; one of them suffers a fault.
#[derive(Debug)]
struct Cutter {
    far: Arc<Ready>,
    made: AtomicU32,
    faulty: u32,
    fault: Mutex<(Direction, u32, Fault)>,
    all: Mutex<Vec<UnixStream>>,
    /// Nobody is there to connect to.
    away: std::sync::atomic::AtomicBool,
}

const IMPATIENT: Duration = Duration::from_millis(500);
const NO_FAULT: (u32, Direction, u32, Fault) = (u32::MAX, Direction::ToSource, u32::MAX, Fault::None);

impl Cutter {
    fn new((faulty, way, at, fault): (u32, Direction, u32, Fault)) -> Arc<Self> {
        Arc::new(Self {
            far: Arc::new(Ready::new().unwrap()),
            made: AtomicU32::new(0),
            faulty,
            fault: Mutex::new((way, at, fault)),
            all: Mutex::default(),
            away: false.into(),
        })
    }

    fn made(&self) -> u32 {
        self.made.load(Ordering::SeqCst)
    }

    /// Cuts the connection that was made so many before the newest.
    fn cut(&self, back: usize) {
        let all = self.all.lock().unwrap();
        let at = all.len().checked_sub(1 + back).unwrap();
        // It may be gone already.
        let _ = all[at].shutdown(Shutdown::Both);
    }
}

impl Connector for Cutter {
    fn connect(&self, _: &Control) -> Result<Connection, MigrationError> {
        if self.away.load(Ordering::SeqCst) {
            return Err(MigrationError::NotWaiting);
        }
        let number = self.made.fetch_add(1, Ordering::SeqCst);
        // Who waits for the rest of a damaged frame shall find that out soon.
        let patient = if number == self.faulty { IMPATIENT } else { PATIENT };
        let (near, far) = if number == self.faulty {
            let (way, at, fault) = self.fault.lock().unwrap().clone();
            let (near, far, _) = relay(way, at, fault).unwrap();
            (near, far)
        } else {
            let (near, far) = UnixStream::pair().unwrap();
            self.all.lock().unwrap().push(near.try_clone().unwrap());
            (Connection::from_stream(near), Connection::from_stream(far))
        };
        self.far.push(far.with_timeout(patient)).unwrap();
        Ok(near.with_timeout(patient))
    }

    fn only_one(&self) -> Option<&'static str> {
        None
    }

    fn route(&self) -> Route {
        Route::default()
    }
}

/// What a test has of a migration that goes on.
struct Both<'t> {
    controls: &'t [Arc<Control>; 2],
    cutter: &'t Cutter,
    vm: &'t FakeVm,
    arrival: &'t Arrival,
}

impl Both<'_> {
    fn statuses(&self) -> [Status; 2] {
        [0, 1].map(|side| self.controls[side].report().status)
    }

    /// Waits until both sides are so, or all has come. True: they are so.
    fn until(&self, wanted: Status) -> bool {
        while self.statuses() != [wanted; 2] {
            if self.arrival.pages_left() == 0 {
                return false;
            }
            std::thread::sleep(Duration::from_millis(1));
        }
        true
    }
}

fn run(
    options: &Options,
    live: &LiveParameters,
    cutter: &Arc<Cutter>,
    meanwhile: impl FnOnce(&Both<'_>) + Send,
) -> Moved {
    let (connector, acceptor): (Arc<dyn Connector>, Arc<dyn Acceptor>) =
        (cutter.clone(), Arc::clone(&cutter.far) as _);
    let controls = [control(Side::Source), control(Side::Destination)];
    let source = FakeVm::booted(options.clone()).unwrap();
    let there = FakeVm::new(still(options)).unwrap();
    let (source, destination) = std::thread::scope(|scope| {
        let receiving = scope.spawn(|| {
            let (register, live) = (Arc::<Register>::default(), LiveParameters::default());
            let mut ended = receive_with(there, &acceptor, &live, &register, None, &controls[1]);
            if let Ok(received) = &mut ended {
                let arrival = received.arrival.take().unwrap();
                meanwhile(&Both { controls: &controls, cutter, vm: &received.vm, arrival: &arrival });
                until_over(&controls[0], arrival);
            }
            ended
        });
        let source = migrate_by(source, &connector, live, &controls[0]);
        (source, receiving.join().unwrap())
    });
    Moved { source, destination, reports: [0, 1].map(|side| controls[side].report()) }
}

fn big() -> Options {
    Options { region_pages: vec![70, 6000], touched_every: 1, ..options(LogMode::Plain) }
}

/// The push alone would take a minute.
fn slow(mode: &str, channels: u32) -> LiveParameters {
    by(mode, json!({"max-postcopy-bandwidth": 400_000, "channels": channels}))
}

fn unlimited(live: &LiveParameters) {
    live.merge(json!({"max-postcopy-bandwidth": 0}).as_object().unwrap()).unwrap();
}

#[test]
fn fifty_cuts_of_any_connection_lose_nothing() {
    if !can_page() {
        return;
    }
    let (options, live, cutter) = (big(), slow("at-once", 3), Cutter::new(NO_FAULT));
    let moved = run(&options, &live, &cutter, |both| {
        for cut in 0..50 {
            assert!(both.until(Status::PostcopyActive), "all has come before cut {cut}");
            // Channels and the urgent one are made behind the first: all four in turn.
            both.cutter.cut(cut % 4);
            while both.statuses() == [Status::PostcopyActive; 2] && both.arrival.pages_left() > 0 {
                std::thread::sleep(Duration::from_millis(1));
            }
        }
        unlimited(&live);
    });
    assert_arrived(&moved, "fifty cuts");
    for report in &moved.reports {
        let postcopy = report.postcopy.as_ref().unwrap();
        assert!(postcopy.pauses >= 50 && postcopy.healing_us.len() >= 50, "{postcopy:?}");
        assert_eq!(postcopy.paused_by, None);
    }
}

#[test]
fn who_waits_while_the_connections_are_gone_goes_on_when_they_are_back() {
    if !can_page() {
        return;
    }
    let (options, live, cutter) = (big(), slow("at-once", 1), Cutter::new(NO_FAULT));
    let moved = run(&options, &live, &cutter, |both| {
        both.cutter.away.store(true, Ordering::SeqCst);
        both.cutter.cut(0);
        assert!(both.until(Status::PostcopyPaused));
        let left = both.arrival.pages_left();
        std::thread::scope(|scope| {
            let (vm, empty) = (both.vm, FakeVm::new(still(&options)).unwrap());
            // It reads all of memory: the first page that is missing makes it wait.
            let reader = scope.spawn(move || vm.first_difference(&empty));
            while both.arrival.waiting() == 0 {
                std::thread::sleep(Duration::from_millis(1));
            }
            assert!(!reader.is_finished());
            assert_eq!(both.arrival.pages_left(), left, "nothing comes");
            both.cutter.away.store(false, Ordering::SeqCst);
            assert!(reader.join().unwrap().is_some());
        });
        unlimited(&live);
    });
    assert_arrived(&moved, "blocked");
}

#[test]
fn any_fault_on_a_connection_that_is_made_anew_is_one_more_break() {
    if !can_page() {
        return;
    }
    let mut cases = Vec::new();
    let faults = [Fault::CutBefore, Fault::CutInside, Fault::Flip(177), Fault::Garbage, Fault::Double];
    // Two channels and the urgent one, three connections: the first of them is made again, and then the others.
    for connection in 3..6 {
        for way in [Direction::ToDestination, Direction::ToSource] {
            for at in [0, 1, 2, 4] {
                cases.extend(faults.iter().map(|fault| (connection, way, at, fault.clone())));
            }
        }
    }
    on_threads(&cases, |case| {
        let (what, cutter, live) = (format!("{case:?}"), Cutter::new(case.clone()), slow("at-once", 2));
        let options = Options { region_pages: vec![70, 400], touched_every: 1, ..options(LogMode::Plain) };
        let moved = run(&options, &live, &cutter, |both| {
            both.cutter.cut(1);
            while both.cutter.made() < 4 && both.arrival.pages_left() > 0 {
                std::thread::sleep(Duration::from_millis(1));
            }
            unlimited(&live);
        });
        assert_arrived(&moved, &what);
    });
}

#[test]
fn a_person_breaks_it_and_it_heals() {
    if !can_page() {
        return;
    }
    let (options, live, cutter) = (big(), slow("after-first-pass", 1), Cutter::new(NO_FAULT));
    let live_now = live.clone();
    let options = Options { working_set_pages: 3000, writes_per_call: 900, ..options };
    let moved = run(&options, &live, &cutter, |both| {
        assert!(both.until(Status::PostcopyActive));
        assert!(!both.controls[0].cancel(), "it is too late to cancel");
        both.controls[0].order(PostcopyOrder::Pause);
        while both.controls[0].report().postcopy.unwrap().pauses == 0 {
            std::thread::sleep(Duration::from_millis(1));
        }
        assert!(both.until(Status::PostcopyActive));
        assert!(both.arrival.pause());
        while both.controls[0].report().postcopy.unwrap().pauses == 1 {
            std::thread::sleep(Duration::from_millis(1));
        }
        unlimited(&live_now);
    });
    assert_arrived(&moved, "paused");
    assert!(moved.reports[1].postcopy.as_ref().unwrap().pauses >= 2);
}

/// A destination that is gone for good, and what a person decides.
fn given_up(resolution: Resolution) -> (SourceEnd<FakeVm>, Options) {
    let (options, live, cutter) = (big(), slow("at-once", 1), Cutter::new(NO_FAULT));
    let (connector, acceptor): (Arc<dyn Connector>, Arc<dyn Acceptor>) =
        (cutter.clone(), Arc::clone(&cutter.far) as _);
    let controls = [control(Side::Source), control(Side::Destination)];
    let there = FakeVm::new(still(&options)).unwrap();
    let source = FakeVm::booted(options.clone()).unwrap();
    let source = std::thread::scope(|scope| {
        scope.spawn(|| {
            let live = LiveParameters::default();
            let received =
                receive_with(there, &acceptor, &live, &Arc::default(), None, &controls[1]).unwrap();
            while controls[0].report().status != Status::PostcopyActive {
                std::thread::sleep(Duration::from_millis(1));
            }
            controls[0].order(PostcopyOrder::Resolve(resolution));
            while controls[0].report().warnings.is_empty() {
                std::thread::sleep(Duration::from_millis(1));
            }
            assert!(
                controls[0].report().warnings[0].contains("migrate-pause"),
                "it is refused while all is well"
            );
            // The process ends.
            cutter.away.store(true, Ordering::SeqCst);
            drop(received);
            while controls[0].report().status != Status::PostcopyPaused {
                std::thread::sleep(Duration::from_millis(1));
            }
            controls[0].order(PostcopyOrder::Resolve(resolution));
        });
        migrate_by(source, &connector, &live, &controls[0])
    });
    (source, options)
}

#[test]
fn a_guest_whose_destination_is_gone_goes_on_from_the_switch_if_a_person_says_so() {
    if !can_page() {
        return;
    }
    let (source, options) = given_up(Resolution::Run);
    assert!(matches!(source.outcome, Outcome::Failed(_)), "{:?}", source.outcome);
    assert!(source.vm.is_running() && source.vm.has_disk() && options.fleet.most() == 1);
    crate::harness::assert_second_succeeds(source.vm, &options, "after post-copy was given up");
}

#[test]
fn a_copy_that_is_given_up_never_runs() {
    if !can_page() {
        return;
    }
    let (source, _) = given_up(Resolution::Discard);
    assert!(matches!(source.outcome, Outcome::Discarded), "{:?}", source.outcome);
    assert!(!source.vm.is_running());
}

#[test]
fn any_fault_before_the_guest_is_handed_over_leaves_it_here_and_any_behind_it_heals() {
    if !can_page() {
        return;
    }
    let mut cases = Vec::new();
    // The first connection, a channel and the urgent one.
    for connection in 0..3 {
        for way in [Direction::ToDestination, Direction::ToSource] {
            for at in 0..12 {
                cases.extend(
                    [Fault::CutBefore, Fault::CutInside, Fault::Garbage]
                        .map(|fault| (connection, way, at, fault)),
                );
            }
        }
    }
    let [healed, failed] = [AtomicU32::new(0), AtomicU32::new(0)];
    on_threads(&cases, |case| {
        let (what, cutter) = (format!("{case:?}"), Cutter::new(case.clone()));
        let live = by("at-once", json!({"channels": 2}));
        let options = Options { region_pages: vec![70, 700], touched_every: 1, ..options(LogMode::Plain) };
        let (connector, acceptor): (Arc<dyn Connector>, Arc<dyn Acceptor>) =
            (cutter.clone(), Arc::clone(&cutter.far) as _);
        let controls = [control(Side::Source), control(Side::Destination)];
        let source = FakeVm::booted(options.clone()).unwrap();
        let there = FakeVm::new(still(&options)).unwrap();
        let (source, destination) = std::thread::scope(|scope| {
            let receiving = scope.spawn(|| {
                let live = LiveParameters::default();
                let mut ended = receive_with(there, &acceptor, &live, &Arc::default(), None, &controls[1]);
                if let Ok(received) = &mut ended {
                    until_over(&controls[0], received.arrival.take().unwrap());
                    return ended;
                }
                // What became of it is heard by whoever asks.
                let register = Arc::<Register>::default();
                register.note(&controls[1].report().session, tern_migration::handover::Answer::Never);
                let attending = control(Side::Destination);
                let over = &controls[0];
                std::thread::scope(|scope| {
                    scope.spawn(|| attend(&*acceptor, &register, "", &attending));
                    while !over.report().status.is_final() {
                        std::thread::sleep(Duration::from_millis(1));
                    }
                    attending.cancel();
                });
                ended
            });
            let source = migrate_by(source, &connector, &live, &controls[0]);
            cutter.far.close();
            controls[1].cancel();
            (source, receiving.join().unwrap())
        });
        assert_eq!(options.fleet.most(), 1, "{what}");
        if matches!(source.outcome, Outcome::Completed) {
            let reports = [0, 1].map(|side| controls[side].report());
            let broken = reports[0].postcopy.as_ref().is_some_and(|postcopy| postcopy.pauses > 0);
            healed.fetch_add(u32::from(broken), Ordering::SeqCst);
            assert_arrived(&Moved { source, destination, reports }, &what);
        } else {
            failed.fetch_add(1, Ordering::SeqCst);
            assert!(matches!(source.outcome, Outcome::Failed(_)), "{what}: {:?}", source.outcome);
            assert!(source.vm.is_running() && !destination.unwrap_err().committed, "{what}");
        }
    });
    assert!(failed.into_inner() > 20 && healed.into_inner() > 5, "both must have happened");
}

#[test]
fn both_go_on_at_another_address() {
    if !can_page() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let (options, live, cutter) = (big(), slow("at-once", 2), Cutter::new(NO_FAULT));
    let moved = run(&options, &live, &cutter, |both| {
        assert!(both.until(Status::PostcopyActive));
        both.cutter.away.store(true, Ordering::SeqCst);
        both.cutter.cut(0);
        assert!(both.until(Status::PostcopyPaused));
        let uri: Uri = format!("unix:{}", folder.path().join("again").display()).parse().unwrap();
        both.arrival.listen_at(&listen(&uri, &Security::default()).unwrap()).unwrap();
        both.controls[0].order(PostcopyOrder::Recover(uri));
        assert!(both.until(Status::PostcopyActive));
        unlimited(&live);
    });
    assert_arrived(&moved, "elsewhere");
}
