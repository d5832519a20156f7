//! A profile put upon what a host offers.

use super::{AddressBits, Profile, ProfileError};
use crate::platform::is_known_leaf;
use crate::vcpu::cpuid::CpuidV1;
use crate::vcpu::{FeatureSet, Offer, Place};

const LEAF_XSAVE: u32 = 0xd;
const LEAF_ADDRESS_BITS: u32 = 0x8000_0008;
/// The legacy area and the header of an XSAVE area: what it has at least (Intel SDM volume 1, 13.4).
const XSAVE_BYTES_MIN: u32 = 576;

impl Profile {
    /// What of `offer` a guest with this profile sees.
    ///
    /// # Errors
    /// The host lacks some of the profile; its text names it.
    pub fn apply(&self, offer: Offer) -> Result<Offer, ProfileError> {
        let problems = self.problems(Some(&offer.vendor()), address_bits(&offer.cpuid), &offer.features());
        problems.into_iter().next().map_or(Ok(()), Err)?;
        let Offer { mut cpuid, mut msrs, forced } = offer;
        let visible = self.visible();
        cpuid.retain(|entry| is_known_leaf(entry.leaf));
        visible.restrict(&mut cpuid);
        self.limit_xsave(&mut cpuid);
        for msr in &mut msrs {
            msr.value &= visible.bits(Place::Msr { index: msr.index });
        }
        if let Some(AddressBits { physical, linear }) = self.address_bits {
            for entry in cpuid.iter_mut().filter(|entry| entry.leaf == LEAF_ADDRESS_BITS) {
                entry.eax = u32::from(linear) << 8 | u32::from(physical);
            }
        }
        Ok(Offer { cpuid, msrs, forced })
    }

    /// Why a host can't give it, one after the other; empty: it can.
    pub fn problems(
        &self,
        vendor: Option<&str>,
        address_bits: Option<AddressBits>,
        features: &FeatureSet,
    ) -> Vec<ProfileError> {
        let name = || self.name.clone();
        let mut list = Vec::new();
        if let (Some(wanted), Some(here)) = (self.vendor.clone(), vendor)
            && wanted != here
        {
            list.push(ProfileError::Vendor { name: name(), wanted, here: here.to_owned() });
        }
        let missing = self.features.missing_from(features);
        if !missing.is_empty() {
            list.push(ProfileError::Missing { name: name(), missing: missing.to_string() });
        }
        if let (Some(wanted), Some(here)) = (self.address_bits, address_bits) {
            let widths =
                [("physical", wanted.physical, here.physical), ("linear", wanted.linear, here.linear)];
            let wider = widths.into_iter().filter(|(_, wanted, here)| wanted > here);
            list.extend(wider.map(|(kind, wanted, here)| ProfileError::AddressBits {
                name: name(),
                kind,
                wanted,
                here,
            }));
        }
        list
    }

    /// Leaves the areas of the XSAVE components that the guest may use, and says how long they are together.
    fn limit_xsave(&self, cpuid: &mut Vec<CpuidV1>) {
        let component_bits = |cpuid: &[CpuidV1], subleaf, pick: fn(&CpuidV1) -> u32| {
            cpuid.iter().find(|e| e.leaf == LEAF_XSAVE && e.subleaf == subleaf).map_or(0, pick)
        };
        let xcr0 = component_bits(cpuid, 0, |entry| entry.eax);
        let used = xcr0 | component_bits(cpuid, 1, |entry| entry.ecx);
        cpuid.retain(|entry| {
            entry.leaf != LEAF_XSAVE
                || entry.subleaf < 2
                || used.checked_shr(entry.subleaf).unwrap_or(0) & 1 == 1
        });
        // Of a component, EAX is the length and EBX the offset; those of XSS have no offset.
        let areas = cpuid.iter().filter(|entry| entry.leaf == LEAF_XSAVE && entry.subleaf >= 2);
        let ends = areas.filter(|entry| entry.ebx != 0).map(|entry| entry.ebx.saturating_add(entry.eax));
        let bytes = ends.max().unwrap_or(0).max(XSAVE_BYTES_MIN);
        for entry in cpuid.iter_mut().filter(|entry| entry.leaf == LEAF_XSAVE && entry.subleaf == 0) {
            entry.ecx = if xcr0 == 0 { 0 } else { bytes };
        }
    }
}

