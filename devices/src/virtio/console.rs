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
