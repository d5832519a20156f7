//! The configuration of a machine, as data: what `tern run` was asked for, checked for itself but not yet
//! against this host.

mod dirty_log;
mod forms;
mod mac;
mod memory;
mod restore;
mod size;

use std::fmt::Display;
use std::path::PathBuf;

use serde::{Serialize, Serializer};
use serde_json::{Map, Value};
use thiserror::Error;
use uuid::Uuid;

pub use dirty_log::DirtyLogConfig;
pub use forms::{CpuModel, DiskConfig, FormError, Incoming, NetForm, SerialConfig, check_uri};
pub use mac::{MacAddress, MacError};
pub use memory::{MemoryBacking, MemoryForm, MemoryKind};
pub use restore::{RestoreConfig, RestoreMode};
pub use size::{ByteSize, SizeError};

use crate::layout::{self, VirtioSlot};

/// Most vCPUs of a machine: beyond, neither boot nor migration has been tried.
pub const CPU_LIMIT: u8 = 32;
/// Most guest memory: half of what one KVM memory slot can hold (2^31 pages).
pub const MEMORY_LIMIT_BYTES: u64 = 4 << 40;
/// The name of a machine that was given none.
pub const DEFAULT_NAME: &str = "tern";
/// Longest name of a machine: a file name's.
pub const NAME_LIMIT_BYTES: usize = 255;

/// A machine to run.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct VmConfig {
    /// For people; it also gives the network addresses.
    pub name: String,
    /// For programs. A destination takes over the source's.
    #[serde(serialize_with = "as_text")]
    pub uuid: Uuid,
    /// The VM generation ID with which the guest boots. It stays when the guest resets its machine.
    #[serde(serialize_with = "as_text")]
    pub generation_id: Uuid,
    /// vCPUs, 1 to [`CPU_LIMIT`].
    pub cpus: u8,
    /// Guest memory, a multiple of 4096.
    pub memory_bytes: u64,
    /// What it is on this host.
    pub memory_kind: MemoryKind,
    /// The guest tells which of it is free, and the host takes that.
    pub balloon: bool,
    /// What to boot; none in a process that waits for a guest.
    pub boot: Option<BootConfig>,
    /// Disks, in the order of `vda`, `vdb`, ...
    pub disks: Vec<DiskConfig>,
    /// Network interfaces.
    pub nets: Vec<NetConfig>,
    /// Where the serial port goes.
    pub serial: SerialConfig,
    /// Where the virtio console goes.
    pub console: SerialConfig,
    /// Path of the control socket.
    pub control: Option<PathBuf>,
    /// Wait for a guest instead of booting one.
    pub incoming: Option<Incoming>,
    /// Parameters of that guest's migration, by name.
    pub awaited: Map<String, Value>,
    /// Which CPU the guest sees.
    pub cpu: CpuModel,
    /// How the pages that it writes are found.
    pub dirty_log: DirtyLogConfig,
    /// Boot into a stopped machine: `cont` starts it.
    pub paused: bool,
    /// End when the guest resets its machine, instead of starting it anew.
    pub no_reboot: bool,
}

/// What to boot.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct BootConfig {
    /// The kernel, from a file or by an image's name.
    pub kernel: KernelSource,
    /// The initial RAM disk; with an image, in place of the image's own.
    pub initrd: Option<PathBuf>,
    /// The user's words, which win over tern's.
    pub cmdline: String,
}

/// Where the kernel comes from.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum KernelSource {
    /// An ELF `vmlinux` or a bzImage.
    File(PathBuf),
    /// One of `tern image list`.
    Image(String),
}

/// A network interface.
///
/// The address: what `mac=` says; else derived from the machine's name, so that a source and a destination of
/// the same name agree; else, for a machine without a name, from its random UUID, so that two of them on one
/// bridge don't clash. The address travels in the device's state, and a destination that was not told one
/// (`mac_given` is false) takes it from there.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct NetConfig {
    /// Name of the host's TAP interface.
    pub tap: String,
    /// The guest's address.
    #[serde(serialize_with = "as_text")]
    pub mac: MacAddress,
    /// The address was given, not derived: a migration that brings another must be refused.
    pub mac_given: bool,
}

fn as_text<T: Display, S: Serializer>(value: &T, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(value)
}

impl NetConfig {
    /// Interfaces with addresses, from what the command line says. `name` is none where none was given.
    pub fn resolve(forms: Vec<NetForm>, name: Option<&str>, uuid: Uuid) -> Vec<Self> {
        let identity = name.map_or_else(|| uuid.to_string(), str::to_owned);
        let resolve = |(index, form): (usize, NetForm)| {
            let mac = form.mac.unwrap_or_else(|| MacAddress::derived(&identity, index));
            Self { tap: form.tap, mac, mac_given: form.mac.is_some() }
        };
        forms.into_iter().enumerate().map(resolve).collect()
    }
}

