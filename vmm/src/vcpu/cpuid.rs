//! CPUID: what the guest sees of its processors. Leaves: Intel SDM volume 2, CPUID.

use std::fmt;

use kvm_bindings::{CpuId, KVM_CPUID_FLAG_SIGNIFCANT_INDEX, kvm_cpuid_entry2};
use tern_schema::record;

use super::{MsrV1, Offer, VcpuError};

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

impl From<&kvm_cpuid_entry2> for CpuidV1 {
    fn from(entry: &kvm_cpuid_entry2) -> Self {
        let kvm_cpuid_entry2 { function: leaf, index: subleaf, flags, eax, ebx, ecx, edx, padding: _ } =
            *entry;
        Self { leaf, subleaf, flags, eax, ebx, ecx, edx }
    }
}

impl CpuidV1 {
    /// One of the four.
    pub fn register(&self, register: Register) -> u32 {
        match register {
            Register::Eax => self.eax,
            Register::Ebx => self.ebx,
            Register::Ecx => self.ecx,
            Register::Edx => self.edx,
        }
    }

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

impl fmt::Display for Register {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Eax => "eax",
            Self::Ebx => "ebx",
            Self::Ecx => "ecx",
            Self::Edx => "edx",
        })
    }
}

pub(super) const LEAF_FEATURES: u32 = 1;
const LEAF_CACHES: u32 = 4;
pub(super) const LEAF_TOPOLOGY: u32 = 0xb;
pub(super) const LEAF_TOPOLOGY_V2: u32 = 0x1f;
/// Timing information as first defined by VMware: EAX is the TSC's frequency in kHz.
pub(super) const LEAF_TIMING: u32 = 0x4000_0010;
pub(super) const LEAF_HYPERVISOR: u32 = 0x4000_0000;
const LEAF_AMD_CORES: u32 = 0x8000_0008;

const EDX_HTT: u32 = 1 << 28;

/// What all vCPUs of a machine have in common.
#[derive(Debug, Clone)]
pub struct Template {
    /// CPUID.
    pub cpuid: Vec<CpuidV1>,
    /// Registers that say what the processor is, to be written where they differ from KVM's own.
    pub msrs: Vec<MsrV1>,
}

impl Template {
    /// The vCPUs of a machine of `cpus` that shows `offer`.
    pub fn new(offer: Offer, cpus: u32) -> Self {
        let Offer { mut cpuid, msrs, forced: _ } = offer;
        for entry in cpuid.iter_mut().filter(|entry| entry.leaf == LEAF_HYPERVISOR) {
            entry.eax = entry.eax.max(LEAF_TIMING);
        }
        cpuid.push(CpuidV1 { leaf: LEAF_TIMING, subleaf: 0, flags: 0, eax: 0, ebx: 0, ecx: 0, edx: 0 });
        cpuid.extend(topology(cpus));
        Self { cpuid, msrs }
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
    use super::super::FeatureSet;
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
    fn a_template_has_a_timing_leaf_and_says_so() {
        let hypervisor =
            CpuidV1 { leaf: LEAF_HYPERVISOR, subleaf: 0, flags: 0, eax: 0x4000_0001, ebx: 0, ecx: 0, edx: 0 };
        let offer = Offer { cpuid: vec![hypervisor], msrs: Vec::new(), forced: FeatureSet::default() };
        let cpuid = Template::new(offer, 1).cpuid;
        assert_eq!((cpuid[0].eax, cpuid[1].leaf), (LEAF_TIMING, LEAF_TIMING));
    }
}
