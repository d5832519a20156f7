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
    /// vCPUs.
    pub cpus: u32,
    /// What it has beside the least.
    pub devices: Option<Devices>,
    /// The network namespace in which it runs.
    pub namespace: Option<String>,
    /// tern's `TERN_LOG`.
    pub log: Option<&'static str>,
}

/// A disk, a network, entropy, and a second console.
#[derive(Debug, Clone)]
pub struct Devices {
    /// A raw file. Both sides of a migration have it.
    pub disk: PathBuf,
    /// In the machine's namespace; for the process in which the guest boots, and for the one to which it goes.
    pub taps: [&'static str; 2],
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
            cpus: 1,
            devices: None,
            namespace: None,
            log: None,
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
        let mut command = self.program(&programs.tern);
        if let Some(filter) = self.log {
            command.env("TERN_LOG", filter).env("NO_COLOR", "1");
        }
        command.args(["run", "--memory", &format!("{}M", self.memory_mib), "--cpus", &self.cpus.to_string()]);
        if let Some(devices) = &self.devices {
            // Entropy and a second console it always has.
            command.arg("--disk").arg(&devices.disk).args(["--net", &format!("tap={}", devices.tap(role))]);
        }
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
        let mut command = self.program(&programs.qemu);
        let (memory, cpus) = (self.memory_mib.to_string(), self.cpus.to_string());
        command.args(["-M", "microvm", "-enable-kvm", "-cpu", "host", "-smp", &cpus, "-m", &memory]);
        command.args(["-nodefaults", "-no-user-config", "-display", "none", "-no-reboot"]);
        if let Some(devices) = &self.devices {
            command.arg("-drive").arg(format!("if=none,id=disk,format=raw,file={}", devices.disk.display()));
            let tap = format!("tap,id=net,ifname={},script=no,downscript=no", devices.tap(role));
            command.args(["-device", "virtio-blk-device,drive=disk", "-netdev", &tap]);
            command.args(["-device", "virtio-net-device,netdev=net", "-device", "virtio-rng-device"]);
            command.args(["-device", "virtio-serial-device", "-chardev", "null,id=hvc0"]);
            command.args(["-device", "virtconsole,chardev=hvc0"]);
        }
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

    fn program(&self, program: &Path) -> Command {
        let Some(namespace) = &self.namespace else { return Command::new(program) };
        let mut command = Command::new("ip");
        // It becomes the program: the process has the same number.
        command.args(["netns", "exec", namespace]).arg(program);
        command
    }

    /// The command line that restores it from a file; `mode` is tern's. With the serial port on the standard output.
    pub fn restore(&self, vmm: Vmm, programs: &Programs, file: &Path, mode: &[&str]) -> Command {
        match vmm {
            Vmm::Tern => {
                let mut command = self.program(&programs.tern);
                command.arg("restore").arg(file).args(["--serial", "stdio"]).args(mode);
                command
            }
            Vmm::Qemu => {
                let mut command = self.qemu(programs, Role::Boot);
                command.args(["-serial", "stdio", "-global", "migration.mapped-ram=on", "-incoming"]);
                command.arg(format!("file:{}", file.display()));
                command
            }
        }
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

impl Devices {
    fn tap(&self, role: Role) -> &'static str {
        let [here, there] = self.taps;
        if role == Role::Boot { here } else { there }
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

    /// What the VMM itself has said.
    pub fn stderr(&self) -> String {
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
