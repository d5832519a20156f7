//! Runs a migration with both sides in this process, and checks what must hold however it ends.

use std::sync::Arc;
use std::time::Duration;

use tern_migration::channel::Connection;
use tern_migration::destination::{ReceiveError, Received, receive};
use tern_migration::fake::{FakeVm, Fleet, LogMode, Options};
use tern_migration::source::{Outcome, SourceEnd, migrate};
use tern_migration::{Control, LiveParameters, MigrationError, Report, Side, Status, Unobserved};

/// Far above what any step takes, so that a stall is a fault and not a slow machine.
pub const PATIENT: Duration = Duration::from_secs(20);

/// Both log modes, and both ways in which the first may begin.
pub const LOG_MODES: [LogMode; 4] = [
    LogMode::Manual { initially_set: true },
    LogMode::Manual { initially_set: false },
    LogMode::Plain,
    LogMode::Ring,
];

/// How both sides ended.
pub struct Ends {
    pub source: SourceEnd<FakeVm>,
    pub destination: Result<Received<FakeVm>, Box<ReceiveError<FakeVm>>>,
    pub source_report: Report,
    pub destination_report: Report,
}

pub fn control(side: Side) -> Arc<Control> {
    Control::new(side, Box::new(Unobserved)).unwrap()
}

/// One migration over this pair of connections.
pub fn run(
    source: FakeVm,
    destination: FakeVm,
    (near, far): (Connection, Connection),
    live: &LiveParameters,
    controls: [Arc<Control>; 2],
) -> Ends {
    let [near_control, far_control] = controls;
    let (source, destination) = std::thread::scope(|scope| {
        let receiving = scope.spawn(|| receive(destination, far, &far_control));
        let source = migrate(source, near, live, &near_control);
        (source, receiving.join().unwrap())
    });
    let (source_report, destination_report) = (near_control.report(), far_control.report());
    Ends { source, destination, source_report, destination_report }
}

/// Two ends of a connection that is never too slow.
pub fn pair() -> (Connection, Connection) {
    let (near, far) = Connection::pair().unwrap();
    (near.with_timeout(PATIENT), far.with_timeout(PATIENT))
}

/// One migration without faults.
pub fn plain_run(source: FakeVm, destination: FakeVm) -> Ends {
    let controls = [control(Side::Source), control(Side::Destination)];
    run(source, destination, pair(), &LiveParameters::default(), controls)
}

/// Both have the same guest, byte for byte, and it runs on the destination alone.
pub fn assert_moved(ends: &Ends, running: bool) {
    let destination = match &ends.destination {
        Ok(received) => received,
        Err(failed) => panic!("the destination failed: {}", failed.error.text()),
    };
    assert!(matches!(ends.source.outcome, Outcome::Completed), "{:?}", ends.source.outcome);
    assert_eq!(ends.source.vm.first_difference(&destination.vm), None);
    assert_eq!((destination.running, destination.vm.is_running()), (running, running));
    assert!(!ends.source.vm.is_running());
    assert_eq!(ends.source_report.status, Status::Completed);
    assert_eq!(ends.destination_report.status, Status::Completed);
}

/// What must hold however a migration of a running guest ended: at most one side ever ran; the source runs on
/// unless it has given the guest up; and then a second migration succeeds.
pub fn assert_invariant(ends: Ends, options: &Options, what: &str) {
    let fleet: &Fleet = &options.fleet;
    assert!(fleet.most() <= 1, "{what}: the guest ran twice at once");
    let Ends { source, destination, source_report, destination_report } = ends;
    match source.outcome {
        Outcome::Completed => {
            let received = destination.unwrap_or_else(|e| panic!("{what}: {}", e.error.text()));
            assert_eq!(source.vm.first_difference(&received.vm), None, "{what}");
            assert!(received.vm.is_running() && !source.vm.is_running(), "{what}");
        }
        Outcome::InDoubt(_) => {
            assert!(!source.vm.is_running(), "{what}");
            assert_eq!(source_report.status, Status::InDoubt, "{what}");
            assert!(source_report.error.is_some(), "{what}");
            if let Ok(received) = destination {
                assert_eq!(source.vm.first_difference(&received.vm), None, "{what}");
                assert!(received.vm.is_running(), "{what}");
            }
        }
        Outcome::Discarded => panic!("{what}: nobody has given it up"),
        Outcome::Saved { .. } => panic!("{what}: a link keeps no guest"),
        Outcome::Failed(_) | Outcome::Cancelled => {
            let failed = destination.map(|_| ()).expect_err(what);
            assert!(!failed.vm.is_running() && !failed.committed, "{what}");
            assert!(
                !matches!(failed.error, MigrationError::Vm { action: "starting the guest", .. }),
                "{what}"
            );
            assert!(source_report.error.is_some() && destination_report.error.is_some(), "{what}");
            assert!(source.vm.is_running(), "{what}: the guest does not run on");
            assert_second_succeeds(source.vm, options, what);
        }
    }
}

/// After a failure: a new destination, and everything arrives.
pub fn assert_second_succeeds(mut source: FakeVm, options: &Options, what: &str) {
    source.set_fail(None);
    let again = Options { fail: None, ..options.clone() };
    let ends = plain_run(source, FakeVm::new(again).unwrap());
    let running = options.fleet.running();
    assert_eq!(running, 1, "{what}: {running} run after the second attempt");
    assert_moved(&ends, true);
}

/// Runs the cases on a few threads: most of them wait.
pub fn on_threads<T: Sync>(cases: &[T], case: impl Fn(&T) + Sync) {
    let next = std::sync::atomic::AtomicUsize::new(0);
    std::thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| {
                while let Some(found) = cases.get(next.fetch_add(1, std::sync::atomic::Ordering::SeqCst)) {
                    case(found);
                }
            });
        }
    });
}
