//! Ends a tool when the build that started it ends, however that was: a `make` left over would write into
//! directories that the next build owns.

#![allow(unsafe_code, reason = "prctl(2) between fork and exec is the only way to be tied to one's parent")]

use std::io;
use std::os::unix::process::CommandExt;
use std::process::{Child, Command};

/// Lets the kernel send SIGTERM to the command when the thread that starts it ends. `make` passes it on to what
/// it has started.
pub(crate) fn tether(command: &mut Command) {
    let parent = std::process::id().cast_signed();
    let tie = move || {
        // SAFETY: both take and give integers, and are async-signal-safe.
        let tied = unsafe { libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGTERM) };
        if tied != 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: it takes nothing and gives an integer.
        if unsafe { libc::getppid() } != parent {
            // The parent ended before it could be watched.
            return Err(io::ErrorKind::BrokenPipe.into());
        }
        Ok(())
    };
    // SAFETY: the closure makes two system calls and allocates nothing, as must be between fork and exec.
    unsafe { command.pre_exec(tie) };
}

/// A tool that ends, with all that it has started, when this is dropped before it was awaited.
pub(crate) struct Tool(pub(crate) Child);

impl Drop for Tool {
    fn drop(&mut self) {
        // A tool that has been awaited is no process any more, and its number may be another's.
        if let Ok(None) = self.0.try_wait() {
            // SAFETY: it takes integers; the child has not been awaited, so the number is still its own.
            unsafe { libc::kill(self.0.id().cast_signed(), libc::SIGTERM) };
            // It has been asked to end; how it did doesn't matter.
            let _ = self.0.wait();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::process::ExitStatusExt;

    use super::*;

    fn sleeper() -> Command {
        let mut command = Command::new("sleep");
        command.arg("600");
        tether(&mut command);
        command
    }

    #[test]
    fn a_tool_ends_with_the_thread_that_started_it() {
        let mut child = std::thread::spawn(|| sleeper().spawn().unwrap()).join().unwrap();
        assert_eq!(child.wait().unwrap().signal(), Some(libc::SIGTERM));
    }

    #[test]
    fn a_tool_that_is_given_up_ends() {
        let tool = Tool(sleeper().spawn().unwrap());
        let proc = format!("/proc/{}", tool.0.id());
        assert!(std::path::Path::new(&proc).exists());
        drop(tool);
        assert!(!std::path::Path::new(&proc).exists());
    }
}
