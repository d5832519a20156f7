//! One connection for two threads: one sends on it while the other waits for what comes.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use super::socket::wait;
use super::span::{InSpan, OutSpan};
use super::stream::{Heard, Stream};
use super::{Direction, Woken};
use crate::cancel::Cancel;

/// Half of a connection. Nobody keeps the other half from its work while he waits.
#[derive(Debug)]
pub(crate) struct Half {
    stream: Arc<Mutex<Box<dyn Stream>>>,
    /// The connection's descriptor, to be waited for.
    fd: Option<OwnedFd>,
}

/// Both halves.
pub(crate) fn halves(stream: Box<dyn Stream>) -> io::Result<[Half; 2]> {
    let descriptor = || stream.descriptor().map(|fd| fd.try_clone_to_owned()).transpose();
    let fds = [descriptor()?, descriptor()?];
    let stream = Arc::new(Mutex::new(stream));
    Ok(fds.map(|fd| Half { stream: Arc::clone(&stream), fd }))
}

impl Half {
    fn stream(&self) -> MutexGuard<'_, Box<dyn Stream>> {
        self.stream.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Stream for Half {
    fn send(&mut self, spans: &[OutSpan<'_>], more: bool) -> io::Result<usize> {
        self.stream().send(spans, more)
    }

    fn receive(&mut self, spans: &[InSpan<'_>]) -> io::Result<usize> {
        self.stream().receive(spans)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.stream().flush()
    }

    fn wait(
        &mut self,
        direction: Direction,
        cancel: Option<&Cancel>,
        timeout: Duration,
    ) -> io::Result<Woken> {
        let Some(fd) = &self.fd else { return self.stream().wait(direction, cancel, timeout) };
        // What has been decrypted already shows in no descriptor.
        if direction == Direction::Receive {
            let Heard { bytes, ended, .. } = self.stream().peek(&mut [0])?;
            if bytes > 0 || ended {
                return Ok(Woken::Ready);
            }
        }
        wait(fd.as_fd(), direction, cancel.map(Cancel::as_fd), timeout)
    }

    fn peek(&mut self, first: &mut [u8]) -> io::Result<Heard> {
        self.stream().peek(first)
    }

    fn finish(&mut self) {
        self.stream().finish();
    }

    fn descriptor(&self) -> Option<BorrowedFd<'_>> {
        self.fd.as_ref().map(AsFd::as_fd)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::channel::Connection;

    #[test]
    fn one_half_sends_while_the_other_waits() {
        let (one, other) = Connection::pair().unwrap();
        let [mut sending, mut receiving] = halves(one.stream).unwrap();
        let mut other = other.stream;
        std::thread::scope(|scope| {
            let waits = scope.spawn(move || {
                receiving.wait(Direction::Receive, None, Duration::from_secs(20)).unwrap();
                let mut bytes = [0; 4];
                (receiving.receive(&[InSpan::buffer(&mut bytes)]).unwrap(), bytes)
            });
            sending.send(&[OutSpan::bytes(b"ask")], false).unwrap();
            other.wait(Direction::Receive, None, Duration::from_secs(20)).unwrap();
            let mut bytes = [0; 4];
            assert_eq!(other.receive(&[InSpan::buffer(&mut bytes)]).unwrap(), 3);
            other.send(&[OutSpan::bytes(b"told")], false).unwrap();
            assert_eq!(waits.join().unwrap(), (4, *b"told"));
        });
    }
}
