//! Linux guests that have booted already: the first test that wants one boots it and saves it in the image cache, and
//! from then on every run restores it from there, in milliseconds.
//!
//! A snapshot is used only for the very machine that it was made with: its name in the cache is a hash of the image's
//! files, the command line, CPUs, memory, the disks' sizes, the tern version, what its state consists of (`tern schema
//! dump`) and what the host's KVM and CPU are (`tern host`). One that `tern restore` refuses is made anew, and that is
//! said. `TERN_TEST_BOOT=1` boots each guest where it is wanted, and neither reads nor writes snapshots.

use std::ffi::{OsStr, OsString};
use std::fs::{self, File};
use std::path::Path;
use std::process::Command;
use std::time::SystemTime;

use serde_json::Value;
use tern_guest_images::{Cache, ImageError};

use super::builder::{SERIAL, STDOUT, SerialKind, folder};
use super::{Tern, TernBuilder};
use crate::agent::Agent;
use crate::host::tell;
use crate::limit::wait_for;
use crate::migrate::save;
use crate::serial::{Client, Serial};

const PREFIX: &str = "booted-";
/// Snapshots that stay in the cache, of some 15 MiB each.
const KEPT: usize = 6;
/// Changed when what this file keeps, or keeps it in, changes.
const FORMAT: &str = "1";
const SNAPSHOT: &str = "guest.snap";
const TOLD: &str = "serial.txt";

impl TernBuilder {
    /// Starts the machine with its Linux guest at the agent's prompt, and with what it printed on the way there. The
    /// guest has read of its disks what the kernel looks at by itself, so the first sector must be the same each time,
    /// and its command line must start nothing that writes them.
    ///
    /// # Panics
    /// The guest does not boot, or the machine has flags that `tern restore` doesn't take.
    pub fn start_booted(mut self) -> Tern {
        self.serial = SerialKind::Unix;
        let ready = |tern: &Tern| {
            Agent::new(tern.serial()).wait_ready();
        };
        if std::env::var_os("TERN_TEST_BOOT").is_some_and(|value| value == "1") {
            let tern = self.start();
            ready(&tern);
            return tern;
        }
        let cache = Cache::of_user().unwrap_or_else(|error| panic!("{error}"));
        self.start_booted_in(&cache, ready)
    }

    /// As [`Self::start_booted`], with another cache, and for any guest of an image: `ready` waits until it is to be
    /// saved.
    ///
    /// # Panics
    /// As [`Self::start_booted`].
    pub fn start_booted_in(mut self, cache: &Cache, ready: impl Fn(&Tern)) -> Tern {
        self.serial = SerialKind::Unix;
        let key = key(&self);
        let mut refused = String::new();
        for _ in 0..2 {
            let found = cache.get_or_build(&key, || (), |draft| make(self.clone(), &ready, draft));
            let snapshot = found.unwrap_or_else(|error| panic!("{error}"));
            // The newest are those that were used last; where that fails, those that were made last.
            let _ = File::open(&snapshot).and_then(|folder| folder.set_modified(SystemTime::now()));
            cache.keep_newest(PREFIX, KEPT);
            match restore(&self, &snapshot) {
                Ok(tern) => return tern,
                Err(said) => refused = said,
            }
            tell(&format!("{} is made anew: {refused}", snapshot.display()));
            // Where that fails, the same one is refused again, with its reason.
            let _ = fs::remove_dir_all(&snapshot);
        }
        panic!("a snapshot that was made just now is refused: {refused}");
    }
}

/// Boots the machine and leaves its snapshot in `draft`.
fn make(machine: TernBuilder, ready: impl Fn(&Tern), draft: &Path) -> Result<(), ImageError> {
    let tern = machine.start();
    ready(&tern);
    save(&tern, &draft.join(SNAPSHOT));
    let told = draft.join(TOLD);
    if let Err(error) = fs::write(&told, tern.serial().text()) {
        panic!("{}: {error}", told.display());
    }
    assert!(tern.quit().success(), "tern ends badly after a save");
    Ok(())
}

/// The guest of the snapshot, running; or what `tern restore` said. All of memory is verified before the guest starts.
fn restore(machine: &TernBuilder, snapshot: &Path) -> Result<Tern, String> {
    let told = fs::read(snapshot.join(TOLD)).map_err(|error| format!("{TOLD}: {error}\n"))?;
    let mut flags = numbered(&machine.flags);
    flags.extend(["--mode", "mapped", "--json"].map(OsString::from));
    let mut restored = TernBuilder::clone(machine);
    restored.boot.clear();
    (restored.file, restored.flags) = (Some(snapshot.join(SNAPSHOT)), flags);
    let mut tern = restored.spawn(folder());
    let report = tern.folder().join(STDOUT);
    // It prints its report when the guest is there.
    let is_there = wait_for("a booted guest from a file", || {
        let reported = fs::read(&report).is_ok_and(|text| text.ends_with(b"\n"));
        (reported || tern.has_ended()).then_some(reported)
    });
    if !is_there {
        return Err(tern.stderr());
    }
    tern.serial = Serial::Unix(Client::connect_after(&tern.folder().join(SERIAL), told));
    Ok(tern)
}

