//! The configuration that travels in a snapshot: what `tern restore FILE` needs to build the machine without
//! being told.
//!
//! Where things are on the host (disks, TAPs, kernel) is what it was at the source; `tern restore` takes other
//! places in their stead. Places that belong to one process (control socket, sockets and files of the ports)
//! are told for people, and not taken over: two guests from one file would clash.

use std::ffi::OsString;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

use tern_schema::{DecodeError, decode_record, encode_record, record};
use thiserror::Error;
use uuid::Uuid;

use crate::config::{
    BootConfig, ConfigError, CpuModel, DiskConfig, KernelSource, MacAddress, NetConfig, SerialConfig,
    VmConfig,
};

record! {
    /// A disk.
    pub struct DiskConfigV1 {
        /// Absolute path of its file, as bytes.
        [1] path: Vec<u8>,
        /// The guest may not write it.
        [2] readonly: bool,
    }
}

record! {
    /// A network interface.
    pub struct NetConfigV1 {
        /// Name of the host's TAP.
        [1] tap: String,
        /// The guest's address.
        [2] mac: [u8; 6],
    }
}

record! {
    /// What the machine boots when its guest resets it.
    pub struct BootConfigV1 {
        /// Absolute path of the kernel, as bytes; none: an image.
        [1] kernel: Option<Vec<u8>>,
        /// Name of the image; none: a kernel.
        [2] image: Option<String>,
        /// Absolute path of the initial RAM disk, as bytes.
        [3] initrd: Option<Vec<u8>>,
        /// The user's words.
        [4] cmdline: String,
    }
}

record! {
    /// A machine's configuration.
    pub struct ConfigurationV1 {
        /// For people.
        [1] name: String,
        /// For programs.
        [2] uuid: [u8; 16],
        /// vCPUs.
        [3] cpus: u8,
        /// Guest memory.
        [4] memory_bytes: u64,
        /// As `--cpu` takes it.
        [5] cpu: String,
        /// In the order of `vda`, `vdb`, ...
        [6] disks: Vec<DiskConfigV1>,
        /// In order.
        [7] nets: Vec<NetConfigV1>,
        /// Where the serial port went, as `--serial` takes it.
        [8] serial: String,
        /// Where the virtio console went, as `--console` takes it.
        [9] console: String,
        /// What a reset boots; none: it ends the process.
        [10] boot: Option<BootConfigV1>,
        /// A reset ends the process.
        [11] no_reboot: bool,
        /// It has a balloon; without an answer none.
        [12] balloon: Option<bool>,
    }
}

