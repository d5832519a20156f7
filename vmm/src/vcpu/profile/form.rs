//! The shapes of a profile's file, as serde has them: each field known, and each text read with the place of
//! its error.

use std::fmt;

use serde::de::{Deserializer, Error, Visitor};
use serde::{Deserialize, Serialize, Serializer};

use crate::vcpu::feature::is_feature_register;
use crate::vcpu::{Feature, Place, Register};

/// The whole file.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub(super) struct ProfileFile {
    pub(super) tern_cpu_profile: u64,
    pub(super) name: String,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub(super) description: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) vendor: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) address_bits: Option<AddressBitsFile>,
    pub(super) features: Vec<Name>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(super) optional: Vec<Name>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(super) raw: Vec<Raw>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) host: Option<HostFile>,
}

/// Read before the rest: a newer tern's file may have fields that this one doesn't know.
#[derive(Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(super) struct Head {
    pub(super) tern_cpu_profile: u64,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct AddressBitsFile {
    pub(super) physical: u8,
    pub(super) linear: u8,
}

/// Bits of a register that have no name.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Raw {
    pub(super) register: Place,
    #[serde(default)]
    pub(super) features: Hex,
    #[serde(default)]
    pub(super) optional: Hex,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub(super) struct HostFile {
    pub(super) kvm: String,
    pub(super) tsc_khz: u32,
    pub(super) tsc_scaling: bool,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(super) forced: Vec<Name>,
}

/// A feature by its name.
pub(super) struct Name(pub(super) Feature);

impl Serialize for Name {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(&self.0)
    }
}

impl<'de> Deserialize<'de> for Name {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        parsed(deserializer, "the name of a CPU feature", |text| {
            let Some(feature) = Feature::named(text) else { return Err(unknown_feature(text)) };
            if feature.is_machines() {
                return Err(format!(
                    "{text} is in no profile: it follows from the number of vCPUs or from the guest"
                ));
            }
            Ok(Self(feature))
        })
    }
}

/// The error for a name that is none, with names that look like it.
fn unknown_feature(text: &str) -> String {
    let plain = |text: &str| text.replace(['.', '-', '_'], "").to_lowercase();
    let wanted = plain(text);
    let start: String = wanted.chars().take(4).collect();
    let alike = |name: &&str| wanted.len() > 1 && plain(name).starts_with(&start);
    let near: Vec<&str> = Feature::all().filter_map(Feature::name).filter(alike).take(6).collect();
    let near = if near.is_empty() { String::new() } else { format!(" near it are {};", near.join(", ")) };
    let short: String = text.chars().take(40).collect();
    format!("no CPU feature is called {short:?};{near} `tern cpu list --features` shows all")
}

/// A number in hexadecimal, as text.
#[derive(Default)]
pub(super) struct Hex(pub(super) u64);

impl Serialize for Hex {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(&format_args!("{:#x}", self.0))
    }
}

impl<'de> Deserialize<'de> for Hex {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let legal = "a number of up to 64 bits as text, such as \"0x8000\"";
        parsed(deserializer, legal, |text| hex(text).map(Self).ok_or_else(|| format!("not {legal}")))
    }
}

fn hex(text: &str) -> Option<u64> {
    let digits = text.strip_prefix("0x")?;
    if !digits.bytes().all(|byte| byte.is_ascii_hexdigit()) {
        return None;
    }
    u64::from_str_radix(digits, 16).ok()
}

impl Serialize for Place {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Place {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let legal = "a register of features, such as \"cpuid 0x7.0x0 ebx\" or \"msr 0x10a\"";
        parsed(deserializer, legal, |text| {
            let place = place(text).ok_or_else(|| format!("not {legal}"))?;
            if is_feature_register(place) {
                return Ok(place);
            }
            Err(format!("{place} isn't a register of features; `tern cpu list --features` shows them"))
        })
    }
}

fn place(text: &str) -> Option<Place> {
    let number = |text| hex(text).and_then(|number| u32::try_from(number).ok());
    let mut words = text.split(' ');
    let place = match (words.next()?, words.next()?) {
        ("msr", index) => Place::Msr { index: number(index)? },
        ("cpuid", leaf) => {
            let (leaf, subleaf) = leaf.split_once('.')?;
            let all = [Register::Eax, Register::Ebx, Register::Ecx, Register::Edx];
            let word = words.next()?;
            let register = all.into_iter().find(|register| register.to_string() == word)?;
            Place::Cpuid { leaf: number(leaf)?, subleaf: number(subleaf)?, register }
        }
        _ => return None,
    };
    words.next().is_none().then_some(place)
}

/// Reads a string by `parse`, so that its error gets line and column.
fn parsed<'de, D: Deserializer<'de>, T>(
    deserializer: D,
    expected: &str,
    parse: impl Fn(&str) -> Result<T, String>,
) -> Result<T, D::Error> {
    struct Text<'a, F>(&'a str, F);
    impl<T, F: Fn(&str) -> Result<T, String>> Visitor<'_> for Text<'_, F> {
        type Value = T;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str(self.0)
        }

        fn visit_str<E: Error>(self, text: &str) -> Result<T, E> {
            (self.1)(text).map_err(E::custom)
        }
    }
    deserializer.deserialize_str(Text(expected, parse))
}
