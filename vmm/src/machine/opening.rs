//! What a process opens once: `/dev/kvm`, the serial port's other end.

use std::fs::File;
use std::io::{self, IsTerminal};
use std::sync::Arc;

use tern_devices::{BytePort, PortTarget};

use crate::cli::RawMode;
use crate::config::{SerialConfig, VmConfig};
use crate::control::ListeningSocket;
use crate::devices::Plugs;
use crate::host::{KvmKind, needs, open_kvm};
use crate::vm::{BuildError, Host};

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

/// What outlives the machines of this process, and is put back in order at its end.
pub(super) struct Ends {
    pub(super) plugs: Plugs,
    /// Their files go away with them.
    _sockets: Vec<ListeningSocket>,
    /// The terminal becomes again what it was.
    _terminal: Option<RawMode>,
}

/// The plugs of the machine that `config` describes.
pub(super) fn ends(config: &VmConfig) -> Result<Ends, RunError> {
    let mut sockets = Vec::new();
    let serial = port("--serial", &config.serial, &mut sockets)?;
    let console = port("--console", &config.console, &mut sockets)?;
    let plugs = Plugs::new(config, serial, console).map_err(BuildError::from)?;
    let on_terminal = [&config.serial, &config.console].contains(&&SerialConfig::Stdio);
    // A process in the background may not touch the terminal, and a pipe has no modes.
    let terminal = if on_terminal && owns_terminal() { RawMode::enter(&io::stdin()).ok() } else { None };
    if terminal.is_some() {
        crate::cli::tell("tern: this terminal is the guest's; Ctrl-] ends the machine");
    }
    Ok(Ends { plugs, _sockets: sockets, _terminal: terminal })
}

fn port(
    flag: &'static str,
    config: &SerialConfig,
    sockets: &mut Vec<ListeningSocket>,
) -> Result<Arc<BytePort>, RunError> {
    let failed = |source| RunError::Port { flag, given: config.to_string(), source };
    let target = match config {
        SerialConfig::Stdio => PortTarget::Stdio { escape: owns_terminal() },
        SerialConfig::File(path) => PortTarget::File(File::create(path).map_err(failed)?),
        SerialConfig::Unix(path) => {
            let socket = ListeningSocket::bind(path, flag)?;
            let listener = socket.listener().try_clone().map_err(failed)?;
            sockets.push(socket);
            PortTarget::Unix(listener)
        }
        SerialConfig::Null => PortTarget::Null,
    };
    BytePort::new(target).map_err(failed)
}

/// Is standard input a terminal, and this process in its foreground?
#[allow(unsafe_code, reason = "tcgetpgrp(3) and getpgrp(2) take and give integers")]
fn owns_terminal() -> bool {
    // SAFETY: neither touches memory of ours.
    let (foreground, own) = unsafe { (libc::tcgetpgrp(libc::STDIN_FILENO), libc::getpgrp()) };
    io::stdin().is_terminal() && foreground == own
}
