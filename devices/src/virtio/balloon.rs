//! The balloon (virtio 1.2, section 5.5), for one thing: the guest tells which of its memory is free
//! (VIRTIO_BALLOON_F_REPORTING), and the host takes it. What was taken reads as zero, costs the host nothing, and is
//! neither read nor sent by a migration.
//!
//! The balloon itself is never asked to grow; what a driver puts into it all the same is taken as well.

use std::fmt;
use std::io;
use std::sync::Arc;

use tern_schema::record;
use vm_memory::GuestAddress;

use super::mmio::VirtioMmioV1;
use super::{Broken, Queues, Segment, VirtioDevice};
use crate::{GuestRam, RestoreError};

const F_REPORTING: u64 = 1 << 5;
const INFLATE: usize = 0;
/// Queues that no agreed feature needs aren't there, so it is the third (as Linux counts them).
const REPORTING: usize = 2;
/// Unit of the balloon's page numbers.
const PAGE_BYTES: usize = 4096;
/// Page numbers that are read at once.
const NUMBERS_MAX: usize = 256;

record! {
    /// Saved state of [`Balloon`].
    pub struct BalloonV1 = "virtio-balloon" 1 {
        /// Registers and queues.
        [1] transport: VirtioMmioV1,
    }
}

/// Takes memory that the guest doesn't need. The range lies in guest memory; whoever implements it marks what becomes
/// zero as written, and may also do nothing.
pub trait Reclaim: Send + Sync {
    /// The guest has given back `range`.
    fn take(&self, ram: &GuestRam, range: Segment);
}

/// A balloon.
pub struct Balloon {
    reclaim: Arc<dyn Reclaim>,
    /// Wanted and present size: nothing.
    config: [u8; 8],
}

impl fmt::Debug for Balloon {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Balloon").finish_non_exhaustive()
    }
}

impl Balloon {
    /// A balloon whose air `reclaim` gets.
    pub fn new(reclaim: Arc<dyn Reclaim>) -> Self {
        Self { reclaim, config: [0; 8] }
    }

    /// Takes the pages whose numbers the driver has written.
    fn inflate(&self, queues: &Queues<'_>, chain: &super::Chain) -> Result<(), Broken> {
        let mut bytes = [0; NUMBERS_MAX * 4];
        let count = chain.read(queues.ram(), 0, &mut bytes)?;
        for number in bytes.get(..count).unwrap_or_default().as_chunks::<4>().0 {
            let start = u64::from(u32::from_le_bytes(*number)) * PAGE_BYTES as u64;
            let range = Segment { address: GuestAddress(start), bytes: PAGE_BYTES };
            self.reclaim.take(queues.ram(), range);
        }
        Ok(())
    }
}

impl VirtioDevice for Balloon {
    type Saved = BalloonV1;
    const DEVICE_TYPE: u32 = 5;
    const QUEUE_MAX_SIZES: &'static [u16] = &[64, 64, 64];

    fn features(&self) -> u64 {
        F_REPORTING
    }

    fn config(&self) -> &[u8] {
        &self.config
    }

    fn activate(&mut self, _features: u64) -> io::Result<()> {
        Ok(())
    }

    fn reset(&mut self) {
        let Self { reclaim: _, config: _ } = self;
    }

    fn process_queue(&mut self, queue: usize, queues: &mut Queues<'_>) -> Result<(), Broken> {
        while let Some(chain) = queues.pop(queue)? {
            match queue {
                REPORTING => chain.writable.iter().for_each(|range| self.reclaim.take(queues.ram(), *range)),
                INFLATE => self.inflate(queues, &chain)?,
                // Deflated pages are touched again when the guest does.
                _ => {}
            }
            queues.push(queue, chain.head, 0)?;
        }
        Ok(())
    }

    fn drain(&mut self, _queues: &mut Queues<'_>) -> Result<(), Broken> {
        Ok(())
    }

    fn save(&self, transport: VirtioMmioV1) -> BalloonV1 {
        let Self { reclaim: _, config: _ } = self;
        BalloonV1 { transport }
    }

    fn transport(saved: &BalloonV1) -> &VirtioMmioV1 {
        &saved.transport
    }

    fn check(&self, _saved: &BalloonV1) -> Result<(), RestoreError> {
        Ok(())
    }

    fn restore(&mut self, saved: &BalloonV1) {
        let BalloonV1 { transport: _ } = saved;
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use super::super::testing::{ALL_FEATURES, DATA, Driver};
    use super::*;

    #[derive(Default)]
    struct Taken(Mutex<Vec<(u64, usize)>>);

    impl Reclaim for Taken {
        fn take(&self, _: &GuestRam, range: Segment) {
            self.0.lock().unwrap().push((range.address.0, range.bytes));
        }
    }

    #[test]
    fn what_the_guest_reports_or_puts_in_is_taken_and_the_buffers_come_back() {
        let taken = Arc::new(Taken::default());
        let mut driver = Driver::started(Balloon::new(taken.clone()), ALL_FEATURES);
        driver.add(REPORTING, &[(0x20_0000, 0x10_0000, true), (0x3f_0000, 0x1000, true)]);
        driver.kick(REPORTING);
        driver.wait_used(REPORTING, 1);
        driver.put(DATA, &[0x55u32.to_le_bytes(), 7u32.to_le_bytes()].concat());
        driver.add(INFLATE, &[(DATA, 8, false)]);
        driver.kick(INFLATE);
        driver.wait_used(INFLATE, 1);
        let all = taken.0.lock().unwrap().clone();
        assert_eq!(all, [(0x20_0000, 0x10_0000), (0x3f_0000, 0x1000), (0x5_5000, 4096), (0x7000, 4096)]);
    }
}
