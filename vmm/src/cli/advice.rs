//! Warnings about a machine that is legal, and hardly what was meant.

use crate::config::{BootConfig, ByteSize, KernelSource, VmConfig};

/// One line each. `host_memory_bytes` is 0 where it is not known.
pub(super) fn of(config: &VmConfig, host_memory_bytes: u64) -> Vec<String> {
    [memory(config, host_memory_bytes), cpus(config)].into_iter().flatten().collect()
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
    fn both_values_are_named() {
        let lines = advice("linux", 9, 2 << 30, 1 << 30);
        assert!(lines[0].contains("2 GiB") && lines[0].contains("1 GiB"), "{lines:?}");
        assert!(lines[1].contains("--cpus 9") && lines[1].contains("no more than 8"), "{lines:?}");
    }
}
