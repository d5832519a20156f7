//! A profile's file: JSON of one object, described in `vmm/cpu/README.md`.
//!
//! Files come from people and from other hosts: every field is known, every length bounded, and an error says
//! the line, the column and what is legal there.

use std::fs::File;
use std::io::Read;
use std::path::Path;

use super::form::{AddressBitsFile, Head, Hex, HostFile, Name, ProfileFile, Raw};
use super::{AddressBits, Fault, HostNote, Profile, ProfileError};
use crate::vcpu::{Feature, FeatureSet};

/// Longest file: more than ten times the dump of a host with every feature.
pub const FILE_LIMIT_BYTES: usize = 128 << 10;
/// The version that this tern writes and reads.
const VERSION: u64 = 1;
const NAME_LIMIT_BYTES: usize = 255;
const DESCRIPTION_LIMIT_BYTES: usize = 4096;
const VENDOR_BYTES: usize = 12;

/// What the x86-64 baseline has and every kernel of 64 bits uses.
const ESSENTIAL: &str = "fpu tsc msr pae cx8 apic cmov clflush mmx fxsr sse sse2 syscall nx lm";

/// Features that make no sense without another.
const NEEDS: [(&str, &str); 14] = [
    ("xsave", "xcr0_sse"),
    ("xsaveopt", "xsave"),
    ("xsavec", "xsave"),
    ("xsaves", "xsavec"),
    ("xcr0_avx", "xsave"),
    ("avx", "xcr0_avx"),
    ("fma", "avx"),
    ("f16c", "avx"),
    ("avx2", "avx"),
    ("avx512f", "xcr0_hi16_zmm"),
    ("xcr0_hi16_zmm", "xcr0_zmm_hi256"),
    ("xcr0_zmm_hi256", "xcr0_opmask"),
    ("xcr0_opmask", "xcr0_avx"),
    ("amx_tile", "xcr0_tiledata"),
];

fn set(names: &[Name]) -> FeatureSet {
    let mut set = FeatureSet::default();
    names.iter().for_each(|name| set.insert(name.0));
    set
}

fn names(set: &FeatureSet) -> Vec<Name> {
    set.iter().filter(|feature| feature.name().is_some()).map(Name).collect()
}

fn check_text(field: &'static str, text: &str, least: usize, limit: usize) -> Result<(), Fault> {
    let found = text.len();
    if found < least || found > limit || text.contains(char::is_control) {
        return Err(Fault::Text { field, found, least, limit });
    }
    Ok(())
}

impl ProfileFile {
    fn check(&self) -> Result<(), Fault> {
        check_text("name", &self.name, 1, NAME_LIMIT_BYTES)?;
        check_text("description", &self.description, 0, DESCRIPTION_LIMIT_BYTES)?;
        check_text("vendor", self.vendor.as_deref().unwrap_or("GenuineIntel"), VENDOR_BYTES, VENDOR_BYTES)?;
        check_text("kvm", self.host.as_ref().map_or("", |host| &host.kvm), 0, NAME_LIMIT_BYTES)?;
        let Some(AddressBitsFile { physical, linear }) = self.address_bits else { return Ok(()) };
        for (kind, found, least, limit) in [("physical", physical, 36, 52), ("linear", linear, 48, 57)] {
            if !(least..=limit).contains(&found) {
                return Err(Fault::AddressBits { kind, found, least, limit });
            }
        }
        Ok(())
    }
}

impl Profile {
    /// Reads a profile from the bytes of its file.
    ///
    /// # Errors
    /// The first thing that is wrong, with its place.
    pub fn parse(bytes: &[u8]) -> Result<Self, Fault> {
        if bytes.len() > FILE_LIMIT_BYTES {
            return Err(Fault::TooLong { limit_bytes: FILE_LIMIT_BYTES });
        }
        let shape = |error: serde_json::Error| Fault::Shape { text: error.to_string() };
        let head: Head = serde_json::from_slice(bytes).map_err(shape)?;
        if head.tern_cpu_profile != VERSION {
            return Err(Fault::Version { found: head.tern_cpu_profile, known: VERSION });
        }
        let file: ProfileFile = serde_json::from_slice(bytes).map_err(shape)?;
        file.check()?;
        let profile = Self::from_file(file);
        profile.check()?;
        Ok(profile)
    }