/// Widths of addresses, as leaf 0x80000008 says.
pub(crate) fn address_bits(cpuid: &[CpuidV1]) -> Option<AddressBits> {
    let entry = cpuid.iter().find(|entry| entry.leaf == LEAF_ADDRESS_BITS)?;
    let [physical, linear, ..] = entry.eax.to_le_bytes();
    Some(AddressBits { physical, linear })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::vcpu::cpuid::Register;

    fn entry(leaf: u32, subleaf: u32) -> CpuidV1 {
        CpuidV1 { leaf, subleaf, flags: 0, eax: !0, ebx: !0, ecx: !0, edx: !0 }
    }

    /// A host with every feature, and 256 bytes for each XSAVE component.
    fn everything() -> Offer {
        let places =
            [(0, 0), (1, 0), (7, 0), (7, 1), (7, 2), (0xd, 0), (0xd, 1), (0x99, 0), (0x8000_0001, 0)];
        let mut cpuid: Vec<CpuidV1> = places.map(|(leaf, subleaf)| entry(leaf, subleaf)).to_vec();
        let area = |subleaf| CpuidV1 { eax: 256, ebx: 576 + (subleaf - 2) * 256, ..entry(0xd, subleaf) };
        cpuid.extend((2..20).map(area));
        cpuid.push(CpuidV1 { eax: 57 << 8 | 46, ..entry(LEAF_ADDRESS_BITS, 0) });
        Offer { cpuid, msrs: Vec::new(), forced: FeatureSet::default() }
    }

    fn found(offer: &Offer, leaf: u32, subleaf: u32) -> Option<&CpuidV1> {
        offer.cpuid.iter().find(|entry| entry.leaf == leaf && entry.subleaf == subleaf)
    }

    #[test]
    fn a_profile_leaves_only_what_it_names() {
        let profile = Profile::named("x86-64-v3").unwrap();
        let limited = profile.apply(everything()).unwrap();
        assert_eq!(limited.features(), profile.visible().and(&everything().features()));
        assert_eq!(found(&limited, 1, 0).unwrap().ecx, 0xbdf8_3201);
        assert_eq!(found(&limited, 7, 0).unwrap().ebx, 1 << 3 | 1 << 5 | 1 << 8);
        let xsave = found(&limited, 0xd, 0).unwrap();
        assert_eq!((xsave.eax, xsave.ecx, xsave.edx), (0b111, 576 + 256, 0));
        assert!(found(&limited, 0xd, 2).is_some() && found(&limited, 0xd, 9).is_none());
        assert!(found(&limited, 0x99, 0).is_none(), "a leaf that tern doesn't know");
        assert_eq!(found(&limited, 0, 0), found(&everything(), 0, 0), "no leaf of features");
    }

    #[test]
    fn a_host_that_lacks_a_part_is_told_its_name() {
        let mut offer = everything();
        offer.cpuid[1].ecx = !(1 << 20);
        let error = Profile::named("x86-64-v2").unwrap().apply(offer).unwrap_err();
        assert!(error.to_string().contains("offer: sse4_2;"), "{error}");
        assert!(Profile::named("x86-64-v1").unwrap().apply(everything()).is_ok());
    }

    #[test]
    fn what_is_shown_anyway_counts_as_had() {
        let mut offer = everything();
        offer.cpuid[1].ecx = 0;
        offer.forced = FeatureSet::of_bits(
            Place::Cpuid { leaf: 1, subleaf: 0, register: Register::Ecx },
            u64::from(u32::MAX),
        )
        .unwrap();
        assert!(Profile::named("x86-64-v2").unwrap().apply(offer).is_ok());
    }

    #[test]
    fn widths_and_vendor_are_compared() {
        let mut profile = Profile::named("x86-64-v1").unwrap();
        profile.address_bits = Some(AddressBits { physical: 40, linear: 48 });
        let limited = profile.apply(everything()).unwrap();
        assert_eq!(address_bits(&limited.cpuid), profile.address_bits);
        profile.address_bits = Some(AddressBits { physical: 47, linear: 48 });
        let text = profile.apply(everything()).unwrap_err().to_string();
        assert!(text.contains("physical addresses of 47 bits, the host of 46"), "{text}");
        profile.vendor = Some("AuthenticAMD".into());
        assert!(matches!(profile.apply(everything()), Err(ProfileError::Vendor { .. })));
    }
}
