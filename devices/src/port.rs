//! The host's end of a byte stream to the guest: what a serial port or a console is plugged into.
//!
//! ```text
//! device --output()--> [ ring of OUTPUT_MAX_BYTES ] --.
//!                                                      thread: poll(2) --- terminal, file or socket
//! device <-take_input()-- [ INPUT_MAX_BYTES ] --------'
//! ```
//!
//! A vCPU never waits for a reader: when the ring is full, the oldest bytes give way and are counted. So a
//! client that comes late sees the newest output, and a slow one loses the middle. Input has back-pressure:
//! no more is read than the guest has room for.

use std::collections::VecDeque;
use std::fs::File;
use std::io;
use std::os::unix::net::UnixListener;
use std::sync::{Arc, Condvar, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use vmm_sys_util::eventfd::EventFd;

use crate::state::lock;

mod pump;

/// Output that waits for its reader.
pub(crate) const OUTPUT_MAX_BYTES: usize = 256 << 10;
/// Input that waits for the guest.
pub(crate) const INPUT_MAX_BYTES: usize = 4 << 10;
/// The thread needs little more than one buffer, and a log line now and then.
const STACK_BYTES: usize = 256 << 10;

/// What a [`BytePort`] is connected to.
#[derive(Debug)]
pub enum PortTarget {
    /// Output vanishes, there is no input.
    Null,
    /// Standard input and output. Terminal modes are the caller's business.
    Stdio {
        /// Ctrl-] in the input asks this process to end (SIGTERM), as no signal key does in raw mode.
        escape: bool,
    },
    /// Output is written at the file's position; there is no input.
    File(File),
    /// One client at a time; a new one takes over from the old.
    Unix(UnixListener),
}

#[derive(Debug, Default)]
struct Buffers {
    output: VecDeque<u8>,
    input: VecDeque<u8>,
    lost_bytes: u64,
    /// Bytes that the thread has taken out of `output` and not yet written.
    writing: bool,
    /// There is nobody at the other end.
    unplugged: bool,
    stop: bool,
}

#[derive(Debug)]
struct Shared {
    buffers: Mutex<Buffers>,
    drained: Condvar,
    /// Tells the thread that the buffers have changed.
    wake: EventFd,
    /// Tells the device that there is input.
    input_event: EventFd,
}

/// A port, shared by the device and whoever flushes it at the end.
#[derive(Debug)]
pub struct BytePort {
    shared: Arc<Shared>,
    /// None where there is nothing to move.
    thread: Option<JoinHandle<()>>,
}

impl BytePort {
    /// Connects a port. Errors: no more file descriptors, or no thread.
    pub fn new(target: PortTarget) -> io::Result<Arc<Self>> {
        let shared = Arc::new(Shared {
            buffers: Mutex::default(),
            drained: Condvar::new(),
            wake: EventFd::new(libc::EFD_NONBLOCK | libc::EFD_CLOEXEC)?,
            input_event: EventFd::new(libc::EFD_NONBLOCK | libc::EFD_CLOEXEC)?,
        });
        let thread = match pump::Pump::new(target, Arc::clone(&shared))? {
            None => None,
            Some(pump) => {
                let builder = std::thread::Builder::new().name("byte-port".into()).stack_size(STACK_BYTES);
                Some(builder.spawn(move || pump.run())?)
            }
        };
        Ok(Arc::new(Self { shared, thread }))
    }

    /// Takes the guest's bytes. Never waits.
    pub fn output(&self, bytes: &[u8]) {
        if self.thread.is_none() {
            return;
        }
        self.shared.push_output(bytes);
    }

    /// Gives at most `max` bytes of input to the device.
    pub fn take_input(&self, max: usize) -> Vec<u8> {
        let mut buffers = lock(&self.shared.buffers);
        let was_full = buffers.input.len() >= INPUT_MAX_BYTES;
        let count = max.min(buffers.input.len());
        let taken = buffers.input.drain(..count).collect();
        drop(buffers);
        if was_full && count > 0 {
            self.shared.wake();
        }
        taken
    }

    /// Takes back input that the guest never saw; it is the next to be taken.
    pub(crate) fn give_back(&self, bytes: &[u8]) {
        let mut buffers = lock(&self.shared.buffers);
        for byte in bytes.iter().rev() {
            buffers.input.push_front(*byte);
        }
        drop(buffers);
        self.announce_input();
    }

    /// Makes [`Self::input_event`] readable, for a device that may find old input.
    pub(crate) fn announce_input(&self) {
        // Fails only when the counter is full, and then it is readable anyway.
        let _ = self.shared.input_event.write(1);
    }

    /// Readable when input has come since it was last read.
    pub fn input_event(&self) -> &EventFd {
        &self.shared.input_event
    }

    /// Waits until all output has been written. False if that took longer than `timeout`, or if there is
    /// nobody to write to.
    pub fn flush(&self, timeout: Duration) -> bool {
        let deadline = Instant::now() + timeout;
        let mut buffers = lock(&self.shared.buffers);
        while buffers.writing || !buffers.output.is_empty() {
            if buffers.unplugged {
                return false;
            }
            let Some(left) = deadline.checked_duration_since(Instant::now()) else { return false };
            let waited = self.shared.drained.wait_timeout(buffers, left);
            buffers = waited.unwrap_or_else(std::sync::PoisonError::into_inner).0;
        }
        true
    }

    /// Is there someone to read the output? Of a unix socket: a client.
    pub fn has_reader(&self) -> bool {
        !lock(&self.shared.buffers).unplugged
    }

    /// Bytes of output that nobody fetched in time.
    pub fn lost_bytes(&self) -> u64 {
        lock(&self.shared.buffers).lost_bytes
    }
}

impl Drop for BytePort {
    fn drop(&mut self) {
        lock(&self.shared.buffers).stop = true;
        self.shared.wake();
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            tracing::error!("the thread of a byte port panicked");
        }
    }
}

