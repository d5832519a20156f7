//! A network namespace of a test's own, with a bridge and TAP interfaces; gone when dropped. Needs root.
#![allow(unsafe_code, reason = "setns(2) has no safe form in the standard library")]

use std::fs::File;
use std::net::UdpSocket;
use std::os::fd::AsRawFd;
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

/// How long an answer may take before the datagram is sent again: guests may be in the middle of their downtime.
const ANSWER_WITHIN: Duration = Duration::from_millis(200);

/// A namespace whose bridge has the address 10.77.0.1/24.
#[derive(Debug)]
pub struct Namespace {
    name: String,
}

impl Namespace {
    /// Makes it, with these TAP interfaces on the bridge.
    pub fn new(taps: &[&str]) -> Self {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let name = format!("tern-test-{}-{number}", std::process::id());
        run(&["netns", "add", &name]);
        let here = Self { name };
        here.ip(&["link", "set", "lo", "up"]);
        here.ip(&["link", "add", "br0", "type", "bridge"]);
        here.ip(&["addr", "add", "10.77.0.1/24", "dev", "br0"]);
        here.ip(&["link", "set", "br0", "up"]);
        for tap in taps {
            here.ip(&["tuntap", "add", tap, "mode", "tap"]);
            here.ip(&["link", "set", tap, "master", "br0", "up"]);
        }
        here
    }

    /// Its name, for `ip netns exec`.
    pub fn name(&self) -> &str {
        &self.name
    }

    fn ip(&self, words: &[&str]) {
        run(&[&["-n", &self.name], words].concat());
    }

    /// Sends `count` different datagrams to `address` from inside, each until it comes back.
    ///
    /// # Panics
    /// One doesn't come back within the limit, or comes back changed.
    pub fn echo(&self, address: &str, count: u32) {
        let socket = self.socket();
        for number in 0..count {
            let sent = format!("tern {number} {}", "x".repeat(number as usize * 37 % 1200));
            crate::limit::wait_for(&format!("an echo from {address}"), || {
                // While the guest is on its way nobody may have its address.
                let _ = socket.send_to(sent.as_bytes(), address);
                let mut back = [0; 2048];
                let (length, _) = socket.recv_from(&mut back).ok()?;
                // A late answer to a datagram that was sent twice is none to this one.
                (back[..length] == *sent.as_bytes()).then_some(())
            });
        }
    }

    /// A socket of the bridge's address. It keeps the namespace that it was made in: a thread goes there, makes one,
    /// and ends.
    pub fn socket(&self) -> UdpSocket {
        let path = format!("/run/netns/{}", self.name);
        let made = std::thread::spawn(move || {
            let namespace = File::open(path)?;
            // SAFETY: setns(2) takes a descriptor, which is open, and touches no memory of ours.
            if unsafe { libc::setns(namespace.as_raw_fd(), libc::CLONE_NEWNET) } != 0 {
                return Err(std::io::Error::last_os_error());
            }
            let socket = UdpSocket::bind("10.77.0.1:0")?;
            socket.set_read_timeout(Some(ANSWER_WITHIN))?;
            Ok(socket)
        });
        match made.join() {
            Ok(Ok(socket)) => socket,
            other => panic!("a socket in namespace {}: {other:?}", self.name),
        }
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        // Interfaces go with it, once the processes in it have ended.
        let _ = Command::new("ip").args(["netns", "del", &self.name]).status();
    }
}

fn run(words: &[&str]) {
    let done = Command::new("ip").args(words).output();
    let done = done.unwrap_or_else(|error| panic!("ip: {error}; install it with: apt-get install iproute2"));
    assert!(done.status.success(), "ip {words:?}: {}", String::from_utf8_lossy(&done.stderr));
}
