//! CPU profiles: sets of features by name, so that guests fit every host that has them.
//!
//! A profile only takes away: what the host lacks stays missing, and the start is refused then, because the
//! name would promise it. The sets are the levels of the x86-64 psABI (version 1.0, section 3.1.1), with what
//! any Linux guest needs of a virtual machine: long mode, NX, SYSCALL, APIC, TSC, x2APIC, hypervisor bit.

use thiserror::Error;

use super::cpuid::{CpuidV1, Register};

/// A named set of features.
#[derive(Debug)]
pub struct Profile {
    /// Name on the command line.
    pub name: &'static str,
    /// For each register that is a set of features: those that the guest may see. What isn't listed is zero.
    words: &'static [Word],
    /// Bits of XCR0 that the guest may use.
    xcr0: u32,
}

#[derive(Debug)]
struct Word {
    leaf: u32,
    subleaf: u32,
    register: Register,
    /// Must be there, or the host doesn't have the profile.
    required: u32,
    /// May be there.
    allowed: u32,
}

const fn bits(list: &[u32]) -> u32 {
    let (mut out, mut index) = (0, 0);
    while index < list.len() {
        out |= 1 << list[index];
        index += 1;
    }
    out
}

/// FPU, TSC, MSR, PAE, CX8, APIC, PGE, CMOV, CLFLUSH, MMX, FXSR, SSE, SSE2 are the baseline.
const EDX1_REQUIRED: u32 = bits(&[0, 4, 5, 6, 8, 9, 13, 15, 19, 23, 24, 25, 26]);
/// Besides: VME, DE, PSE, MCE, SEP, MTRR, MCA, PAT, PSE36, SS, HTT.
const EDX1_ALLOWED: u32 = EDX1_REQUIRED | bits(&[1, 2, 3, 7, 11, 12, 14, 16, 17, 27, 28]);
/// SSE3, SSSE3, CX16, SSE4.1, SSE4.2, POPCNT.
const ECX1_V2: u32 = bits(&[0, 9, 13, 19, 20, 23]);
/// FMA, MOVBE, XSAVE, AVX, F16C.
const ECX1_V3: u32 = ECX1_V2 | bits(&[12, 22, 26, 28, 29]);
/// x2APIC, TSC deadline, hypervisor.
const ECX1_MACHINE: u32 = bits(&[21, 24, 31]);
/// BMI1, AVX2, BMI2.
const EBX7_V3: u32 = bits(&[3, 5, 8]);
/// SYSCALL, NX, long mode.
const EDX81_REQUIRED: u32 = bits(&[11, 20, 29]);
/// LAHF; LZCNT.
const ECX81_V2: u32 = bits(&[0]);
const ECX81_V3: u32 = ECX81_V2 | bits(&[5]);

const fn word(leaf: u32, register: Register, required: u32, allowed: u32) -> Word {
    Word { leaf, subleaf: 0, register, required, allowed }
}

/// All profiles.
pub const PROFILES: &[Profile] = &[
    Profile {
        name: "x86-64-v1",
        words: &[
            word(1, Register::Ecx, 0, ECX1_MACHINE),
            word(1, Register::Edx, EDX1_REQUIRED, EDX1_ALLOWED),
            word(0x8000_0001, Register::Edx, EDX81_REQUIRED, EDX81_REQUIRED),
        ],
        xcr0: 0,
    },
    Profile {
        name: "x86-64-v2",
        words: &[
            word(1, Register::Ecx, ECX1_V2 & !(1 << 13), ECX1_V2 | ECX1_MACHINE),
            word(1, Register::Edx, EDX1_REQUIRED, EDX1_ALLOWED),
            word(0x8000_0001, Register::Ecx, ECX81_V2, ECX81_V2),
            word(0x8000_0001, Register::Edx, EDX81_REQUIRED, EDX81_REQUIRED),
        ],
        xcr0: 0,
    },
    Profile {
        name: "x86-64-v3",
        words: &[
            word(1, Register::Ecx, ECX1_V3 & !(1 << 13), ECX1_V3 | ECX1_MACHINE),
            word(1, Register::Edx, EDX1_REQUIRED, EDX1_ALLOWED),
            word(7, Register::Ebx, EBX7_V3, EBX7_V3),
            word(0x8000_0001, Register::Ecx, ECX81_V3, ECX81_V3),
            word(0x8000_0001, Register::Edx, EDX81_REQUIRED, EDX81_REQUIRED),
        ],
        xcr0: 0b111,
    },
];

/// The registers that are sets of features, of which a profile that doesn't list them shows none.
const FEATURE_REGISTERS: [(u32, Register); 11] = [
    (1, Register::Ecx),
    (1, Register::Edx),
    (7, Register::Ebx),
    (7, Register::Ecx),
    (7, Register::Edx),
    (0x19, Register::Ebx),
    (0x1d, Register::Eax),
    (0x8000_0001, Register::Ecx),
    (0x8000_0001, Register::Edx),
    (0x8000_0008, Register::Ebx),
    (0x8000_0021, Register::Eax),
];

