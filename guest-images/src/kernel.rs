//! Builds a kernel: source, four patches, a configuration, `make vmlinux`.
//!
//! Everything happens below one directory of the cache, which keeps only `vmlinux`, `config` and
//! `manifest.json` in the end. `allnoconfig` is the base, so the image has what the fragments
//! name and nothing that a later kernel of the series turns on by itself.

use crate::catalog::KernelVariant;
use crate::hash::{Parts, sha256};
use crate::make::Make;
use crate::manifest::{self, KernelManifest, NamedHash};
use crate::progress::{Progress, Step};
use crate::source::{SERIES, Source, version_of};
use crate::{ImageError, Result};
use std::fs;
use std::path::Path;

/// Goes up when the builder changes what it makes from the same inputs.
const BUILDER_VERSION: &str = "1";
const BASE: (&str, &str) = ("base.config", include_str!("../linux/base.config"));

macro_rules! patches {
    ($($name:literal),+ $(,)?) => { [$(($name, include_str!(concat!("../linux/", $name)))),+] };
}

const PATCHES: [(&str, &str); 4] = patches![
    "0001-x86-alternative-no-int3-self-test.patch",
    "0002-x86-fault-system-call-that-stayed-at-cpl3.patch",
    "0003-x86-fpu-no-fwait-when-dropping-state.patch",
    "0004-ACPICA-no-PCI-address-space-without-PCI.patch",
];

/// The start of a cache key: everything but the source.
pub(crate) fn key_prefix(image: &str, variant: &KernelVariant) -> String {
    let parts = Parts::default().add(BUILDER_VERSION).add(BASE.1).add(variant.fragment);
    let recipe = PATCHES.iter().fold(parts, |parts, (name, text)| parts.add(name).add(text)).short();
    format!("kernel-{image}-{recipe}-")
}

/// The cache key of a kernel built from this source.
pub(crate) fn key(image: &str, variant: &KernelVariant, source_identity: &str) -> String {
    key_prefix(image, variant) + &Parts::default().add(source_identity).short()
}

/// One build. `directory` is empty, and gets the result; `log` gets what the tools print.
pub(crate) struct Build<'a> {
    pub(crate) image: &'a str,
    pub(crate) variant: &'a KernelVariant,
    pub(crate) source: &'a Source,
    pub(crate) jobs: usize,
    pub(crate) directory: &'a Path,
    pub(crate) log: &'a Path,
}

impl Build<'_> {
    pub(crate) fn run(&self, progress: &mut dyn FnMut(Progress)) -> Result<()> {
        let work = self.directory.join("work");
        let (tree, objects) = (work.join("source"), work.join("objects"));
        let archive_sha256 = self
            .source
            .unpack(&tree, &mut |done, total| progress(Progress::counted(Step::Unpacking, done, total)))?;
        progress(Progress::of(Step::Configuring));
        self.check_series(&tree)?;
        fs::create_dir_all(&objects).map_err(ImageError::io("create the directory", &objects))?;
        let make = Make::new(&tree, &objects, self.log)?;
        for (_, patch) in PATCHES {
            make.patch(patch)?;
        }
        let config = self.configure(&make, &objects)?;
        let (mut lines, total) = (0, self.variant.make_lines);
        make.run(&[&format!("-j{}", self.jobs.max(1)), "vmlinux"], &mut || {
            lines += 1;
            progress(Progress::counted(Step::Compiling, lines, total));
        })?;
        progress(Progress::of(Step::Finishing));
        self.keep(&objects, &config, &archive_sha256)?;
        fs::remove_dir_all(&work).map_err(ImageError::io("remove the build directory", &work))
    }

    fn check_series(&self, tree: &Path) -> Result<()> {
        let found = version_of(&read(&tree.join("Makefile"))?);
        if found.starts_with(&format!("{SERIES}.")) {
            return Ok(());
        }
        Err(ImageError::Series { path: self.source.archive.clone(), found, expected: SERIES })
    }

    /// Writes `.config` and returns it, if it has everything that the fragments ask for.
    fn configure(&self, make: &Make<'_>, objects: &Path) -> Result<String> {
        let wanted = format!("{}\n{}", BASE.1, self.variant.fragment);
        let fragment = objects.join("fragments.config");
        write(&fragment, &wanted)?;
        make.run(&[&format!("KCONFIG_ALLCONFIG={}", fragment.display()), "allnoconfig"], &mut || ())?;
        let config = read(&objects.join(".config"))?;
        let lost = lost_options(&wanted, &config);
        if lost.is_empty() { Ok(config) } else { Err(ImageError::Config { options: lost.join(", ") }) }
    }

    /// Moves the results out of the build directory.
    fn keep(&self, objects: &Path, config: &str, archive_sha256: &str) -> Result<()> {
        let (built, kernel) = (objects.join("vmlinux"), self.directory.join("vmlinux"));
        fs::rename(&built, &kernel).map_err(ImageError::io("keep the kernel", built))?;
        write(&self.directory.join("config"), config)?;
        let named =
            |(name, text): (&str, &str)| NamedHash { name: name.to_owned(), sha256: sha256(text.as_bytes()) };
        let manifest = KernelManifest {
            image: self.image.to_owned(),
            builder_version: BUILDER_VERSION.to_owned(),
            kernel_release: read(&objects.join("include/config/kernel.release"))?.trim().to_owned(),
            source_package: self
                .source
                .package_version()
                .map(|version| format!("{}={version}", Source::PACKAGE)),
            source_archive: self.source.archive.display().to_string(),
            source_sha256: archive_sha256.to_owned(),
            patches: PATCHES.into_iter().map(named).collect(),
            fragments: [BASE, (self.variant.fragment_name, self.variant.fragment)]
                .into_iter()
                .map(named)
                .collect(),
            config_sha256: sha256(config.as_bytes()),
            compiler: manifest::first_line("gcc", "--version"),
            linker: manifest::first_line("ld", "--version"),
            built_utc: manifest::first_line("date", "--utc +%Y-%m-%dT%H:%M:%SZ"),
        };
        manifest.write(&self.directory.join("manifest.json"))
    }
}

