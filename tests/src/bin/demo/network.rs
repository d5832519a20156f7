//! The demo's networks, all in namespaces of its own: the host's are never touched.
//!
//! ```text
//! one host                               two hosts (--hosts 2)
//!
//!   10.7.0.1 client                        10.7.0.1 client
//!        br0                                    br0
//!    tap-a  tap-b                          port-a    port-b
//!      |      |                              |         |        veth
//!   source  destination               10.7.0.11 br0  br0 10.7.0.12
//!                                          tap-a       tap-b
//!                                            |           |
//!                                         source     destination
//! ```

use std::io::Write;
use std::process::{Command, Stdio};

use crate::Result;
use crate::sandbox::{Namespace, spawn};

/// Where the guest listens.
pub const GUEST: &str = "10.7.0.100";

/// Where the two tern processes run, and the client.
#[derive(Debug)]
pub struct Network {
    home: Namespace,
    hosts: Vec<Namespace>,
}

/// The ends of a migration.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    Source,
    Destination,
}

impl End {
    pub fn name(self) -> &'static str {
        match self {
            Self::Source => "source",
            Self::Destination => "destination",
        }
    }

    /// The TAP interface of the guest there.
    pub fn tap(self) -> &'static str {
        match self {
            Self::Source => "tap-a",
            Self::Destination => "tap-b",
        }
    }
}

impl Network {
    /// A network with one or two hosts.
    pub fn new(home: Namespace, hosts: u8) -> Result<Self> {
        let mut network = Self { home, hosts: Vec::new() };
        ip(&network.home, &[bridge("10.7.0.1"), "link set lo up".to_owned()].join("\n"))?;
        if hosts == 1 {
            ip(&network.home, &[tap(End::Source), tap(End::Destination)].join("\n"))?;
            return Ok(network);
        }
        for (end, address) in [(End::Source, "10.7.0.11"), (End::Destination, "10.7.0.12")] {
            let (host, port) = (Namespace::another(&network.home)?, end.tap().replace("tap", "port"));
            let cable = format!(
                "link add {port} type veth peer name uplink netns {}\nlink set {port} master br0 up",
                host.path()
            );
            ip(&network.home, &cable)?;
            let inside =
                [bridge(address), "link set lo up\nlink set uplink master br0 up".to_owned(), tap(end)];
            ip(&host, &inside.join("\n"))?;
            network.hosts.push(host);
        }
        Ok(network)
    }

    /// The network that this end's process runs in.
    pub fn of(&self, end: End) -> &Namespace {
        self.hosts.get(end as usize).unwrap_or(&self.home)
    }

    /// The destination's address, if it is another host than the source's.
    pub fn destination_name(&self) -> Option<&'static str> {
        (!self.hosts.is_empty()).then_some("10.7.0.12")
    }

    /// Where the destination listens; no other process is in these namespaces, so the port is free.
    pub fn migration_uri(&self) -> &'static str {
        if self.hosts.is_empty() { "tcp:127.0.0.1:4444" } else { "tcp:10.7.0.12:4444" }
    }
}

/// A bridge that forwards at once.
fn bridge(address: &str) -> String {
    format!("link add br0 type bridge forward_delay 0\naddr add {address}/24 dev br0\nlink set br0 up")
}

fn tap(end: End) -> String {
    let name = end.tap();
    format!("tuntap add dev {name} mode tap\nlink set {name} master br0 up")
}

/// Runs lines of `ip` in a namespace.
fn ip(namespace: &Namespace, lines: &str) -> Result<()> {
    // Ordinary users often lack the directories that ip lives in.
    let path = std::env::var("PATH").unwrap_or_default() + ":/usr/sbin:/sbin";
    let mut command = Command::new("ip");
    command.args(["-batch", "-"]).env("PATH", path).stdin(Stdio::piped()).stderr(Stdio::piped());
    let mut child = spawn(&mut command, Some(namespace)).map_err(|error| format!("can't run ip: {error}"))?;
    if let Some(mut stdin) = child.stdin.take() {
        stdin.write_all(lines.as_bytes())?;
    }
    let output = child.wait_with_output()?;
    if output.status.success() {
        return Ok(());
    }
    Err(format!("ip: {}\nfor:\n{lines}", String::from_utf8_lossy(&output.stderr).trim_end()).into())
}
