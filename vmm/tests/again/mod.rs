//! What may differ between the state of a machine and the same state loaded and saved again, and why. Everything
//! else is the same, field by field.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

use std::collections::BTreeMap;

use tern_schema::{Seen, StateSet};
use tern_vmm::catalog;

/// Fields that may differ after any load, and why.
pub const GOES_ON: [(&str, &str); 7] = [
    ("clock/0.guest_ns", "the guest's clock runs while the guest stands still"),
    ("clock/0.host_realtime_ns", "the host's clock does"),
    ("clock/0.host_tsc", "and its TSC"),
    ("vcpu/N.tsc_offset", "follows the clock by the kernel's algorithm, whose result is rounded"),
    ("vcpu/N.msr 0x10", "the guest's TSC runs on, too"),
    ("vcpu/N.lapic[0x390]", "the timer's current count, counted down by the host's clock"),
    ("pit/0.channels[N].count_load_time_ns", "KVM loads the counter anew, in the host's time"),
];

/// Every field of a state with its value: MSRs by their index, the LAPIC by its registers.
pub fn fields(state: &StateSet) -> BTreeMap<String, String> {
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

/// Both have the same fields, with the same values but for [`GOES_ON`] and `more`.
pub fn assert_same_but_for(first: &StateSet, second: &StateSet, more: &[(&str, &str)]) {
    let (one, two) = (fields(first), fields(second));
    assert!(one.len() > 300 && one.contains_key("vcpu/1.msr 0x10"), "{:?}", one.keys());
    assert_eq!(one.keys().collect::<Vec<_>>(), two.keys().collect::<Vec<_>>());
    let may = |path: &str| GOES_ON.iter().chain(more).any(|(allowed, _)| pattern(path) == *allowed);
    let wrong = one.iter().filter(|(path, value)| !may(path) && *value != &two[*path]);
    let wrong: Vec<_> =
        wrong.map(|(path, value)| format!("{path} was {value} and became {}", two[path])).collect();
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}
