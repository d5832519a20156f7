//! Starts processes that end with the program that started them, however it ends.
#![allow(
    unsafe_code,
    reason = "the kernel is asked, between fork and exec, to end the child with its parent"
)]

use std::io;
use std::os::unix::process::CommandExt;
use std::process::{Child, Command};
use std::sync::OnceLock;
use std::sync::mpsc::{Sender, channel};

type Order = (Command, Sender<io::Result<Child>>);

/// Starts `command`. `PR_SET_PDEATHSIG` fires when the *thread* that forked ends, so one thread that never
/// ends starts all processes; a guest may then be shared by tests, or made in a thread of its own.
pub fn spawn(command: Command) -> io::Result<Child> {
    static STARTER: OnceLock<Sender<Order>> = OnceLock::new();
    let starter = STARTER.get_or_init(|| {
        let (orders, inbox) = channel::<Order>();
        std::thread::spawn(move || {
            for (mut command, answer) in inbox {
                // Nobody waits any more: the child is ended by the drop of the answer's other end.
                let _ = answer.send(die_with_us(&mut command).spawn());
            }
        });
        orders
    });
    let (answer, answered) = channel();
    let gone = |_| io::Error::other("the thread that starts processes has ended");
    starter.send((command, answer)).map_err(|_| gone(()))?;
    answered.recv().map_err(|_| gone(()))?
}

fn die_with_us(command: &mut Command) -> &mut Command {
    let parent = std::process::id();
    // SAFETY: between fork and exec only two async-signal-safe system calls are made, and nothing is allocated.
    unsafe {
        command.pre_exec(move || {
            if libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) != 0 {
                return Err(io::Error::last_os_error());
            }
            // The parent may have ended before the call.
            if libc::getppid() as u32 != parent {
                return Err(io::ErrorKind::NotFound.into());
            }
            Ok(())
        })
    }
}

/// Sends a signal to a child that has not been waited for, so that its number can't be another's.
pub(crate) fn signal(child: &Child, number: i32) {
    // SAFETY: kill(2) takes two numbers and touches no memory of ours.
    let sent = unsafe { libc::kill(child.id() as libc::pid_t, number) };
    assert!(sent == 0, "kill: {}", io::Error::last_os_error());
}
