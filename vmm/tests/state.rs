//! The whole state of a machine, moved to a new machine in the same process: without engine and sockets, so
//! that what is lost here was lost by the state itself.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

mod again;
mod bench;
mod host;

use bench::{Bench, number, saved};
use tern_migration::{DestinationVm, SourceVm};
use tern_vmm::run_control::Hold;

/// Moves the guest through `moves` machines.
fn moves(cpus: u8, cmdline: &str, moves: usize) {
    let Some(mut bench) = Bench::new(cpus) else { return };
    let mut vm = bench.boot(cmdline);
    let mut beats = bench.wait_for_beats(2);
    for _ in 0..moves {
        assert!(vm.stop(&|| false).unwrap());
        let mut next = bench.moved(&mut vm);
        drop(vm);
        next.start(true).unwrap();
        vm = next;
        beats = bench.wait_for_beats(beats);
    }
    vm.core().run().hold(Hold::Ended);
    let heard = bench.heard();
    assert_eq!(heard.matches("A ready").count(), 1, "the guest started anew:\n{heard}");
    for cpu in 0..cpus {
        let mine = format!(" cpu={cpu} ");
        let seqs: Vec<u64> = heard
            .lines()
            .filter(|l| l.starts_with("B ") && l.contains(&mine))
            .map(|l| number(l, "seq"))
            .collect();
        assert!(seqs.iter().copied().eq(0..seqs.len() as u64), "beats of vCPU {cpu} are missing: {seqs:?}");
    }
}

#[test]
fn a_writing_guest_goes_on_in_twenty_machines() {
    moves(1, "ws=8M rate=max interval=20 pattern=random", 20);
}

#[test]
fn an_idle_guest_with_an_armed_timer_goes_on_in_twenty_machines() {
    moves(1, "ws=0 interval=20", 20);
}

#[test]
fn two_vcpus_go_on_in_ten_machines() {
    moves(2, "ws=8M rate=2000 interval=20 cpus=2", 10);
}

#[test]
fn what_is_loaded_is_saved_again_but_for_what_goes_on() {
    let Some(mut bench) = Bench::new(2) else { return };
    let mut vm = bench.boot("torture=on cpus=2");
    bench.wait_until("turns", |heard| heard.lines().filter(|line| line.starts_with("T ")).count() > 4);
    vm.stop(&|| false).unwrap();
    let first = saved(&mut vm);
    // A timer that ends while the guest stands still is an interrupt then: not in this comparison.
    let mut next = bench.moved_as(&mut vm, |_| first.clone());
    let second = saved(&mut next);
    again::assert_same_but_for(&first, &second, &[]);
    vm.core().run().hold(Hold::Ended);
}
