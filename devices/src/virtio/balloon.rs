//! The balloon (virtio 1.2, section 5.5): the guest gives memory to the host, which it doesn't need or is asked for. What was
//! taken reads as zero, costs the host nothing, and is neither read nor sent by a migration.
//!
//! ```text
//! free page reporting   the guest tells by itself what is free, and takes it again without a word
//! inflate, deflate      the host asks for so many pages; the guest says which, and how many it has given (`actual`)
//! ```

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
/// Where the driver writes how much it has given.
const GIVEN_OFFSET: usize = 4;
/// Page numbers that are read at once.
const NUMBERS_MAX: usize = 256;

record! {
    /// Saved state of [`Balloon`].
    pub struct BalloonV1 = "virtio-balloon" 1 {
        /// Registers and queues.
        [1] transport: VirtioMmioV1,
        /// Pages that the host wants; absent: none. A guest can tell, so a reader must know it.
        [2] wanted_pages: Option<u32>,
        /// Pages that the driver says it has given; absent: none.
        [3] given_pages: Option<u32>,
    }
}

/// Takes memory that the guest doesn't need. The range lies in guest memory; whoever implements it marks what becomes
/// zero as written, and may also do nothing.
pub trait Reclaim: Send + Sync {
    /// The guest has given back `range`.
    fn take(&self, ram: &GuestRam, range: Segment);

    /// The driver says how large the balloon is now.
    fn resized(&self, size: BalloonSize) {
        let _ = size;
    }
}

/// How large a balloon is, in pages of 4096 bytes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct BalloonSize {
    /// As the host wants it.
    pub wanted_pages: u32,
    /// As the driver says that it is: the guest may claim anything.
    pub given_pages: u32,
}

/// A balloon.
pub struct Balloon {
    reclaim: Arc<dyn Reclaim>,
    /// `num_pages` and `actual` of `struct virtio_balloon_config`.
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

    /// How large it is.
    pub fn size(&self) -> BalloonSize {
        let [w0, w1, w2, w3, g0, g1, g2, g3] = self.config;
        let [wanted_pages, given_pages] = [[w0, w1, w2, w3], [g0, g1, g2, g3]].map(u32::from_le_bytes);
        BalloonSize { wanted_pages, given_pages }
    }

    /// Asks for another size; the transport's `reconfigure` tells the driver.
    pub fn want(&mut self, pages: u32) {
        self.set(BalloonSize { wanted_pages: pages, ..self.size() });
    }

    fn set(&mut self, size: BalloonSize) {
        let BalloonSize { wanted_pages, given_pages } = size;
        let bytes = [wanted_pages, given_pages].map(u32::to_le_bytes);
        self.config.iter_mut().zip(bytes.as_flattened()).for_each(|(place, byte)| *place = *byte);
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

    fn write_config(&mut self, offset: usize, bytes: &[u8]) {
        // The rest is the host's.
        if offset < GIVEN_OFFSET {
            return;
        }
        let places = self.config.iter_mut().skip(offset);
        places.zip(bytes).for_each(|(place, byte)| *place = *byte);
        self.reclaim.resized(self.size());
    }

    fn activate(&mut self, _features: u64) -> io::Result<()> {
        Ok(())
    }

    fn reset(&mut self) {
        let size = BalloonSize { given_pages: 0, ..self.size() };
        let Self { reclaim: _, config: _ } = self;
        // The driver begins with nothing in it, and what the host wants stays.
        self.set(size);
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
        let BalloonSize { wanted_pages, given_pages } = self.size();
        let [wanted_pages, given_pages] =
            [wanted_pages, given_pages].map(|pages| (pages > 0).then_some(pages));
        BalloonV1 { transport, wanted_pages, given_pages }
    }

    fn transport(saved: &BalloonV1) -> &VirtioMmioV1 {
        &saved.transport
    }

    fn check(&self, _saved: &BalloonV1) -> Result<(), RestoreError> {
        Ok(())
    }

    fn restore(&mut self, saved: &BalloonV1) {
        let BalloonV1 { transport: _, wanted_pages, given_pages } = saved;
        let [wanted_pages, given_pages] = [wanted_pages, given_pages].map(|pages| pages.unwrap_or(0));
        self.set(BalloonSize { wanted_pages, given_pages });
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use super::super::testing::{ALL_FEATURES, DATA, Driver};
    use super::*;
    use crate::{BusDevice, Stateful};

    #[derive(Default)]
    struct Taken(Mutex<Vec<(u64, usize)>>, Mutex<Vec<BalloonSize>>);

    impl Reclaim for Taken {
        fn take(&self, _: &GuestRam, range: Segment) {
            self.0.lock().unwrap().push((range.address.0, range.bytes));
        }

        fn resized(&self, size: BalloonSize) {
            self.1.lock().unwrap().push(size);
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

    const CONFIG: u64 = 0x100;

    #[test]
    fn the_host_asks_the_guest_answers_and_both_go_along() {
        let taken = Arc::new(Taken::default());
        let mut driver = Driver::started(Balloon::new(taken.clone()), ALL_FEATURES);
        while driver.interrupted() {}
        driver.transport.reconfigure(|balloon| balloon.want(300));
        assert!(driver.interrupted());
        assert_eq!((driver.read(CONFIG), driver.read(CONFIG + 4)), (300, 0));
        driver.write(CONFIG + 4, 256);
        let size = BalloonSize { wanted_pages: 300, given_pages: 256 };
        assert_eq!(*taken.1.lock().unwrap(), [size]);
        // What the host wants isn't the driver's to change, and there is nothing behind.
        for (offset, bytes) in
            [(0, &[9u8; 4][..]), (2, &[9; 4]), (8, &[9; 4]), (6, &[0; 8]), (u64::MAX - 0x100, &[1])]
        {
            driver.transport.write(CONFIG + offset, bytes);
        }
        assert_eq!(driver.transport.device().size(), size);

        let saved = driver.transport.save();
        assert_eq!((saved.wanted_pages, saved.given_pages), (Some(300), Some(256)));
        let mut moved = driver.moved_to(Balloon::new(taken));
        moved.transport.check(&saved).unwrap();
        moved.transport.restore(saved).unwrap();
        assert_eq!((moved.read(CONFIG), moved.read(CONFIG + 4)), (300, 256));
        // A driver that begins anew has given nothing.
        moved.write(0x70, 0);
        let size = BalloonSize { wanted_pages: 300, given_pages: 0 };
        assert_eq!(moved.transport.device().size(), size);
        assert_eq!(Balloon::new(Arc::new(Taken::default())).size(), BalloonSize::default());
    }
}
