//! A Linux guest with a disk and a network under load moves to and fro a hundred times: what was under way at a stop
//! is neither lost nor done twice.

use std::net::UdpSocket;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::SeqCst};
use std::thread::JoinHandle;
use std::time::Duration;

use tern_tests::agent::{self, AgentBeat};
use tern_tests::host::{image_or_skip, skip};
use tern_tests::limit::wait_for;
use tern_tests::{Agent, Incoming, Namespace, TernBuilder, kvm_or_skip, migrate, root_or_skip};

use crate::linux::{file, powers_off};

const MOVES: usize = 100;
const GUEST: &str = "10.77.0.2:7";
const TAPS: [&str; 2] = ["tap0", "tap1"];
/// Datagrams that may wait for their answers. A guest that is slow gets no more than it can take.
const WINDOW: usize = 4;
/// How long a datagram is waited for: some find no guest, between two hosts.
const ANSWER_WITHIN: Duration = Duration::from_millis(200);

/// Sends numbered datagrams to the guest, and counts the answers to each.
struct Stream {
    /// Sends no more.
    quiet: Arc<AtomicBool>,
    /// Hears no more.
    over: Arc<AtomicBool>,
    answers: Arc<AtomicU64>,
    thread: JoinHandle<Vec<u32>>,
}

impl Stream {
    fn start(socket: UdpSocket) -> Self {
        let [quiet, over] = [(); 2].map(|()| Arc::new(AtomicBool::new(false)));
        let answers = Arc::new(AtomicU64::new(0));
        let (is_quiet, is_over, heard) = (Arc::clone(&quiet), Arc::clone(&over), Arc::clone(&answers));
        socket.set_read_timeout(Some(ANSWER_WITHIN)).unwrap();
        let thread = std::thread::spawn(move || {
            let (mut counts, mut waiting) = (Vec::new(), 0);
            while !is_over.load(SeqCst) {
                while waiting < WINDOW && !is_quiet.load(SeqCst) {
                    let number = counts.len();
                    counts.push(0);
                    socket.send_to(text(number).as_bytes(), GUEST).unwrap();
                    waiting += 1;
                }
                // None in time: those that were waited for are lost, or come later on.
                waiting = if hear(&socket, &mut counts, &heard) { waiting.saturating_sub(1) } else { 0 };
            }
            counts
        });
        Self { quiet, over, answers, thread }
    }

    /// Waits for one more answer than now.
    fn goes_on(&self) {
        let before = self.answers.load(SeqCst);
        wait_for("an answer of the guest", || (self.answers.load(SeqCst) > before).then_some(()));
    }

    /// Sends no more, and waits until as many answers have come as the guest has given, with `before` at the start;
    /// how often each datagram was answered.
    fn end(self, guest: Agent<'_>, before: AgentBeat) -> Vec<u32> {
        self.quiet.store(true, SeqCst);
        wait_for("every answer that the guest has given", || {
            let heard = self.answers.load(SeqCst);
            (guest.status().echo - before.echo <= heard).then_some(())
        });
        self.over.store(true, SeqCst);
        self.thread.join().unwrap()
    }
}

/// Datagrams of many lengths, of which each says which it is.
fn text(number: usize) -> String {
    format!("n={number} {}", "x".repeat(number * 37 % 1200))
}

/// Takes one answer, which must be what was sent; false if none comes in time.
fn hear(socket: &UdpSocket, counts: &mut [u32], heard: &AtomicU64) -> bool {
    let mut back = [0; 2048];
    let Ok((length, _)) = socket.recv_from(&mut back) else { return false };
    let back = std::str::from_utf8(&back[..length]).unwrap();
    let number: usize = back.split(['=', ' ']).nth(1).unwrap().parse().unwrap();
    assert_eq!(back, text(number), "an answer is not what was sent");
    counts[number] += 1;
    heard.fetch_add(1, SeqCst);
    true
}