/// Flags of `tern run` with their values, as `tern restore` takes them.
fn numbered(flags: &[OsString]) -> Vec<OsString> {
    let (mut disks, mut nets) = (0..16, 0..16);
    let mut all = Vec::new();
    for (flag, value) in pairs(flags) {
        let number = match flag {
            "--disk" => disks.next(),
            "--net" => nets.next(),
            "--name" => None,
            _ => panic!("start_booted: `tern restore` has no {flag}"),
        };
        let mut word = OsString::from(number.map(|number| format!("{number}=")).unwrap_or_default());
        word.push(value);
        all.extend([flag.into(), word]);
    }
    all
}

fn pairs(flags: &[OsString]) -> impl Iterator<Item = (&str, &OsStr)> {
    flags.chunks(2).map(move |pair| match pair {
        [flag, value] => (flag.to_str().unwrap_or_default(), value.as_os_str()),
        _ => panic!("start_booted takes flags with a value each: {flags:?}"),
    })
}

/// The snapshot's name: other words for anything that a booted guest depends on.
fn key(machine: &TernBuilder) -> String {
    let TernBuilder { memory, cpus, boot, next, .. } = machine;
    let (_, image) = pairs(boot).find(|(flag, _)| *flag == "--image").unwrap_or_else(|| {
        panic!("start_booted is for guests of an image: {boot:?}");
    });
    let mut parts = vec![
        format!("{FORMAT} {} {memory} {cpus} {boot:?} {next:?}", env!("CARGO_PKG_VERSION")),
        host(machine),
        ask(machine, &["schema", "dump", "--json"]),
    ];
    let files = ask(machine, &["image", "path", &image.to_string_lossy()]);
    parts.extend(files.lines().map(|path| format!("{path} {:?}", stamp(Path::new(path)))));
    parts.extend(pairs(&machine.flags).map(|(flag, value)| device(flag, &value.to_string_lossy())));
    Cache::key("booted", parts)
}

/// What of a device's flag the guest can tell: not which TAP, nor where the disk's file is.
fn device(flag: &str, value: &str) -> String {
    let (place, options) = value.split_once(',').unwrap_or((value, ""));
    match flag {
        "--disk" => format!("{flag} {:?} {options}", stamp(Path::new(place)).map(|(bytes, _)| bytes)),
        "--net" => format!("{flag} {options}"),
        _ => format!("{flag} {value}"),
    }
}

/// Length and time of change.
fn stamp(path: &Path) -> Option<(u64, SystemTime)> {
    path.metadata().ok().and_then(|found| Some((found.len(), found.modified().ok()?)))
}

/// What of the host a snapshot depends on, and what tern makes of it.
fn host(machine: &TernBuilder) -> String {
    let host: Value = serde_json::from_str(&ask(machine, &["host", "--json"])).unwrap_or_default();
    let system = &host["system"];
    [&host["kind"], &host["kvm"], &host["needs"], &system["kernel"], &system["cpu"]]
        .map(Value::to_string)
        .join(" ")
}

fn ask(machine: &TernBuilder, words: &[&str]) -> String {
    let output = Command::new(machine.program()).args(words).output();
    let output = output.unwrap_or_else(|error| panic!("tern {words:?}: {error}"));
    assert!(output.status.success(), "tern {words:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn devices_are_numbered_by_kind() {
        let flags =
            ["--disk", "a", "--net", "tap=t", "--disk", "b,readonly", "--name", "n"].map(OsString::from);
        let expected = ["--disk", "0=a", "--net", "0=tap=t", "--disk", "1=b,readonly", "--name", "n"];
        assert_eq!(numbered(&flags), expected.map(OsString::from));
    }

    #[test]
    fn a_device_is_what_the_guest_sees_of_it() {
        let folder = tempfile::tempdir().unwrap();
        let disk = |name: &str, bytes: u64| {
            let path = folder.path().join(name);
            File::create(&path).unwrap().set_len(bytes).unwrap();
            device("--disk", path.to_str().unwrap())
        };
        assert_eq!(disk("a", 4096), disk("b", 4096));
        assert_ne!(disk("a", 4096), disk("b", 8192));
        assert_eq!(device("--net", "tap=a"), device("--net", "tap=b"));
        assert_ne!(device("--net", "tap=a"), device("--net", "tap=a,mac=02:00:00:00:00:01"));
        assert_ne!(device("--name", "a"), device("--name", "b"));
    }
}
