//! The console device (virtio 1.2, section 5.3) with one port, plugged into a [`BytePort`].

use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::sync::Arc;

use tern_schema::record;

use super::mmio::VirtioMmioV1;
use super::{Broken, Queues, VirtioDevice};
use crate::port::OUTPUT_MAX_BYTES;
use crate::{BytePort, RestoreError};

const RECEIVE: usize = 0;
const TRANSMIT: usize = 1;
/// Copied at a time.
const CHUNK_BYTES: usize = 4096;

record! {
    /// Saved state of [`Console`]. Input that the guest had no room for stays with the host's end.
    pub struct ConsoleV1 = "virtio-console" 1 {
        /// Registers and queues.
        [1] transport: VirtioMmioV1,
    }
}

/// A console with one port and no size.
#[derive(Debug)]
pub struct Console {
    // Glue.
    port: Arc<BytePort>,
}

impl Console {
    /// A console between `port` and the guest.
    pub fn new(port: Arc<BytePort>) -> Self {
        Self { port }
    }

    // A chain may claim 4 GiB; the port wouldn't keep more than its ring anyway.
    fn transmit(&self, queues: &mut Queues<'_>) -> Result<(), Broken> {
        let mut bytes = [0; CHUNK_BYTES];
        while let Some(chain) = queues.pop(TRANSMIT)? {
            let mut done = 0;
            while done < OUTPUT_MAX_BYTES {
                let count = chain.read(queues.ram(), done, &mut bytes)?;
                if count == 0 {
                    break;
                }
                self.port.output(bytes.get(..count).unwrap_or_default());
                done += count;
            }
            queues.push(TRANSMIT, chain.head, 0)?;
        }
        Ok(())
    }

    fn receive(&self, queues: &mut Queues<'_>) -> Result<(), Broken> {
        while let Some(chain) = queues.pop(RECEIVE)? {
            let bytes = self.port.take_input(chain.writable_bytes().min(CHUNK_BYTES));
            if bytes.is_empty() && chain.writable_bytes() > 0 {
                queues.undo_pop(RECEIVE, 1);
                return Ok(());
            }
            let written = chain.write(queues.ram(), 0, &bytes)?;
            queues.push(RECEIVE, chain.head, written)?;
        }
        Ok(())
    }
}

impl VirtioDevice for Console {
    type Saved = ConsoleV1;
    const DEVICE_TYPE: u32 = 3;
    const QUEUE_MAX_SIZES: &'static [u16] = &[64, 64];

    fn features(&self) -> u64 {
        0
    }

    fn config(&self) -> &[u8] {
        &[]
    }

    fn activate(&mut self, _features: u64) -> io::Result<()> {
        Ok(())
    }

    fn reset(&mut self) {
        let Self { port: _ } = self;
    }

    fn process_queue(&mut self, queue: usize, queues: &mut Queues<'_>) -> Result<(), Broken> {
        if queue == TRANSMIT { self.transmit(queues) } else { self.receive(queues) }
    }

    fn event_fds(&self) -> Vec<RawFd> {
        vec![self.port.input_event().as_raw_fd()]
    }

    fn process_event(&mut self, _event: usize, queues: &mut Queues<'_>) -> Result<(), Broken> {
        // Nothing to read means that it was a spurious call.
        let _ = self.port.input_event().read();
        self.receive(queues)
    }

    fn drain(&mut self, _queues: &mut Queues<'_>) -> Result<(), Broken> {
        Ok(())
    }

    fn save(&self, transport: VirtioMmioV1) -> ConsoleV1 {
        let Self { port: _ } = self;
        ConsoleV1 { transport }
    }

    fn transport(saved: &ConsoleV1) -> &VirtioMmioV1 {
        &saved.transport
    }

    fn check(&self, _saved: &ConsoleV1) -> Result<(), RestoreError> {
        Ok(())
    }

    fn restore(&mut self, saved: &ConsoleV1) {
        let ConsoleV1 { transport: _ } = saved;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::virtio::mmio::MmioDevice;
    use crate::virtio::testing::{ALL_FEATURES, DATA, Driver};
    use crate::{PortTarget, Stateful};
    use std::io::{Read, Write};
    use std::os::unix::net::{UnixListener, UnixStream};
    use std::time::Duration;

    fn plugged() -> (tempfile::TempDir, Arc<BytePort>, UnixStream) {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("console");
        let port = BytePort::new(PortTarget::Unix(UnixListener::bind(&path).unwrap())).unwrap();
        let client = UnixStream::connect(&path).unwrap();
        client.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        (directory, port, client)
    }

    #[test]
    fn output_reaches_the_client_whole() {
        let (_directory, port, mut client) = plugged();
        let mut driver = Driver::started(Console::new(port), ALL_FEATURES);
        let text: Vec<u8> = (0..=255).cycle().take(10_000).collect();
        driver.put(DATA, &text);
        driver.add(TRANSMIT, &[(DATA, 9_000, false), (DATA + 9_000, 1_000, false)]);
        driver.kick(TRANSMIT);
        assert_eq!(driver.wait_used(TRANSMIT, 1), [(0, 0)]);
        let mut found = vec![0; text.len()];
        client.read_exact(&mut found).unwrap();
        assert!(found == text);
    }

    #[test]
    fn input_waits_for_buffers_and_survives_a_migration() {
        let (_directory, port, mut client) = plugged();
        let mut source = Driver::started(Console::new(Arc::clone(&port)), ALL_FEATURES);
        client.write_all(b"hello").unwrap();
        source.add(RECEIVE, &[(DATA, 2, true)]);
        source.kick(RECEIVE);
        assert_eq!(source.wait_used(RECEIVE, 1), [(0, 2)]);
        source.transport.pause();
        let saved = source.transport.save();
        let mut destination = source.moved_to(Console::new(port));
        destination.transport.restore(saved.clone()).unwrap();
        assert_eq!(destination.transport.save(), saved);
        destination.add(RECEIVE, &[(DATA + 2, 64, true)]);
        destination.transport.resume();
        assert_eq!(destination.wait_used(RECEIVE, 1), [(1, 3)]);
        assert_eq!(destination.bytes(DATA, 5), b"hello");
    }
}
