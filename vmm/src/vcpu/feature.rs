//! CPU features by name: one table of bits ([`words`]), and sets of them. Profiles, the comparison of two
//! hosts and what people read all go through here.

mod words;

use std::fmt;

use super::cpuid::{CpuidV1, Register};
use super::msr::MsrV1;
pub use words::MSR_ARCH_CAPABILITIES;
use words::WORDS;

/// Where a register of features is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Place {
    /// A register of CPUID's result: 32 bits.
    Cpuid {
        /// EAX on entry.
        leaf: u32,
        /// ECX on entry; 0 where it doesn't matter.
        subleaf: u32,
        /// Which register.
        register: Register,
    },
    /// A model-specific register that says what the processor is: 64 bits.
    Msr {
        /// Its index.
        index: u32,
    },
}

/// As `cpuid 0x7.0x0 ebx` or `msr 0x10a`: the form that a profile's file has.
impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Cpuid { leaf, subleaf, register } => write!(f, "cpuid {leaf:#x}.{subleaf:#x} {register}"),
            Self::Msr { index } => write!(f, "msr {index:#x}"),
        }
    }
}

/// A register of features.
#[derive(Debug)]
struct Word {
    place: Place,
    /// `bit:name` of each bit that has one.
    names: &'static str,
    /// Bits that say what the machine or the guest did, not what the host can: in no set.
    machine: u64,
    /// Bits that a guest may see on hosts that lack them.
    harmless: u64,
}

impl Word {
    fn named(&self) -> impl Iterator<Item = (u32, &'static str)> {
        self.names.split_whitespace().filter_map(|pair| {
            let (bit, name) = pair.split_once(':')?;
            Some((bit.parse().ok()?, name))
        })
    }

    /// The register's bits that can be in a set.
    fn mask(&self) -> u64 {
        let width = match self.place {
            Place::Cpuid { .. } => u64::from(u32::MAX),
            Place::Msr { .. } => u64::MAX,
        };
        width & !self.machine
    }
}

/// One bit of the table, named or not.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Feature {
    word: usize,
    bit: u32,
}

impl Feature {
    /// The feature of this name.
    pub fn named(name: &str) -> Option<Self> {
        let found = |(word, entry): (usize, &Word)| {
            let (bit, _) = entry.named().find(|(_, known)| *known == name)?;
            Some(Self { word, bit })
        };
        WORDS.iter().enumerate().find_map(found)
    }

    /// All features that have names and can be in a set, in the table's order.
    pub fn all() -> impl Iterator<Item = Self> {
        let of = |(word, entry): (usize, &'static Word)| {
            let bits = entry.named().filter(|(bit, _)| entry.mask() & (1 << bit) != 0);
            bits.map(move |(bit, _)| Self { word, bit })
        };
        WORDS.iter().enumerate().flat_map(of)
    }

    /// The bit's name, if it has one.
    pub fn name(self) -> Option<&'static str> {
        WORDS.get(self.word)?.named().find(|(bit, _)| *bit == self.bit).map(|(_, name)| name)
    }

    /// Does the machine or the guest decide about it, so that no profile can?
    pub fn is_machines(self) -> bool {
        WORDS.get(self.word).is_some_and(|word| word.machine & (1 << self.bit) != 0)
    }

    /// The register and the bit in it.
    pub fn place(self) -> Option<(Place, u32)> {
        WORDS.get(self.word).map(|word| (word.place, self.bit))
    }
}

/// The name, or the place of a bit without one: `cpuid 0x7.0x0 ecx bit 15`.
impl fmt::Display for Feature {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.name(), self.place()) {
            (Some(name), _) => f.write_str(name),
            (None, Some((place, bit))) => write!(f, "{place} bit {bit}"),
            (None, None) => f.write_str("no feature"),
        }
    }
}

/// A set of features: bits of the table's registers.
#[derive(Clone, Copy, Default, PartialEq, Eq)]
pub struct FeatureSet([u64; WORDS.len()]);

