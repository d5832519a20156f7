//! What a guest needs of its host: recorded at the source, compared at the destination before a byte moves.

use kvm_bindings::KVM_MAX_CPUID_ENTRIES;
use kvm_ioctls::Kvm;
use tern_schema::record;

use crate::vcpu::CpuidV1;

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
        /// CPUID of vCPU 0.
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
    }
}

/// A CPUID register that is a set of features: a guest that sees a bit needs it wherever it runs.
struct FeatureWord {
    leaf: u32,
    subleaf: u32,
    name: &'static str,
    register: fn(&CpuidV1) -> u32,
}

const FEATURE_WORDS: [FeatureWord; 12] = [
    FeatureWord { leaf: 1, subleaf: 0, name: "leaf 1 ecx", register: |e| e.ecx & !NOT_HOSTS_ECX },
    FeatureWord { leaf: 1, subleaf: 0, name: "leaf 1 edx", register: |e| e.edx & !EDX_HTT },
    FeatureWord { leaf: 7, subleaf: 0, name: "leaf 7 ebx", register: |e| e.ebx },
    FeatureWord { leaf: 7, subleaf: 0, name: "leaf 7 ecx", register: |e| e.ecx & !ECX_OSPKE },
    FeatureWord { leaf: 7, subleaf: 0, name: "leaf 7 edx", register: |e| e.edx },
    FeatureWord { leaf: 7, subleaf: 1, name: "leaf 7.1 eax", register: |e| e.eax },
    FeatureWord { leaf: 0xd, subleaf: 0, name: "leaf 0xd eax (XCR0)", register: |e| e.eax },
    FeatureWord { leaf: 0xd, subleaf: 1, name: "leaf 0xd.1 eax", register: |e| e.eax },
    FeatureWord { leaf: 0x4000_0001, subleaf: 0, name: "KVM features", register: |e| e.eax },
    FeatureWord { leaf: 0x8000_0001, subleaf: 0, name: "leaf 0x80000001 ecx", register: |e| e.ecx },
    FeatureWord { leaf: 0x8000_0001, subleaf: 0, name: "leaf 0x80000001 edx", register: |e| e.edx },
    FeatureWord { leaf: 0x8000_0008, subleaf: 0, name: "leaf 0x80000008 ebx", register: |e| e.ebx },
];

/// Bits of leaf 1 ECX that say what the guest or the VMM did, not what the host can: OSXSAVE, TSC deadline
/// (KVM has it always), hypervisor.
const NOT_HOSTS_ECX: u32 = (1 << 27) | (1 << 24) | (1 << 31);
const EDX_HTT: u32 = 1 << 28;
const ECX_OSPKE: u32 = 1 << 4;

/// Names for the bits that people ask about; the others are told by number.
const NAMES: [(&str, u32, &str); 24] = [
    ("leaf 1 ecx", 0, "sse3"),
    ("leaf 1 ecx", 12, "fma"),
    ("leaf 1 ecx", 13, "cx16"),
    ("leaf 1 ecx", 19, "sse4.1"),
    ("leaf 1 ecx", 20, "sse4.2"),
    ("leaf 1 ecx", 21, "x2apic"),
    ("leaf 1 ecx", 23, "popcnt"),
    ("leaf 1 ecx", 25, "aes"),
    ("leaf 1 ecx", 26, "xsave"),
    ("leaf 1 ecx", 28, "avx"),
    ("leaf 1 ecx", 30, "rdrand"),
    ("leaf 7 ebx", 0, "fsgsbase"),
    ("leaf 7 ebx", 3, "bmi1"),
    ("leaf 7 ebx", 5, "avx2"),
    ("leaf 7 ebx", 7, "smep"),
    ("leaf 7 ebx", 8, "bmi2"),
    ("leaf 7 ebx", 9, "erms"),
    ("leaf 7 ebx", 16, "avx512f"),
    ("leaf 7 ebx", 18, "rdseed"),
    ("leaf 7 ebx", 20, "smap"),
    ("leaf 7 ebx", 29, "sha"),
    ("leaf 7 ecx", 16, "la57"),
    ("leaf 0x80000001 edx", 26, "pdpe1gb"),
    ("leaf 0x80000001 edx", 27, "rdtscp"),
];

fn entry<'a>(list: &'a [CpuidV1], word: &FeatureWord) -> Option<&'a CpuidV1> {
    list.iter().find(|e| e.leaf == word.leaf && e.subleaf == word.subleaf)
}

/// What this host's KVM can show to a guest.
pub fn host_cpuid(kvm: &Kvm) -> Result<Vec<CpuidV1>, kvm_ioctls::Error> {
    let supported = kvm.get_supported_cpuid(KVM_MAX_CPUID_ENTRIES)?;
    let entry = |e: &kvm_bindings::kvm_cpuid_entry2| CpuidV1 {
        leaf: e.function,
        subleaf: e.index,
        flags: e.flags,
        eax: e.eax,
        ebx: e.ebx,
        ecx: e.ecx,
        edx: e.edx,
    };
    Ok(supported.as_slice().iter().map(entry).collect())
}

