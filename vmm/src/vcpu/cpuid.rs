//! CPUID: what the guest sees of its processors. Leaves: Intel SDM volume 2, CPUID.

use kvm_bindings::{CpuId, KVM_CPUID_FLAG_SIGNIFCANT_INDEX, KVM_MAX_CPUID_ENTRIES, kvm_cpuid_entry2};
use kvm_ioctls::{Cap, Kvm};
use tern_schema::record;

use super::{Profile, VcpuError};

record! {
    /// One CPUID entry.
    pub struct CpuidV1 {
        /// EAX on entry.
        [1] leaf: u32,
        /// ECX on entry, where the flags say that it matters.
        [2] subleaf: u32,
        /// KVM_CPUID_FLAG_*.
        [3] flags: u32,
        /// EAX.
        [4] eax: u32,
        /// EBX.
        [5] ebx: u32,
        /// ECX.
        [6] ecx: u32,
        /// EDX.
        [7] edx: u32,
    }
}

impl CpuidV1 {
    pub(super) fn register_mut(&mut self, register: Register) -> &mut u32 {
        match register {
            Register::Eax => &mut self.eax,
            Register::Ebx => &mut self.ebx,
            Register::Ecx => &mut self.ecx,
            Register::Edx => &mut self.edx,
        }
    }
}

/// A register of CPUID's result.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Register {
    /// EAX.
    Eax,
    /// EBX.
    Ebx,
    /// ECX.
    Ecx,
    /// EDX.
    Edx,
}

/// A feature bit that the guest must not see.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Hidden {
    /// Name, for people.
    pub name: &'static str,
    /// Leaf.
    pub leaf: u32,
    /// Subleaf.
    pub subleaf: u32,
    /// Register.
    pub register: Register,
    /// Bit number.
    pub bit: u32,
}

const LEAF_FEATURES: u32 = 1;
const LEAF_CACHES: u32 = 4;
const LEAF_PMU: u32 = 0xa;
const LEAF_TOPOLOGY: u32 = 0xb;
const LEAF_TOPOLOGY_V2: u32 = 0x1f;
/// Timing information as first defined by VMware: EAX is the TSC's frequency in kHz.
const LEAF_TIMING: u32 = 0x4000_0010;
const LEAF_HYPERVISOR: u32 = 0x4000_0000;
const LEAF_AMD_CORES: u32 = 0x8000_0008;

const LEAF_AMD_FEATURES: u32 = 0x8000_0001;
const LEAF_SVM: u32 = 0x8000_000a;

const ECX_VMX: u32 = 1 << 5;
const ECX_SVM: u32 = 1 << 2;
const ECX_TSC_DEADLINE: u32 = 1 << 24;
const ECX_HYPERVISOR: u32 = 1 << 31;
const EDX_HTT: u32 = 1 << 28;

/// What all vCPUs of a VM of `cpus` vCPUs have in common: what KVM can virtualise, limited to `profile`, less `hidden`.
/// Performance counters, VMX and SVM stay hidden: their state doesn't travel.
pub fn template(
    kvm: &Kvm,
    cpus: u32,
    profile: Option<&Profile>,
    hidden: &[Hidden],
) -> Result<Vec<CpuidV1>, VcpuError> {
    let supported =
        kvm.get_supported_cpuid(KVM_MAX_CPUID_ENTRIES).map_err(VcpuError::kvm("GET_SUPPORTED_CPUID"))?;
    let mut leaves: Vec<CpuidV1> = supported
        .as_slice()
        .iter()
        .filter(|entry| ![LEAF_TOPOLOGY, LEAF_TOPOLOGY_V2, LEAF_TIMING].contains(&entry.function))
        .map(|entry| {
            let kvm_cpuid_entry2 { function: leaf, index: subleaf, flags, eax, ebx, ecx, edx, padding: _ } =
                *entry;
            CpuidV1 { leaf, subleaf, flags, eax, ebx, ecx, edx }
        })
        .collect();
    for entry in &mut leaves {
        match entry.leaf {
            LEAF_FEATURES => {
                entry.ecx = (entry.ecx | ECX_HYPERVISOR) & !ECX_VMX;
                if kvm.check_extension(Cap::TscDeadlineTimer) {
                    entry.ecx |= ECX_TSC_DEADLINE;
                }
            }
            LEAF_AMD_FEATURES => entry.ecx &= !ECX_SVM,
            LEAF_PMU | LEAF_SVM => (entry.eax, entry.ebx, entry.ecx, entry.edx) = (0, 0, 0, 0),
            LEAF_HYPERVISOR => entry.eax = entry.eax.max(LEAF_TIMING),
            _ => {}
        }
    }
    leaves.push(CpuidV1 { leaf: LEAF_TIMING, subleaf: 0, flags: 0, eax: 0, ebx: 0, ecx: 0, edx: 0 });
    leaves.extend(topology(cpus));
    if let Some(profile) = profile {
        profile.apply(&mut leaves)?;
    }
    hidden.iter().for_each(|feature| hide(&mut leaves, feature));
    Ok(leaves)
}

