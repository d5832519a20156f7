//! `tern cpu`: what CPUs guests can see, here and on other hosts, and the profiles made of that.

use std::io::{self, Write};
use std::path::{Path, PathBuf};

use clap::Subcommand;
use serde::Serialize;

use super::{Exit, Failure, print, print_json};
use crate::config::CpuModel;
use crate::host::{KvmFacts, KvmKind, needs, open_kvm};
use crate::vcpu::{Baseline, Feature, FeatureSet, HostNote, Offer, Profile};

pub(super) const EXAMPLES: &str = "\
Examples:
  tern cpu dump > here.json
  ssh other tern cpu dump > other.json
  tern cpu baseline here.json other.json -o both.json
  tern cpu check both.json
  tern run --cpu ./both.json --image linux";

#[derive(Debug, Subcommand)]
pub enum CpuCommand {
    /// List the profiles inside tern, or the names of all features
    #[command(after_help = "Examples:\n  tern cpu list\n  tern cpu list --features | grep avx")]
    List {
        /// The features, with the places of their bits
        #[arg(long)]
        features: bool,
        /// As JSON
        #[arg(long)]
        json: bool,
    },
    /// Write all that guests can see on this host, as a profile (JSON)
    #[command(
        after_help = "Examples:\n  tern cpu dump > here.json\n  tern cpu dump | jq -r '.features[]'\n  tern cpu dump --name rack7 -o rack7.json"
    )]
    Dump {
        /// Name of the profile [default: the host's name]
        #[arg(long, value_name = "NAME")]
        name: Option<String>,
        /// Write to this file in place of stdout
        #[arg(short, long, value_name = "FILE")]
        output: Option<PathBuf>,
    },
    /// Make the greatest profile that all the given ones have in common; stderr says what each loses
    #[command(
        after_help = "Examples:\n  tern cpu baseline a.json b.json -o both.json\n  tern cpu baseline a.json x86-64-v3 > low.json"
    )]
    Baseline {
        /// Dumps or profiles: files, or names of profiles inside tern
        #[arg(required = true, value_name = "PROFILE")]
        profiles: Vec<String>,
        /// Name of the new profile
        #[arg(long, value_name = "NAME", default_value = "baseline")]
        name: String,
        /// Write to this file in place of stdout
        #[arg(short, long, value_name = "FILE")]
        output: Option<PathBuf>,
    },
    /// Has this host, or the one of a dump, all of a profile?
    ///
    /// Exits with 0 if it does, and with 8 if it doesn't.
    #[command(
        after_help = "Examples:\n  tern cpu check x86-64-v3\n  tern cpu check both.json other.json\n  tern cpu check both.json --json | jq .problems"
    )]
    Check {
        /// The profile: a file, or the name of one inside tern
        profile: String,
        /// A host's dump [default: this host]
        host: Option<PathBuf>,
        /// As JSON
        #[arg(long)]
        json: bool,
    },
}

pub(super) fn run(command: &CpuCommand) -> Result<Exit, Failure> {
    match command {
        CpuCommand::List { features: true, json } => list_features(*json),
        CpuCommand::List { features: false, json } => list_profiles(*json),
        CpuCommand::Dump { name, output } => {
            let profile = this_host(name.clone().unwrap_or_else(host_name))?;
            write(&profile, output.as_deref())
        }
        CpuCommand::Baseline { profiles, name, output } => baseline(profiles, name, output.as_deref()),
        CpuCommand::Check { profile, host, json } => check(profile, host.as_deref(), *json),
    }
}

/// The profile of a file, or the one inside tern of this name.
fn load(text: &str) -> Result<Profile, Failure> {
    let loaded = if CpuModel::is_path(text) { Profile::read(Path::new(text)) } else { Profile::named(text) };
    loaded.map_err(|error| Failure::new(&error))
}

fn host_name() -> String {
    let name = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    let name: String = name.trim().chars().filter(|letter| !letter.is_control()).take(64).collect();
    if name.is_empty() { "host".to_owned() } else { name }
}

/// What guests can see here, as a profile.
fn this_host(name: String) -> Result<Profile, Failure> {
    let kvm = open_kvm().map_err(|error| Failure::new(&error))?;
    let kind = KvmKind::detect();
    let offer = Offer::of(&kvm, &needs(kind).hidden).map_err(|error| Failure::new(&error))?;
    let facts = KvmFacts::probe(&kvm);
    let (tsc_khz, tsc_scaling) = (facts.tsc_khz.unwrap_or(0), facts.tsc_scaling);
    let note = HostNote { kvm: kind.to_string(), tsc_khz, tsc_scaling, forced: offer.forced };
    Ok(Profile::of_offer(name, &offer, note))
}

fn write(profile: &Profile, output: Option<&Path>) -> Result<Exit, Failure> {
    let Some(path) = output else { return print(&profile.to_json()) };
    let written = std::fs::write(path, profile.to_json());
    written.map_err(|error| {
        Failure::text(Exit::Failure, format!("{} can't be written: {error}", path.display()))
    })?;
    Ok(Exit::Success)
}

#[derive(Serialize)]
struct Listed {
    name: String,
    description: String,
}

