//! `tern run`: from flags to a machine.

use std::path::PathBuf;

use clap::Args;
use tern_migration::snapshot::SnapshotFile;
use uuid::Uuid;

use super::exit::Exit;
use super::incoming::IncomingArgs;
use super::plan::Plan;
use super::{Failure, advice, print_json};
use crate::config::{
    BootConfig, ByteSize, CPU_LIMIT, CpuModel, DEFAULT_NAME, DirtyLogConfig, DiskConfig, Incoming,
    KernelSource, MEMORY_LIMIT_BYTES, MemoryForm, NetConfig, NetForm, SerialConfig, VmConfig,
};
use crate::host;
use crate::layout;
use crate::machine::{self, ExitReason, RunError};

pub(super) const EXAMPLES: &str = "\
Examples:
  tern run --image pulse
  tern run --image linux --memory 1G --cpus 2 --control /tmp/a.sock
  tern run --image linux --memory 2G,backing=memfd,thp=on --control /tmp/a.sock
  tern run --kernel vmlinux --cmdline 'root=/dev/vda' --disk root.img --net tap=tern0
  tern run --memory 1G --cpus 2 --control /tmp/b.sock --incoming tcp:0.0.0.0:4444 --tls-creds /etc/tern/tls
  tern run --memory 1G --control /tmp/b.sock --incoming unix:/tmp/m.sock --known /var/snap/web.tern
  tern run --cpu ./both.json --image linux
  tern run --dirty-log ring,size=65536 --cpus 4 --image linux --control /tmp/a.sock

Network addresses: mac=.. if given, else derived from --name, else random. A guest that arrives keeps the \
address it had, unless mac=.. was given here and differs: then it is refused.";

/// Run a virtual machine, until its guest switches itself off or `tern stop` ends it
#[derive(Debug, Args)]
pub struct RunArgs {
    /// Kernel: an ELF vmlinux, or a bzImage
    #[arg(long, value_name = "FILE", conflicts_with = "image")]
    kernel: Option<PathBuf>,
    /// Guest image by name, in place of --kernel (`tern image list`)
    #[arg(long, value_name = "NAME")]
    image: Option<String>,
    /// Initial RAM disk
    #[arg(long, value_name = "FILE")]
    initrd: Option<PathBuf>,
    /// Kernel parameters; they win over those that tern adds
    #[arg(
        long,
        value_name = "STR",
        default_value = "",
        hide_default_value = true,
        allow_hyphen_values = true
    )]
    cmdline: String,
    #[arg(long, value_name = "N", help = format!("Virtual CPUs, 1 to {CPU_LIMIT}"), default_value_t = 1, value_parser = clap::value_parser!(u8).range(1..=i64::from(CPU_LIMIT)))]
    cpus: u8,
    #[arg(
        long,
        value_name = "SIZE[,backing=..][,thp=..]",
        help = memory_help(),
        default_value = "256M"
    )]
    memory: MemoryForm,
    /// Give the guest a balloon (virtio) by which it tells what of its memory is free: the host takes it, and a
    /// migration neither reads nor sends it
    #[arg(long)]
    balloon: bool,
    /// Disk: a raw file or block device; may be repeated (vda, vdb, ..)
    #[arg(long = "disk", value_name = "FILE[,readonly]")]
    disks: Vec<DiskConfig>,
    /// Network: a TAP interface of the host; may be repeated
    #[arg(long = "net", value_name = "tap=NAME[,mac=..]")]
    nets: Vec<NetForm>,
    /// Where the serial port goes: stdio, null, file:PATH or unix:PATH
    #[arg(long, value_name = "WHERE", default_value = "stdio")]
    serial: SerialConfig,
    /// Where the virtio console (hvc0) goes: the same forms
    #[arg(long, value_name = "WHERE", default_value = "null")]
    console: SerialConfig,
    /// Control socket (QMP) to make; the other commands of tern connect to it
    #[arg(long, value_name = "PATH")]
    control: Option<PathBuf>,
    /// Wait for a guest: defer (until migrate-incoming), tcp:HOST:PORT, unix:PATH or vsock::PORT; take it over the one
    /// connection that fd:NUMBER (an inherited socket) or exec:COMMAND (its input and output) is; or take it from
    /// file:PATH (see also `tern restore`). A kernel or image given too is booted when the guest that has come resets its
    /// machine
    #[arg(long, value_name = "WHERE", conflicts_with = "paused")]
    incoming: Option<Incoming>,
    #[command(flatten)]
    awaited: IncomingArgs,
    /// Name of the machine
    #[arg(long, value_name = "NAME")]
    name: Option<String>,
    /// UUID of the machine [default: random]
    #[arg(long, value_name = "UUID")]
    uuid: Option<Uuid>,
    /// VM generation ID of a guest that boots: a guest sees by it that it was restored from a file, which gives it a
    /// new one; moving it does not [default: random]
    #[arg(long, value_name = "UUID")]
    vm_generation_id: Option<Uuid>,
    /// CPU that the guest sees: host, a profile (tern cpu list), or a profile's file, such as ./both.json
    #[arg(long, value_name = "CPU", default_value = "host")]
    cpu: CpuModel,
    /// How written pages are found: bitmap, or ring[,size=ENTRIES] with a list for each vCPU, which tells how much
    /// each one writes. The guest doesn't see it, and source and destination may differ
    #[arg(long, value_name = "HOW", default_value = "bitmap")]
    dirty_log: DirtyLogConfig,
    /// Don't start the guest yet: `tern resume` does
    #[arg(long)]
    paused: bool,
    /// End the process when the guest resets its machine, in place of starting it anew
    #[arg(long)]
    no_reboot: bool,
    /// Show what would be run, with everything that tern adds, and end; reads the kernel, and needs no /dev/kvm
    #[arg(long)]
    dry_run: bool,
    /// With --dry-run: as JSON
    #[arg(long, requires = "dry_run")]
    json: bool,
}

