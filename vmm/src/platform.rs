//! What a guest needs of its host: recorded at the source, compared at the destination before a byte moves.

mod leaves;

use std::io;

use tern_migration::Aspect;
use tern_schema::record;

use crate::vcpu::{self, CpuidV1, FeatureSet, MsrV1, Offer};
pub(crate) use leaves::is_known_leaf;

record! {
    /// A device as both sides must have it.
    pub struct DeviceFactV1 {
        /// Its section's name.
        [1] name: String,
        /// Which of several equal ones.
        [2] instance: u32,
        /// What the guest sees of it, such as a disk's size.
        [3] detail: String,
    }
}

record! {
    /// The VMM's own part of `VmFacts`.
    pub struct PlatformV1 {
        /// CPUID of vCPU 0 as the guest sees it, which on a software KVM is more than was set.
        [1] cpuid: Vec<CpuidV1>,
        /// Frequency of the guest's TSC.
        [2] tsc_khz: u32,
        /// MSRs that are state.
        [3] msrs: Vec<u64>,
        /// Size of the XSAVE area.
        [4] xsave_bytes: u32,
        /// All devices.
        [5] devices: Vec<DeviceFactV1>,
        /// What kind of KVM this is, for people.
        [6] kvm: String,
        /// Registers that say what the processor is. None from terns that didn't compare them.
        [7 optional] feature_msrs: Vec<MsrV1>,
    }
}

/// What a guest meets on this host.
#[derive(Debug)]
pub struct Here<'a> {
    /// As this side's machine was built.
    pub platform: &'a PlatformV1,
    /// What the host can show to guests.
    pub offer: &'a Offer,
    /// What of it this side takes: its own `--cpu` may leave some out.
    pub allowed: FeatureSet,
    /// The host can give a guest another TSC frequency than its own.
    pub can_scale: bool,
}

/// Compares a guest with this host: every aspect, those that fit as well. The refusal of a migration and
/// the report of its check are made of the same list.
pub fn compare(source: &PlatformV1, here: &Here<'_>) -> Vec<Aspect> {
    let (theirs, ours) = (&source.kvm, &here.platform.kvm);
    let mut list =
        vec![Aspect::fits("kvm", "KVM", theirs, ours), vendor(source, here), features(source, here)];
    list.extend(leaves::compare(&source.cpuid, &here.offer.cpuid));
    list.extend([msrs(source, here), tsc(source, here), xsave(source, here)]);
    list.extend(devices(&source.devices, &here.platform.devices));
    list
}

fn vendor(source: &PlatformV1, here: &Here<'_>) -> Aspect {
    let (theirs, ours) = (vcpu::vendor(&source.cpuid), here.offer.vendor());
    let remedy =
        "use a host of the same maker: system calls, MSRs and errata differ, and no profile hides that";
    Aspect::equal("cpu-vendor", "CPU vendor", theirs, ours, remedy)
}

/// A guest may use what it sees, so a host must have all of it. More does no harm.
fn features(source: &PlatformV1, here: &Here<'_>) -> Aspect {
    let (code, name) = ("cpu-features", "CPU features");
    let seen = FeatureSet::seen(&source.cpuid, &source.feature_msrs);
    let missing = seen.missing_from(&here.allowed);
    let count = seen.iter().count();
    let theirs = format!("{count} are seen");
    if missing.is_empty() {
        return Aspect::fits(code, name, theirs, "has them all");
    }
    let remedy = "hide them at the source: boot the guest there with --cpu and a profile that both hosts have \
                  (tern cpu baseline); a destination started with --cpu takes only what its own profile has";
    Aspect::differs(code, name, theirs, format!("lacks {missing}"), remedy)
}

