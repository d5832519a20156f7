//! Which images there are, and the kernel command lines they start with.

use crate::ImageError;

/// How a kernel is built: the fragment beside `base.config`, and what to expect of it.
#[derive(Debug, PartialEq, Eq)]
pub struct KernelVariant {
    pub(crate) fragment_name: &'static str,
    pub(crate) fragment: &'static str,
    /// Lines that `make` prints, for the progress bar; measured, and not relied upon.
    pub(crate) make_lines: u64,
}

/// Where an image comes from.
#[derive(Debug, PartialEq, Eq)]
pub enum Kind {
    /// Its bytes are inside the library.
    Embedded(&'static [u8]),
    /// A kernel that is built from the distribution's source, and an initramfs with the agent.
    Linux(KernelVariant),
}

/// One image that can be asked for by name.
#[derive(Debug, PartialEq, Eq)]
pub struct ImageInfo {
    /// The name on the command line.
    pub name: &'static str,
    /// One line for people.
    pub description: &'static str,
    /// The most CPUs that it uses; more stay idle for ever.
    pub cpus_max: u8,
    /// Where it comes from.
    pub kind: Kind,
}

/// The `pulse` guest: an ELF program that starts through its PVH note.
pub const PULSE: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/pulse"));
/// The agent: `/init` of the Linux guest.
pub const AGENT: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/agent"));

/// Kernel parameters of the Linux images on every host. `BOOT.md` says why each is there.
pub const CMDLINE_ALWAYS: &str = "console=ttyS0 quiet reboot=k panic=-1 acpi=off";

/// Kernel parameters that a Linux kernel needs besides, with the patches of the images, on
/// hosts whose KVM interprets ring 0 (`kvm_pvm`): the interpreter does not know the instructions
/// that these features bring, and CPUID cannot hide all of the features there.
///
/// The kernel reads 127 bytes of `clearcpuid=` and drops the rest in silence. It clears what depends
/// on a feature with it: `xsave` stands for `avx`, `pku` and twenty more.
pub const CMDLINE_INTERPRETED_RING0: &str = "tsc=reliable rodata=off noreplace-smp clearcpuid=\
cx16,smap,smep,fsgsbase,umip,popcnt,xsave,rdrand,rdseed,invpcid,pcid,erms,fsrm,fsrs,serialize,\
waitpkg,clflushopt,clwb";

/// All images.
pub fn images() -> &'static [ImageInfo] {
    &IMAGES
}

static IMAGES: [ImageInfo; 3] = [
    ImageInfo {
        name: "pulse",
        description: "bare guest that rewrites memory and checks every page; nothing to build",
        cpus_max: 4,
        kind: Kind::Embedded(PULSE),
    },
    ImageInfo {
        name: "linux",
        description: "small Linux for 1 to 8 CPUs, with checks and a shell; built once, in minutes",
        cpus_max: 8,
        kind: Kind::Linux(KernelVariant {
            fragment_name: "smp.config",
            fragment: include_str!("../linux/smp.config"),
            make_lines: 1297,
        }),
    },
    ImageInfo {
        name: "linux-up",
        description: "the same for one CPU only; boots quickest",
        cpus_max: 1,
        kind: Kind::Linux(KernelVariant {
            fragment_name: "nosmp.config",
            fragment: include_str!("../linux/nosmp.config"),
            make_lines: 1277,
        }),
    },
];

/// The image called `name`, or an error that lists the names.
pub(crate) fn find(name: &str) -> Result<&'static ImageInfo, ImageError> {
    IMAGES.iter().find(|image| image.name == name).ok_or_else(|| {
        let known = IMAGES.iter().map(|image| image.name).collect::<Vec<_>>().join(", ");
        ImageError::UnknownImage { name: name.to_owned(), known }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_list_of_features_fits_in_what_the_kernel_reads() {
        let features = CMDLINE_INTERPRETED_RING0.split(' ').find_map(|word| word.strip_prefix("clearcpuid="));
        assert!(features.is_some_and(|list| list.len() <= 127 && list.ends_with(",clwb")));
    }

    #[test]
    fn kernels_are_built_for_so_many_cpus() {
        for image in images() {
            if let Kind::Linux(variant) = &image.kind {
                let line = variant.fragment.lines().find_map(|line| line.strip_prefix("CONFIG_NR_CPUS="));
                assert_eq!(line.map_or(1, |cpus| cpus.parse().unwrap()), image.cpus_max, "{}", image.name);
            }
        }
    }

    #[test]
    fn names_are_unique() {
        for (index, image) in images().iter().enumerate() {
            assert_eq!(images().iter().position(|other| other.name == image.name), Some(index));
        }
    }
}