fn memory_help() -> String {
    let (least, most) = (ByteSize(layout::MIN_MEMORY_BYTES), ByteSize(MEMORY_LIMIT_BYTES));
    format!(
        "Guest memory, such as 512M, 2G or 1.5G; {least} to {most}. backing=anon (default), memfd, or hugetlbfs (huge \
         pages that the host has set aside); thp=on|off: transparent huge pages. The guest doesn't see any of it"
    )
}

impl RunArgs {
    /// The machine that the flags describe.
    fn config(self) -> VmConfig {
        let uuid = self.uuid.unwrap_or_else(Uuid::new_v4);
        let nets = NetConfig::resolve(self.nets, self.name.as_deref(), uuid);
        let kernel = self.kernel.map(KernelSource::File).or(self.image.map(KernelSource::Image));
        let (initrd, cmdline) = (self.initrd, self.cmdline);
        VmConfig {
            name: self.name.unwrap_or_else(|| DEFAULT_NAME.to_owned()),
            uuid,
            generation_id: self.vm_generation_id.unwrap_or_else(Uuid::new_v4),
            cpus: self.cpus,
            memory_bytes: self.memory.size.0,
            memory_kind: self.memory.kind,
            balloon: self.balloon,
            boot: kernel.map(|kernel| BootConfig { kernel, initrd, cmdline }),
            disks: self.disks,
            nets,
            serial: self.serial,
            console: self.console,
            control: self.control,
            incoming: self.incoming,
            awaited: self.awaited.parameters,
            cpu: self.cpu,
            dirty_log: self.dirty_log,
            paused: self.paused,
            no_reboot: self.no_reboot,
        }
    }
}

/// Runs a machine, or shows the plan.
pub(super) fn run(args: RunArgs) -> Result<Exit, Failure> {
    let (dry_run, json) = (args.dry_run, args.json);
    let config = args.config();
    config.check().map_err(|error| Failure::usage(&error))?;
    for line in advice::of(&config, host::memory_bytes()) {
        crate::cli::tell(&format!("tern: warning: {line}"));
    }
    if !dry_run {
        return launch(config, None);
    }
    let plan = Plan::of(&config).map_err(|error| Failure::new(error.as_ref()))?;
    if json { print_json(&plan) } else { super::print(&plan.to_string()) }
}