fn hide(leaves: &mut [CpuidV1], feature: &Hidden) {
    let Hidden { name: _, leaf, subleaf, register, bit } = *feature;
    for entry in leaves.iter_mut().filter(|entry| entry.leaf == leaf && entry.subleaf == subleaf) {
        *entry.register_mut(register) &= !(1 << bit);
    }
}

/// One package of `cpus` cores of one thread each.
fn topology(cpus: u32) -> [CpuidV1; 3] {
    let core_bits = cpus.next_power_of_two().trailing_zeros();
    let level = |subleaf, eax, ebx, kind: u32| {
        let (flags, ecx) = (KVM_CPUID_FLAG_SIGNIFCANT_INDEX, subleaf | (kind << 8));
        CpuidV1 { leaf: LEAF_TOPOLOGY, subleaf, flags, eax, ebx, ecx, edx: 0 }
    };
    [level(0, 0, 1, 1), level(1, core_bits, cpus, 2), level(2, 0, 0, 0)]
}

/// The template with this vCPU's APIC id and the frequency of its TSC in it.
pub fn for_vcpu(template: &[CpuidV1], index: u32, cpus: u32, tsc_khz: u32) -> Vec<CpuidV1> {
    let mut leaves = template.to_vec();
    for entry in &mut leaves {
        match entry.leaf {
            LEAF_FEATURES => {
                entry.ebx = (entry.ebx & 0xffff) | (cpus.min(255) << 16) | (index << 24);
                entry.edx = if cpus > 1 { entry.edx | EDX_HTT } else { entry.edx & !EDX_HTT };
            }
            // Cores in the package; no cache is shared between cores.
            LEAF_CACHES if entry.eax & 0x1f != 0 => {
                entry.eax = (entry.eax & 0x3fff) | ((cpus.next_power_of_two() - 1).min(63) << 26);
            }
            LEAF_TOPOLOGY => entry.edx = index,
            LEAF_TIMING => entry.eax = tsc_khz,
            LEAF_AMD_CORES => entry.ecx = (entry.ecx & !0xff) | (cpus - 1).min(255),
            _ => {}
        }
    }
    leaves
}

/// As KVM wants it.
pub(super) fn to_kvm(entries: &[CpuidV1]) -> Result<CpuId, VcpuError> {
    let list: Vec<kvm_cpuid_entry2> = entries
        .iter()
        .map(|entry| {
            let CpuidV1 { leaf: function, subleaf: index, flags, eax, ebx, ecx, edx } = *entry;
            kvm_cpuid_entry2 { function, index, flags, eax, ebx, ecx, edx, padding: [0; 3] }
        })
        .collect();
    CpuId::from_entries(&list).map_err(|_| VcpuError::TooManyCpuidEntries { count: list.len() })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn features() -> Vec<CpuidV1> {
        let mut list =
            vec![CpuidV1 { leaf: 1, subleaf: 0, flags: 0, eax: 0, ebx: 0xff00_0800, ecx: !0, edx: 0 }];
        list.extend(topology(3));
        list
    }

    #[test]
    fn each_vcpu_has_its_own_apic_id() {
        let leaves = for_vcpu(&features(), 2, 3, 1);
        assert_eq!(leaves[0].ebx, 0x0203_0800);
        assert_ne!(leaves[0].edx & EDX_HTT, 0);
        assert!(leaves[1..].iter().all(|entry| entry.edx == 2));
        assert_eq!((leaves[2].eax, leaves[2].ebx), (2, 3), "three cores need two bits");
    }

    #[test]
    fn a_hidden_feature_is_gone_and_the_others_are_not() {
        let mut leaves = features();
        let cx16 = Hidden { name: "cx16", leaf: 1, subleaf: 0, register: Register::Ecx, bit: 13 };
        hide(&mut leaves, &cx16);
        assert_eq!(leaves[0].ecx, !(1 << 13));
    }
}
