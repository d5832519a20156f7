//! What a process opens once: `/dev/kvm`, the serial port's other end.

use std::fs::File;
use std::io;

use tern_devices::{BytePort, PortTarget};

use crate::config::{SerialConfig, VmConfig};
use crate::devices::Plugs;
use crate::host::{KvmKind, needs, open_kvm};
use crate::vm::Host;

use super::RunError;

/// This host, and the kernel words that it needs.
pub(super) struct Opened {
    pub(super) host: Host,
    pub(super) words: Vec<String>,
}

pub(super) fn host() -> Result<Opened, RunError> {
    let kvm = open_kvm()?;
    let kind = KvmKind::detect();
    let needs = needs(kind);
    Ok(Opened { host: Host { kvm, kind: kind.to_string(), hidden: needs.hidden }, words: needs.kernel_words })
}

/// The plugs of the machine that `config` describes.
pub(super) fn plugs(config: &VmConfig) -> Result<Plugs, RunError> {
    let given = format!("{:?}", config.serial);
    let serial = |source| RunError::Serial { given: given.clone(), source };
    let target = target(&config.serial).map_err(serial)?;
    let port = BytePort::new(target).map_err(serial)?;
    let console = BytePort::new(PortTarget::Null).map_err(serial)?;
    Plugs::new(port, console).map_err(|source| RunError::Host { what: "an eventfd can't be had", source })
}

fn target(config: &SerialConfig) -> io::Result<PortTarget> {
    Ok(match config {
        SerialConfig::Stdio => PortTarget::Stdio,
        SerialConfig::File(path) => PortTarget::File(File::create(path)?),
        SerialConfig::Unix(path) => PortTarget::Unix(std::os::unix::net::UnixListener::bind(path)?),
        SerialConfig::Null => PortTarget::Null,
    })
}