/// A virtio device that the configuration asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum VirtioDevice {
    /// Entropy. Every machine has one.
    Rng,
    /// The virtio console. Every machine has one.
    Console,
    /// `disks[n]`.
    Disk(usize),
    /// `nets[n]`.
    Net(usize),
    /// The balloon, if there is to be one.
    Balloon,
}

/// Why a configuration can't be run anywhere.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum ConfigError {
    /// Number of vCPUs.
    #[error("--cpus {given}: a machine has 1 to {CPU_LIMIT} vCPUs")]
    Cpus {
        /// What was asked for.
        given: u64,
    },
    /// Memory of a file's guest is what the way of restoring makes it.
    #[error(
        "--memory: backing= and thp= are not for a guest from a file, whose memory is as `tern restore --mode` says"
    )]
    MemoryKind,
    /// Too little or too much memory.
    #[error("--memory {}: legal is {least} to {most}", given.exact())]
    Memory {
        /// What was asked for.
        given: ByteSize,
        /// Lower limit, for people.
        least: ByteSize,
        /// Upper limit, for people.
        most: ByteSize,
    },
    /// Memory that isn't whole pages.
    #[error("--memory {} is not a multiple of 4096: the next smaller is {below_bytes}", given.exact())]
    MemoryPages {
        /// What was asked for.
        given: ByteSize,
        /// What would do.
        below_bytes: u64,
    },
    /// Nothing to boot.
    #[error("nothing to boot: give --kernel FILE or --image NAME, or --incoming to wait for a guest")]
    NoKernel,
    /// More devices than interrupt lines.
    #[error("{given} disks and networks: a machine has room for {room}; give fewer --disk and --net")]
    Devices {
        /// What was asked for.
        given: usize,
        /// What there is room for.
        room: usize,
    },
    /// A waiting process without a way to tell it where to listen.
    #[error("--incoming defer without --control: give --control PATH, or --incoming tcp:HOST:PORT")]
    DeferWithoutControl,
    /// A name that breaks tables and file names.
    #[error("--name {given:?}: a name has 1 to {NAME_LIMIT_BYTES} bytes, without control characters")]
    Name {
        /// What was given.
        given: String,
    },
    /// One terminal for two ports.
    #[error(
        "--serial stdio and --console stdio: there is one terminal; give one of them file:PATH, unix:PATH or null"
    )]
    TerminalTwice,
    /// The same TAP twice.
    #[error("--net tap={tap} is given twice: each interface needs a TAP of its own")]
    TapTwice {
        /// Its name.
        tap: String,
    },
}

impl VmConfig {
    /// A machine with 1 vCPU, no devices beyond the standard ones, and nothing to boot.
    pub fn new(memory_bytes: u64) -> Self {
        Self {
            name: DEFAULT_NAME.to_owned(),
            uuid: Uuid::new_v4(),
            generation_id: Uuid::new_v4(),
            cpus: 1,
            memory_bytes,
            memory_kind: MemoryKind::default(),
            balloon: false,
            boot: None,
            disks: Vec::new(),
            nets: Vec::new(),
            serial: SerialConfig::default(),
            console: SerialConfig::Null,
            control: None,
            incoming: None,
            awaited: Map::new(),
            cpu: CpuModel::default(),
            dirty_log: DirtyLogConfig::default(),
            paused: false,
            no_reboot: false,
        }
    }

    /// Is this a machine at all? Says nothing about this host: files and interfaces are looked at when used.
    ///
    /// # Errors
    /// The first [`ConfigError`] found.
    pub fn check(&self) -> Result<(), ConfigError> {
        if self.name.is_empty() || self.name.len() > NAME_LIMIT_BYTES || self.name.contains(char::is_control)
        {
            return Err(ConfigError::Name { given: self.name.clone() });
        }
        if self.cpus == 0 || self.cpus > CPU_LIMIT {
            return Err(ConfigError::Cpus { given: self.cpus.into() });
        }
        self.check_memory()?;
        self.check_devices()?;
        if self.serial == SerialConfig::Stdio && self.console == SerialConfig::Stdio {
            return Err(ConfigError::TerminalTwice);
        }
        match &self.incoming {
            None if self.boot.is_none() => Err(ConfigError::NoKernel),
            Some(Incoming::Defer) if self.control.is_none() => Err(ConfigError::DeferWithoutControl),
            Some(Incoming::File(_)) if self.memory_kind != MemoryKind::default() => {
                Err(ConfigError::MemoryKind)
            }
            _ => Ok(()),
        }
    }

    fn check_memory(&self) -> Result<(), ConfigError> {
        let given = ByteSize(self.memory_bytes);
        if !(layout::MIN_MEMORY_BYTES..=MEMORY_LIMIT_BYTES).contains(&given.0) {
            let (least, most) = (ByteSize(layout::MIN_MEMORY_BYTES), ByteSize(MEMORY_LIMIT_BYTES));
            return Err(ConfigError::Memory { given, least, most });
        }
        let below_bytes = given.0 / layout::PAGE_BYTES * layout::PAGE_BYTES;
        if below_bytes != given.0 {
            return Err(ConfigError::MemoryPages { given, below_bytes });
        }
        Ok(())
    }

