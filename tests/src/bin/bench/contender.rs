//! The two VMMs as processes: the same machine, started by each one's own command line, and measured from outside.

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use serde_json::json;
use tempfile::TempDir;
use tern_tests::Qmp;
use tern_tests::limit::wait_for;
use tern_tests::spawn::spawn;

/// Which VMM.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Vmm {
    /// This project's.
    Tern,
    /// `-M microvm`.
    Qemu,
}

/// The order in which they take turns.
pub const BOTH: [Vmm; 2] = [Vmm::Tern, Vmm::Qemu];

/// Where the programs are.
#[derive(Debug, Clone)]
pub struct Programs {
    /// Release build.
    pub tern: PathBuf,
    /// `qemu-system-x86_64`.
    pub qemu: PathBuf,
}

/// A machine that both can run.
#[derive(Debug, Clone)]
pub struct Machine {
    /// An ELF file with a PVH note. None: QEMU runs `firmware`.
    pub kernel: Option<PathBuf>,
    /// In place of QEMU's own firmware.
    pub firmware: Option<PathBuf>,
    /// Initial RAM disk.
    pub initrd: Option<PathBuf>,
    /// Kernel command line.
    pub cmdline: String,
    /// Guest memory.
    pub memory_mib: u64,
}

/// What a process is started for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Role {
    Boot,
    Await,
}

impl Machine {
    /// pulse with this command line in 1 GiB.
    pub fn pulse(kernel: &Path, cmdline: &str) -> Self {
        let (firmware, initrd) = (None, None);
        Self {
            kernel: Some(kernel.to_owned()),
            firmware,
            initrd,
            cmdline: cmdline.to_owned(),
            memory_mib: 1024,
        }
    }

    /// The command line without serial port and control socket: what start-up needs and no more.
    pub fn command(&self, vmm: Vmm, programs: &Programs) -> Command {
        match vmm {
            Vmm::Tern => self.tern(programs, Role::Boot),
            Vmm::Qemu => self.qemu(programs, Role::Boot),
        }
    }

    fn tern(&self, programs: &Programs, role: Role) -> Command {
        let mut command = Command::new(&programs.tern);
        command.args(["run", "--memory", &format!("{}M", self.memory_mib)]);
        if role == Role::Await {
            command.args(["--incoming", "defer"]);
            return command;
        }
        if let Some(kernel) = &self.kernel {
            command.arg("--kernel").arg(kernel).args(["--cmdline", &self.cmdline]);
        }
        if let Some(initrd) = &self.initrd {
            command.arg("--initrd").arg(initrd);
        }
        command
    }

    /// No devices but those of microvm itself, and those at their smallest: what tern has, too.
    fn qemu(&self, programs: &Programs, role: Role) -> Command {
        let mut command = Command::new(&programs.qemu);
        let memory = self.memory_mib.to_string();
        command.args(["-M", "microvm", "-enable-kvm", "-cpu", "host", "-smp", "1", "-m", &memory]);
        command.args(["-nodefaults", "-no-user-config", "-display", "none", "-no-reboot"]);
        if let Some(firmware) = &self.firmware {
            command.arg("-bios").arg(firmware);
        }
        if let Some(kernel) = &self.kernel {
            command.arg("-kernel").arg(kernel).args(["-append", &self.cmdline]);
        }
        if let Some(initrd) = &self.initrd {
            command.arg("-initrd").arg(initrd);
        }
        if role == Role::Await {
            command.args(["-incoming", "defer"]);
        }
        command
    }

    /// Starts it, and waits until its control socket answers.
    pub fn boot(&self, vmm: Vmm, programs: &Programs) -> io::Result<Process> {
        Process::start(self.command(vmm, programs), vmm)
    }

    /// Starts the same machine as a destination: it waits to be told where to listen.
    pub fn await_guest(&self, vmm: Vmm, programs: &Programs) -> io::Result<Process> {
        let command = match vmm {
            Vmm::Tern => self.tern(programs, Role::Await),
            Vmm::Qemu => self.qemu(programs, Role::Await),
        };
        Process::start(command, vmm)
    }
}

/// A running VMM, with its guest's serial port in a file and a control socket. Ended when dropped.
#[derive(Debug)]
pub struct Process {
    child: Child,
    folder: TempDir,
}

impl Process {
    fn start(mut command: Command, vmm: Vmm) -> io::Result<Self> {
        let folder = tempfile::Builder::new().prefix("tern-bench").tempdir()?;
        let (serial, control) = (folder.path().join("serial"), folder.path().join("control"));
        let serial_to = format!("file:{}", serial.display());
        match vmm {
            Vmm::Tern => command.args(["--serial", &serial_to]).arg("--control").arg(&control),
            Vmm::Qemu => {
                let qmp = format!("unix:{},server=on,wait=off", control.display());
                command.args(["-monitor", "none", "-serial", &serial_to, "-qmp", &qmp])
            }
        };
        let stderr = File::create(folder.path().join("stderr"))?;
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(stderr);
        let mut process = Self { child: spawn(command)?, folder };
        wait_for("a control socket", || {
            if let Ok(Some(status)) = process.child.try_wait() {
                return Some(Err(io::Error::other(format!(
                    "{vmm:?} ended with {status}: {}",
                    process.stderr()
                ))));
            }
            Qmp::try_connect(&control).map(|_| Ok(()))
        })?;
        Ok(process)
    }

    /// Number of the process.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// A new connection to its control socket.
    pub fn qmp(&self) -> Qmp {
        Qmp::connect(&self.folder.path().join("control"))
    }

    /// Tells a process that waits for a guest where to listen.
    pub fn listen(&self, uri: &str) {
        self.qmp().execute("migrate-incoming", json!({ "uri": uri }));
    }

    /// A path for a socket in its folder.
    pub fn socket(&self) -> PathBuf {
        self.folder.path().join("incoming")
    }

    /// What its guest has printed in this process.
    pub fn serial(&self) -> Vec<u8> {
        std::fs::read(self.folder.path().join("serial")).unwrap_or_default()
    }

    fn stderr(&self) -> String {
        let bytes = std::fs::read(self.folder.path().join("stderr")).unwrap_or_default();
        String::from_utf8_lossy(&bytes).trim().to_owned()
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // It may have ended by itself, which is as good.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
