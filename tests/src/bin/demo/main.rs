//! `make demo`: a guest moves, running, from one tern process to another, and the demo shows that it did: how
//! long it stood still, as tern, the guest and a network client saw it, and that its memory is intact.

mod echo;
mod guest;
mod network;
mod report;
mod sandbox;
mod vm;

use std::error::Error;
use std::fs::File;
use std::process::{Command, ExitCode, Stdio};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tempfile::TempDir;
use tern_tests::Qmp;
use tern_tests::binary::tern_binary;

use crate::echo::Client;
use crate::guest::{Beat, DISK_BYTES, ECHO_PORT, Guest};
use crate::network::{End, GUEST, Network};
use crate::sandbox::{Namespace, interrupted, spawn};
use crate::vm::Vm;

type Result<T> = std::result::Result<T, Box<dyn Error>>;

const USAGE: &str = "usage: demo [linux|pulse] [hosts: 1|2]";
/// Longest boot, on a host that interprets kernels and has other work; and longest first pass over memory, whose pages
/// the guest's kernel must fill with zeroes first.
const BOOT_LIMIT: Duration = Duration::from_secs(240);
/// Longest wait for what takes seconds.
const STEP_LIMIT: Duration = Duration::from_secs(60);
/// How long the guest works before it moves, so that there is something to compare with.
const WORK_BEFORE: Duration = Duration::from_secs(3);

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let (guest, hosts) = match words[..] {
        [] => ("linux", "1"),
        [guest] => (guest, "1"),
        [guest, hosts, ..] => (guest, hosts),
    };
    let (Some(guest), Some(hosts)) =
        (Guest::named(guest), hosts.parse().ok().filter(|hosts| (1..=2).contains(hosts)))
    else {
        eprintln!("{USAGE}");
        return ExitCode::from(2);
    };
    sandbox::catch_signals();
    match Demo::new(guest, hosts).and_then(Demo::play) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("\ndemo: {error}");
            ExitCode::FAILURE
        }
    }
}

