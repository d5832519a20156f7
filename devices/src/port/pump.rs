//! The thread of a port: moves bytes between the buffers and the host.

#![allow(unsafe_code, reason = "poll(2), read(2) and write(2) on borrowed descriptors")]

use std::fs::File;
use std::io::{self, Write};
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use super::{Buffers, INPUT_MAX_BYTES, PortTarget, Shared};
use crate::state::lock;

/// `poll` promises that so much can be written to a pipe without blocking (`PIPE_BUF`).
const CHUNK_BYTES: usize = 4096;

/// Ctrl-], as telnet has it.
const ESCAPE: u8 = 0x1d;

/// Ends this process as a polite signal would, so that everything is put back in order.
fn end_process() {
    // SAFETY: signals this very process; touches no memory.
    unsafe { libc::kill(libc::getpid(), libc::SIGTERM) };
}

const ACCEPT_PAUSE: Duration = Duration::from_millis(200);

/// Where bytes come from and go to.
#[derive(Debug)]
enum Link {
    Stdio { input_open: bool, escape: bool },
    File(File),
    Unix { listener: UnixListener, client: Option<UnixStream> },
}

/// The moving part of a port.
#[derive(Debug)]
pub(super) struct Pump {
    link: Link,
    shared: Arc<Shared>,
    /// Taken out of the ring, not yet written.
    chunk: Vec<u8>,
}

impl Pump {
    pub(super) fn new(target: PortTarget, shared: Arc<Shared>) -> io::Result<Option<Self>> {
        let link = match target {
            PortTarget::Null => return Ok(None),
            PortTarget::Stdio { escape } => Link::Stdio { input_open: true, escape },
            PortTarget::File(file) => Link::File(file),
            PortTarget::Unix(listener) => {
                listener.set_nonblocking(true)?;
                Link::Unix { listener, client: None }
            }
        };
        Ok(Some(Self { link, shared, chunk: Vec::new() }))
    }

    pub(super) fn run(mut self) {
        while let Some(input_has_room) = self.next_chunk() {
            let wants = Wants { input: input_has_room, output: !self.chunk.is_empty() };
            let ready = match self.wait(wants) {
                Ok(ready) => ready,
                Err(error) => {
                    tracing::error!(%error, "a byte port stops working: poll failed");
                    break;
                }
            };
            if ready.wake {
                let _ = self.shared.wake.read();
            }
            if ready.client {
                self.accept();
            }
            if ready.input {
                self.read_input();
            }
            if ready.output {
                self.write_output();
            }
        }
        self.finished(true);
    }

    /// Takes output to write. None: stop; else: is there room for input?
    fn next_chunk(&mut self) -> Option<bool> {
        let mut buffers = lock(&self.shared.buffers);
        if buffers.stop {
            return None;
        }
        // Without a client the ring keeps the newest bytes, so nothing leaves it.
        let has_reader = !matches!(self.link, Link::Unix { client: None, .. });
        if self.chunk.is_empty() && has_reader {
            let count = buffers.output.len().min(CHUNK_BYTES);
            self.chunk.extend(buffers.output.drain(..count));
        }
        buffers.writing = !self.chunk.is_empty();
        buffers.unplugged = !has_reader;
        let done = !buffers.writing && buffers.output.is_empty();
        let room = buffers.input.len() < INPUT_MAX_BYTES;
        drop(buffers);
        if done || !has_reader {
            self.finished(false);
        }
        Some(room)
    }

    fn finished(&self, for_ever: bool) {
        if for_ever {
            let Buffers { output, writing, .. } = &mut *lock(&self.shared.buffers);
            output.clear();
            *writing = false;
        }
        self.shared.drained.notify_all();
    }

    fn wait(&self, wants: Wants) -> io::Result<Ready> {
        let (input, output, listener) = match &self.link {
            Link::Stdio { input_open, .. } => {
                (input_open.then_some(libc::STDIN_FILENO), libc::STDOUT_FILENO, -1)
            }
            Link::File(file) => (None, file.as_raw_fd(), -1),
            Link::Unix { listener, client } => {
                let client = client.as_ref().map(AsRawFd::as_raw_fd);
                (client, client.unwrap_or(-1), listener.as_raw_fd())
            }
        };
        let input = input.filter(|_| wants.input).unwrap_or(-1);
        let output = if wants.output { output } else { -1 };
        // poll(2) passes over negative descriptors.
        let entry = |fd: RawFd, events| libc::pollfd { fd, events, revents: 0 };
        let mut fds = [
            entry(self.shared.wake.as_raw_fd(), libc::POLLIN),
            entry(listener, libc::POLLIN),
            entry(input, libc::POLLIN),
            entry(output, libc::POLLOUT),
        ];
        // SAFETY: `fds` is an array of initialised pollfd structs, and its length is passed.
        let count = unsafe { libc::poll(fds.as_mut_ptr(), fds.len() as libc::nfds_t, -1) };
        if count < 0 {
            let error = io::Error::last_os_error();
            let interrupted = error.kind() == io::ErrorKind::Interrupted;
            return if interrupted { Ok(Ready::default()) } else { Err(error) };
        }
        let [wake, client, input, output] = fds.map(|entry| entry.revents != 0);
        Ok(Ready { wake, client, input, output })
    }