impl FeatureSet {
    /// What a guest with this CPUID and these registers sees.
    pub fn seen(cpuid: &[CpuidV1], msrs: &[MsrV1]) -> Self {
        let mut set = Self::default();
        for (bits, word) in set.0.iter_mut().zip(&WORDS) {
            let value = match word.place {
                Place::Cpuid { leaf, subleaf, register } => {
                    let entry = cpuid.iter().find(|entry| entry.leaf == leaf && entry.subleaf == subleaf);
                    entry.map_or(0, |entry| u64::from(entry.register(register)))
                }
                Place::Msr { index } => msrs.iter().find(|msr| msr.index == index).map_or(0, |msr| msr.value),
            };
            *bits = value & word.mask();
        }
        set
    }

    /// The features of these names.
    ///
    /// # Errors
    /// The first name that is none.
    pub fn of_names(names: &str) -> Result<Self, &str> {
        let mut set = Self::default();
        for name in names.split_whitespace() {
            set.insert(Feature::named(name).ok_or(name)?);
        }
        Ok(set)
    }

    /// The bits `mask` of the register at `place`; `None` if that isn't one of features.
    pub fn of_bits(place: Place, mask: u64) -> Option<Self> {
        let mut set = Self::default();
        let index = WORDS.iter().position(|word| word.place == place)?;
        *set.0.get_mut(index)? = mask & WORDS.get(index)?.mask();
        Some(set)
    }

    /// The bits that it has of the register at `place`.
    pub fn bits(&self, place: Place) -> u64 {
        let found = WORDS.iter().zip(self.0).find(|(word, _)| word.place == place);
        found.map_or(0, |(_, bits)| bits)
    }

    /// Adds one.
    pub fn insert(&mut self, feature: Feature) {
        if let (Some(bits), Some(word)) = (self.0.get_mut(feature.word), WORDS.get(feature.word)) {
            *bits |= (1 << feature.bit) & word.mask();
        }
    }

    /// Has it this one?
    pub fn contains(&self, feature: Feature) -> bool {
        self.0.get(feature.word).is_some_and(|bits| bits & (1 << feature.bit) != 0)
    }

    /// Has it none?
    pub fn is_empty(&self) -> bool {
        self.0.iter().all(|bits| *bits == 0)
    }

    fn with(mut self, other: &Self, merge: impl Fn(u64, u64) -> u64) -> Self {
        self.0.iter_mut().zip(other.0).for_each(|(bits, theirs)| *bits = merge(*bits, theirs));
        self
    }

    /// Those of either.
    pub fn or(self, other: &Self) -> Self {
        self.with(other, |a, b| a | b)
    }

    /// Those of both.
    pub fn and(self, other: &Self) -> Self {
        self.with(other, |a, b| a & b)
    }

    /// Its own, less the other's.
    pub fn without(self, other: &Self) -> Self {
        self.with(other, |a, b| a & !b)
    }

    /// What a guest that sees this set lacks on a host that has `host`.
    pub fn missing_from(mut self, host: &Self) -> Self {
        self.0.iter_mut().zip(&WORDS).for_each(|(bits, word)| *bits &= !word.harmless);
        self.without(host)
    }

    /// All in it, in the table's order.
    pub fn iter(&self) -> impl Iterator<Item = Feature> {
        let bits = |(word, bits): (usize, u64)| {
            (0..u64::BITS).filter(move |bit| bits & (1 << bit) != 0).map(move |bit| Feature { word, bit })
        };
        self.0.into_iter().enumerate().flat_map(bits)
    }

    /// The registers in which it has bits without a name, and those bits.
    pub fn unnamed(&self) -> impl Iterator<Item = (Place, u64)> {
        WORDS.iter().zip(self.0).filter_map(|(word, bits)| {
            let named = word.named().fold(0, |mask, (bit, _)| mask | 1 << bit);
            Some((word.place, bits & !named)).filter(|(_, bits)| *bits != 0)
        })
    }

    /// Takes from `cpuid` every feature that isn't in the set. Machine bits stay.
    pub fn restrict(&self, cpuid: &mut [CpuidV1]) {
        self.each_register(cpuid, |value, bits, word| *value &= bits | word.machine);
    }

