//! What will work on this host and what won't, and how to mend it.

use serde::Serialize;

use super::HostFacts;

/// How well something will work.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Outlook {
    /// Fully.
    Works,
    /// With a limit that the note names.
    Limited,
    /// Not at all.
    Fails,
}

/// One thing that people want to do.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Verdict {
    /// What.
    pub what: &'static str,
    /// How well.
    pub outlook: Outlook,
    /// Why, and what to do about it; empty where there is nothing to say.
    pub note: String,
}

fn works(what: &'static str, note: impl Into<String>) -> Verdict {
    Verdict { what, outlook: Outlook::Works, note: note.into() }
}

fn limited(what: &'static str, note: impl Into<String>) -> Verdict {
    Verdict { what, outlook: Outlook::Limited, note: note.into() }
}

fn fails(what: &'static str, note: impl Into<String>) -> Verdict {
    Verdict { what, outlook: Outlook::Fails, note: note.into() }
}

/// All verdicts, the basic ones first.
pub fn verdicts(host: &HostFacts) -> Vec<Verdict> {
    vec![
        guests(host),
        speed(host),
        precopy(host),
        postcopy(host),
        clock(host),
        network(host),
        huge_pages(host),
    ]
}

fn guests(host: &HostFacts) -> Verdict {
    match &host.kvm_problem {
        Some(problem) => fails("running guests", problem.clone()),
        None => works("running guests", ""),
    }
}

fn speed(host: &HostFacts) -> Verdict {
    let what = "guest kernels at full speed";
    if host.kind.is_hardware() {
        return works(what, "");
    }
    if host.needs.kernel_words.is_empty() {
        return limited(what, "the kind of KVM is unknown: measure before you rely on it");
    }
    let note = "ring 0 is interpreted here, user programs run natively; tern adds the kernel parameters that this \
                KVM needs. Stock distribution kernels may fail: use `tern image build linux`, or a host with VMX or SVM";
    limited(what, note)
}

fn precopy(host: &HostFacts) -> Verdict {
    let what = "live migration, pre-copy";
    match &host.kvm {
        None => fails(what, "needs KVM"),
        Some(kvm) if kvm.dirty_log.manual_protect => works(what, "dirty log with manual protect"),
        Some(_) => limited(
            what,
            "plain dirty log: each round write-protects all memory at once; Linux 5.4 and later do better",
        ),
    }
}

fn postcopy(host: &HostFacts) -> Verdict {
    let what = "live migration, post-copy (as a host for it)";
    match &host.uffd.problem {
        Some(problem) => fails(what, problem.clone()),
        None => works(what, "userfaultfd; this version of tern migrates by pre-copy only"),
    }
}

fn clock(host: &HostFacts) -> Verdict {
    let what = "migration between hosts of different TSC frequency";
    match &host.kvm {
        None => fails(what, "needs KVM"),
        Some(kvm) if kvm.tsc_scaling => works(what, "the TSC can be scaled"),
        Some(kvm) => {
            let khz = kvm.tsc_khz.map_or_else(|| "unknown".to_owned(), |khz| format!("{khz} kHz"));
            limited(
                what,
                format!("no TSC scaling: guests must come from hosts with the same TSC frequency ({khz})"),
            )
        }
    }
}

fn network(host: &HostFacts) -> Verdict {
    let what = "guest networks (TAP)";
    if !host.system.tun {
        return fails(what, "/dev/net/tun can't be opened: `sudo modprobe tun`, and check its permissions");
    }
    if !host.system.net_admin {
        let note = "this user can't make TAP interfaces, but can use one that was made for it: \
                    `sudo ip tuntap add tern0 mode tap user $USER && sudo ip link set tern0 up`";
        return limited(what, note);
    }
    works(what, "")
}

fn huge_pages(host: &HostFacts) -> Verdict {
    let what = "huge pages for guest memory";
    match host.system.transparent_huge_pages.as_str() {
        "always" | "madvise" => works(what, "transparent huge pages"),
        _ => limited(what, "off: `echo madvise | sudo tee /sys/kernel/mm/transparent_hugepage/enabled`"),
    }
}
