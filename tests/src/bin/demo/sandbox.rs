//! What makes the demo leave nothing behind, however it ends: networks that the kernel takes away with the last
//! process in them, children that end with their parent, and signals that become a question to ask.
#![allow(
    unsafe_code,
    reason = "namespaces, signals, and what happens between fork and exec are system calls"
)]

use std::fs::{self, File};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::process::CommandExt;
use std::process::{Child, Command};
use std::sync::atomic::{AtomicBool, Ordering};

static INTERRUPTED: AtomicBool = AtomicBool::new(false);

extern "C" fn on_signal(_: libc::c_int) {
    INTERRUPTED.store(true, Ordering::Relaxed);
}

/// From now on Ctrl-C and `kill` end the demo through [`interrupted`], and so through every `Drop`.
pub fn catch_signals() {
    let handler: extern "C" fn(libc::c_int) = on_signal;
    for signal in [libc::SIGINT, libc::SIGTERM, libc::SIGHUP] {
        // SAFETY: the handler stores into an atomic, which is async-signal-safe.
        unsafe { libc::signal(signal, handler as libc::sighandler_t) };
    }
}

/// Was the demo asked to end?
pub fn interrupted() -> bool {
    INTERRUPTED.load(Ordering::Relaxed)
}

fn unshare(flags: libc::c_int) -> io::Result<()> {
    // SAFETY: unshare(2) takes a number and touches no memory of ours.
    if unsafe { libc::unshare(flags) } == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// A network namespace without a name: it lives as long as a process or this value holds it.
#[derive(Debug)]
pub struct Namespace(File);

impl Namespace {
    /// The one that this process is in.
    fn current() -> io::Result<Self> {
        File::open("/proc/self/ns/net").map(Self)
    }

    /// Moves this process into a new one, as root or else as the root of a user namespace of its own, which
    /// needs no rights. Call it while there is only one thread.
    pub fn of_our_own() -> io::Result<Self> {
        // SAFETY: these take nothing and cannot fail.
        let (user, group) = unsafe { (libc::geteuid(), libc::getegid()) };
        if unshare(libc::CLONE_NEWNET).is_err() {
            unshare(libc::CLONE_NEWUSER | libc::CLONE_NEWNET)?;
            fs::write("/proc/self/setgroups", "deny")?;
            fs::write("/proc/self/uid_map", format!("0 {user} 1"))?;
            fs::write("/proc/self/gid_map", format!("0 {group} 1"))?;
        }
        Self::current()
    }

    /// Another one, which this process does not move into.
    pub fn another(home: &Self) -> io::Result<Self> {
        unshare(libc::CLONE_NEWNET)?;
        let another = Self::current();
        home.enter()?;
        another
    }

    fn enter(&self) -> io::Result<()> {
        enter(self.0.as_raw_fd())
    }

    /// A path under which other programs find it.
    pub fn path(&self) -> String {
        format!("/proc/{}/fd/{}", std::process::id(), self.0.as_raw_fd())
    }
}

fn enter(namespace: i32) -> io::Result<()> {
    // SAFETY: setns(2) takes two numbers; a descriptor that is no namespace is refused.
    if unsafe { libc::setns(namespace, libc::CLONE_NEWNET) } == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

/// Starts `command` in that network, out of reach of the terminal's Ctrl-C, and for no longer than this process
/// lives. Call it from the main thread: the kernel ends the child with the *thread* that made it.
pub fn spawn(command: &mut Command, network: Option<&Namespace>) -> io::Result<Child> {
    let (parent, namespace) = (std::process::id(), network.map(|network| network.0.as_raw_fd()));
    // SAFETY: between fork and exec only async-signal-safe system calls are made, and nothing is allocated.
    unsafe {
        command.process_group(0).pre_exec(move || {
            if libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) != 0 {
                return Err(io::Error::last_os_error());
            }
            // The parent may have ended before the call.
            if libc::getppid() as u32 != parent {
                return Err(io::ErrorKind::NotFound.into());
            }
            namespace.map_or(Ok(()), enter)
        })
    }
    .spawn()
}
