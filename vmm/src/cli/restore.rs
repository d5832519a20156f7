//! `tern restore`: a machine built as the file says, with other places where they are given.

use std::fmt::Display;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use clap::Args;
use tern_migration::snapshot::SnapshotFile;

use super::exit::Exit;
use super::{Failure, advice, run};
use crate::config::{
    DirtyLogConfig, DiskConfig, FormError, Incoming, NetConfig, NetForm, RestoreConfig, RestoreMode,
    SerialConfig, VmConfig,
};
use crate::configuration;
use crate::host;
use crate::restore::RestoreError;

pub(super) const EXAMPLES: &str = "\
Examples:
  tern save --control /tmp/a.sock web.snap
  tern restore web.snap
  tern restore web.snap --control /tmp/a.sock --serial unix:/tmp/a.console
  tern restore web.snap --name web-2 --disk 0=copy.img --net 0=tap=tern1,mac=02:00:00:00:00:02
  tern restore web.snap --mode mapped

The file stays as it is: any number of guests can be restored from it, one after the other or at once. \
Guests that run at once need disks and TAPs of their own: what one writes on a disk, the other one \
doesn't know.

The checksums and hashes in the file find damage, and not forgery: restore files that you trust.

A guest from a file goes on with its clock moved on by the time since it was saved, up to ten minutes; \
after a longer time its clock goes on from where it was. It is told by a new VM generation ID that it was \
restored.";

/// Run a guest that was saved into a file
#[derive(Debug, Args)]
pub struct RestoreArgs {
    /// What `tern save` wrote
    #[arg(value_name = "FILE")]
    file: PathBuf,
    /// How memory comes [default: on-demand where userfaultfd is to be had, else mapped]
    #[arg(long, value_name = "MODE")]
    mode: Option<RestoreMode>,
    /// With --mode mapped: start at once, and trust the file
    #[arg(long, requires = "mode")]
    no_verify: bool,
    /// Control socket (QMP) to make; the one that the guest had is not taken over
    #[arg(long, value_name = "PATH")]
    control: Option<PathBuf>,
    /// Where the serial port goes: stdio, null, file:PATH or unix:PATH [default: as before if that was stdio, else
    /// null]
    #[arg(long, value_name = "WHERE")]
    serial: Option<SerialConfig>,
    /// Where the virtio console goes: the same forms [default: likewise]
    #[arg(long, value_name = "WHERE")]
    console: Option<SerialConfig>,
    /// Disk number N, from 0, is at another place; may be repeated
    #[arg(long = "disk", value_name = "N=PATH", value_parser = numbered::<DiskConfig>)]
    disks: Vec<Numbered<DiskConfig>>,
    /// Network number N, from 0, is at another TAP, and may have another address; may be repeated
    #[arg(long = "net", value_name = "N=tap=NAME[,mac=..]", value_parser = numbered::<NetForm>)]
    nets: Vec<Numbered<NetForm>>,
    /// Name of the machine [default: as before]
    #[arg(long, value_name = "NAME")]
    name: Option<String>,
    /// How written pages are found: bitmap, or ring[,size=ENTRIES] (see `tern run --help`)
    #[arg(long, value_name = "HOW", default_value = "bitmap")]
    dirty_log: DirtyLogConfig,
    /// Don't start the guest yet: `tern resume` does
    #[arg(long)]
    paused: bool,
    /// When the guest is there, print what it took, as one line of JSON
    #[arg(long)]
    json: bool,
}

/// The n-th of something.
#[derive(Debug, Clone)]
struct Numbered<T> {
    number: usize,
    value: T,
}

fn numbered<T: FromStr<Err = FormError>>(text: &str) -> Result<Numbered<T>, String> {
    let parts = text.split_once('=').and_then(|(number, rest)| Some((number.parse().ok()?, rest)));
    let (number, rest) = parts.ok_or("write N=.., where N is the number of the disk or network, from 0")?;
    Ok(Numbered { number, value: rest.parse().map_err(|error: FormError| error.to_string())? })
}

