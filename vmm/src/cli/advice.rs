//! Warnings about a machine that is legal, and hardly what was meant.

use crate::config::{BootConfig, ByteSize, CpuModel, KernelSource, VmConfig};
use crate::host::KvmKind;
use crate::vcpu::{FeatureSet, Profile, forced};

/// One line each. `host_memory_bytes` is 0 where it is not known.
pub(super) fn of(config: &VmConfig, host_memory_bytes: u64) -> Vec<String> {
    let shown = || forced(KvmKind::detect());
    [memory(config, host_memory_bytes), cpus(config), cpu(config, shown)].into_iter().flatten().collect()
}

fn memory(config: &VmConfig, host_memory_bytes: u64) -> Option<String> {
    let (guest, host) = (ByteSize(config.memory_bytes), ByteSize(host_memory_bytes));
    (host.0 != 0 && guest > host).then(|| {
        format!(
            "--memory {guest} is more than this host's {host}: memory is taken as the guest touches it, and the \
             host kills this process when there is no more"
        )
    })
}

fn cpus(config: &VmConfig) -> Option<String> {
    let Some(BootConfig { kernel: KernelSource::Image(name), .. }) = &config.boot else { return None };
    let image = tern_guest_images::images().iter().find(|image| image.name == name)?;
    (config.cpus > image.cpus_max).then(|| {
        format!(
            "--cpus {}: image {name} uses no more than {}; the others stay idle",
            config.cpus, image.cpus_max
        )
    })
}

/// A software KVM shows its guests more than their profile.
fn cpu(config: &VmConfig, shown: impl Fn() -> FeatureSet) -> Option<String> {
    let profile = match &config.cpu {
        CpuModel::Host => return None,
        CpuModel::Profile(name) => Profile::named(name).ok()?,
        CpuModel::File(profile) => Profile::clone(profile),
    };
    let shown = shown().without(&profile.visible());
    (!shown.is_empty() && config.boot.is_some()).then(|| {
        format!(
            "--cpu {}: this host's KVM shows guests these all the same, and a host that lacks them won't take the \
             guest: {shown}",
            profile.name
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn advice(image: &str, cpus: u8, memory_bytes: u64, host_memory_bytes: u64) -> Vec<String> {
        let kernel = KernelSource::Image(image.into());
        let boot = Some(BootConfig { kernel, initrd: None, cmdline: String::new() });
        of(&VmConfig { boot, cpus, ..VmConfig::new(memory_bytes) }, host_memory_bytes)
    }

    #[test]
    fn a_machine_that_fits_needs_no_advice() {
        assert_eq!(advice("linux", 8, 1 << 30, 1 << 30), [""; 0]);
        assert_eq!(advice("pulse", 4, 1 << 30, 0), [""; 0]);
        assert_eq!(advice("no such image", 9, 1 << 30, 0), [""; 0]);
    }

    #[test]
    fn a_profile_that_does_not_hide_is_told() {
        let boot = Some(BootConfig {
            kernel: KernelSource::Image("pulse".into()),
            initrd: None,
            cmdline: String::new(),
        });
        let machine =
            |cpu: &str| VmConfig { cpu: cpu.parse().unwrap(), boot: boot.clone(), ..VmConfig::new(1 << 30) };
        let shown = || FeatureSet::of_names("sse2 avx").unwrap();
        assert!(cpu(&machine("x86-64-v1"), shown).unwrap().ends_with("take the guest: avx"));
        assert_eq!(cpu(&machine("x86-64-v3"), shown), None);
        assert_eq!(cpu(&machine("x86-64-v1"), FeatureSet::default), None);
        assert_eq!(cpu(&machine("host"), shown), None);
    }

    #[test]
    fn both_values_are_named() {
        let lines = advice("linux", 9, 2 << 30, 1 << 30);
        assert!(lines[0].contains("2 GiB") && lines[0].contains("1 GiB"), "{lines:?}");
        assert!(lines[1].contains("--cpus 9") && lines[1].contains("no more than 8"), "{lines:?}");
    }
}
