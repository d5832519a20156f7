//! CPU profiles: what guests see, so that they fit every host that has it.
//!
//! A profile only takes away: what the host lacks stays missing, and the start is refused then, because the
//! name would promise it. What a profile doesn't name is hidden, features without a name and leaves that tern
//! doesn't know included. Family, model, caches and the brand string stay the host's; topology is tern's.
//!
//! Profiles are files (`file.rs` reads them, `vmm/cpu/README.md` describes them). Some are inside tern: the
//! levels of the x86-64 psABI (version 1.0, section 3.1.1), with what any Linux guest needs of a virtual
//! machine: APIC, TSC, x2APIC, hypervisor bit and KVM's own features.

mod apply;
mod baseline;
mod error;
mod file;
mod form;

pub use baseline::{Baseline, BaselineError};
pub use error::{Fault, ProfileError};
pub use file::FILE_LIMIT_BYTES;

use apply::address_bits;
use serde::{Serialize, Serializer};

use super::{FeatureSet, Offer};

/// What a guest sees of its processors.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Profile {
    /// Name, for people.
    pub name: String,
    /// What it is for, for people.
    pub description: String,
    /// Leaf 0's twelve letters that a host must have; `None`: any.
    pub vendor: Option<String>,
    /// Widths that the guest sees, of which a host has at least as many; `None`: the host's.
    pub address_bits: Option<AddressBits>,
    /// The guest sees these, and a host must have them.
    pub features: FeatureSet,
    /// The guest sees these where the host has them.
    pub optional: FeatureSet,
    /// Of a dump: the host it was made on.
    pub host: Option<HostNote>,
}

/// By its name: a profile's file is made by [`Profile::to_json`].
impl Serialize for Profile {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.name)
    }
}

/// Widths of addresses in bits (CPUID leaf 0x80000008).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct AddressBits {
    /// MAXPHYADDR.
    pub physical: u8,
    /// Of virtual addresses: 48, or 57 with la57.
    pub linear: u8,
}

/// What a dump says of its host besides what a profile is made of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HostNote {
    /// What kind of KVM it has.
    pub kvm: String,
    /// Frequency of the TSC; 0 if unknown.
    pub tsc_khz: u32,
    /// A guest can have another frequency than the host's.
    pub tsc_scaling: bool,
    /// What guests see there whatever their profile says.
    pub forced: FeatureSet,
}

/// The profiles inside tern, as the files that they are.
const BUILT_IN: [(&str, &str); 3] = [
    ("x86-64-v1", include_str!("../../cpu/x86-64-v1.json")),
    ("x86-64-v2", include_str!("../../cpu/x86-64-v2.json")),
    ("x86-64-v3", include_str!("../../cpu/x86-64-v3.json")),
];

impl Profile {
    /// Names of the profiles inside tern.
    pub fn names() -> impl Iterator<Item = &'static str> {
        BUILT_IN.iter().map(|(name, _)| *name)
    }

    /// The profile inside tern of this name.
    ///
    /// # Errors
    /// There is none.
    pub fn named(name: &str) -> Result<Self, ProfileError> {
        let found = BUILT_IN.iter().find(|(known, _)| *known == name);
        let (_, text) = found.ok_or_else(|| ProfileError::Unknown {
            name: name.to_owned(),
            known: Self::names().collect::<Vec<_>>().join(", "),
        })?;
        Self::parse(text.as_bytes()).map_err(|fault| ProfileError::File { path: name.into(), fault })
    }

    /// All that a host offers: the file of it is a host's dump.
    pub fn of_offer(name: String, offer: &Offer, host: HostNote) -> Self {
        Self {
            name,
            description: String::new(),
            vendor: Some(offer.vendor()),
            address_bits: address_bits(&offer.cpuid),
            features: offer.features(),
            optional: FeatureSet::default(),
            host: Some(host),
        }
    }

    /// All that a guest can see with it.
    pub fn visible(&self) -> FeatureSet {
        self.features.or(&self.optional)
    }
}

#[cfg(test)]
mod tests;
