//! How a `tern run` or `tern restore` process is started.

use std::ffi::OsString;
use std::fs::File;
use std::net::TcpListener;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;

use serde_json::json;
use tempfile::TempDir;

use super::Tern;
use crate::binary::{tern_binary, tern_next_binary};
use crate::limit::wait_for;
use crate::qmp::Qmp;
use crate::serial::{Client, Serial};

pub(super) const CONTROL: &str = "control";
pub(super) const STDERR: &str = "stderr";
pub(super) const STDOUT: &str = "stdout";
pub(super) const SERIAL: &str = "serial";
const INCOMING: &str = "incoming";
/// Number of the descriptor that [`TernBuilder::inherits`].
pub const INHERITED: u32 = 7;

/// How a destination listens.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Incoming {
    /// On a unix socket in its own folder.
    Unix,
    /// On a free TCP port of 127.0.0.1.
    Tcp,
    /// Not yet: `migrate-incoming` will say where.
    Defer,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum SerialKind {
    File,
    Unix,
    Null,
}

/// The flags of a process that is to be started.
#[derive(Debug, Clone)]
pub struct TernBuilder {
    pub(super) boot: Vec<OsString>,
    pub(super) memory: String,
    pub(super) cpus: u32,
    pub(super) serial: SerialKind,
    incoming: Option<Incoming>,
    pub(super) file: Option<PathBuf>,
    pub(super) flags: Vec<OsString>,
    namespace: Option<String>,
    inside: Option<String>,
    inherited: Option<Arc<OwnedFd>>,
    log: Option<String>,
    pub(super) next: Option<String>,
}

impl Default for TernBuilder {
    fn default() -> Self {
        Self::new()
    }
}

impl TernBuilder {
    /// 64 MiB, one vCPU, serial port into a file, nothing to boot.
    pub fn new() -> Self {
        let (boot, flags) = (Vec::new(), Vec::new());
        Self {
            boot,
            memory: "64M".to_owned(),
            cpus: 1,
            serial: SerialKind::File,
            incoming: None,
            file: None,
            flags,
            namespace: None,
            inside: None,
            inherited: None,
            log: None,
            next: None,
        }
    }

    /// `--image NAME`.
    pub fn image(self, name: &str) -> Self {
        self.boot("--image", name)
    }

    /// `--kernel FILE`.
    pub fn kernel(self, path: &Path) -> Self {
        self.boot("--kernel", path)
    }

    /// `--initrd FILE`.
    pub fn initrd(self, path: &Path) -> Self {
        self.boot("--initrd", path)
    }

    /// `--cmdline STR`.
    pub fn cmdline(self, words: &str) -> Self {
        self.boot("--cmdline", words)
    }

    fn boot(mut self, flag: &str, value: impl Into<OsString>) -> Self {
        self.boot.extend([flag.into(), value.into()]);
        self
    }

    /// `--memory SIZE`.
    pub fn memory(mut self, size: &str) -> Self {
        size.clone_into(&mut self.memory);
        self
    }

    /// `--cpus N`.
    pub fn cpus(mut self, count: u32) -> Self {
        self.cpus = count;
        self
    }

    /// The serial port takes input, too.
    pub fn serial_unix(mut self) -> Self {
        self.serial = SerialKind::Unix;
        self
    }

    /// The serial port goes nowhere.
    pub fn serial_null(mut self) -> Self {
        self.serial = SerialKind::Null;
        self
    }

    /// `--disk FILE`.
    pub fn disk(self, path: &Path) -> Self {
        self.flag("--disk").flag(path)
    }

    /// `--net tap=NAME`.
    pub fn net(self, tap: &str) -> Self {
        self.flag("--net").flag(format!("tap={tap}"))
    }

    /// The process sees the network of this namespace.
    pub fn in_namespace(mut self, namespace: &crate::Namespace) -> Self {
        self.namespace = Some(namespace.name().to_owned());
        self
    }

    /// The process sees mounts of its own, which this shell script makes first (unshare(1), in a user namespace where
    /// it is not root).
    pub fn inside(mut self, script: &str) -> Self {
        self.inside = Some(script.to_owned());
        self
    }

    /// The process is started with this descriptor, as number [`INHERITED`].
    pub fn inherits(mut self, descriptor: OwnedFd) -> Self {
        self.inherited = Some(Arc::new(descriptor));
        self
    }

    /// What the process writes to its standard error, as `TERN_LOG` takes it.
    pub fn log(mut self, filter: &str) -> Self {
        self.log = Some(filter.to_owned());
        self
    }

    /// The process is `tern-next`, the stand-in for the next version, and its guest uses what `uses` names
    /// (`devices/src/next.rs`).
    pub fn next(mut self, uses: &str) -> Self {
        self.next = Some(uses.to_owned());
        self
    }

    /// Any other flag or value.
    pub fn flag(mut self, word: impl Into<OsString>) -> Self {
        self.flags.push(word.into());
        self
    }

    /// The same machine without a guest, for flags of its own that say where one comes from.
    pub fn receiver(mut self) -> Self {
        self.boot.clear();
        self
    }

    /// The same machine as a destination: it boots nothing and waits for a guest.
    pub fn incoming(mut self, how: Incoming) -> Self {
        self.boot.clear();
        self.incoming = Some(how);
        self
    }

    /// `tern restore FILE`: the machine is the file's, whatever else was said of it.
    pub fn restore(file: &Path) -> Self {
        Self { file: Some(file.to_owned()), ..Self::new() }
    }