/// Looks until `look` finds something, the limit is over, or a person has seen enough.
fn wait<T>(what: &str, limit: Duration, mut look: impl FnMut() -> Result<Option<T>>) -> Result<T> {
    let deadline = Instant::now() + limit;
    loop {
        if interrupted() {
            return Err("interrupted; nothing is left behind".into());
        }
        if let Some(found) = look()? {
            return Ok(found);
        }
        if Instant::now() > deadline {
            return Err(format!("waited {} s for {what}, in vain", limit.as_secs()).into());
        }
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// A line of the story.
fn tell(what: &str, text: &str) {
    println!("{what:<10}  {text}");
}

/// The stage: the guest, where it runs, and a directory that goes with the demo.
struct Demo {
    guest: Guest,
    network: Option<Network>,
    directory: TempDir,
}

impl Demo {
    fn new(guest: Guest, hosts: u8) -> Result<Self> {
        // First of all, while there is one thread: see `Namespace::of_our_own`.
        let home = (guest.has_devices() || hosts == 2).then(Namespace::of_our_own);
        let directory = tempfile::Builder::new().prefix("tern-demo-").tempdir()?;
        let about = said_by_tern(&["host"])?;
        let kvm = about.lines().find_map(|line| line.strip_prefix("KVM ")).unwrap_or("unknown").trim();
        println!("{} on KVM: {kvm}\n", said_by_tern(&["--version"])?.trim());
        let network = match home {
            None => None,
            Some(Ok(home)) => Some(Network::new(home, hosts)?),
            Some(Err(error)) if hosts == 2 => {
                return Err(format!("two hosts need network namespaces: {error}; run it as root").into());
            }
            Some(Err(error)) => {
                tell("network", &format!("none: a network of its own needs root here ({error})"));
                None
            }
        };
        Ok(Self { guest, network, directory })
    }

    /// From the boot to the end.
    fn play(self) -> Result<()> {
        let mut source = self.boot()?;
        let client = self.client()?;
        let daily = self.work(&mut source, client.as_ref())?;
        let (uri, proof) = (self.uri(), self.credentials()?);
        let mut destination = self.await_guest(&uri, &proof)?;
        let moved = self.migrate(&mut source, &mut destination, &[&[uri][..], &proof].concat(), daily)?;
        let story = self.settle(&source, &mut destination, moved)?;
        print!("{}", report::text(self.guest, &story, client.as_ref()));
        drop(client);
        source.stop()?;
        destination.stop()?;
        self.directory.close()?;
        tell("left", "nothing: both processes have ended, networks and files are gone");
        Ok(())
    }

    fn boot(&self) -> Result<Vm> {
        let started = Instant::now();
        let (guest, network) = (self.guest, self.network.is_some());
        let mut args = vec!["--image".to_owned(), guest.image().to_owned()];
        args.extend(["--cmdline".to_owned(), guest.cmdline(network)]);
        let mut source = self.start(End::Source, args)?;
        let name = wait("the guest to boot", BOOT_LIMIT, || {
            source.check()?;
            Ok(guest.ready(&source.printed()))
        })?;
        let devices = match (guest.has_devices(), network) {
            (false, _) => "",
            (true, false) => ", a disk",
            (true, true) => ", a disk, a network",
        };
        let took = started.elapsed().as_secs_f64();
        tell(
            "boot",
            &format!(
                "{name}, {} vCPUs, {} MiB{devices}: up in {took:.1} s",
                guest.cpus(),
                guest.memory_mib()
            ),
        );
        Ok(source)
    }

    /// Starts a process with what both ends must have alike.
    fn start(&self, end: End, mut args: Vec<String>) -> Result<Vm> {
        let disk = self.directory.path().join("disk");
        if end == End::Source {
            File::create(&disk)?.set_len(DISK_BYTES)?;
        }
        let tap = self.network.as_ref().map(|_| end.tap());
        let memory = format!("{}M", self.guest.memory_mib());
        args.extend(["--memory", &memory, "--cpus", self.guest.cpus()].map(str::to_owned));
        args.extend(self.guest.devices(&disk, tap));
        Vm::start(end, &args, self.directory.path(), self.network.as_ref())
    }

    fn client(&self) -> Result<Option<Client>> {
        let talks = self.network.is_some() && self.guest.has_devices();
        if talks { Client::start(GUEST, ECHO_PORT).map(Some) } else { Ok(None) }
    }

    /// Waits until the guest rewrites what it has filled before, and answers; then lets it work for a while.
    fn work(&self, source: &mut Vm, client: Option<&Client>) -> Result<report::Daily> {
        tell("work", self.guest.work(client.is_some()));
        if let Some(client) = client {
            wait("the guest to answer over the network", BOOT_LIMIT, || {
                source.check()?;
                Ok((client.answered() > 1).then_some(()))
            })?;
        }
        let beats = wait("the guest to check the memory that it has filled", BOOT_LIMIT, || {
            source.check()?;
            let beats = self.guest.beats(&source.printed())?;
            Ok(beats.last().is_some_and(|beat| beat.pages_verified > 0).then_some(beats.len()))
        })?;
        let since = Instant::now();
        wait("the guest to work", STEP_LIMIT, || {
            source.check()?;
            Ok((since.elapsed() >= WORK_BEFORE).then_some(()))
        })?;
        Ok(report::Daily { since, beats })
    }

    fn uri(&self) -> String {
        match &self.network {
            Some(network) => network.migration_uri().to_owned(),
            None => format!("unix:{}", self.directory.path().join("migration").display()),
        }
    }

    /// What two hosts prove to each other who they are with; none on one host.
    fn credentials(&self) -> Result<Vec<String>> {
        let Some(name) = self.network.as_ref().and_then(Network::destination_name) else {
            return Ok(Vec::new());
        };
        let folder = self.directory.path().join("tls").display().to_string();
        said_by_tern(&["tls", "init", &folder, "--host", name])?;
        tell("secret", "both hosts have certificates, made by tern tls init");
        Ok(vec!["--tls-creds".to_owned(), folder])
    }

    fn await_guest(&self, uri: &str, proof: &[String]) -> Result<Vm> {
        let args = [&["--incoming".to_owned(), uri.to_owned()][..], proof].concat();
        let mut destination = self.start(End::Destination, args)?;
        destination.wait_state("inmigrate")?;
        Ok(destination)
    }

    fn migrate(
        &self,
        source: &mut Vm,
        destination: &mut Vm,
        to: &[String],
        daily: report::Daily,
    ) -> Result<report::Moved> {
        tell("migrate", &format!("to another process, by {}", to.join(" ")));
        let beats_before = self.guest.beats(&source.printed())?.len();
        let started = Instant::now();
        let mut command = Command::new(tern_binary());
        // Its progress bar goes to the terminal; its table would say what the report says.
        command.args(["migrate", "--control"]).arg(&source.control).args(to).stdout(Stdio::null());
        let mut child = Killed(spawn(&mut command, None)?);
        let status = wait("the migration to end", STEP_LIMIT, || Ok(child.0.try_wait()?))?;
        if !status.success() {
            source.check()?;
            destination.check()?;
            return Err("the guest was not moved".into());
        }
        let mut qmp = Qmp::try_connect(&source.control).ok_or("the source does not answer any more")?;
        let report = qmp.execute("query-migrate", json!({}))["report"].take();
        Ok(report::Moved { report, daily, beats_before, started, ended: Instant::now() })
    }

    /// Waits until the guest has checked every page of its working set at the destination.
    fn settle(&self, source: &Vm, destination: &mut Vm, moved: report::Moved) -> Result<report::Story> {
        // The source prints no more: what both printed is one text.
        let before = source.printed();
        let verified = |beats: &[Beat], until: usize| {
            beats.iter().rev().find(|beat| beat.ends_at <= until).map_or(0, |beat| beat.pages_verified)
        };
        wait("the guest to check all of its memory at the destination", STEP_LIMIT, || {
            destination.check()?;
            let text = before.clone() + &destination.printed();
            let beats = self.guest.beats(&text)?;
            let (there, all) = (verified(&beats, before.len()), verified(&beats, text.len()));
            let done = all >= there + self.guest.working_set_pages();
            Ok(done.then(|| report::Story { moved: moved.clone(), beats, source_bytes: before.len() }))
        })
    }
}

/// A command of tern that ends with the demo.
struct Killed(std::process::Child);

impl Drop for Killed {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn said_by_tern(args: &[&str]) -> Result<String> {
    let output = Command::new(tern_binary()).args(args).output()?;
    if !output.status.success() {
        return Err(String::from_utf8_lossy(&output.stderr).trim().into());
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// A number of the report; 0 where it has none.
fn number(value: &Value) -> u64 {
    value.as_u64().unwrap_or_default()
}