/// Restores, and runs to the end.
pub(super) fn run(args: RestoreArgs) -> Result<Exit, Failure> {
    if args.no_verify && args.mode != Some(RestoreMode::Mapped) {
        let text = "--no-verify: eager and on-demand verify each page as it is read; it needs --mode mapped";
        return Err(Failure::text(Exit::Usage, text));
    }
    let opened = |error: RestoreError| Failure::new(&error);
    let snapshot = SnapshotFile::open(&args.file).map_err(|error| opened(error.into()))?;
    let saved_at = UNIX_EPOCH + Duration::from_millis(snapshot.index().saved_at_unix_ms);
    let unusable = |source| opened(RestoreError::Configuration { path: args.file.clone(), source });
    let saved = configuration::decode(snapshot.configuration()).map_err(unusable)?;
    let (config, mut warnings) = args.config(saved, saved_at)?;
    config.check().map_err(|error| Failure::usage(&error))?;
    warnings.extend(advice::of(&config, host::memory_bytes()));
    for line in warnings {
        crate::cli::tell(&format!("tern: warning: {line}"));
    }
    run::launch(config, Some(snapshot))
}

impl RestoreArgs {
    /// The machine: as it was, but for what is given. And what a person should know.
    fn config(self, saved: VmConfig, saved_at: SystemTime) -> Result<(VmConfig, Vec<String>), Failure> {
        let mut config = saved;
        let mut warnings = Vec::new();
        let left = configuration::own_ports(&mut config);
        for (flag, before) in left {
            let given = if flag == "--serial" { &self.serial } else { &self.console };
            if given.is_none() {
                warnings.push(format!("{flag} was {before} when the guest was saved, and is null here"));
            }
        }
        config.serial = self.serial.unwrap_or(config.serial);
        config.console = self.console.unwrap_or(config.console);
        config.name = self.name.unwrap_or(config.name);
        config.dirty_log = self.dirty_log;
        let mut own = vec![false; config.disks.len()];
        for Numbered { number, value } in self.disks {
            let there = config.disks.len();
            let disk = config.disks.get_mut(number).ok_or_else(|| none_such("--disk", number, there))?;
            *disk = DiskConfig { path: value.path, readonly: disk.readonly || value.readonly };
            own.iter_mut().skip(number).take(1).for_each(|own| *own = true);
        }
        for (disk, own) in config.disks.iter().zip(own) {
            warnings.extend(disk_warnings(disk, own, saved_at));
        }
        let mut macs = Vec::new();
        for Numbered { number, value: NetForm { tap, mac } } in self.nets {
            let there = config.nets.len();
            let net = config.nets.get_mut(number).ok_or_else(|| none_such("--net", number, there))?;
            if let Some(mac) = mac.filter(|mac| *mac != net.mac) {
                warnings.push(format!(
                    "--net {number}: the device has address {mac} now; a driver that runs in the guest keeps {} until \
                     it starts anew",
                    net.mac
                ));
                macs.push((number, mac));
            }
            *net = NetConfig { tap, ..net.clone() };
        }
        let path = self.file;
        let file = RestoreConfig { path, mode: self.mode, verify: !self.no_verify, macs, json: self.json };
        let incoming = Some(Incoming::File(file));
        Ok((VmConfig { incoming, control: self.control, paused: self.paused, ..config }, warnings))
    }
}

fn none_such(flag: &str, number: usize, there: usize) -> Failure {
    let text = format!("{flag} {number}=..: the saved machine has {there}, numbered from 0");
    Failure::text(Exit::Usage, text)
}

