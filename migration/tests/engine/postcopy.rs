//! Post-copy: the guest runs at the destination while a part of its memory comes, whatever the connections suffer.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use serde_json::{Value, json};
use tern_migration::channel::{Acceptor, Connection, Connector, Ready, Route};
use tern_migration::destination::{Arrival, ReceiveError, Received, receive_with};
use tern_migration::fake::{FakeVm, LogMode, Options};
use tern_migration::handover::Register;
use tern_migration::source::{Outcome, SourceEnd, migrate_by};
use tern_migration::{Control, LiveParameters, MigrationError, Report, Side, Status, pager};

use crate::encodings::parameters;
use crate::harness::{PATIENT, control, on_threads};
use crate::skip::skip;

/// Connections to a destination in this process.
#[derive(Debug)]
pub struct Pairs {
    far: Arc<Ready>,
}

impl Connector for Pairs {
    fn connect(&self, _: &Control) -> Result<Connection, MigrationError> {
        let (near, far) = Connection::pair().unwrap();
        self.far.push(far.with_timeout(PATIENT)).unwrap();
        Ok(near.with_timeout(PATIENT))
    }

    fn only_one(&self) -> Option<&'static str> {
        None
    }

    fn route(&self) -> Route {
        Route::default()
    }
}

/// May this process have memory that comes later? If not, the test is counted as skipped.
pub fn can_page() -> bool {
    match pager::available() {
        Ok(()) => true,
        Err(error) => {
            skip(&error.to_string());
            false
        }
    }
}

/// How both sides ended.
pub struct Moved {
    pub source: SourceEnd<FakeVm>,
    pub destination: Result<Received<FakeVm>, Box<ReceiveError<FakeVm>>>,
    pub reports: [Report; 2],
}

/// A migration by post-copy. `meanwhile` is called when the guest has come, with what comes of it.
pub fn run(
    source: FakeVm,
    destination: FakeVm,
    live: &LiveParameters,
    meanwhile: impl FnOnce(&FakeVm, Option<&Arrival>) + Send,
) -> Moved {
    let far = Arc::new(Ready::new().unwrap());
    let (connector, acceptor): (Arc<dyn Connector>, Arc<dyn Acceptor>) =
        (Arc::new(Pairs { far: Arc::clone(&far) }), far.clone());
    let (near_control, far_control) = (control(Side::Source), control(Side::Destination));
    let (source, destination) = std::thread::scope(|scope| {
        let receiving = scope.spawn(|| {
            let register = Arc::<Register>::default();
            let there = LiveParameters::default();
            let mut ended = receive_with(destination, &acceptor, &there, &register, None, &far_control);
            if let Ok(received) = &mut ended {
                meanwhile(&received.vm, received.arrival.as_ref());
                received.arrival.take().into_iter().for_each(|arrival| until_over(&near_control, arrival));
            }
            ended
        });
        let source = migrate_by(source, &connector, live, &near_control);
        if !matches!(source.outcome, Outcome::Completed) {
            far_control.cancel();
        }
        (source, receiving.join().unwrap())
    });
    Moved { source, destination, reports: [near_control.report(), far_control.report()] }
}

/// Keeps what arrives until the source is done; its last word may be lost, and then nobody comes any more.
pub fn until_over(source: &Control, arrival: Arrival) {
    while !source.report().status.is_final() {
        std::thread::sleep(Duration::from_millis(1));
    }
    drop(arrival);
}

/// The guest is there, byte for byte, and has been since it was handed over.
pub fn assert_arrived(moved: &Moved, what: &str) {
    assert!(matches!(moved.source.outcome, Outcome::Completed), "{what}: {:?}", moved.source.outcome);
    let there = moved.destination.as_ref().unwrap_or_else(|e| panic!("{what}: {}", e.error.text()));
    assert_eq!(moved.source.vm.first_difference(&there.vm), None, "{what}");
    assert!(there.vm.is_running() && !moved.source.vm.is_running(), "{what}");
    let [near, far] = &moved.reports;
    assert_eq!((near.status, far.status), (Status::Completed, Status::Completed), "{what}");
    let (here, there) = (near.postcopy.as_ref().unwrap(), far.postcopy.as_ref().unwrap());
    assert_eq!(here.pages_missing, there.pages_missing, "{what}");
    assert_eq!((here.pages_left, there.pages_left), (0, 0), "{what}");
    assert_eq!(there.pages_by_request + there.pages_by_push, there.pages_missing, "{what}");
    assert!(near.warnings.is_empty() && far.warnings.is_empty(), "{what}: {:?}", far.warnings);
    if let (Some(near), Some(far)) = (near.proof, far.proof) {
        assert_eq!(near.memory, far.memory, "{what}");
    }
}

pub fn options(log: LogMode) -> Options {
    Options {
        log,
        region_pages: vec![70, 1400],
        working_set_pages: 400,
        writes_per_call: 20,
        ..Options::default()
    }
}

pub fn still(options: &Options) -> Options {
    Options { writes_per_call: 0, ..options.clone() }
}

pub fn by(mode: &str, more: Value) -> LiveParameters {
    let mut all = json!({"postcopy": mode});
    all.as_object_mut().unwrap().extend(more.as_object().cloned().unwrap_or_default());
    parameters(&all)
}

