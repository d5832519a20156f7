//! Every call of either machine fails once.

use tern_migration::fake::{Call, DESTINATION_CALLS, FakeVm, Options, SOURCE_CALLS};
use tern_migration::source::{Doubt, Outcome};
use tern_migration::{Blame, MigrationError, Status};

use crate::harness::{Ends, LOG_MODES, assert_invariant, assert_second_succeeds, plain_run};

fn failing(options: &Options, source: Option<(Call, u32)>, destination: Option<(Call, u32)>) -> Ends {
    let mut vm = FakeVm::booted(options.clone()).unwrap();
    vm.set_fail(source);
    let there = FakeVm::new(Options { fail: destination, ..options.clone() }).unwrap();
    plain_run(vm, there)
}

#[test]
fn every_call_of_the_source_fails() {
    for log in LOG_MODES {
        for call in SOURCE_CALLS.into_iter().filter(|call| *call != Call::Resume) {
            for number in 0..3 {
                let options = Options { log, ..Options::default() };
                let what = format!("{call:?} number {number}");
                let ends = failing(&options, Some((call, number)), None);
                let happened = ends.source.vm.calls(call) > number;
                assert!(happened || number > 0, "{what} was never called");
                match &ends.source.outcome {
                    Outcome::Failed(error) => {
                        assert_eq!((error.blame(), error.code()), (Blame::Local, "vm"), "{what}");
                        assert!(
                            error.text().contains(&format!("injected failure of {what}")),
                            "{}",
                            error.text()
                        );
                        let there = ends.destination.as_ref().err().map(|e| e.error.text()).unwrap();
                        assert!(
                            there.contains("the source gave up: ") && there.contains("injected"),
                            "{there}"
                        );
                        assert_eq!(ends.source_report.status, Status::Failed);
                    }
                    // Stopping the log decides nothing, but is told.
                    Outcome::Completed => {
                        let warned = ends.source_report.warnings.iter().any(|w| w.contains("injected"));
                        assert_eq!(warned, happened, "{what}");
                    }
                    other => panic!("{what}: {other:?}"),
                }
                assert_invariant(ends, &options, &what);
            }
        }
    }
}

#[test]
fn every_call_of_the_destination_fails() {
    for call in DESTINATION_CALLS.into_iter().filter(|call| ![Call::TakeDisks, Call::Start].contains(call)) {
        let options = Options::default();
        let ends = failing(&options, None, Some((call, 0)));
        let Outcome::Failed(error) = &ends.source.outcome else { panic!("{:?}", ends.source.outcome) };
        let blame = if call == Call::Check { Blame::Incompatible } else { Blame::Peer };
        assert_eq!(error.blame(), blame);
        assert!(error.text().contains(&format!("injected failure of {call:?} number 0")), "{}", error.text());
        assert_invariant(ends, &options, &format!("{call:?}"));
    }
}

#[test]
fn a_destination_that_can_not_start_keeps_the_guest_and_says_so() {
    let options = Options::default();
    let ends = failing(&options, None, Some((Call::Start, 0)));
    let Outcome::InDoubt(Doubt { error, .. }) = &ends.source.outcome else {
        panic!("{:?}", ends.source.outcome)
    };
    assert!(
        error.text().starts_with("the destination gave up: starting the guest failed"),
        "{}",
        error.text()
    );
    let there = ends.destination.as_ref().err().unwrap();
    assert!(there.committed);
    assert_eq!(ends.source.vm.first_difference(&there.vm), None);
    assert_eq!(options.fleet.running(), 0);
}

#[test]
fn a_guest_that_can_not_be_resumed_is_told_with_both_reasons() {
    let options = Options::default();
    let mut vm = FakeVm::booted(options.clone()).unwrap();
    vm.set_fail(Some((Call::Resume, 0)));
    let there = FakeVm::new(Options { fail: Some((Call::Load, 0)), ..options.clone() }).unwrap();
    let mut ends = plain_run(vm, there);
    let Outcome::Failed(error) = &ends.source.outcome else { panic!("{:?}", ends.source.outcome) };
    assert!(matches!(error, MigrationError::Resume { .. }));
    let text = error.text();
    assert!(text.contains("failure of Load") && text.contains("failure of Resume"), "{text}");
    assert_eq!(options.fleet.running(), 0);
    ends.source.vm.set_running(true);
    assert_second_succeeds(ends.source.vm, &options, "after resume failed");
}

#[test]
fn machines_that_do_not_fit_are_refused_with_both_sides_values() {
    let options = Options::default();
    let other = Options { region_pages: vec![70, 210], ..Options::default() };
    let vm = FakeVm::booted(options.clone()).unwrap();
    let ends = plain_run(vm, FakeVm::new(other).unwrap());
    let Outcome::Failed(error) = &ends.source.outcome else { panic!("{:?}", ends.source.outcome) };
    assert_eq!(error.code(), "memory-layout");
    for part in ["source 1080 KiB in 2 regions", "destination 1120 KiB in 2 regions", "--memory"] {
        assert!(error.text().contains(part), "{}", error.text());
    }
    let there = ends.destination.as_ref().err().unwrap();
    assert_eq!((there.error.code(), there.error.text()), ("memory-layout", error.text()));
    assert_second_succeeds(ends.source.vm, &options, "after a refusal");
}
