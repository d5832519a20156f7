//! A command as a connection: its standard input and output are one end of a socket, ours is the other. So
//! anything that moves bytes can carry a migration, such as `ssh host-b socat - UNIX-CONNECT:/run/b.sock`.

#![allow(unsafe_code, reason = "a whole process group is ended by kill(2), which std doesn't have")]

use std::io;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::Duration;

use super::socket::Socket;
use super::span::{InSpan, OutSpan};
use super::stream::{Heard, Stream};
use super::{Direction, Woken};
use crate::cancel::Cancel;

/// A command that has closed its output has so long until its exit status is not waited for.
const STATUS_TIMEOUT: Duration = Duration::from_millis(200);
/// One that was told by the end of its input that it is over has so long to pass on what it has.
const END_TIMEOUT: Duration = Duration::from_secs(5);
const POLL: Duration = Duration::from_millis(5);

/// The command and the socket to it.
#[derive(Debug)]
pub(super) struct Exec {
    socket: Socket,
    /// None once it has been handed to whoever reaps it.
    child: Option<Child>,
}

impl Exec {
    /// Runs `command` by `/bin/sh -c`. Its errors go where ours go.
    pub(super) fn run(command: &str) -> io::Result<Self> {
        let (ours, theirs) = UnixStream::pair()?;
        let output = OwnedFd::from(theirs.try_clone()?);
        let mut shell = Command::new("/bin/sh");
        shell.arg("-c").arg(command).stdin(Stdio::from(OwnedFd::from(theirs))).stdout(Stdio::from(output));
        // A group of its own: a Ctrl-C is for us, and what it starts can be ended with it.
        let child = shell.process_group(0).spawn()?;
        Ok(Self { socket: Socket::new(ours.into()), child: Some(child) })
    }

    /// The end of its output: with an exit status that says more, that.
    fn ended(&mut self) -> io::Result<usize> {
        let status = self.child.as_mut().and_then(|child| wait(child, STATUS_TIMEOUT));
        match status {
            Some(status) if !status.success() => Err(io::Error::other(told(status))),
            _ => Ok(0),
        }
    }

    /// A broken pipe is mostly a command that has ended.
    fn explain(&mut self, error: io::Error) -> io::Error {
        if matches!(error.kind(), io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset)
            && let Err(ended) = self.ended()
        {
            return ended;
        }
        error
    }
}

fn told(status: ExitStatus) -> String {
    let hint = if status.code() == Some(127) { " (not found: is it installed, and in PATH?)" } else { "" };
    format!("the command has ended with {status}{hint}")
}

impl Stream for Exec {
    fn send(&mut self, spans: &[OutSpan<'_>], more: bool) -> io::Result<usize> {
        self.socket.send(spans, more).map_err(|error| self.explain(error))
    }

    fn receive(&mut self, spans: &[InSpan<'_>]) -> io::Result<usize> {
        match self.socket.receive(spans) {
            Ok(0) => self.ended(),
            Ok(count) => Ok(count),
            Err(error) => Err(self.explain(error)),
        }
    }

    fn wait(
        &mut self,
        direction: Direction,
        cancel: Option<&Cancel>,
        timeout: Duration,
    ) -> io::Result<Woken> {
        self.socket.wait(direction, cancel, timeout)
    }

    fn peek(&mut self, first: &mut [u8]) -> io::Result<Heard> {
        let heard = self.socket.peek(first).map_err(|error| self.explain(error))?;
        if heard.ended && heard.bytes == 0 {
            self.ended()?;
        }
        Ok(heard)
    }

    fn finish(&mut self) {
        self.socket.finish();
    }

    fn descriptor(&self) -> Option<BorrowedFd<'_>> {
        self.socket.descriptor()
    }
}

/// It has a moment to pass on what was sent last, and is ended then. Nobody waits for that.
impl Drop for Exec {
    fn drop(&mut self) {
        self.socket.finish();
        let Some(mut child) = self.child.take() else { return };
        if wait(&mut child, Duration::ZERO).is_some() {
            return;
        }
        // It must not find our end open by its own output, which nobody reads any more.
        let end = move || {
            if wait(&mut child, END_TIMEOUT).is_none() {
                kill_group(&child);
                let _ = child.wait();
            }
        };
        // Without a thread it stays until its input ends it; we are its parent until we end.
        let _ = std::thread::Builder::new().name("exec-end".into()).spawn(end);
    }
}

fn wait(child: &mut Child, timeout: Duration) -> Option<ExitStatus> {
    let mut left = timeout;
    loop {
        match child.try_wait() {
            Ok(None) if !left.is_zero() => {
                std::thread::sleep(POLL);
                left = left.saturating_sub(POLL);
            }
            Ok(status) => return status,
            Err(_) => return None,
        }
    }
}

fn kill_group(child: &Child) {
    if let Ok(group) = libc::pid_t::try_from(child.id())
        && group > 1
    {
        // SAFETY: takes two integers. The child is not reaped yet, so its number is still its own.
        unsafe { libc::kill(-group, libc::SIGKILL) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Far above what a shell takes.
    const PATIENT: Duration = Duration::from_secs(20);

    fn received(exec: &mut Exec) -> io::Result<Vec<u8>> {
        let (mut all, mut buffer) = (Vec::new(), [0; 64]);
        loop {
            let got = exec.receive(&[InSpan::buffer(&mut buffer)]);
            match got {
                Ok(0) => return Ok(all),
                Ok(count) => all.extend(&buffer[..count]),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    assert_eq!(exec.wait(Direction::Receive, None, PATIENT).unwrap(), Woken::Ready);
                }
                Err(error) => return Err(error),
            }
        }
    }

    #[test]
    fn what_is_sent_goes_through_the_command_and_comes_back() {
        let mut exec = Exec::run("tr a-z A-Z").unwrap();
        assert_eq!(exec.send(&[OutSpan::bytes(b"a guest")], false).unwrap(), 7);
        exec.finish();
        assert_eq!(received(&mut exec).unwrap(), b"A GUEST");
    }

    #[test]
    fn a_command_that_fails_is_told_with_its_status() {
        let error = received(&mut Exec::run("exit 3").unwrap()).unwrap_err().to_string();
        assert!(error.contains("exit status: 3"), "{error}");
        let error = received(&mut Exec::run("no-such-command-here 2>&-").unwrap()).unwrap_err().to_string();
        assert!(error.contains("127") && error.contains("is it installed"), "{error}");
    }

    #[test]
    fn a_command_ends_with_the_connection() {
        let mut exec = Exec::run("echo $$; exec cat").unwrap();
        let mut line = Vec::new();
        while !line.ends_with(b"\n") {
            assert_eq!(exec.wait(Direction::Receive, None, PATIENT).unwrap(), Woken::Ready);
            let mut byte = [0];
            exec.receive(&[InSpan::buffer(&mut byte)]).unwrap();
            line.push(byte[0]);
        }
        let pid = String::from_utf8(line).unwrap().trim().to_owned();
        drop(exec);
        let process = std::path::Path::new("/proc").join(pid);
        let ended = (0..4000).any(|_| {
            std::thread::sleep(POLL);
            !process.exists()
        });
        assert!(ended, "{} is still there", process.display());
    }
}