/// A register that this host lacks is no obstacle while it is zero, which the load of the state sees to.
fn msrs(source: &PlatformV1, here: &Here<'_>) -> Aspect {
    let missing = source.msrs.iter().filter(|index| !here.platform.msrs.contains(index));
    let missing: Vec<String> = missing.map(|index| format!("{index:#x}")).collect();
    let theirs = format!("{} are saved", source.msrs.len());
    let ours = if missing.is_empty() {
        "has them all".to_owned()
    } else {
        format!("lacks {}, and takes them while they are zero", missing.join(" "))
    };
    Aspect::fits("msrs", "MSRs", theirs, ours)
}

/// Tolerance of the TSC's frequency without scaling, as KVM has it: 250 parts per million.
pub(crate) fn same_frequency(one_khz: u32, other_khz: u32) -> bool {
    u64::from(one_khz.abs_diff(other_khz)) * 4000 <= u64::from(one_khz)
}

fn tsc(source: &PlatformV1, here: &Here<'_>) -> Aspect {
    let (theirs, ours) = (source.tsc_khz, here.platform.tsc_khz);
    let (code, name, seen) = ("tsc", "TSC frequency", format!("{theirs} kHz"));
    if here.can_scale {
        return Aspect::fits(code, name, seen, format!("{ours} kHz, and can scale"));
    }
    if same_frequency(theirs, ours) {
        return Aspect::fits(code, name, seen, format!("{ours} kHz"));
    }
    let remedy = "use a host of the same frequency, or one that can scale";
    Aspect::differs(code, name, seen, format!("{ours} kHz, and cannot scale"), remedy)
}

fn xsave(source: &PlatformV1, here: &Here<'_>) -> Aspect {
    let (theirs, ours) = (source.xsave_bytes, here.platform.xsave_bytes);
    let (code, name) = ("xsave", "XSAVE area");
    let (seen, has) = (format!("{theirs} bytes"), format!("{ours} bytes"));
    if theirs <= ours {
        return Aspect::fits(code, name, seen, has);
    }
    Aspect::differs(code, name, seen, has, "hide the larger features at the source (--cpu)")
}

fn devices(source: &[DeviceFactV1], here: &[DeviceFactV1]) -> Vec<Aspect> {
    let remedy = "start the destination with the same --disk, --net and --serial as the source";
    let mut list = Vec::new();
    for theirs in source {
        let ours = here.iter().find(|ours| ours.name == theirs.name && ours.instance == theirs.instance);
        list.push(device(
            theirs,
            theirs.detail.clone(),
            ours.map_or("none".to_owned(), |o| o.detail.clone()),
            remedy,
        ));
    }
    let is_new = |ours: &&DeviceFactV1| {
        !source.iter().any(|theirs| ours.name == theirs.name && ours.instance == theirs.instance)
    };
    list.extend(
        here.iter().filter(is_new).map(|ours| device(ours, "none".to_owned(), ours.detail.clone(), remedy)),
    );
    list
}

/// Whether the destination's disks, in the order of its configuration, can be read now.
pub fn disks(readable: &[io::Result<()>]) -> Vec<Aspect> {
    let of = |(index, found): (usize, &io::Result<()>)| {
        let (code, name, source) = ("disk-readable", format!("disk {index}"), "has it");
        match found {
            Ok(()) => Aspect::fits(code, &name, source, "reads it"),
            Err(error) => {
                let remedy = "look at the file of this --disk on the destination's host";
                Aspect::differs(code, &name, source, format!("can't read it: {error}"), remedy)
            }
        }
    };
    readable.iter().enumerate().map(of).collect()
}