const LEAF_FEATURES_7: u32 = 7;
const LEAF_XSAVE: u32 = 0xd;

/// Why a profile can't be had.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum ProfileError {
    /// No such profile.
    #[error("--cpu {name}: there is no such profile; these exist: host, {known}")]
    Unknown {
        /// The name given.
        name: String,
        /// All names.
        known: String,
    },
    /// The host lacks some of it.
    #[error(
        "--cpu {name}: this host lacks (or its KVM does not offer) CPUID leaf {leaf:#x} {register:?} bits {missing:#x}; choose a lower profile"
    )]
    Missing {
        /// Profile's name.
        name: &'static str,
        /// Leaf.
        leaf: u32,
        /// Register.
        register: Register,
        /// What is missing.
        missing: u32,
    },
}

/// The profile of this name.
pub fn named(name: &str) -> Result<&'static Profile, ProfileError> {
    PROFILES.iter().find(|profile| profile.name == name).ok_or_else(|| ProfileError::Unknown {
        name: name.to_owned(),
        known: PROFILES.iter().map(|profile| profile.name).collect::<Vec<_>>().join(", "),
    })
}

impl Profile {
    /// Takes from `leaves` what isn't in the profile.
    pub fn apply(&self, leaves: &mut Vec<CpuidV1>) -> Result<(), ProfileError> {
        // Leaf 7's further subleaves are features, and XSAVE's are areas.
        leaves.retain(|entry| match entry.leaf {
            LEAF_FEATURES_7 => entry.subleaf == 0,
            LEAF_XSAVE => entry.subleaf < 2 || entry.subleaf < 32 && self.xcr0 & (1 << entry.subleaf) != 0,
            _ => true,
        });
        for entry in leaves.iter_mut() {
            if entry.leaf == LEAF_XSAVE {
                self.limit_xsave(entry);
            }
            for (leaf, register) in FEATURE_REGISTERS {
                if entry.leaf == leaf && entry.subleaf == 0 {
                    self.limit(entry, register)?;
                }
            }
        }
        Ok(())
    }

    fn limit(&self, entry: &mut CpuidV1, register: Register) -> Result<(), ProfileError> {
        let leaf = entry.leaf;
        let value = entry.register_mut(register);
        let Some(word) = self
            .words
            .iter()
            .find(|word| word.leaf == leaf && word.subleaf == 0 && word.register == register)
        else {
            *value = 0;
            return Ok(());
        };
        let missing = word.required & !*value;
        *value &= word.allowed;
        if missing == 0 {
            return Ok(());
        }
        Err(ProfileError::Missing { name: self.name, leaf, register, missing })
    }

    fn limit_xsave(&self, entry: &mut CpuidV1) {
        match entry.subleaf {
            0 => (entry.eax, entry.edx) = (entry.eax & self.xcr0, 0),
            1 => (entry.eax, entry.ecx, entry.edx) = (0, 0, 0),
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(leaf: u32, subleaf: u32) -> CpuidV1 {
        CpuidV1 { leaf, subleaf, flags: 0, eax: !0, ebx: !0, ecx: !0, edx: !0 }
    }

    #[test]
    fn a_profile_leaves_only_what_it_names() {
        let mut leaves = [(1, 0), (7, 0), (7, 1), (0xd, 0), (0xd, 1), (0xd, 2), (0xd, 9), (0x8000_0001, 0)]
            .map(|(leaf, subleaf)| entry(leaf, subleaf))
            .to_vec();
        named("x86-64-v3").unwrap().apply(&mut leaves).unwrap();
        let found = |leaf, subleaf| leaves.iter().find(|e| e.leaf == leaf && e.subleaf == subleaf);
        assert_eq!(found(1, 0).unwrap().ecx, ECX1_V3 | ECX1_MACHINE);
        assert_eq!((found(7, 0).unwrap().ebx, found(7, 0).unwrap().ecx), (EBX7_V3, 0));
        assert_eq!(found(0xd, 0).unwrap().eax, 0b111);
        assert!(found(7, 1).is_none() && found(0xd, 9).is_none() && found(0xd, 2).is_some());
    }

    #[test]
    fn a_host_that_lacks_a_part_is_told_which() {
        let mut leaves = vec![CpuidV1 { ecx: ECX1_V2 & !(1 << 20), ..entry(1, 0) }];
        let error = named("x86-64-v2").unwrap().apply(&mut leaves).unwrap_err();
        assert!(error.to_string().contains("bits 0x100000"), "{error}");
    }

    #[test]
    fn an_unknown_profile_is_told_which_exist() {
        let text = named("x86-64-v9").unwrap_err().to_string();
        assert!(text.contains("host, x86-64-v1, x86-64-v2, x86-64-v3"), "{text}");
    }
}
