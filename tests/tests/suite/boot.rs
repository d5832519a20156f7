//! The bare guest boots, says how it is, and ends; and the checks that all other tests lean on find what they must.

use tern_tests::{PulseLog, Tern, kvm_or_skip};

#[test]
fn pulse_boots_checks_its_memory_and_powers_off() {
    if !kvm_or_skip() {
        return;
    }
    for cpus in [1, 2, 4] {
        let words = format!("ws=8M rate=4000 interval=50 quit=4 cpus={cpus}");
        let mut tern = Tern::pulse(&words).cpus(cpus).start();
        assert!(tern.wait_end().success(), "{}", tern.stderr());
        let log = tern.pulse_log();
        assert!(log.ready && log.cpus == u64::from(cpus) && log.reached() >= Some(3), "{log:?}");
        assert!(log.verified() >= 400, "hardly any page was checked: {}", log.verified());
    }
}

#[test]
fn a_spoilt_page_is_found() {
    if !kvm_or_skip() {
        return;
    }
    for place in ["content", "generation", "number", "table"] {
        let words = format!("ws=1M rate=max interval=20 quit=6 poke=2 poke-at={place}");
        let mut tern = Tern::pulse(&words).start();
        tern.wait_end();
        let problem = PulseLog::check(&tern.serial().text()).unwrap_err();
        assert!(problem.contains("CORRUPT cpu=0"), "{place}: {problem}");
    }
}

#[test]
fn a_reset_starts_the_guest_again_in_the_same_process() {
    if !kvm_or_skip() {
        return;
    }
    let tern = Tern::pulse("ws=1M rate=100 interval=50").start();
    tern.wait_beats(1, 2);
    let mut qmp = tern.qmp();
    qmp.execute("system_reset", serde_json::json!({}));
    qmp.wait_event("RESET");
    tern.serial().wait("a second banner", |text| (text.matches("A tern-pulse ").count() == 2).then_some(()));
    assert_eq!(qmp.state(), "running");
    assert!(tern.quit().success());
}
