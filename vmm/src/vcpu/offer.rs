//! What this host can show to a guest of tern: KVM's word on it, less what tern can't carry to another host,
//! and what a software KVM shows although nobody asked.

use std::arch::x86_64::__cpuid_count;

use kvm_bindings::{KVM_MAX_CPUID_ENTRIES, Msrs, kvm_msr_entry};
use kvm_ioctls::{Cap, Kvm};

use super::cpuid::{CpuidV1, LEAF_TIMING, LEAF_TOPOLOGY, LEAF_TOPOLOGY_V2};
use super::{Feature, FeatureSet, MSR_ARCH_CAPABILITIES, MsrV1, VcpuError};
use crate::host::KvmKind;

/// Features whose state doesn't travel: nested guests, counters, branch records, traces, enclaves.
const NOT_TRAVELLING: &str = "vmx svm smx pdcm dts dtes64 ds_cpl perfctr_core perfctr_nb perfctr_llc arch_lbr brs \
                              intel_pt sgx sgx_lc xss_lbr xss_pt ibs lwp";
/// The leaves that describe them: counters, enclaves, traces, branch records, SVM, AMD's counters.
const NOT_TRAVELLING_LEAVES: [u32; 6] = [0xa, 0x12, 0x14, 0x1c, 0x8000_000a, 0x8000_0022];
/// Leaves that tern writes itself.
const TERNS_LEAVES: [u32; 3] = [LEAF_TOPOLOGY, LEAF_TOPOLOGY_V2, LEAF_TIMING];

/// What a host can show to a guest.
#[derive(Debug, Clone)]
pub struct Offer {
    /// CPUID as tern can set it.
    pub cpuid: Vec<CpuidV1>,
    /// Registers that say what the processor is.
    pub msrs: Vec<MsrV1>,
    /// What guests see here whatever their CPUID was set to.
    pub forced: FeatureSet,
}

impl Offer {
    /// Asks KVM. `hidden` can't be used on this kind of host.
    ///
    /// # Errors
    /// KVM's.
    pub fn of(kvm: &Kvm, hidden: &[Feature]) -> Result<Self, VcpuError> {
        let supported =
            kvm.get_supported_cpuid(KVM_MAX_CPUID_ENTRIES).map_err(VcpuError::kvm("GET_SUPPORTED_CPUID"))?;
        let entries = supported.as_slice().iter().filter(|entry| !TERNS_LEAVES.contains(&entry.function));
        let mut cpuid: Vec<CpuidV1> = entries.map(CpuidV1::from).collect();
        for entry in cpuid.iter_mut().filter(|entry| NOT_TRAVELLING_LEAVES.contains(&entry.leaf)) {
            (entry.eax, entry.ebx, entry.ecx, entry.edx) = (0, 0, 0, 0);
        }
        let has_deadline = kvm.check_extension(Cap::TscDeadlineTimer);
        let own = if has_deadline { "hypervisor tsc_deadline_timer" } else { "hypervisor" };
        let named = |names| FeatureSet::of_names(names).unwrap_or_default();
        named(own).show(&mut cpuid);
        let mut away = named(NOT_TRAVELLING);
        hidden.iter().for_each(|feature| away.insert(*feature));
        let msrs =
            vec![MsrV1 { index: MSR_ARCH_CAPABILITIES, value: feature_msr(kvm, MSR_ARCH_CAPABILITIES) }];
        FeatureSet::seen(&cpuid, &[]).without(&away).restrict(&mut cpuid);
        let forced = forced(KvmKind::detect()).without(&away);
        Ok(Self { cpuid, msrs, forced })
    }

    /// All features that a guest can see here.
    pub fn features(&self) -> FeatureSet {
        FeatureSet::seen(&self.cpuid, &self.msrs).or(&self.forced)
    }

    /// Who made the processor: leaf 0's twelve letters.
    pub fn vendor(&self) -> String {
        vendor(&self.cpuid)
    }
}

/// Leaf 0's twelve letters; what isn't printable is a dot.
pub fn vendor(cpuid: &[CpuidV1]) -> String {
    let Some(entry) = cpuid.iter().find(|entry| entry.leaf == 0) else { return String::new() };
    let bytes = [entry.ebx, entry.edx, entry.ecx].map(u32::to_le_bytes);
    let letter = |byte: &u8| if byte.is_ascii_graphic() { char::from(*byte) } else { '.' };
    bytes.iter().flatten().map(letter).collect()
}

/// A feature register as KVM can give it to guests; 0 where it has none (KVM_GET_MSRS on `/dev/kvm`).
fn feature_msr(kvm: &Kvm, index: u32) -> u64 {
    let Ok(mut msrs) = Msrs::from_entries(&[kvm_msr_entry { index, reserved: 0, data: 0 }]) else { return 0 };
    match kvm.get_msrs(&mut msrs) {
        Ok(1) => msrs.as_slice().first().map_or(0, |entry| entry.data),
        _ => 0,
    }
}

/// Where kvm_pvm (Linux 6.18) shows the host's own features beside those that were set, and what it leaves
/// out. Measured with a guest that read CPUID at both privilege levels, its CPUID set once to all and once to
/// nothing: in these registers it saw `set | (host & !left out)`, and in all others what was set.
const PVM_LEAVES: [(u32, u32); 5] = [(1, 0), (7, 0), (7, 1), (0xd, 0), (0xd, 1)];
const PVM_LEFT_OUT: &str = "cx16 pcid invpcid la57 rdpid xsaves xfd";

/// What guests see on this kind of KVM whatever their CPUID was set to. Nothing with hardware virtualisation,
/// where CPUID always exits to KVM.
pub fn forced(kind: KvmKind) -> FeatureSet {
    if kind != KvmKind::Pvm {
        return FeatureSet::default();
    }
    let mut native = Vec::new();
    for (leaf, subleaf) in PVM_LEAVES {
        let found = __cpuid_count(leaf, subleaf);
        let (eax, ebx, ecx, edx) = (found.eax, found.ebx, found.ecx, found.edx);
        native.push(CpuidV1 { leaf, subleaf, flags: 0, eax, ebx, ecx, edx });
    }
    let left_out = FeatureSet::of_names(PVM_LEFT_OUT).unwrap_or_default();
    FeatureSet::seen(&native, &[]).without(&left_out)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_lists_are_names() {
        for list in [NOT_TRAVELLING, PVM_LEFT_OUT] {
            assert!(FeatureSet::of_names(list).is_ok(), "{list}");
        }
    }

    #[test]
    fn only_a_software_kvm_shows_more_than_was_set() {
        for kind in [KvmKind::Vmx, KvmKind::Svm, KvmKind::Other] {
            assert!(forced(kind).is_empty());
        }
        let shown = forced(KvmKind::Pvm);
        assert!(shown.contains(Feature::named("sse2").unwrap()));
        assert!(!shown.contains(Feature::named("cx16").unwrap()));
    }

    #[test]
    fn a_vendor_is_twelve_letters() {
        let (ebx, edx, ecx) = (0x756e_6547, 0x4965_6e69, 0x6c65_746e);
        let entry = CpuidV1 { leaf: 0, subleaf: 0, flags: 0, eax: 0, ebx, ecx, edx };
        assert_eq!(vendor(&[entry]), "GenuineIntel");
        assert_eq!(vendor(&[]), "");
    }
}