/// The features that the guest sees and this host lacks, by name.
fn missing_features(guest: &[CpuidV1], host: &[CpuidV1]) -> Vec<String> {
    let mut missing = Vec::new();
    for word in &FEATURE_WORDS {
        let seen = entry(guest, word).map_or(0, word.register);
        let had = entry(host, word).map_or(0, word.register);
        for bit in (0..32).filter(|bit| seen & !had & (1 << bit) != 0) {
            let known = NAMES.iter().find(|(name, number, _)| *name == word.name && *number == bit);
            missing
                .push(known.map_or_else(|| format!("{} bit {bit}", word.name), |known| known.2.to_owned()));
        }
    }
    missing
}

/// Tolerance of the TSC's frequency without scaling, as KVM has it: 250 parts per million.
fn same_frequency(one_khz: u32, other_khz: u32) -> bool {
    u64::from(one_khz.abs_diff(other_khz)) * 4000 <= u64::from(one_khz)
}

/// All differences that forbid the guest of `source` to run here, each in one sentence. `can_scale`: this
/// host can give a guest another TSC frequency than its own.
pub fn differences(source: &PlatformV1, here: &PlatformV1, host: &[CpuidV1], can_scale: bool) -> Vec<String> {
    let mut list = Vec::new();
    let missing = missing_features(&source.cpuid, host);
    if !missing.is_empty() {
        list.push(format!(
            "the guest sees CPU features that this host ({}) lacks: {}; hide them at the source (--cpu)",
            here.kvm,
            missing.join(", ")
        ));
    }
    if !can_scale && !same_frequency(source.tsc_khz, here.tsc_khz) {
        let (theirs, ours) = (source.tsc_khz, here.tsc_khz);
        list.push(format!(
            "the guest's TSC runs at {theirs} kHz, this host's at {ours} kHz, and it cannot scale; use a host \
             of the same frequency"
        ));
    }
    if source.xsave_bytes > here.xsave_bytes {
        list.push(format!(
            "the guest's XSAVE area has {} bytes, this host's {}; hide the larger features at the source (--cpu)",
            source.xsave_bytes, here.xsave_bytes
        ));
    }
    list.extend(device_differences(&source.devices, &here.devices));
    list
}

fn device_differences(source: &[DeviceFactV1], here: &[DeviceFactV1]) -> Vec<String> {
    let same_place = |a: &DeviceFactV1, b: &DeviceFactV1| a.name == b.name && a.instance == b.instance;
    let mut list = Vec::new();
    for theirs in source {
        let DeviceFactV1 { name, instance, detail } = theirs;
        match here.iter().find(|ours| same_place(ours, theirs)) {
            None => {
                list.push(format!("the guest has {name}/{instance} ({detail}), the destination has none"))
            }
            Some(ours) if ours.detail != *detail => list.push(format!(
                "{name}/{instance} is \"{detail}\" at the source, \"{}\" at the destination",
                ours.detail
            )),
            Some(_) => {}
        }
    }
    for ours in here.iter().filter(|ours| !source.iter().any(|theirs| same_place(ours, theirs))) {
        let DeviceFactV1 { name, instance, detail } = ours;
        list.push(format!("the destination has {name}/{instance} ({detail}), the guest has none"));
    }
    if !list.is_empty() {
        list.push("start the destination with the same --disk, --net and --serial as the source".to_owned());
    }
    list
}

#[cfg(test)]
mod tests {
    use super::*;

    fn platform(ecx: u32, devices: Vec<DeviceFactV1>) -> PlatformV1 {
        let leaf1 = CpuidV1 { leaf: 1, subleaf: 0, flags: 0, eax: 0, ebx: 0, ecx, edx: 0 };
        let (tsc_khz, msrs, xsave_bytes) = (2_000_000, Vec::new(), 4096);
        PlatformV1 { cpuid: vec![leaf1], tsc_khz, msrs, xsave_bytes, devices, kvm: "test".into() }
    }

    fn disk(detail: &str) -> DeviceFactV1 {
        DeviceFactV1 { name: "virtio-blk".into(), instance: 0, detail: detail.into() }
    }

    #[test]
    fn equal_sides_have_no_differences() {
        let one = platform(1 << 13, vec![disk("1 GiB")]);
        assert_eq!(differences(&one, &one, &one.cpuid, false), Vec::<String>::new());
    }

    #[test]
    fn a_missing_feature_is_named() {
        let (guest, host) = (platform(1 << 13 | 1 << 31, vec![]), platform(0, vec![]));
        let list = differences(&guest, &host, &host.cpuid, false);
        assert_eq!(list.len(), 1);
        assert!(list[0].contains("cx16"), "{list:?}");
        assert!(differences(&host, &guest, &guest.cpuid, false).is_empty(), "more features do no harm");
    }

    #[test]
    fn devices_and_frequency_are_compared_with_both_values() {
        let (source, mut here) = (platform(0, vec![disk("1 GiB")]), platform(0, vec![disk("2 GiB")]));
        here.tsc_khz = 2_600_000;
        let text = differences(&source, &here, &here.cpuid, false).join("; ");
        for part in ["1 GiB", "2 GiB", "2000000 kHz", "2600000 kHz"] {
            assert!(text.contains(part), "{part} is not in: {text}");
        }
        assert!(!differences(&source, &here, &here.cpuid, true).join("").contains("kHz"));
    }
}
