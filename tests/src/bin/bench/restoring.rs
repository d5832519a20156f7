//! From a file to the guest's first instruction, for guests of three sizes: does the time grow with the memory?
//!
//! Timed as start-up is (`start_up.rs`): from just before fork and exec of `tern restore` (QEMU: `-incoming file:`,
//! mapped-ram) until the bench has read a byte that the restored guest has written to its serial port. The guest is a
//! pulse that prints without a pause, so it was saved in the middle of that, and its first instructions print the next
//! byte. What the VMM does before is all in the figure: the process, the machine, the file, state, memory.
//!
//! "Warm": the file is in the page cache. "Cold": it was dropped from there, and what is needed comes from the disk.
//!
//! | mode | before the first instruction |
//! |---|---|
//! | on demand | no page is read; each is verified when it comes |
//! | mapped, unverified | memory is the file |
//! | mapped | the same, but all pages are read and verified |
//! | eager | all pages are read and verified into memory of the guest's own |

use std::io;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::contender::{BOTH, Machine, Vmm};
use crate::plan::Plan;
use crate::saving::save_running;
use crate::start_up::until;
use crate::table::{Aim, Figure, Group};

/// Memory of a guest, and how much of it isn't zero.
const SIZES: [(u64, &str); 3] = [(64, "40M"), (1024, "900M"), (4096, "3600M")];
/// The size that is restored from a file that isn't in the page cache.
const COLD_MIB: u64 = 1024;

const ON_DEMAND: [&str; 2] = ["--mode", "on-demand"];
const UNVERIFIED: [&str; 3] = ["--mode", "mapped", "--no-verify"];
const MAPPED: [&str; 2] = ["--mode", "mapped"];
const EAGER: [&str; 2] = ["--mode", "eager"];

/// Restores of all sizes.
pub fn measure(plan: &Plan) -> io::Result<Group> {
    let mut figures = Vec::new();
    for (memory_mib, content) in SIZES {
        let cmdline = format!("ws={content} rate=1 content=random interval=1");
        let machine = Machine { memory_mib, ..Machine::pulse(&plan.pulse, &cmdline) };
        let [tern, qemu] = ["tern.snap", "qemu.snap"].map(|name| plan.on_disk.path().join(name));
        for (vmm, file) in BOTH.into_iter().zip([&tern, &qemu]) {
            save_running(plan, &machine, vmm, file)?;
        }
        figures.extend(of_size(plan, &machine, &tern, &qemu)?);
    }
    let setting = "exec to the guest's first byte; pulse, nearly all of its memory not zero; QEMU reads all memory in each case";
    Ok(Group { name: "restore", setting: setting.to_owned(), figures, notes: Vec::new() })
}

fn of_size(plan: &Plan, machine: &Machine, tern: &PathBuf, qemu: &PathBuf) -> io::Result<Vec<Figure>> {
    let size = format!("{} MiB", machine.memory_mib);
    let what = format!("restore of {size}");
    let timed = |vmm: Vmm, mode: &[&str]| {
        let file = if vmm == Vmm::Tern { tern } else { qemu };
        until(machine.restore(vmm, &plan.programs, file, mode), b"")
    };
    let under = Some(Aim::Below(20.0));
    let [on_demand] = plan.in_turns(&what, plan.slow_runs, |vmm| Ok([timed(vmm, &ON_DEMAND)?]))?;
    let mut figures = vec![Figure::new(format!("{size}, on demand, warm"), "ms", on_demand, under)];
    if machine.memory_mib == COLD_MIB {
        let [cold] = plan.in_turns(&what, plan.slow_runs, |vmm| {
            drop_from_cache(if vmm == Vmm::Tern { tern } else { qemu })?;
            Ok([timed(vmm, &ON_DEMAND)?])
        })?;
        figures.push(Figure::new(format!("{size}, on demand, cold"), "ms", cold, None));
    }
    let [unverified, mapped, eager] = plan.turns_of(&[Vmm::Tern], &what, plan.slow_runs, |vmm| {
        Ok([timed(vmm, &UNVERIFIED)?, timed(vmm, &MAPPED)?, timed(vmm, &EAGER)?])
    })?;
    figures.push(Figure::new(format!("{size}, mapped, unverified, warm"), "ms", unverified, None));
    figures.push(Figure::new(format!("{size}, mapped, warm"), "ms", mapped, None));
    figures.push(Figure::new(format!("{size}, eager, warm"), "ms", eager, None));
    Ok(figures)
}

/// What `dd` does with a file that it need not write.
fn drop_from_cache(file: &Path) -> io::Result<()> {
    let mut command = Command::new("dd");
    command.args([&format!("of={}", file.display()), "oflag=nocache", "conv=notrunc,fdatasync", "count=0"]);
    let status = command.arg("status=none").status()?;
    if status.success() { Ok(()) } else { Err(io::Error::other(format!("{command:?}: {status}"))) }
}
