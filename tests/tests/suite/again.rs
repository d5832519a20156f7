//! Saved, restored by another process, saved again without having run: what is in both files is the same, but for
//! what a list names.

use std::ops::Range;
use std::path::Path;
use std::process::Command;

use tern_migration::snapshot::{PageEntry, SnapshotFile};
use tern_tests::binary::tern_binary;
use tern_tests::{Tern, TernBuilder, kvm_or_skip};
use tern_vmm::config::{SerialConfig, VmConfig};
use tern_vmm::{configuration, layout};

use crate::restore::modes;

#[path = "../../../vmm/tests/again/mod.rs"]
mod state;

/// MSR_KVM_SYSTEM_TIME_NEW: where a vCPU's clock is (kernel, Documentation/virt/kvm/x86/msr.rst). Bit 0: it is there.
const KVM_SYSTEM_TIME: u32 = 0x4b56_4d01;
/// `struct pvclock_vcpu_time_info`.
const KVM_CLOCK_BYTES: u64 = 32;

/// Fields of the state that a restore changes, and why.
const RENEWED: [(&str, &str); 2] = [
    ("vmgenid/0.id", "a guest from a file is told that it is another one"),
    ("vmgenid/0.status", "and has an event for that"),
];

fn save(tern: &mut Tern, file: &Path) -> SnapshotFile {
    let mut command = Command::new(tern_binary());
    let output = command.args(["save", "--then", "quit", "--control"]).arg(tern.control()).arg(file).output();
    let output = output.unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert!(tern.wait_end().success());
    SnapshotFile::open(file).unwrap()
}

/// All pages' hashes, region after region.
fn pages(file: &SnapshotFile) -> Vec<Vec<PageEntry>> {
    file.verify_tables().unwrap();
    let regions = file.layout().regions.iter().enumerate();
    let entries = regions.map(|(region, place)| {
        let mut entries = Vec::new();
        file.entries(region, 0..place.pages, &mut entries).unwrap();
        entries
    });
    entries.collect()
}

/// Memory that a restore writes, and why.
fn writers(file: &SnapshotFile) -> Vec<(Range<u64>, &'static str)> {
    let id = layout::VM_GENERATION_ID;
    let mut all = vec![(id..id + 16, "the VM generation ID is another one")];
    let fields = state::fields(&file.state().unwrap());
    for cpu in 0..2 {
        let msr = fields[&format!("vcpu/{cpu}.msr {KVM_SYSTEM_TIME:#x}")].as_str();
        let digits = msr.strip_prefix("Unsigned(").and_then(|rest| rest.strip_suffix(')')).unwrap();
        let value = u64::from_str_radix(digits, 16).unwrap();
        if value & 1 != 0 {
            let why = "KVM writes version and flags of a vCPU's clock anew when it is told where that is";
            all.push((value - 1..value - 1 + KVM_CLOCK_BYTES, why));
        }
    }
    all
}

/// What the machine was made with, but for its serial port, of which each process has its own.
fn configured(file: &SnapshotFile) -> VmConfig {
    let mut config = configuration::decode(file.configuration()).unwrap();
    (config.serial, config.generation_id) = (SerialConfig::Null, config.uuid);
    config
}

/// `words`: what the guest does; it has done enough when it has printed five lines that begin with `line`. `pages`:
/// how many it has written then, at least.
fn is_saved_again(words: &str, line: &str, pages_written: usize) {
    let folder = tempfile::tempdir().unwrap();
    let mut guest = Tern::pulse(&format!("{words} cpus=2")).cpus(2).start();
    guest.serial().wait("five lines", |text| {
        (text.lines().filter(|found| found.starts_with(line)).count() > 5).then_some(())
    });
    let first = save(&mut guest, &folder.path().join("first"));
    let before = pages(&first);
    let written = before.iter().flatten().filter(|page| page.hash != 0).count();
    assert!(written > pages_written, "{written} pages");
    let written_by = writers(&first);
    for mode in modes() {
        let restored = TernBuilder::restore(&folder.path().join("first")).flag("--mode").flag(mode);
        let mut again = restored.flag("--paused").start();
        again.qmp().wait_migrate(&["completed"]);
        let second = save(&mut again, &folder.path().join("second"));
        state::assert_same_but_for(&first.state().unwrap(), &second.state().unwrap(), &RENEWED);
        let after = pages(&second);
        assert_eq!(configured(&first), configured(&second));
        assert_eq!(first.layout().regions, second.layout().regions);
        let differing = before.iter().zip(&after).enumerate().flat_map(|(region, (before, after))| {
            let pages = (0u64..).zip(before.iter().zip(after));
            pages.filter(|(_, (one, two))| one.hash != two.hash).map(move |(page, _)| (region, page))
        });
        let differing: Vec<_> = differing.collect();
        assert!(differing.contains(&(0, layout::VM_GENERATION_ID / 4096)), "{mode}: {differing:?}");
        for (region, page) in differing {
            let (mut one, mut two) = ([0; 4096], [0; 4096]);
            first.read_page(region, page, &mut one).unwrap();
            second.read_page(region, page, &mut two).unwrap();
            let bytes = (page * 4096..).zip(one.iter().zip(&two)).filter(|(_, (one, two))| one != two);
            for (at, _) in bytes {
                let known = region == 0 && written_by.iter().any(|(bytes, _)| bytes.contains(&at));
                assert!(known, "{mode}: byte {at:#x} of region {region} differs, besides {written_by:x?}");
            }
        }
    }
}

#[test]
fn all_of_a_state_is_saved_again_but_for_what_must_differ() {
    if kvm_or_skip() {
        is_saved_again("torture=on", "T ", 16);
    }
}

#[test]
fn all_of_memory_is_saved_again_but_for_what_must_differ() {
    if kvm_or_skip() {
        is_saved_again("ws=8M rate=max pattern=random content=text interval=20", "B ", 2048);
    }
}