#[test]
fn every_mode_log_and_encoding_brings_the_guest_whole() {
    if !can_page() {
        return;
    }
    let mut cases = Vec::new();
    for mode in ["at-once", "after-first-pass", "auto", "when-precopy-stops-paying"] {
        for log in crate::harness::LOG_MODES {
            for (channels, method) in [(1, "none"), (1, "lz4"), (4, "zstd"), (3, "none"), (2, "auto")] {
                cases.push((mode, log, channels, method));
            }
        }
    }
    on_threads(&cases, |(mode, log, channels, method)| {
        let what = format!("{mode}, {log:?}, {channels} channels, {method}");
        let live = by(
            mode,
            json!({"channels": channels, "compress": method, "compress-threads": 2,
            "max-bandwidth": 40_000_000, "downtime-limit": 0}),
        );
        let options = options(*log);
        let source = FakeVm::booted(options.clone()).unwrap();
        let moved = run(source, FakeVm::new(still(&options)).unwrap(), &live, |_, _| {});
        if moved.reports[0].postcopy.is_none() {
            assert!(matches!(moved.source.outcome, Outcome::Completed), "{what}");
            assert_eq!(*mode, "when-precopy-stops-paying", "{what}");
            return;
        }
        assert_arrived(&moved, &what);
        let report = moved.reports[0].postcopy.as_ref().unwrap();
        assert!(report.pages_missing > 0, "{what}");
        assert_eq!(options.fleet.most(), 1, "{what}");
    });
}

#[test]
fn who_touches_a_missing_page_gets_it_while_the_push_is_slow() {
    if !can_page() {
        return;
    }
    let options = Options { touched_every: 1, ..options(LogMode::Plain) };
    let source = FakeVm::booted(options.clone()).unwrap();
    let image = source.guest();
    let live = by("at-once", json!({"max-postcopy-bandwidth": 262_144}));
    let raised = live.clone();
    let moved = run(source, FakeVm::new(still(&options)).unwrap(), &live, move |vm, arrival| {
        assert!(arrival.unwrap().pages_left() > 0, "the push is slow");
        // Reads all of memory, in order.
        assert_eq!(image.first_difference(&vm.guest()), None);
        raised.merge(json!({"max-postcopy-bandwidth": 0}).as_object().unwrap()).unwrap();
    });
    assert_arrived(&moved, "slow push");
    let far = moved.reports[1].postcopy.as_ref().unwrap();
    assert!(far.requests > 0 && far.pages_by_request > 0, "{far:?}");
}

#[test]
fn a_person_starts_it_in_the_middle_of_a_round() {
    if !can_page() {
        return;
    }
    let options = Options { region_pages: vec![70, 9000], touched_every: 1, ..options(LogMode::Plain) };
    let live = by("manual", json!({"max-bandwidth": 2_000_000}));
    let far = Arc::new(Ready::new().unwrap());
    let (connector, acceptor): (Arc<dyn Connector>, Arc<dyn Acceptor>) =
        (Arc::new(Pairs { far: Arc::clone(&far) }), far.clone());
    let controls = [control(Side::Source), control(Side::Destination)];
    let (source, there) = (FakeVm::booted(options.clone()).unwrap(), FakeVm::new(still(&options)).unwrap());
    let arrived = Mutex::new(None);
    let source = std::thread::scope(|scope| {
        scope.spawn(|| {
            let (live, register) = (LiveParameters::default(), Arc::default());
            let mut received = receive_with(there, &acceptor, &live, &register, None, &controls[1]).unwrap();
            until_over(&controls[0], received.arrival.take().unwrap());
            *arrived.lock().unwrap() = Some(received.vm);
        });
        scope.spawn(|| {
            while controls[0].report().pages.sent() < 200 {
                std::thread::yield_now();
            }
            controls[0].start_postcopy();
        });
        migrate_by(source, &connector, &live, &controls[0])
    });
    assert!(matches!(source.outcome, Outcome::Completed), "{:?}", source.outcome);
    let there = arrived.lock().unwrap().take().unwrap();
    assert_eq!(source.vm.first_difference(&there), None);
    let report = controls[0].report();
    assert_eq!(report.rounds.len(), 1, "the round that was interrupted is the last");
    let postcopy = report.postcopy.unwrap();
    assert!(postcopy.pages_missing > 1000 && postcopy.reason.unwrap().contains("asked"));
}

#[test]
fn a_destination_that_can_not_says_why_and_what_helps() {
    let options = options(LogMode::Plain);
    let there = FakeVm::new(Options { page_in_refused: Some("no userfaultfd here"), ..still(&options) });
    let moved =
        run(FakeVm::booted(options.clone()).unwrap(), there.unwrap(), &by("auto", json!({})), |_, _| {});
    let Outcome::Failed(error) = &moved.source.outcome else { panic!("{:?}", moved.source.outcome) };
    let text = error.text();
    assert!(
        matches!(error, MigrationError::Refused { .. }) && text.contains("no userfaultfd here"),
        "{text}"
    );
    assert!(moved.source.vm.is_running());
}

#[test]
fn one_connection_is_not_enough() {
    let (near, far) = crate::harness::pair();
    let options = options(LogMode::Plain);
    let controls = [control(Side::Source), control(Side::Destination)];
    let (source, there) = (FakeVm::booted(options.clone()).unwrap(), FakeVm::new(still(&options)).unwrap());
    let ends = crate::harness::run(source, there, (near, far), &by("auto", json!({})), controls);
    let Outcome::Failed(error) = &ends.source.outcome else { panic!("{:?}", ends.source.outcome) };
    assert_eq!(error.code(), "no-postcopy");
    assert!(ends.source.vm.is_running() && !ends.destination.unwrap_err().committed);
}
