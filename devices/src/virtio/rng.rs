//! The entropy device (virtio 1.2, section 5.4): random bytes of the host's kernel.

#![allow(unsafe_code, reason = "getrandom(2) into a local array")]

use std::io;

use tern_schema::record;

use super::mmio::VirtioMmioV1;
use super::{Broken, Queues, VirtioDevice};
use crate::RestoreError;

/// Most bytes per request; drivers ask again. Bounds the work that one descriptor can cause.
const REQUEST_MAX_BYTES: usize = 4096;
/// `getrandom` gives so many bytes at once, uninterrupted (random(4)).
const CHUNK_BYTES: usize = 256;

record! {
    /// Saved state of [`Rng`].
    pub struct RngV1 = "virtio-rng" 1 {
        /// Registers and queues.
        [1] transport: VirtioMmioV1,
    }
}

/// An entropy device.
#[derive(Debug)]
pub struct Rng {}

impl Rng {
    /// A device that draws from the host's `getrandom`; the error says that the host has none.
    pub fn new() -> io::Result<Self> {
        random().map(|_| Self {})
    }
}

/// Random bytes. Early in the host's boot there are none, and nobody waits for them here.
fn random() -> io::Result<[u8; CHUNK_BYTES]> {
    let mut bytes = [0; CHUNK_BYTES];
    // SAFETY: at most `bytes.len()` bytes are written to `bytes`.
    let count = unsafe { libc::getrandom(bytes.as_mut_ptr().cast(), bytes.len(), libc::GRND_NONBLOCK) };
    if usize::try_from(count).is_ok_and(|count| count == bytes.len()) {
        return Ok(bytes);
    }
    Err(io::Error::last_os_error())
}

impl VirtioDevice for Rng {
    type Saved = RngV1;
    const DEVICE_TYPE: u32 = 4;
    const QUEUE_MAX_SIZES: &'static [u16] = &[64];

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
        let Self {} = self;
    }

    fn process_queue(&mut self, queue: usize, queues: &mut Queues<'_>) -> Result<(), Broken> {
        while let Some(chain) = queues.pop(queue)? {
            let wanted = chain.writable_bytes().min(REQUEST_MAX_BYTES);
            let mut written = 0;
            while written < wanted {
                // A shorter answer is legal; an empty one makes the driver ask again.
                let Ok(bytes) = random() else { break };
                let part = bytes.get(..wanted - written).unwrap_or(&bytes);
                written += chain.write(queues.ram(), written, part)?;
            }
            queues.push(queue, chain.head, written)?;
        }
        Ok(())
    }

    fn drain(&mut self, _queues: &mut Queues<'_>) -> Result<(), Broken> {
        Ok(())
    }

    fn save(&self, transport: VirtioMmioV1) -> RngV1 {
        let Self {} = self;
        RngV1 { transport }
    }

    fn transport(saved: &RngV1) -> &VirtioMmioV1 {
        &saved.transport
    }

    fn check(&self, _saved: &RngV1) -> Result<(), RestoreError> {
        Ok(())
    }

    fn restore(&mut self, saved: &RngV1) {
        let RngV1 { transport: _ } = saved;
    }
}