    fn check_devices(&self) -> Result<(), ConfigError> {
        let given = self.disks.len() + self.nets.len();
        let standard = self.virtio_devices().len() - given;
        let room = layout::VIRTIO_GSIS.len() - standard;
        if given > room {
            return Err(ConfigError::Devices { given, room });
        }
        for (index, net) in self.nets.iter().enumerate() {
            if self.nets[..index].iter().any(|other| other.tap == net.tap) {
                return Err(ConfigError::TapTwice { tap: net.tap.clone() });
            }
        }
        Ok(())
    }

    /// The virtio devices in the order of their slots. The standard ones come first: disks and networks that
    /// are added later move no other.
    pub fn virtio_devices(&self) -> Vec<VirtioDevice> {
        let disks = (0..self.disks.len()).map(VirtioDevice::Disk);
        let nets = (0..self.nets.len()).map(VirtioDevice::Net);
        let balloon = self.balloon.then_some(VirtioDevice::Balloon);
        [VirtioDevice::Rng, VirtioDevice::Console]
            .into_iter()
            .chain(disks)
            .chain(nets)
            .chain(balloon)
            .collect()
    }

    /// Each virtio device with its place. Of a checked configuration, all have one.
    pub fn virtio_slots(&self) -> Vec<(VirtioDevice, VirtioSlot)> {
        let place = |(index, device)| layout::virtio_slot(index).map(|slot| (device, slot));
        self.virtio_devices().into_iter().enumerate().filter_map(place).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn machine() -> VmConfig {
        let kernel = KernelSource::Image("pulse".into());
        let boot = Some(BootConfig { kernel, initrd: None, cmdline: String::new() });
        VmConfig { boot, ..VmConfig::new(64 << 20) }
    }

    #[test]
    fn a_plain_machine_is_legal() {
        assert_eq!(machine().check(), Ok(()));
    }

    #[test]
    fn errors_name_the_flag_both_values_and_the_remedy() {
        let cases = [
            (VmConfig { cpus: 0, ..machine() }, "--cpus 0: a machine has 1 to 32"),
            (VmConfig { cpus: 33, ..machine() }, "--cpus 33"),
            (
                VmConfig { memory_bytes: 4096, ..machine() },
                "--memory 4 KiB (4096 bytes): legal is 2 MiB to 4 TiB",
            ),
            (VmConfig { memory_bytes: (64 << 20) + 5, ..machine() }, "the next smaller is 67108864"),
            (VmConfig { boot: None, ..machine() }, "--kernel FILE or --image NAME, or --incoming"),
            (VmConfig { incoming: Some(Incoming::Defer), ..machine() }, "give --control PATH"),
            (VmConfig { name: String::new(), ..machine() }, "a name has 1 to 255 bytes"),
        ];
        for (config, expected) in cases {
            let text = config.check().unwrap_err().to_string();
            assert!(text.contains(expected), "{text}");
        }
    }

    #[test]
    fn devices_have_room_and_no_more() {
        let disk = DiskConfig { path: "d".into(), readonly: true };
        let full = VmConfig { disks: vec![disk.clone(); 15], ..machine() };
        assert_eq!(full.check(), Ok(()));
        assert_eq!(full.virtio_slots().len(), 17);
        let over = VmConfig { disks: vec![disk; 16], ..machine() };
        assert_eq!(over.check(), Err(ConfigError::Devices { given: 16, room: 15 }));
    }

    #[test]
    fn addresses_come_from_the_name_or_else_from_the_uuid() {
        let form = |mac| NetForm { tap: "t".into(), mac };
        let resolve = |name, uuid| NetConfig::resolve(vec![form(None), form(None)], name, uuid);
        let (one, two) = (Uuid::from_u128(1), Uuid::from_u128(2));
        assert_eq!(resolve(Some("web"), one), resolve(Some("web"), two));
        assert_ne!(resolve(None, one), resolve(None, two));
        assert_ne!(resolve(None, one)[0].mac, resolve(None, one)[1].mac);
        let given = NetConfig::resolve(vec![form(Some(MacAddress([2; 6])))], None, one);
        assert!(given[0].mac_given && given[0].mac == MacAddress([2; 6]));
    }

    #[test]
    fn the_same_tap_twice_is_refused() {
        let nets =
            NetConfig::resolve(vec!["tap=a".parse().unwrap(), "tap=a".parse().unwrap()], None, Uuid::nil());
        let config = VmConfig { nets, ..machine() };
        assert_eq!(config.check(), Err(ConfigError::TapTwice { tap: "a".into() }));
    }
}
