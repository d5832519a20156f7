//! The host's facts for a person.

use std::fmt::Write;

use super::{HostFacts, KvmFacts, Outlook};
use crate::config::ByteSize;

/// One page of text.
pub fn show(host: &HostFacts) -> String {
    let mut text = String::new();
    for (name, value) in lines(host) {
        // Writing to a string doesn't fail.
        let _ = writeln!(text, "{name:<18} {value}");
    }
    let _ = writeln!(text, "\nWhat will work");
    for verdict in &host.verdicts {
        let mark = match verdict.outlook {
            Outlook::Works => "yes    ",
            Outlook::Limited => "limited",
            Outlook::Fails => "NO     ",
        };
        let _ = writeln!(text, "  {mark} {}", verdict.what);
        if !verdict.note.is_empty() {
            let _ = writeln!(text, "          {}", verdict.note);
        }
    }
    text
}

fn lines(host: &HostFacts) -> Vec<(&'static str, String)> {
    let system = &host.system;
    let memory =
        format!("{}, {} available", ByteSize(system.memory_bytes), ByteSize(system.memory_available_bytes));
    let stable = if system.tsc_stable { "stable" } else { "not known to be stable" };
    let mut lines = vec![
        ("KVM", host.kind.to_string()),
        ("kernel", system.kernel.clone()),
        ("CPU", format!("{} x {}", system.cpus, system.cpu)),
        ("memory", memory),
        ("huge pages", huge_pages(host)),
        ("clock", format!("{}, TSC {stable}", system.clocksource)),
    ];
    match (&host.kvm, &host.kvm_problem) {
        (Some(kvm), _) => lines.extend(kvm_lines(kvm)),
        (None, problem) => lines.push(("/dev/kvm", problem.clone().unwrap_or_default())),
    }
    let uffd = match (&host.uffd.by, &host.uffd.problem) {
        (_, Some(problem)) => problem.clone(),
        (by, None) => format!("by {}: {}", by.unwrap_or_default(), host.uffd.features.join(" ")),
    };
    lines.push(("userfaultfd", uffd));
    let yes = |yes| if yes { "yes" } else { "no" };
    lines.push(("TAP", format!("/dev/net/tun {}, CAP_NET_ADMIN {}", yes(system.tun), yes(system.net_admin))));
    if !host.needs.reason.is_empty() {
        lines.push(("guests need", host.needs.kernel_words.join(" ")));
        let hidden: Vec<String> = host.needs.hidden.iter().map(ToString::to_string).collect();
        lines.push(("hidden from them", hidden.join(" ")));
        lines.push(("because", host.needs.reason.to_owned()));
    }
    lines
}

fn kvm_lines(kvm: &KvmFacts) -> Vec<(&'static str, String)> {
    let log = &kvm.dirty_log;
    let bitmap = match (log.manual_protect, log.initially_set) {
        (true, true) => "bitmap with manual protect, initially set",
        (true, false) => "bitmap with manual protect",
        _ => "plain bitmap",
    };
    let ring = match log.ring_bytes {
        ..=0 => "no ring".to_owned(),
        bytes => format!("ring of {} per vCPU", ByteSize(bytes.unsigned_abs().into())),
    };
    let khz = kvm.tsc_khz.map_or_else(|| "frequency unknown".to_owned(), |khz| format!("{khz} kHz"));
    let scaling = if kvm.tsc_scaling { "can be scaled" } else { "no scaling" };
    vec![
        (
            "KVM interface",
            format!(
                "version {}, up to {} vCPUs ({} recommended)",
                kvm.api_version, kvm.max_vcpus, kvm.recommended_vcpus
            ),
        ),
        ("dirty log", format!("{bitmap}; {ring}")),
        ("guest TSC", format!("{khz}, {scaling}")),
    ]
}

fn huge_pages(host: &HostFacts) -> String {
    let pool = |pool: &super::HugePages| {
        format!("{} of {} free at {}", pool.free, pool.total, ByteSize(pool.page_bytes))
    };
    let pools: Vec<String> = host.system.huge_pages.iter().map(pool).collect();
    let pools = if pools.is_empty() { "none".to_owned() } else { pools.join(", ") };
    format!("{pools}; transparent: {}", host.system.transparent_huge_pages)
}