impl Shared {
    fn push_output(&self, bytes: &[u8]) {
        let mut buffers = lock(&self.buffers);
        let was_empty = buffers.output.is_empty();
        buffers.output.extend(bytes);
        let excess = buffers.output.len().saturating_sub(OUTPUT_MAX_BYTES);
        buffers.output.drain(..excess);
        buffers.lost_bytes += excess as u64;
        drop(buffers);
        if was_empty {
            self.wake();
        }
    }

    // An eventfd write only fails when its counter is full, and then it is readable anyway.
    fn wake(&self) {
        let _ = self.wake.write(1);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Read, Write};
    use std::os::unix::net::UnixStream;

    const LONG: Duration = Duration::from_secs(20);

    fn listen() -> (tempfile::TempDir, std::path::PathBuf, Arc<BytePort>) {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("port");
        let port = BytePort::new(PortTarget::Unix(UnixListener::bind(&path).unwrap())).unwrap();
        (directory, path, port)
    }

    fn input(port: &BytePort, count: usize) -> Vec<u8> {
        let deadline = Instant::now() + LONG;
        let mut all = Vec::new();
        while all.len() < count && Instant::now() < deadline {
            all.extend(port.take_input(count - all.len()));
            std::thread::yield_now();
        }
        all
    }

    #[test]
    fn a_file_gets_everything_in_order() {
        let mut file = tempfile::tempfile().unwrap();
        let port = BytePort::new(PortTarget::File(file.try_clone().unwrap())).unwrap();
        let text: Vec<u8> = (0..100_000u32).flat_map(u32::to_le_bytes).collect();
        for piece in text.chunks(100_000) {
            port.output(piece);
            assert!(port.flush(LONG));
        }
        assert_eq!(port.lost_bytes(), 0);
        let mut found = Vec::new();
        io::Seek::rewind(&mut file).unwrap();
        file.read_to_end(&mut found).unwrap();
        assert!(found == text);
    }

    #[test]
    fn without_a_client_the_newest_output_waits_and_nobody_blocks() {
        let (_directory, path, port) = listen();
        port.output(&[b'a'; OUTPUT_MAX_BYTES]);
        port.output(b"the end");
        assert_eq!(port.lost_bytes(), 7);
        let before = Instant::now();
        assert!(!port.flush(LONG));
        assert!(before.elapsed() < LONG / 2, "nobody to wait for");
        let mut client = UnixStream::connect(&path).unwrap();
        let mut found = vec![0; OUTPUT_MAX_BYTES];
        client.read_exact(&mut found).unwrap();
        assert!(found.ends_with(b"the end"));
        assert!(port.flush(LONG));
    }

    #[test]
    fn input_stops_when_the_guest_does_not_read() {
        let (_directory, path, port) = listen();
        let mut client = UnixStream::connect(&path).unwrap();
        let text: Vec<u8> = (0..u8::MAX).cycle().take(INPUT_MAX_BYTES * 3).collect();
        client.write_all(&text).unwrap();
        let first = input(&port, INPUT_MAX_BYTES);
        std::thread::sleep(Duration::from_millis(20));
        assert!(lock(&port.shared.buffers).input.len() <= INPUT_MAX_BYTES);
        let rest = input(&port, INPUT_MAX_BYTES * 2);
        assert!([first, rest].concat() == text);
    }

    #[test]
    fn a_second_client_takes_over_and_a_client_may_leave() {
        let (_directory, path, port) = listen();
        let mut first = UnixStream::connect(&path).unwrap();
        first.write_all(b"1").unwrap();
        assert_eq!(input(&port, 1), b"1");
        let mut second = UnixStream::connect(&path).unwrap();
        second.write_all(b"2").unwrap();
        assert_eq!(input(&port, 1), b"2");
        assert_eq!(first.read(&mut [0]).unwrap(), 0, "the first was hung up on");
        drop(second);
        let mut third = UnixStream::connect(&path).unwrap();
        port.output(b"hello");
        let mut found = [0; 5];
        third.read_exact(&mut found).unwrap();
        assert_eq!(&found, b"hello");
    }

    #[test]
    fn null_takes_everything() {
        let port = BytePort::new(PortTarget::Null).unwrap();
        port.output(&[0; 10 * OUTPUT_MAX_BYTES]);
        assert!(port.flush(Duration::ZERO));
    }
}