fn list_profiles(json: bool) -> Result<Exit, Failure> {
    let mut list = vec![Listed {
        name: "host".into(),
        description: "All that this host has and KVM can give: fits the same hosts only".into(),
    }];
    for name in Profile::names() {
        let profile = load(name)?;
        list.push(Listed { name: profile.name, description: profile.description });
    }
    if json {
        return print_json(&list);
    }
    print(
        &list
            .iter()
            .map(|Listed { name, description }| format!("{name:<12} {description}\n"))
            .collect::<String>(),
    )
}

fn list_features(json: bool) -> Result<Exit, Failure> {
    #[derive(Serialize)]
    struct Row {
        name: String,
        register: String,
        bit: u32,
    }
    let row = |feature: Feature| {
        let (place, bit) = feature.place()?;
        Some(Row { name: feature.to_string(), register: place.to_string(), bit })
    };
    let rows: Vec<Row> = Feature::all().filter_map(row).collect();
    if json {
        return print_json(&rows);
    }
    let line = |Row { name, register, bit }: &Row| format!("{name:<32} {register} bit {bit}\n");
    print(&rows.iter().map(line).collect::<String>())
}

fn baseline(names: &[String], name: &str, output: Option<&Path>) -> Result<Exit, Failure> {
    let profiles = names.iter().map(|name| load(name)).collect::<Result<Vec<_>, _>>()?;
    let found = Baseline::of(name.to_owned(), &profiles).map_err(|error| Failure::new(&error))?;
    // Without stderr the profile is still the result.
    let mut stderr = io::stderr();
    for (one, lost) in &found.lost {
        let lost = if lost.is_empty() { "nothing".to_owned() } else { lost.to_string() };
        let _ = writeln!(stderr, "{one} loses: {lost}");
    }
    for line in &found.warnings {
        let _ = writeln!(stderr, "tern: warning: {line}");
    }
    write(&found.profile, output)
}

/// Whether a host has a profile.
#[derive(Serialize)]
struct Checked {
    profile: String,
    host: String,
    fits: bool,
    /// Features that the host lacks.
    missing: Vec<String>,
    /// All that stands in the way, for people.
    problems: Vec<String>,
    /// What guests see there although the profile hides it.
    shown_anyway: Vec<String>,
}

fn check(profile: &str, host: Option<&Path>, json: bool) -> Result<Exit, Failure> {
    let profile = load(profile)?;
    let host = match host {
        Some(path) => Profile::read(path).map_err(|error| Failure::new(&error))?,
        None => this_host(host_name())?,
    };
    let checked = compare(&profile, &host);
    if json { print_json(&checked) } else { print(&show(&checked)) }?;
    Ok(if checked.fits { Exit::Success } else { Exit::DoesNotFit })
}

fn compare(profile: &Profile, host: &Profile) -> Checked {
    let has = host.visible();
    let problems = profile.problems(host.vendor.as_deref(), host.address_bits, &has);
    let names = |set: FeatureSet| set.iter().map(|feature| feature.to_string()).collect::<Vec<_>>();
    let forced = host.host.as_ref().map(|note| note.forced).unwrap_or_default();
    Checked {
        profile: profile.name.clone(),
        host: host.name.clone(),
        fits: problems.is_empty(),
        missing: names(profile.features.missing_from(&has)),
        problems: problems.iter().map(ToString::to_string).collect(),
        shown_anyway: names(forced.without(&profile.visible())),
    }
}

fn show(checked: &Checked) -> String {
    let Checked { profile, host, fits, missing: _, problems, shown_anyway } = checked;
    let verdict = if *fits { "has all of" } else { "does not have all of" };
    let mut text = format!("{host} {verdict} {profile}\n");
    problems.iter().for_each(|problem| text.push_str(&format!("  {problem}\n")));
    if !shown_anyway.is_empty() {
        let names = shown_anyway.join(" ");
        text.push_str(&format!("  its KVM shows guests these although the profile hides them: {names}\n"));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn profile(name: &str) -> Profile {
        Profile::named(name).unwrap()
    }

    #[test]
    fn a_host_that_lacks_some_is_told_all_at_once() {
        let mut host = profile("x86-64-v2");
        host.name = "there".into();
        host.vendor = Some("AuthenticAMD".into());
        let mut wanted = profile("x86-64-v3");
        wanted.vendor = Some("GenuineIntel".into());
        let checked = compare(&wanted, &host);
        assert!(!checked.fits && checked.missing.contains(&"avx2".to_owned()), "{:?}", checked.missing);
        let text = show(&checked);
        for part in ["there does not have all of x86-64-v3", "GenuineIntel", "avx2", "bmi2"] {
            assert!(text.contains(part), "{part} is not in {text}");
        }
    }

    #[test]
    fn a_host_that_has_all_fits_and_says_what_it_cannot_hide() {
        let mut host = profile("x86-64-v3");
        let forced = FeatureSet::of_names("avx sse2").unwrap();
        host.host = Some(HostNote { kvm: "soft".into(), tsc_khz: 0, tsc_scaling: false, forced });
        let checked = compare(&profile("x86-64-v1"), &host);
        assert!(checked.fits);
        assert!(show(&checked).ends_with("hides them: avx\n"), "{}", show(&checked));
    }

    #[test]
    fn files_and_names_are_told_apart() {
        assert_eq!(load("x86-64-v2").unwrap().name, "x86-64-v2");
        let text = load("./no-such-file.json").unwrap_err().text;
        assert!(text.contains("no-such-file.json can't be read"), "{text}");
        assert!(load("no-such-name").unwrap_err().text.contains("x86-64-v1"));
    }
}