    /// Adds the set to `cpuid`, in entries that exist.
    pub fn show(&self, cpuid: &mut [CpuidV1]) {
        self.each_register(cpuid, |value, bits, _| *value |= bits);
    }

    fn each_register(&self, cpuid: &mut [CpuidV1], change: impl Fn(&mut u64, u64, &Word)) {
        for (word, bits) in WORDS.iter().zip(self.0) {
            let Place::Cpuid { leaf, subleaf, register } = word.place else { continue };
            for entry in cpuid.iter_mut().filter(|entry| entry.leaf == leaf && entry.subleaf == subleaf) {
                let mut value = u64::from(entry.register(register));
                change(&mut value, bits, word);
                *entry.register_mut(register) = value as u32;
            }
        }
    }
}

/// Is this register one of features?
pub fn is_feature_register(place: Place) -> bool {
    WORDS.iter().any(|word| word.place == place)
}

/// Names, separated by blanks.
impl fmt::Display for FeatureSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, feature) in self.iter().enumerate() {
            let blank = if index == 0 { "" } else { " " };
            match feature.name() {
                Some(name) => write!(f, "{blank}{name}")?,
                None => write!(f, "{blank}[{feature}]")?,
            }
        }
        Ok(())
    }
}

impl fmt::Debug for FeatureSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{{{self}}}")
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn the_table_has_each_place_and_each_name_once() {
        let mut names = HashSet::new();
        for (index, word) in WORDS.iter().enumerate() {
            assert!(WORDS[..index].iter().all(|other| other.place != word.place), "{} twice", word.place);
            assert_eq!(word.named().count(), word.names.split_whitespace().count(), "{}", word.names);
            let width = if matches!(word.place, Place::Msr { .. }) { 64 } else { 32 };
            let mut next = 0;
            for (bit, name) in word.named() {
                assert!((next..width).contains(&bit), "{name} is out of order");
                assert!(names.insert(name), "{name} twice");
                next = bit + 1;
            }
        }
        assert!(names.len() > 300, "{}", names.len());
    }

    #[test]
    fn names_find_their_bits() {
        let feature = Feature::named("avx512f").unwrap();
        let place = Place::Cpuid { leaf: 7, subleaf: 0, register: Register::Ebx };
        assert_eq!(feature.place(), Some((place, 16)));
        assert_eq!(FeatureSet::of_names("avx512f").unwrap().bits(place), 1 << 16);
        assert_eq!(Feature::named("16"), None);
        assert_eq!(FeatureSet::of_names("fpu warp"), Err("warp"));
        assert!(Feature::named("osxsave").unwrap().is_machines() && !feature.is_machines());
    }

    #[test]
    fn a_bit_without_a_name_is_told_by_its_place() {
        let place = Place::Cpuid { leaf: 7, subleaf: 0, register: Register::Ecx };
        let set = FeatureSet::of_bits(place, 1 << 15 | 1 << 2).unwrap();
        assert_eq!(set.to_string(), "umip [cpuid 0x7.0x0 ecx bit 15]");
        assert_eq!(set.unnamed().collect::<Vec<_>>(), [(place, 1 << 15)]);
        assert_eq!(FeatureSet::of_bits(Place::Msr { index: 1 }, 1), None);
    }

    #[test]
    fn what_the_machine_decides_is_in_no_set() {
        let entry = CpuidV1 { leaf: 1, subleaf: 0, flags: 0, eax: 0, ebx: 0, ecx: !0, edx: !0 };
        let seen = FeatureSet::seen(std::slice::from_ref(&entry), &[]);
        assert!(!seen.to_string().contains("osxsave") && seen.to_string().contains("xsave"));
        let mut list = [entry];
        FeatureSet::of_names("sse").unwrap().restrict(&mut list);
        assert_eq!((list[0].ecx, list[0].edx), (1 << 27, 1 << 25 | 1 << 28));
    }

    #[test]
    fn a_weakness_that_a_guest_expects_is_no_need() {
        let weak = FeatureSet::of_names("arch_cap_rsba arch_cap_mds_no").unwrap();
        assert_eq!(weak.missing_from(&FeatureSet::default()).to_string(), "arch_cap_mds_no");
    }
}
