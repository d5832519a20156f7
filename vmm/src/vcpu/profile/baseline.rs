//! The greatest profile that several hosts have: guests with it move between all of them.

use thiserror::Error;

use super::{AddressBits, Profile};
use crate::vcpu::FeatureSet;

/// The common profile, and what it costs.
#[derive(Debug)]
pub struct Baseline {
    /// What all have.
    pub profile: Profile,
    /// For each profile that went in: its name, and what it has beyond the common one.
    pub lost: Vec<(String, FeatureSet)>,
    /// What a person should know: why guests of this profile may still not move.
    pub warnings: Vec<String>,
}

/// Why there is no common profile.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum BaselineError {
    /// None to compare.
    #[error("no profiles are given")]
    Empty,
    /// They have too little in common.
    #[error("these profiles have no {names} in common, which every guest of tern needs")]
    Essential {
        /// Names.
        names: String,
    },
}

impl Baseline {
    /// What `profiles` have in common.
    ///
    /// # Errors
    /// Too little for any guest.
    pub fn of(name: String, profiles: &[Profile]) -> Result<Self, BaselineError> {
        let Some((first, others)) = profiles.split_first() else { return Err(BaselineError::Empty) };
        let features = others.iter().fold(first.features, |all, one| all.and(&one.features));
        let visible = others.iter().fold(first.visible(), |all, one| all.and(&one.visible()));
        let description = profiles.iter().map(|one| one.name.as_str()).collect::<Vec<_>>().join(", ");
        let mut profile = Profile {
            name,
            description: format!("What these have in common: {description}").chars().take(1000).collect(),
            vendor: common_vendor(profiles),
            address_bits: narrowest(profiles),
            features,
            optional: visible.without(&features),
            host: None,
        };
        profile.drop_needy();
        let missing = Profile::essential().without(&profile.features);
        if !missing.is_empty() {
            return Err(BaselineError::Essential { names: missing.to_string() });
        }
        let lost = |one: &Profile| (one.name.clone(), one.visible().without(&profile.visible()));
        let lost = profiles.iter().map(lost).collect();
        let warnings = warnings(profiles, &profile);
        Ok(Self { profile, lost, warnings })
    }
}

fn common_vendor(profiles: &[Profile]) -> Option<String> {
    let mut vendors = profiles.iter().filter_map(|one| one.vendor.as_ref());
    let first = vendors.next()?;
    vendors.all(|vendor| vendor == first).then(|| first.clone())
}

fn narrowest(profiles: &[Profile]) -> Option<AddressBits> {
    profiles
        .iter()
        .filter_map(|one| one.address_bits)
        .reduce(|a, b| AddressBits { physical: a.physical.min(b.physical), linear: a.linear.min(b.linear) })
}

fn warnings(profiles: &[Profile], common: &Profile) -> Vec<String> {
    let mut list = Vec::new();
    let mut vendors: Vec<&str> = profiles.iter().filter_map(|one| one.vendor.as_deref()).collect();
    vendors.dedup();
    if vendors.len() > 1 {
        let vendors = vendors.join(" and ");
        list.push(format!(
            "{vendors}: guests start on each, and don't move between processors of two makers"
        ));
    }
    let hosts = profiles.iter().filter_map(|one| Some((&one.name, one.host.as_ref()?)));
    for (name, host) in hosts.clone() {
        let shown = host.forced.without(&common.visible());
        if !shown.is_empty() {
            list.push(format!("{name} ({}) shows its guests these all the same: {shown}", host.kvm));
        }
    }
    let known = || hosts.clone().filter(|(_, host)| host.tsc_khz != 0 && !host.tsc_scaling);
    for (name, host) in known() {
        let other = known().find(|(_, other)| !crate::platform::same_frequency(other.tsc_khz, host.tsc_khz));
        if let Some((other, there)) = other {
            list.push(format!(
                "the TSC of {name} runs at {} kHz and can't scale, that of {other} at {} kHz: guests don't move",
                host.tsc_khz, there.tsc_khz
            ));
            break;
        }
    }
    list
}

#[cfg(test)]
mod tests {
    use super::super::HostNote;
    use super::*;

    fn host(name: &str, more: &str) -> Profile {
        let mut profile = Profile::named("x86-64-v3").unwrap();
        profile.name = name.to_owned();
        profile.vendor = Some("GenuineIntel".to_owned());
        profile.address_bits = Some(AddressBits { physical: 46, linear: 57 });
        profile.features = profile.features.or(&FeatureSet::of_names(more).unwrap());
        let forced = FeatureSet::default();
        profile.host = Some(HostNote { kvm: "test".into(), tsc_khz: 2_000_000, tsc_scaling: false, forced });
        profile
    }

    #[test]
    fn a_baseline_is_what_all_have() {
        let (one, mut two) = (host("one", "sha_ni gfni"), host("two", "gfni erms"));
        two.address_bits = Some(AddressBits { physical: 39, linear: 57 });
        let Baseline { profile, lost, warnings } =
            Baseline::of("both".into(), &[one.clone(), two.clone()]).unwrap();
        let lost: Vec<String> = lost.iter().map(|(name, set)| format!("{name} {set}")).collect();
        assert_eq!(lost, ["one sha_ni", "two erms"]);
        assert_eq!(warnings, [""; 0]);
        assert_eq!(profile.address_bits, two.address_bits);
        for host in [&one, &two] {
            let problems = profile.problems(host.vendor.as_deref(), host.address_bits, &host.visible());
            assert!(problems.is_empty(), "{problems:?}");
        }
        assert_eq!(Profile::parse(profile.to_json().as_bytes()).unwrap(), profile);
        assert_eq!(Baseline::of(String::new(), &[]).unwrap_err(), BaselineError::Empty);
    }

    #[test]
    fn what_needs_a_lost_feature_is_lost_too() {
        let (one, mut two) = (host("one", ""), host("two", ""));
        two.features = two.features.without(&FeatureSet::of_names("xsave").unwrap());
        let profile = Baseline::of("both".into(), &[one, two]).unwrap().profile;
        for feature in ["avx", "avx2", "fma", "xcr0_avx"] {
            assert!(!profile.visible().contains(crate::vcpu::Feature::named(feature).unwrap()), "{feature}");
        }
        assert!(Profile::parse(profile.to_json().as_bytes()).is_ok());
    }

    #[test]
    fn what_still_stands_in_the_way_is_told() {
        let (mut one, mut two) = (host("one", "gfni"), host("two", ""));
        two.vendor = Some("AuthenticAMD".into());
        let note = one.host.as_mut().unwrap();
        (note.tsc_khz, note.forced) = (2_600_000, FeatureSet::of_names("gfni avx").unwrap());
        let warnings = Baseline::of("both".into(), &[one, two]).unwrap().warnings.join("\n");
        for part in [
            "GenuineIntel and AuthenticAMD",
            "one (test) shows its guests these all the same: gfni\n",
            "2600000",
        ] {
            assert!(warnings.contains(part), "{part} is not in {warnings}");
        }
    }
}
