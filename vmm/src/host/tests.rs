//! Facts of imagined hosts, and of this one.

use super::*;

fn hardware() -> HostFacts {
    let mut host = HostFacts::probe();
    host.kind = KvmKind::Vmx;
    host.needs = needs(KvmKind::Vmx);
    host.kvm_problem = None;
    host
}

fn outlook(host: &HostFacts, what: &str) -> (Outlook, String) {
    let verdicts = verdict::verdicts(host);
    let verdict = verdicts.into_iter().find(|verdict| verdict.what.contains(what)).unwrap();
    (verdict.outlook, verdict.note)
}

#[test]
fn every_shortcoming_has_a_note() {
    let host = HostFacts::probe();
    assert!(
        host.verdicts.iter().all(|verdict| verdict.outlook == Outlook::Works || !verdict.note.is_empty())
    );
    assert_eq!(host.kvm.is_some(), host.kvm_problem.is_none());
}

#[test]
fn no_kvm_is_the_first_thing_said() {
    let mut host = hardware();
    host.kvm = None;
    host.kvm_problem = Some(KvmError::Missing.to_string());
    let (outlook, note) = outlook(&host, "running guests");
    assert_eq!(outlook, Outlook::Fails);
    assert!(note.contains("modprobe"), "{note}");
    assert!(show(&host).contains("modprobe"));
}

#[test]
fn software_kvm_is_named_as_slow() {
    let mut host = hardware();
    assert_eq!(outlook(&host, "full speed").0, Outlook::Works);
    host.kind = KvmKind::Pvm;
    host.needs = needs(KvmKind::Pvm);
    let (outlook, note) = outlook(&host, "full speed");
    assert_eq!(outlook, Outlook::Limited);
    assert!(note.contains("interpreted"), "{note}");
}

#[test]
fn a_user_without_rights_is_told_how_to_get_a_tap() {
    let mut host = hardware();
    (host.system.tun, host.system.net_admin) = (true, false);
    assert!(outlook(&host, "TAP").1.contains("ip tuntap add"));
    host.system.tun = false;
    assert_eq!(outlook(&host, "TAP").0, Outlook::Fails);
}

#[test]
fn the_page_and_the_json_say_the_same() {
    let host = HostFacts::probe();
    let (text, json) = (show(&host), serde_json::to_value(&host).unwrap());
    assert!(text.contains(&host.system.kernel));
    assert_eq!(json["system"]["cpus"], host.system.cpus);
    assert_eq!(json["kvm"].is_null(), host.kvm.is_none());
}