/// Why a file's configuration can't be used.
#[derive(Debug, Error)]
pub enum ConfigurationError {
    /// Not a record of this kind.
    #[error("the machine's configuration in it can not be read")]
    Record(#[from] DecodeError),
    /// A text that isn't what it should be.
    #[error("the machine's configuration in it says {field} {text:?}, which is none")]
    Text {
        /// Which field.
        field: &'static str,
        /// What it says.
        text: String,
    },
    /// No machine.
    #[error("the machine's configuration in it is not legal")]
    Config(#[from] ConfigError),
}

/// The record of a machine's configuration.
pub fn encode(config: &VmConfig) -> Vec<u8> {
    let disk = |disk: &DiskConfig| DiskConfigV1 { path: bytes_of(&disk.path), readonly: disk.readonly };
    let net = |net: &NetConfig| NetConfigV1 { tap: net.tap.clone(), mac: net.mac.0 };
    encode_record(&ConfigurationV1 {
        name: config.name.clone(),
        uuid: config.uuid.into_bytes(),
        cpus: config.cpus,
        memory_bytes: config.memory_bytes,
        cpu: config.cpu.to_string(),
        disks: config.disks.iter().map(disk).collect(),
        nets: config.nets.iter().map(net).collect(),
        serial: config.serial.to_string(),
        console: config.console.to_string(),
        boot: config.boot.as_ref().map(boot_record),
        no_reboot: config.no_reboot,
        balloon: config.balloon.then_some(true),
    })
}

/// The machine of a record: built anew it takes the guest. It waits for one, has no control socket, and its ports go
/// where they went, even to another process's socket: [`own_ports`] mends that.
///
/// # Errors
/// Bytes that are no record, or a machine that can't be.
pub fn decode(bytes: &[u8]) -> Result<VmConfig, ConfigurationError> {
    let saved: ConfigurationV1 = decode_record(bytes)?;
    let text = |field, text: &str| ConfigurationError::Text { field, text: text.to_owned() };
    let port = |field, given: &str| given.parse::<SerialConfig>().map_err(|_| text(field, given));
    let disk = |disk: DiskConfigV1| DiskConfig { path: path_of(disk.path), readonly: disk.readonly };
    // Not `mac_given`: the guest's own address, in its state, is the one that counts.
    let net = |net: NetConfigV1| NetConfig { tap: net.tap, mac: MacAddress(net.mac), mac_given: false };
    Ok(VmConfig {
        name: saved.name,
        uuid: Uuid::from_bytes(saved.uuid),
        cpus: saved.cpus,
        cpu: CpuModel::from_saved(&saved.cpu).map_err(|_| text("cpu", &saved.cpu))?,
        disks: saved.disks.into_iter().map(disk).collect(),
        nets: saved.nets.into_iter().map(net).collect(),
        serial: port("serial", &saved.serial)?,
        console: port("console", &saved.console)?,
        boot: saved.boot.map(|boot| boot_of(boot, &text)).transpose()?,
        no_reboot: saved.no_reboot,
        balloon: saved.balloon.unwrap_or(false),
        ..VmConfig::new(saved.memory_bytes)
    })
}

/// Ports that other processes may have too go nowhere. Returns where they went.
pub fn own_ports(config: &mut VmConfig) -> Vec<(&'static str, SerialConfig)> {
    let mut left = Vec::new();
    for (flag, port) in [("--serial", &mut config.serial), ("--console", &mut config.console)] {
        if matches!(port, SerialConfig::File(_) | SerialConfig::Unix(_)) {
            left.push((flag, std::mem::replace(port, SerialConfig::Null)));
        }
    }
    left
}

fn boot_record(boot: &BootConfig) -> BootConfigV1 {
    let (kernel, image) = match &boot.kernel {
        KernelSource::File(path) => (Some(bytes_of(path)), None),
        KernelSource::Image(name) => (None, Some(name.clone())),
    };
    let initrd = boot.initrd.as_deref().map(bytes_of);
    BootConfigV1 { kernel, image, initrd, cmdline: boot.cmdline.clone() }
}

fn boot_of(
    saved: BootConfigV1,
    text: &impl Fn(&'static str, &str) -> ConfigurationError,
) -> Result<BootConfig, ConfigurationError> {
    let BootConfigV1 { kernel, image, initrd, cmdline } = saved;
    let kernel = match (kernel, image) {
        (Some(path), None) => KernelSource::File(path_of(path)),
        (None, Some(name)) => KernelSource::Image(name),
        _ => return Err(text("boot", "a kernel and an image, or neither")),
    };
    Ok(BootConfig { kernel, initrd: initrd.map(path_of), cmdline })
}

/// Absolute: a restore happens in another folder.
fn bytes_of(path: &Path) -> Vec<u8> {
    let path = std::path::absolute(path).unwrap_or_else(|_| path.to_owned());
    path.as_os_str().as_bytes().to_vec()
}

fn path_of(bytes: Vec<u8>) -> PathBuf {
    OsString::from_vec(bytes).into()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn full() -> VmConfig {
        let kernel = KernelSource::File("/boot/vmlinux".into());
        let boot = BootConfig { kernel, initrd: Some("/boot/initrd".into()), cmdline: "quiet".into() };
        let odd = OsString::from_vec(b"/disks/\xff.img".to_vec());
        VmConfig {
            name: "web".into(),
            cpus: 3,
            cpu: CpuModel::Profile("x86-64-v2".into()),
            boot: Some(boot),
            disks: vec![DiskConfig { path: odd.into(), readonly: true }],
            nets: vec![NetConfig { tap: "t0".into(), mac: MacAddress([2; 6]), mac_given: false }],
            serial: SerialConfig::Unix("/tmp/a".into()),
            console: SerialConfig::Stdio,
            no_reboot: true,
            ..VmConfig::new(3 << 30)
        }
    }

    #[test]
    fn a_machine_comes_back_as_it_was() {
        let config = full();
        let mut back = decode(&encode(&config)).unwrap();
        back.generation_id = config.generation_id;
        assert_eq!(back, config);
        assert_eq!(own_ports(&mut back), [("--serial", SerialConfig::Unix("/tmp/a".into()))]);
        assert_eq!((back.serial, back.console), (SerialConfig::Null, SerialConfig::Stdio));
        let image =
            BootConfig { kernel: KernelSource::Image("pulse".into()), initrd: None, cmdline: String::new() };
        let config = VmConfig { boot: Some(image), ..VmConfig::new(64 << 20) };
        assert_eq!(decode(&encode(&config)).unwrap().boot, config.boot);
    }

    #[test]
    fn paths_are_told_in_full() {
        let disks = vec![DiskConfig { path: "a.img".into(), readonly: false }];
        let back = decode(&encode(&VmConfig { disks, ..VmConfig::new(64 << 20) })).unwrap();
        assert_eq!(back.disks[0].path, std::env::current_dir().unwrap().join("a.img"));
    }

    proptest! {
        #[test]
        fn any_bytes_are_answered(bytes in prop::collection::vec(any::<u8>(), 0..200), at: usize, bit in 0u8..8) {
            let _ = decode(&bytes);
            let mut damaged = encode(&full());
            let at = at % damaged.len();
            damaged[at] ^= 1 << bit;
            let _ = decode(&damaged);
        }
    }
}
