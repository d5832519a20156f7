//! Migrations in doubt, and how each is settled: by the destination's answer, or by a person.

use std::sync::Arc;
use std::time::Duration;

use tern_migration::channel::{Acceptor, Connection, Ready};
use tern_migration::destination::{ReceiveError, Received, attend, receive_with};
use tern_migration::fake::{Call, Direction, FakeVm, Fault, Options, relay};
use tern_migration::handover::{Answer, Register, Resolution};
use tern_migration::source::{Doubt, Outcome, ResolveError, Standing, inquire, migrate};
use tern_migration::{Control, LiveParameters, Side, Status};

use crate::harness::{assert_second_succeeds, control};

const IMPATIENT: Duration = Duration::from_millis(200);

/// A migration in which this message fails, and a place where the destination can be asked.
struct Doubtful {
    vm: FakeVm,
    doubt: Doubt,
    there: Result<Received<FakeVm>, Box<ReceiveError<FakeVm>>>,
    place: Arc<Ready>,
    register: Arc<Register>,
}

fn doubtful(options: &Options, there: FakeVm, way: Direction, at: u32, fault: Fault) -> Doubtful {
    let (near, far, _) = relay(way, at, fault).unwrap();
    let (place, register) = (Arc::new(Ready::new().unwrap()), Arc::default());
    place.push(far.with_timeout(IMPATIENT)).unwrap();
    let acceptor: Arc<dyn Acceptor> = place.clone();
    let far_control = control(Side::Destination);
    let source = FakeVm::booted(options.clone()).unwrap();
    let (end, there) = std::thread::scope(|scope| {
        let receiving = scope.spawn(|| {
            receive_with(there, &acceptor, &LiveParameters::default(), &register, None, &far_control)
        });
        let near = near.with_timeout(IMPATIENT);
        let near_control = control(Side::Source);
        let end = migrate(source, near, &LiveParameters::default(), &near_control);
        assert_eq!(near_control.report().status, Status::InDoubt);
        (end, receiving.join().unwrap())
    });
    let Outcome::InDoubt(doubt) = end.outcome else { panic!("{:?}", end.outcome) };
    Doubtful { vm: end.vm, doubt, there, place, register }
}

/// The source asks on a new connection; the destination's process attends.
fn ask(found: &Doubtful, session: &str) -> Answer {
    let (near, far) = Connection::pair().unwrap();
    let connector = Ready::only(near, "made for one question").unwrap();
    found.place.push(far).unwrap();
    let attending: Arc<Control> = control(Side::Destination);
    std::thread::scope(|scope| {
        let ended = scope.spawn(|| attend(&*found.place, &found.register, session, &attending));
        let answer = inquire(&connector, session, &control(Side::Source)).unwrap();
        if answer == Answer::Running && session == found.doubt.session {
            ended.join().unwrap().unwrap();
        } else {
            assert!(attending.cancel());
            ended.join().unwrap().unwrap_err();
        }
        answer
    })
}

#[test]
fn a_lost_answer_is_heard_by_asking() {
    let options = Options::default();
    let there = FakeVm::new(options.clone()).unwrap();
    // Magic, hello, agreed, prepared, running.
    let mut found = doubtful(&options, there, Direction::ToSource, 4, Fault::CutBefore);
    let received = found.there.as_ref().unwrap();
    assert!(received.vm.is_running() && received.vm.has_disk() && !received.settled);
    let refused = found.doubt.resolve(&mut found.vm, Resolution::Run).unwrap_err();
    assert!(matches!(refused, ResolveError::Disks(_)), "{refused}");
    assert_eq!(ask(&found, "00112233445566778899aabbccddeeff"), Answer::Unknown);
    let answer = ask(&found, &found.doubt.session);
    assert_eq!(answer, Answer::Running);
    assert!(matches!(found.doubt.hear(&mut found.vm, Some(answer)), Standing::Gone));
    assert!(!found.vm.is_running() && options.fleet.most() == 1);
}

/// How many messages the source sends until COMMIT is sent.
fn commit_at(options: &Options) -> u32 {
    let (near, far, counters) = relay(Direction::ToSource, 0, Fault::None).unwrap();
    let there = FakeVm::new(options.clone()).unwrap();
    let pair = (near, far);
    let controls = [control(Side::Source), control(Side::Destination)];
    let source = FakeVm::booted(options.clone()).unwrap();
    let ends = crate::harness::run(source, there, pair, &LiveParameters::default(), controls);
    assert!(matches!(ends.source.outcome, Outcome::Completed));
    // Behind it only the last word follows.
    counters[0].load(std::sync::atomic::Ordering::SeqCst) - 2
}

#[test]
fn a_lost_commit_gives_the_guest_back_and_the_next_attempt_works() {
    // A guest that writes nothing: always as many messages.
    let options = Options { writes_per_call: 0, ..Options::default() };
    let at = commit_at(&options);
    let there = FakeVm::new(options.clone()).unwrap();
    let mut found = doubtful(&options, there, Direction::ToDestination, at, Fault::CutBefore);
    assert!(!found.there.as_ref().unwrap_err().committed);
    assert!(!found.vm.has_disk() && !found.vm.is_running());
    let answer = ask(&found, &found.doubt.session);
    assert_eq!(answer, Answer::Never);
    assert!(matches!(found.doubt.hear(&mut found.vm, Some(answer)), Standing::Kept));
    assert!(found.vm.has_disk() && found.vm.is_running());
    drop(found.there);
    assert_second_succeeds(found.vm, &options, "after a doubt");
}

#[test]
fn a_destination_that_can_not_take_the_disks_holds_the_guest_and_a_person_decides() {
    for call in [Call::TakeDisks, Call::Start] {
        let options = Options::default();
        let there = FakeVm::new(Options { fail: Some((call, 0)), ..options.clone() }).unwrap();
        let mut found = doubtful(&options, there, Direction::ToSource, 99, Fault::None);
        assert!(found.there.as_ref().unwrap_err().committed);
        let answer = ask(&found, &found.doubt.session);
        assert_eq!(answer, Answer::Held);
        assert!(matches!(found.doubt.hear(&mut found.vm, Some(answer)), Standing::Open));
        let refused = found.doubt.resolve(&mut found.vm, Resolution::Run).unwrap_err();
        assert!(matches!(refused, ResolveError::HeldThere), "{refused}");
        // That process ends, and nobody answers any more.
        found.there = Err(Box::new(ReceiveError {
            vm: FakeVm::new(options.clone()).unwrap(),
            committed: false,
            arrival: None,
            error: tern_migration::MigrationError::Cancelled,
        }));
        assert!(matches!(found.doubt.hear(&mut found.vm, None), Standing::Open));
        let standing = found.doubt.resolve(&mut found.vm, Resolution::Run).unwrap();
        assert!(matches!(standing, Standing::Kept), "{standing:?}");
        assert!(found.vm.is_running() && found.vm.has_disk());
        assert_eq!(options.fleet.most(), 1);
    }
}

#[test]
fn a_copy_that_was_discarded_never_runs_again() {
    let options = Options::default();
    let there = FakeVm::new(options.clone()).unwrap();
    let mut found = doubtful(&options, there, Direction::ToSource, 4, Fault::CutBefore);
    let standing = found.doubt.resolve(&mut found.vm, Resolution::Discard).unwrap();
    assert!(matches!(standing, Standing::Discarded));
    for answer in Answer::ALL {
        assert!(matches!(found.doubt.hear(&mut found.vm, Some(answer)), Standing::Discarded));
    }
    assert!(!found.vm.is_running());
}