/// Requests that each stop of the disk found under way, as the process's log tells.
fn under_way(log: &str) -> impl Iterator<Item = u64> {
    let lines = log.lines().filter(|line| line.contains("disk requests under way at the stop"));
    let figure = |line: &str, name: &str| -> u64 {
        let (_, rest) = line.split_once(name).unwrap();
        rest.split(' ').next().unwrap().parse().unwrap()
    };
    lines.map(move |line| figure(line, "unfinished=") + figure(line, "waiting="))
}

/// Makes each write to `disk` wait for the medium. Else a disk is done with its requests before an interpreted kernel
/// has made the next one, and no stop finds any.
fn is_slow(disk: &Path) -> bool {
    let changed = Command::new("chattr").arg("+S").arg(disk).output();
    if changed.as_ref().is_ok_and(|output| output.status.success()) {
        return true;
    }
    skip(
        "the file system of temporary files has no `chattr +S`: set TMPDIR to a folder on ext4, XFS or Btrfs",
    );
    false
}

#[test]
fn a_hundred_moves_lose_nothing_of_a_disk_and_a_network_and_double_nothing() {
    if !kvm_or_skip() || !root_or_skip() || !image_or_skip("linux-up") {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let disk = file(folder.path(), "disk", 1 << 20, "");
    if !is_slow(&disk) {
        return;
    }
    let network = Namespace::new(&TAPS);
    let machine = TernBuilder::new().memory("96M").serial_unix().in_namespace(&network).disk(&disk);
    let machine = machine.flag("--name").flag("to-and-fro").log("tern_devices=debug");
    let words = "tern.ip=10.77.0.2/24 tern.echo=7";
    let mut here = machine.clone().net(TAPS[0]).image("linux-up").cmdline(words).start_booted();
    let guest = Agent::new(here.serial());
    assert!(guest.run("disk /dev/vda").trim().is_empty());
    // All blocks are written once, and the guest's address is known.
    network.echo(GUEST, 1);
    guest.wait_status("the disk checker", |now| now.disk_ok > 0);
    let before = guest.status();

    let stream = Stream::start(network.socket());
    let (mut told, mut requests) = (String::new(), Vec::new());
    // A few more, should chance have it that none of them was deep.
    for number in 1..=3 * MOVES {
        if number > MOVES && requests.iter().any(|requests| *requests > 1) {
            break;
        }
        stream.goes_on();
        let there = machine.clone().net(TAPS[number % 2]).incoming(Incoming::Unix).start();
        migrate(&here, &there);
        told += &here.serial().text();
        requests.extend(under_way(&here.stderr()));
        assert!(here.quit().success());
        here = there;
    }
    stream.goes_on();
    let guest = Agent::new(here.serial());
    let answers = stream.end(guest, before);
    let after = guest.status();
    assert_eq!(after.disk_bad, 0);
    assert!(after.disk_ok > before.disk_ok + MOVES as u64, "{before:?} {after:?}");
    let deepest = requests.iter().max().copied().unwrap_or(0);
    let deep = requests.iter().filter(|requests| **requests > 1).count();
    let (sent, heard) = (answers.len() as u64, answers.iter().map(|count| u64::from(*count)).sum::<u64>());
    eprintln!(
        "{} stops: {deep} with several disk requests under way, at most {deepest}; the guest had at most {} blocks at \
         the disk and verified {}; {sent} datagrams, {heard} answers",
        requests.len(),
        after.disk_depth,
        after.disk_ok - before.disk_ok
    );
    assert!(answers.iter().all(|count| *count <= 1), "datagrams were answered twice: {answers:?}");
    assert_eq!(after.echo_twice, 0, "datagrams reached the guest twice");
    assert!(requests.len() >= MOVES, "a disk stops once in each move");
    assert!(after.disk_depth > 1 && deep > 0, "no stop found several requests under way: nothing was tested");
    agent::check(&(told + &here.serial().text()));
    powers_off(here);
}
