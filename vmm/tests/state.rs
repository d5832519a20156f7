//! The whole state of a machine, moved to a new machine in the same process: without engine and sockets, so
//! that what is lost here was lost by the state itself.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

mod bench;
mod host;

use std::collections::BTreeMap;

use bench::{Bench, number, saved};
use tern_migration::{DestinationVm, SourceVm};
use tern_schema::{Seen, StateSet};
use tern_vmm::catalog;
use tern_vmm::run_control::Hold;
use tern_vmm::vcpu::MSR_TSC;

/// Moves the guest through `moves` machines.
fn moves(cpus: u8, cmdline: &str, moves: usize) {
    let Some(mut bench) = Bench::new(cpus) else { return };
    let mut vm = bench.boot(cmdline);
    let mut beats = bench.wait_for_beats(2);
    for _ in 0..moves {
        assert!(vm.stop().unwrap());
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

/// What may differ between a state and the same state loaded and saved again, and why.
const GOES_ON: [(&str, &str); 7] = [
    ("clock/0.guest_ns", "the guest's clock runs while the guest stands still"),
    ("clock/0.host_realtime_ns", "the host's clock does"),
    ("clock/0.host_tsc", "and its TSC"),
    ("vcpu/N.tsc_offset", "follows the clock by the kernel's algorithm, whose result is rounded"),
    ("vcpu/N.msr 0x10", "the guest's TSC runs on, too"),
    ("vcpu/N.lapic[0x390]", "the timer's current count, counted down by the host's clock"),
    ("pit/0.channels[N].count_load_time_ns", "KVM loads the counter anew, in the host's time"),
];

/// Every field of a state with its value: MSRs by their index, the LAPIC by its registers.
fn fields(state: &StateSet) -> BTreeMap<String, String> {
    let mut all = BTreeMap::new();
    for section in state.sections() {
        let place = format!("{}/{}", section.name, section.instance);
        let mut msr = String::new();
        let walked = catalog::walk_section(&section.name, section.version, &section.body);
        assert!(walked.damage.is_none() && walked.missing.is_empty(), "{walked:?}");
        walked.visit(&mut |path, item| {
            let twice = match (&item.value, path) {
                (Seen::Record(_), _) => None,
                (Seen::Bytes(page), "lapic") => {
                    for (at, register) in page.chunks(16).enumerate() {
                        all.insert(format!("{place}.lapic[{:#x}]", at * 16), format!("{register:x?}"));
                    }
                    None
                }
                (Seen::Unsigned(index), path) if path.starts_with("msrs[") && path.ends_with(".index") => {
                    msr = format!("{place}.msr {index:#x}");
                    None
                }
                (value, path) if path.starts_with("msrs[") => all.insert(msr.clone(), format!("{value:x?}")),
                (value, path) => all.insert(format!("{place}.{path}"), format!("{value:x?}")),
            };
            assert!(twice.is_none(), "{place}.{path} is there twice");
        });
    }
    all
}

/// With each number of an instance or position replaced by N, as [`GOES_ON`] has it.
fn pattern(path: &str) -> String {
    let path = path.replace("vcpu/0", "vcpu/N").replace("vcpu/1", "vcpu/N");
    ["channels[0]", "channels[1]", "channels[2]"].iter().fold(path, |p, at| p.replace(at, "channels[N]"))
}

#[test]
fn what_is_loaded_is_saved_again_but_for_what_goes_on() {
    let Some(mut bench) = Bench::new(2) else { return };
    let mut vm = bench.boot("torture=on cpus=2");
    bench.wait_until("turns", |heard| heard.lines().filter(|line| line.starts_with("T ")).count() > 4);
    vm.stop().unwrap();
    let first = saved(&mut vm);
    // A timer that ends while the guest stands still is an interrupt then: not in this comparison.
    let mut next = bench.moved_as(&mut vm, |_| first.clone());
    let second = saved(&mut next);
    let (one, two) = (fields(&first), fields(&second));
    assert!(one.len() > 300 && one.contains_key(&format!("vcpu/1.msr {MSR_TSC:#x}")), "{:?}", one.keys());
    assert_eq!(one.keys().collect::<Vec<_>>(), two.keys().collect::<Vec<_>>());
    for (path, value) in &one {
        let (now, pattern) = (&two[path], pattern(path));
        let may = GOES_ON.iter().any(|(allowed, _)| pattern == *allowed);
        assert!(may || value == now, "{path} was {value} and became {now}");
    }
    vm.core().run().hold(Hold::Ended);
}