    fn from_file(file: ProfileFile) -> Self {
        let (mut features, mut optional) = (set(&file.features), set(&file.optional));
        for Raw { register, features: must, optional: may } in file.raw {
            features = features.or(&FeatureSet::of_bits(register, must.0).unwrap_or_default());
            optional = optional.or(&FeatureSet::of_bits(register, may.0).unwrap_or_default());
        }
        let note = |HostFile { kvm, tsc_khz, tsc_scaling, forced }| HostNote {
            kvm,
            tsc_khz,
            tsc_scaling,
            forced: set(&forced),
        };
        Self {
            name: file.name,
            description: file.description,
            vendor: file.vendor,
            address_bits: file
                .address_bits
                .map(|AddressBitsFile { physical, linear }| AddressBits { physical, linear }),
            features,
            optional,
            host: file.host.map(note),
        }
    }

    fn check(&self) -> Result<(), Fault> {
        let twice = self.features.and(&self.optional);
        if !twice.is_empty() {
            return Err(Fault::Twice { names: twice.to_string() });
        }
        let missing = Self::essential().without(&self.features);
        if !missing.is_empty() {
            return Err(Fault::Essential { names: missing.to_string() });
        }
        for (feature, needs) in NEEDS {
            let has = |set: &FeatureSet, name| Feature::named(name).is_some_and(|found| set.contains(found));
            if has(&self.features, feature) && !has(&self.features, needs) {
                return Err(Fault::Needs { feature, needs, list: "features" });
            }
            if has(&self.optional, feature) && !has(&self.visible(), needs) {
                return Err(Fault::Needs { feature, needs, list: "optional" });
            }
        }
        Ok(())
    }

    /// A 64-bit guest can't run without these.
    pub(super) fn essential() -> FeatureSet {
        FeatureSet::of_names(ESSENTIAL).unwrap_or_default()
    }

    /// Takes away features that make no sense without another that isn't there.
    pub(super) fn drop_needy(&mut self) {
        let named = |name| FeatureSet::of_names(name).unwrap_or_default();
        for _ in 0..NEEDS.len() {
            for (feature, needs) in NEEDS {
                if named(needs).and(&self.features).is_empty() {
                    self.features = self.features.without(&named(feature));
                }
                if named(needs).and(&self.visible()).is_empty() {
                    self.optional = self.optional.without(&named(feature));
                }
            }
        }
    }

    /// Reads a profile's file.
    ///
    /// # Errors
    /// It can't be read, or isn't a profile.
    pub fn read(path: &Path) -> Result<Self, ProfileError> {
        let unreadable = |source| ProfileError::Unreadable { path: path.to_owned(), source };
        let mut bytes = Vec::new();
        let file = File::open(path).map_err(unreadable)?;
        file.take(FILE_LIMIT_BYTES as u64 + 1).read_to_end(&mut bytes).map_err(unreadable)?;
        Self::parse(&bytes).map_err(|fault| ProfileError::File { path: path.to_owned(), fault })
    }

    /// The bytes of its file.
    pub fn to_json(&self) -> String {
        let bits = |set: &FeatureSet, place| {
            set.unnamed().find(|(register, _)| *register == place).map_or(0, |(_, bits)| bits)
        };
        let raw = |register| Raw {
            register,
            features: Hex(bits(&self.features, register)),
            optional: Hex(bits(&self.optional, register)),
        };
        let file = ProfileFile {
            tern_cpu_profile: VERSION,
            name: self.name.clone(),
            description: self.description.clone(),
            vendor: self.vendor.clone(),
            address_bits: self
                .address_bits
                .map(|AddressBits { physical, linear }| AddressBitsFile { physical, linear }),
            features: names(&self.features),
            optional: names(&self.optional),
            raw: self.visible().unnamed().map(|(register, _)| raw(register)).collect(),
            host: self.host.clone().map(|HostNote { kvm, tsc_khz, tsc_scaling, forced }| HostFile {
                kvm,
                tsc_khz,
                tsc_scaling,
                forced: names(&forced),
            }),
        };
        serde_json::to_string_pretty(&file).unwrap_or_default() + "\n"
    }
}
