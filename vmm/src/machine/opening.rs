//! What a process opens once: `/dev/kvm`, the serial port's other end.

use std::fs::File;
use std::io;

use kvm_ioctls::Kvm;
use tern_devices::{BytePort, PortTarget};

use crate::config::{SerialConfig, VmConfig};
use crate::devices::Plugs;
use crate::vm::Host;

use super::RunError;

/// This host, and the kernel words that it needs.
pub(super) struct Opened {
    pub(super) host: Host,
    pub(super) words: Vec<String>,
}

pub(super) fn host() -> Result<Opened, RunError> {
    let kvm = Kvm::new().map_err(|error| RunError::NoKvm {
        remedy: "/dev/kvm can't be opened".to_owned(),
        source: io::Error::from_raw_os_error(error.errno()),
    })?;
    let words = tern_guest_images::CMDLINE_INTERPRETED_RING0.split(' ').map(str::to_owned).collect();
    Ok(Opened { host: Host { kvm, kind: String::new(), hidden: Vec::new() }, words })
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
