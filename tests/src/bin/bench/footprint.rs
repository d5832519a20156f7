//! Memory that a process costs beside its guest's: everything resident but the mapping of guest memory, for a
//! guest of 1 GiB that sleeps. The kernel's own memory for a VM (page tables, shadow pages) is in neither figure.

use std::io;
use std::thread::sleep;
use std::time::Duration;

use tern_tests::limit::wait_for;

use crate::accounting;
use crate::contender::Machine;
use crate::plan::Plan;
use crate::pulse_lines;
use crate::table::{Aim, Figure, Group};

/// Start-up leaves memory that is given back soon after.
const SETTLE: Duration = Duration::from_millis(300);

/// Both processes while their guest sleeps.
pub fn measure(plan: &Plan) -> io::Result<Group> {
    let machine = Machine::pulse(&plan.pulse, "ws=0 nap=10");
    let [rss, pss] = plan.in_turns("process overhead", plan.runs, |vmm| {
        let process = machine.boot(vmm, &plan.programs)?;
        wait_for("pulse", || pulse_lines::is_ready(&process.serial()).then_some(()));
        sleep(SETTLE);
        let cost = accounting::overhead(process.pid(), machine.memory_mib * 1024)?;
        Ok([cost.rss_kib, cost.pss_kib].map(|kib| kib as f64 / 1024.0))
    })?;
    Ok(Group {
        name: "process overhead",
        setting: "resident memory without the guest's, 1 GiB guest".to_owned(),
        figures: vec![
            Figure::new("RSS", "MiB", rss, Some(Aim::Below(8.0))),
            Figure::new("PSS", "MiB", pss, Some(Aim::Below(8.0))),
        ],
        notes: Vec::new(),
    })
}