/// Lines of the fragments that the configuration does not have.
fn lost_options(wanted: &str, config: &str) -> Vec<String> {
    let kept = |line: &&str| match line.strip_suffix("=n") {
        Some(option) => {
            !config.lines().any(|have| have.strip_prefix(option).is_some_and(|rest| rest.starts_with('=')))
        }
        None => config.lines().any(|have| have == *line),
    };
    wanted
        .lines()
        .filter(|line| line.starts_with("CONFIG_"))
        .filter(|line| !kept(line))
        .map(str::to_owned)
        .collect()
}

fn read(path: &Path) -> Result<String> {
    fs::read_to_string(path).map_err(ImageError::io("read", path))
}

fn write(path: &Path, text: &str) -> Result<()> {
    fs::write(path, text).map_err(ImageError::io("write", path))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn variant(fragment: &'static str) -> KernelVariant {
        KernelVariant { fragment_name: "x.config", fragment, make_lines: 1 }
    }

    #[test]
    fn the_key_changes_with_everything_that_goes_in() {
        let key_of = |image, fragment, source| key(image, &variant(fragment), source);
        let base = key_of("linux", "CONFIG_SMP=y", "package 1");
        assert_eq!(base, key_of("linux", "CONFIG_SMP=y", "package 1"));
        assert_ne!(base, key_of("linux-up", "CONFIG_SMP=y", "package 1"));
        assert_ne!(base, key_of("linux", "CONFIG_SMP=n", "package 1"));
        assert_ne!(base, key_of("linux", "CONFIG_SMP=y", "package 2"));
        assert!(base.starts_with(&key_prefix("linux", &variant("CONFIG_SMP=y"))));
    }

    #[test]
    fn lost_options_are_those_not_as_asked() {
        let config = "CONFIG_A=y\n# CONFIG_B is not set\nCONFIG_C=4\nCONFIG_DD=y\n";
        let wanted = "# a comment\nCONFIG_A=y\nCONFIG_B=n\nCONFIG_C=1\nCONFIG_D=n\nCONFIG_E=y\nCONFIG_DD=n\n";
        assert_eq!(lost_options(wanted, config), ["CONFIG_C=1", "CONFIG_E=y", "CONFIG_DD=n"]);
        assert!(lost_options(wanted, "CONFIG_A=y\nCONFIG_C=1\nCONFIG_E=y\n").is_empty());
    }

    #[test]
    fn each_patch_explains_itself_and_changes_one_file() {
        for (name, text) in PATCHES {
            let (head, diff) = text.split_once("--- a/").unwrap();
            assert!(head.len() > 200, "{name} says why");
            assert_eq!(diff.matches("\n+++ b/").count(), 1, "{name}");
        }
    }
}