fn device(fact: &DeviceFactV1, source: String, here: String, remedy: &str) -> Aspect {
    Aspect::equal("device", &format!("{}/{}", fact.name, fact.instance), source, here, remedy)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn platform(ecx: u32, devices: Vec<DeviceFactV1>) -> PlatformV1 {
        let leaf1 = CpuidV1 { leaf: 1, subleaf: 0, flags: 0, eax: 0, ebx: 0, ecx, edx: 0 };
        let (tsc_khz, msrs, xsave_bytes) = (2_000_000, vec![0x10], 4096);
        let (kvm, feature_msrs) = ("test".into(), Vec::new());
        PlatformV1 { cpuid: vec![leaf1], tsc_khz, msrs, xsave_bytes, devices, kvm, feature_msrs }
    }

    fn disk(detail: &str) -> DeviceFactV1 {
        DeviceFactV1 { name: "virtio-blk".into(), instance: 0, detail: detail.into() }
    }

    fn refused(source: &PlatformV1, here: &PlatformV1, can_scale: bool) -> Vec<Aspect> {
        let cpuid = here.cpuid.clone();
        let offer = Offer { cpuid, msrs: here.feature_msrs.clone(), forced: FeatureSet::default() };
        let allowed = offer.features();
        let list = compare(source, &Here { platform: here, offer: &offer, allowed, can_scale });
        list.into_iter().filter(|aspect| !aspect.is_ok()).collect()
    }

    #[test]
    fn equal_sides_fit_in_every_aspect() {
        let one = platform(1 << 13, vec![disk("1 GiB")]);
        assert_eq!(refused(&one, &one, false), []);
    }

    #[test]
    fn a_missing_feature_is_named() {
        let (guest, host) = (platform(1 << 13 | 1 << 20, vec![]), platform(0, vec![]));
        let list = refused(&guest, &host, false);
        assert_eq!(list.len(), 1);
        assert!(list[0].text().contains("lacks cx16 sse4_2;"), "{list:?}");
        assert_eq!(refused(&host, &guest, false), [], "more features do no harm");
    }

    #[test]
    fn a_processor_without_a_weakness_is_not_replaced_by_one_that_has_it() {
        let (mut guest, host) = (platform(0, vec![]), platform(0, vec![]));
        guest.feature_msrs.push(MsrV1 { index: 0x10a, value: 1 << 5 });
        assert!(refused(&guest, &host, false)[0].text().contains("lacks arch_cap_mds_no"));
    }

    #[test]
    fn devices_and_frequency_are_compared_with_both_values() {
        let (source, mut here) = (platform(0, vec![disk("1 GiB")]), platform(0, vec![disk("2 GiB")]));
        here.tsc_khz = 2_600_000;
        let text = refused(&source, &here, false).iter().map(Aspect::text).collect::<Vec<_>>().join("\n");
        for part in ["virtio-blk/0: source 1 GiB, destination 2 GiB", "2000000 kHz", "2600000 kHz"] {
            assert!(text.contains(part), "{part} is not in: {text}");
        }
        assert!(!refused(&source, &here, true).iter().any(|aspect| aspect.code == "tsc"));
        here.devices.clear();
        assert!(refused(&source, &here, true)[0].text().contains("destination none"));
        assert!(refused(&here, &source, true)[0].text().contains("source none"));
    }

    #[test]
    fn a_disk_that_has_gone_is_told() {
        let list = disks(&[Ok(()), Err(io::Error::from_raw_os_error(libc::ESTALE))]);
        assert!(
            list[0].is_ok()
                && list[1].text().contains("disk 1: source has it, destination can't read it: Stale")
        );
    }

    #[test]
    fn a_register_that_the_destination_lacks_is_told_and_no_obstacle() {
        let (mut guest, host) = (platform(0, vec![]), platform(0, vec![]));
        guest.msrs.push(0x4b56_4d08);
        assert_eq!(refused(&guest, &host, false), []);
        let offer = Offer { cpuid: vec![], msrs: vec![], forced: FeatureSet::default() };
        let allowed = FeatureSet::default();
        let list = compare(&guest, &Here { platform: &host, offer: &offer, allowed, can_scale: false });
        let msrs = list.iter().find(|aspect| aspect.code == "msrs").unwrap();
        assert!(msrs.destination.contains("lacks 0x4b564d08"), "{msrs:?}");
    }
}