/// Runs the machine to its end. `snapshot`: the file that `config` names as the guest's, if it is open already.
pub(super) fn launch(config: VmConfig, snapshot: Option<SnapshotFile>) -> Result<Exit, Failure> {
    match machine::run(config, snapshot) {
        // However it was asked to end, it did.
        Ok(
            ExitReason::PowerOff
            | ExitReason::GuestReset
            | ExitReason::Quit
            | ExitReason::Signal(_)
            | ExitReason::Discarded,
        ) => Ok(Exit::Success),
        Err(error @ (RunError::Vcpu(_) | RunError::MemoryLost { .. })) => {
            Err(Failure::with(Exit::GuestFailed, &error))
        }
        Err(error) => Err(Failure::new(&error)),
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;
    use crate::config::MacAddress;

    #[derive(Parser)]
    struct Only {
        #[command(flatten)]
        args: RunArgs,
    }

    fn parse(line: &str) -> Result<VmConfig, String> {
        let words = std::iter::once("run").chain(line.split_whitespace());
        Only::try_parse_from(words).map(|only| only.args.config()).map_err(|error| error.to_string())
    }

    #[test]
    fn all_flags_arrive() {
        let line = "--kernel k --initrd i --cmdline quiet --cpus 4 --memory 1.5G --disk a --disk b,readonly \
                    --net tap=t0,mac=02:00:00:00:00:07 --serial unix:/s --control /c --name web --cpu small --dirty-log ring --paused";
        let config = parse(line).unwrap();
        let boot = config.boot.as_ref().unwrap();
        assert_eq!(boot.kernel, KernelSource::File("k".into()));
        assert_eq!((boot.initrd.as_deref(), boot.cmdline.as_str()), (Some("i".as_ref()), "quiet"));
        assert_eq!((config.cpus, config.memory_bytes), (4, 3 << 29));
        assert!(!config.disks[0].readonly && config.disks[1].readonly);
        assert_eq!(config.nets[0].mac, MacAddress([2, 0, 0, 0, 0, 7]));
        assert_eq!(config.serial, SerialConfig::Unix("/s".into()));
        assert_eq!(config.cpu, CpuModel::Profile("small".into()));
        assert_eq!((config.name.as_str(), config.paused), ("web", true));
        assert_eq!(config.dirty_log, "ring,size=16384".parse().unwrap());
        assert_eq!(config.check(), Ok(()));
    }

    #[test]
    fn a_destination_has_parameters_of_its_own() {
        let config = parse("--incoming tcp::0 --insecure --tls-allow host-a --tls-creds c").unwrap();
        let here = std::path::absolute("c").unwrap();
        let expected = serde_json::json!({ "insecure": true, "tls-allow": "host-a", "tls-creds": here });
        assert_eq!(serde_json::Value::Object(config.awaited), expected);
        assert!(parse("--image x --insecure").unwrap_err().contains("--incoming"));
        let config = parse("--incoming tcp::0 --known a --known /b").unwrap();
        let expected = format!("{},/b", std::path::absolute("a").unwrap().display());
        assert_eq!(config.awaited["known"], serde_json::json!(expected));
        assert!(parse("--incoming tcp::0 --known a,b").unwrap_err().contains("several times"));
        assert!(parse("--incoming tcp::0 --max-bandwidth 1M").is_err());
    }

    #[test]
    fn help_shows_the_ranges() {
        let help = parse("--help").unwrap_err();
        for range in ["1 to 32", "2 MiB to 4 TiB"] {
            assert!(help.contains(range), "no {range} in {help}");
        }
    }

    #[test]
    fn errors_name_the_flag_and_the_value() {
        for (line, expected) in [
            ("--image x --memory 12Q", ["'12Q'", "--memory"]),
            ("--image x --cpus 99", ["99", "--cpus"]),
            ("--image x --serial pty", ["'pty'", "--serial"]),
            ("--image x --disk a,ro", ["'a,ro'", "--disk"]),
            ("--image x --frobnicate", ["--frobnicate", "unexpected"]),
            ("--image x --kernel y", ["--kernel", "--image"]),
            ("--image x --dirty-log manual-clear", ["'manual-clear'", "--dirty-log"]),
            ("--incoming udp:x", ["'udp:x'", "--incoming"]),
            ("--incoming defer --paused", ["--incoming", "--paused"]),
        ] {
            let text = parse(line).unwrap_err();
            assert!(expected.iter().all(|part| text.contains(part)), "{line}: {text}");
        }
    }
}