    /// Starts a machine and, of the same flags, a destination for its guest.
    pub fn start_pair(self, how: Incoming) -> (Tern, Tern) {
        let destination = self.clone().incoming(how).start();
        (self.start(), destination)
    }

    /// Starts a process that is to end by itself, and waits until it does.
    pub fn start_to_end(self) -> Tern {
        let mut tern = self.spawn(folder());
        tern.wait_end();
        tern
    }

    /// Starts the process, and waits until it answers at its control socket.
    ///
    /// # Panics
    /// It ends before that; what it said is shown.
    pub fn start(self) -> Tern {
        let mut tern = self.spawn(folder());
        let control = tern.control();
        let mut qmp = wait_for(&format!("a control socket at {}", control.display()), || {
            assert!(!tern.has_ended(), "tern ended instead of starting: {:?}\n{}", tern.exit, tern.stderr());
            Qmp::try_connect(&control)
        });
        match self.incoming {
            Some(Incoming::Unix) => tern.uri = format!("unix:{}", tern.folder().join(INCOMING).display()),
            Some(Incoming::Tcp) => tern.uri = listen_on_free_port(&mut qmp),
            Some(Incoming::Defer) | None => {}
        }
        if self.serial == SerialKind::Unix {
            tern.serial = Serial::Unix(Client::connect(&tern.folder().join(SERIAL)));
        }
        tern
    }

    /// The program that the process runs.
    pub(super) fn program(&self) -> PathBuf {
        if self.next.is_some() { tern_next_binary() } else { tern_binary() }
    }

    pub(super) fn spawn(&self, folder: TempDir) -> Tern {
        let program = self.program();
        // Each becomes the program that it is told to run: the process is the same.
        let mut command = match (&self.namespace, &self.inside) {
            (None, None) if self.inherited.is_some() => {
                let mut command = Command::new("sh");
                let script = format!("exec \"$@\" {INHERITED}<&0 </dev/null");
                command.args(["-c", &script, "sh"]).arg(program);
                command
            }
            (None, None) => Command::new(program),
            (None, Some(script)) => {
                let mut command = Command::new("unshare");
                command.args(["-rm", "sh", "-ec", &format!("{script}\nexec \"$@\""), "sh"]).arg(program);
                command
            }
            (Some(name), _) => {
                let mut command = Command::new("ip");
                command.args(["netns", "exec", name]).arg(program);
                command
            }
        };
        let stdin = self.inherited.as_ref().map_or_else(Stdio::null, |descriptor| {
            let copy = descriptor.try_clone();
            Stdio::from(copy.unwrap_or_else(|error| panic!("a copy of a descriptor: {error}")))
        });
        command.args(self.arguments(folder.path())).stdin(stdin);
        if let Some(uses) = &self.next {
            command.env("TERN_NEXT_USES", uses);
        }
        if let Some(filter) = &self.log {
            command.env("TERN_LOG", filter).env("NO_COLOR", "1");
        }
        let file = |name| {
            let made = File::create(folder.path().join(name));
            Stdio::from(made.unwrap_or_else(|error| panic!("{name}: {error}")))
        };
        command.stdout(file(STDOUT)).stderr(file(STDERR));
        let child = crate::spawn::spawn(command).unwrap_or_else(|error| panic!("can't start tern: {error}"));
        let serial = match self.serial {
            SerialKind::File => Serial::File(folder.path().join(SERIAL)),
            SerialKind::Unix | SerialKind::Null => Serial::Null,
        };
        Tern { child, exit: None, folder, serial, uri: String::new() }
    }

    fn arguments(&self, folder: &Path) -> Vec<OsString> {
        let path = |kind: &str, name: &str| format!("{kind}{}", folder.join(name).display());
        let serial = match self.serial {
            SerialKind::File => path("file:", SERIAL),
            SerialKind::Unix => path("unix:", SERIAL),
            SerialKind::Null => "null".to_owned(),
        };
        let mut all: Vec<OsString> = match &self.file {
            None => {
                ["run", "--memory", &self.memory, "--cpus", &self.cpus.to_string()].map(OsString::from).into()
            }
            Some(file) => vec!["restore".into(), file.into()],
        };
        all.extend(["--serial", &serial, "--control", &path("", CONTROL)].map(OsString::from));
        all.extend(self.boot.iter().cloned());
        if let Some(how) = self.incoming {
            let uri = if how == Incoming::Unix { path("unix:", INCOMING) } else { "defer".to_owned() };
            all.extend(["--incoming".into(), uri.into()]);
        }
        all.extend(self.flags.iter().cloned());
        all
    }
}

pub(super) fn folder() -> TempDir {
    let folder = tempfile::Builder::new().prefix("tern-test").tempdir();
    folder.unwrap_or_else(|error| panic!("a temporary folder: {error}"))
}

/// Another process may take a port between its discovery and its use: then the next one.
fn listen_on_free_port(qmp: &mut Qmp) -> String {
    wait_for("a free TCP port", || {
        let found = TcpListener::bind("127.0.0.1:0").and_then(|listener| listener.local_addr());
        let uri = format!("tcp:{}", found.unwrap_or_else(|error| panic!("127.0.0.1: {error}")));
        match qmp.try_execute("migrate-incoming", json!({ "uri": uri })) {
            Ok(_) => Some(uri),
            Err(error) if error.to_string().contains("in use") => None,
            Err(error) => panic!("{uri}: {error}"),
        }
    })
}