    fn accept(&mut self) {
        let Link::Unix { listener, client } = &mut self.link else { return };
        match listener.accept() {
            Ok((stream, _)) => match stream.set_nonblocking(true) {
                Ok(()) => *client = Some(stream),
                Err(error) => tracing::warn!(%error, "a console client could not be taken"),
            },
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) => {
                tracing::warn!(%error, "a console client could not be taken");
                // It is still in the queue: without descriptors this would spin.
                std::thread::sleep(ACCEPT_PAUSE);
            }
        }
    }

    fn read_input(&mut self) {
        let mut bytes = [0; CHUNK_BYTES];
        let fd = match &self.link {
            Link::Stdio { .. } => libc::STDIN_FILENO,
            Link::Unix { client: Some(client), .. } => client.as_raw_fd(),
            Link::File(_) | Link::Unix { client: None, .. } => return,
        };
        let room = INPUT_MAX_BYTES.saturating_sub(lock(&self.shared.buffers).input.len());
        let wanted = room.min(bytes.len());
        // SAFETY: at most `bytes.len()` bytes are written to `bytes`.
        let count = unsafe { libc::read(fd, bytes.as_mut_ptr().cast(), wanted) };
        match usize::try_from(count) {
            Ok(0) if wanted == 0 => {}
            Ok(0) => self.hang_up(),
            Ok(count) if self.is_escape(bytes.get(..count).unwrap_or_default()) => end_process(),
            Ok(count) => {
                lock(&self.shared.buffers).input.extend(bytes.iter().take(count));
                // Fails only when the counter is full, and then it is readable anyway.
                let _ = self.shared.input_event.write(1);
            }
            Err(_) => {
                let kind = io::Error::last_os_error().kind();
                if !matches!(kind, io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted) {
                    self.hang_up();
                }
            }
        }
    }

    fn is_escape(&self, input: &[u8]) -> bool {
        matches!(self.link, Link::Stdio { escape: true, .. }) && input.contains(&ESCAPE)
    }

    fn write_output(&mut self) {
        let result = match &mut self.link {
            Link::Stdio { .. } => write_stdout(&self.chunk),
            Link::File(file) => file.write(&self.chunk),
            Link::Unix { client: Some(client), .. } => client.write(&self.chunk),
            Link::Unix { client: None, .. } => return,
        };
        match result {
            Ok(count) => drop(self.chunk.drain(..count.min(self.chunk.len()))),
            Err(error) => self.write_failed(&error),
        }
    }

    fn write_failed(&mut self, error: &io::Error) {
        if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted) {
            return;
        }
        match &mut self.link {
            // A client that went away is no news; what it didn't read waits for the next one.
            Link::Unix { client, .. } => *client = None,
            // A closed pipe or a full disk: the guest goes on, the bytes are lost and counted.
            Link::Stdio { .. } => self.lose_chunk(error, "standard output".into()),
            Link::File(file) => {
                let path = crate::path::of(file);
                self.lose_chunk(error, path);
            }
        }
    }

    fn lose_chunk(&mut self, error: &io::Error, path: PathBuf) {
        let mut buffers = lock(&self.shared.buffers);
        if buffers.lost_bytes == 0 {
            let path = path.display();
            tracing::warn!(%path, %error, "the guest's output is lost, and the guest goes on; if the disk is full, make room");
        }
        buffers.lost_bytes += self.chunk.len() as u64;
        self.chunk.clear();
    }

    fn hang_up(&mut self) {
        match &mut self.link {
            Link::Stdio { input_open, .. } => *input_open = false,
            Link::Unix { client, .. } => *client = None,
            Link::File(_) => {}
        }
    }
}

/// What the thread would do.
#[derive(Debug, Clone, Copy)]
struct Wants {
    input: bool,
    output: bool,
}

/// What it can do.
#[derive(Debug, Default, Clone, Copy)]
struct Ready {
    wake: bool,
    client: bool,
    input: bool,
    output: bool,
}

// Not `io::stdout()`: its buffer and lock would come in between.
fn write_stdout(bytes: &[u8]) -> io::Result<usize> {
    // SAFETY: exactly `bytes.len()` initialised bytes are read from `bytes`.
    let count = unsafe { libc::write(libc::STDOUT_FILENO, bytes.as_ptr().cast(), bytes.len()) };
    usize::try_from(count).map_err(|_| io::Error::last_os_error())
}