/// `own`: this disk was given for this guest.
fn disk_warnings(disk: &DiskConfig, own: bool, saved_at: SystemTime) -> Vec<String> {
    let show = |what: &dyn Display| format!("--disk {}: {what}", disk.path.display());
    let mut warnings = Vec::new();
    let written =
        disk.path.metadata().ok().filter(|found| found.is_file()).and_then(|found| found.modified().ok());
    if written.is_some_and(|written| written > saved_at) {
        warnings.push(show(
            &"it was written after the guest was saved, and the guest's memory doesn't know that: give it the disk as \
              it was then",
        ));
    } else if !disk.readonly && !own {
        warnings.push(show(
            &"this guest writes it; keep a copy, and give other guests from this file copies of their own",
        ));
    }
    warnings
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;
    use crate::config::MacAddress;

    #[derive(Parser)]
    struct Only {
        #[command(flatten)]
        args: RestoreArgs,
    }

    fn saved() -> VmConfig {
        let disk = |path: &str, readonly| DiskConfig { path: path.into(), readonly };
        let nets = vec![NetConfig { tap: "t0".into(), mac: MacAddress([2; 6]), mac_given: false }];
        VmConfig {
            name: "web".into(),
            disks: vec![disk("/none/a", false), disk("/none/b", true)],
            nets,
            serial: SerialConfig::Unix("/tmp/a".into()),
            control: None,
            ..VmConfig::new(64 << 20)
        }
    }

    fn parse(line: &str) -> Result<(VmConfig, Vec<String>), String> {
        let words = ["restore", "a.snap"].into_iter().chain(line.split_whitespace());
        let args = Only::try_parse_from(words).map_err(|error| error.to_string())?.args;
        args.config(saved(), SystemTime::now()).map_err(|failure| failure.text)
    }

    #[test]
    fn without_flags_it_is_the_machine_that_was_saved() {
        let (config, warnings) = parse("").unwrap();
        let incoming = Some(Incoming::File(RestoreConfig::new("a.snap".into())));
        let serial = SerialConfig::Null;
        assert_eq!(
            config,
            VmConfig { incoming, serial, uuid: config.uuid, generation_id: config.generation_id, ..saved() }
        );
        assert!(warnings[0].contains("--serial was unix:/tmp/a"), "{warnings:?}");
        assert!(
            warnings[1].contains("/none/a") && warnings[1].contains("copies of their own"),
            "{warnings:?}"
        );
        assert_eq!(warnings.len(), 2);
        assert_eq!(config.check(), Ok(()));
    }

    #[test]
    fn everything_that_is_a_place_can_be_another() {
        let line = "--serial null --console unix:/c --control /s --name web-2 --disk 0=x,,y --paused --json \
                    --net 0=tap=t9,mac=02:00:00:00:00:09 --mode mapped --no-verify";
        let (config, warnings) = parse(line).unwrap();
        assert_eq!((config.serial, config.console), (SerialConfig::Null, SerialConfig::Unix("/c".into())));
        assert_eq!((config.name.as_str(), config.paused), ("web-2", true));
        assert_eq!(config.disks[0], DiskConfig { path: "x,y".into(), readonly: false });
        assert!(config.disks[1].readonly);
        let macs = vec![(0, MacAddress([2, 0, 0, 0, 0, 9]))];
        let (mode, path) = (Some(RestoreMode::Mapped), "a.snap".into());
        let file = RestoreConfig { path, mode, verify: false, macs, json: true };
        assert_eq!(config.incoming, Some(Incoming::File(file)));
        assert_eq!(config.nets[0].tap, "t9");
        assert!(warnings.len() == 1 && warnings[0].contains("02:02:02:02:02:02"), "{warnings:?}");
    }

    #[test]
    fn a_disk_that_was_written_since_is_told() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let disk = DiskConfig { path: file.path().into(), readonly: true };
        let warnings = disk_warnings(&disk, true, SystemTime::now() - Duration::from_secs(3600));
        assert!(warnings[0].contains("written after the guest was saved"), "{warnings:?}");
        assert_eq!(disk_warnings(&disk, true, SystemTime::now() + Duration::from_secs(3600)), [""; 0]);
    }

    #[test]
    fn errors_name_the_flag_and_the_value() {
        for (line, expected) in [
            ("--disk 2=x", ["--disk 2", "has 2"]),
            ("--disk x", ["'x'", "N=.."]),
            ("--net 1=tap=x", ["--net 1", "has 1"]),
            ("--net 0=mac=1", ["'0=mac=1'", "--net"]),
            ("--mode lazy", ["'lazy'", "on-demand"]),
            ("--no-verify", ["--mode", "required"]),
        ] {
            let text = parse(line).unwrap_err();
            assert!(expected.iter().all(|part| text.contains(part)), "{line}: {text}");
        }
    }
}
