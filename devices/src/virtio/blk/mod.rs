//! The block device (virtio 1.2, section 5.2): a disk in a file.
//!
//! ```text
//! queue --> request --> Pool: a few threads, pread/pwrite --> completions, in any order --> queue
//! ```

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::sync::Arc;

use tern_schema::record;
use virtio_bindings::virtio_blk::{
    VIRTIO_BLK_F_DISCARD, VIRTIO_BLK_F_FLUSH, VIRTIO_BLK_F_RO, VIRTIO_BLK_F_SEG_MAX, VIRTIO_BLK_F_SIZE_MAX,
    VIRTIO_BLK_F_WRITE_ZEROES,
};

use super::mmio::VirtioMmioV1;
use super::{Broken, Queues, VirtioDevice};
use crate::RestoreError;

mod activity;
mod disk;
mod pool;
mod request;
#[cfg(test)]
#[expect(clippy::cast_possible_truncation, reason = "the tests' numbers are small, or wrap on purpose")]
mod tests;

pub use activity::{DiskActivity, DiskFailures};
use disk::Disk;
use pool::Pool;
use request::Request;

const QUEUE: usize = 0;
const QUEUE_SIZE: u16 = 128;
/// Buffers with data in a request: the queue's entries without header and status.
const SEGMENTS_MAX: u32 = QUEUE_SIZE as u32 - 2;
const SEGMENT_MAX_BYTES: u32 = 256 << 10;
/// Ranges in a discard or write-zeroes request.
const RANGES_MAX: u32 = 16;
const DISCARD_MAX_SECTORS: u32 = 1 << 22;
/// 16 MiB: where the file system can't, zeros are written.
const ZEROES_MAX_SECTORS: u32 = 1 << 15;
/// Length of the disk's name for the guest.
const ID_BYTES: usize = 20;
const CONFIG_BYTES: usize = 60;

const RECORD: &str = "BlkV1";

record! {
    /// Saved state of [`Blk`]. No request is under way in it.
    pub struct BlkV1 = "virtio-blk" 1 {
        /// Registers and queues.
        [1] transport: VirtioMmioV1,
        /// Size of the disk, in units of 512 bytes.
        [2] capacity_sectors: u64,
        /// Read-only for the guest?
        [3] read_only: bool,
        /// The disk's name as the guest sees it, at most 20 bytes.
        [4] id: String,
    }
}

/// How a disk is shown to the guest.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct BlkConfig {
    /// The guest may not write.
    pub read_only: bool,
    /// Serial number; the first 20 bytes count.
    pub id: String,
}

/// A disk.
#[derive(Debug)]
pub struct Blk {
    // Configuration.
    disk: Arc<Disk>,
    config: [u8; CONFIG_BYTES],
    // Glue.
    pool: Pool,
    // State, besides what is under way.
    id: String,
    // From the negotiated features.
    write_through: bool,
    under_way: u16,
}

impl Blk {
    /// A disk as large as `file` (or block device); an incomplete last sector doesn't count. Errors: the
    /// size can't be found out, no more descriptors.
    pub fn new(file: File, config: BlkConfig) -> io::Result<Self> {
        let BlkConfig { read_only, mut id } = config;
        id.truncate((0..=ID_BYTES).rev().find(|at| id.is_char_boundary(*at)).unwrap_or(0));
        let disk = Arc::new(Disk::new(file, read_only)?);
        let config = config_space(disk.sectors());
        Ok(Self { pool: Pool::new(Arc::clone(&disk))?, disk, config, id, write_through: true, under_way: 0 })
    }

    /// Size of the disk, in units of 512 bytes.
    pub fn sectors(&self) -> u64 {
        self.disk.sectors()
    }

    /// Its requests, for those who have no part in them.
    pub fn activity(&self) -> DiskActivity {
        self.pool.activity()
    }

    /// Puts completed requests into the used ring.
    fn complete(&mut self, queues: &mut Queues<'_>) -> Result<(), Broken> {
        for done in self.pool.take_done() {
            self.under_way = self.under_way.saturating_sub(1);
            queues.push(QUEUE, done.head, done.written_bytes)?;
        }
        Ok(())
    }
}

/// `struct virtio_blk_config` (5.2.4).
fn config_space(sectors: u64) -> [u8; CONFIG_BYTES] {
    let mut config = [0; CONFIG_BYTES];
    let mut put = |at: usize, value: &[u8]| {
        for (byte, from) in config.iter_mut().skip(at).zip(value) {
            *byte = *from;
        }
    };
    put(0, &sectors.to_le_bytes());
    put(8, &SEGMENT_MAX_BYTES.to_le_bytes());
    put(12, &SEGMENTS_MAX.to_le_bytes());
    put(36, &DISCARD_MAX_SECTORS.to_le_bytes());
    put(40, &RANGES_MAX.to_le_bytes());
    put(44, &1u32.to_le_bytes());
    put(48, &ZEROES_MAX_SECTORS.to_le_bytes());
    put(52, &RANGES_MAX.to_le_bytes());
    put(56, &[1]);
    config
}

impl VirtioDevice for Blk {
    type Saved = BlkV1;
    const DEVICE_TYPE: u32 = 2;
    const QUEUE_MAX_SIZES: &'static [u16] = &[QUEUE_SIZE];

    fn features(&self) -> u64 {
        let common = 1 << VIRTIO_BLK_F_SIZE_MAX | 1 << VIRTIO_BLK_F_SEG_MAX | 1 << VIRTIO_BLK_F_FLUSH;
        if self.disk.read_only() {
            common | 1 << VIRTIO_BLK_F_RO
        } else {
            common | 1 << VIRTIO_BLK_F_DISCARD | 1 << VIRTIO_BLK_F_WRITE_ZEROES
        }
    }

    fn config(&self) -> &[u8] {
        &self.config
    }

    fn activate(&mut self, features: u64) -> io::Result<()> {
        // A driver that can't flush gets its writes on the disk at once (5.2.6.2).
        self.write_through = features & 1 << VIRTIO_BLK_F_FLUSH == 0;
        self.pool.start()
    }

    fn reset(&mut self) {
        let Self { disk: _, config: _, pool, id: _, write_through, under_way } = self;
        pool.forget();
        (*write_through, *under_way) = (true, 0);
    }

    fn process_queue(&mut self, queue: usize, queues: &mut Queues<'_>) -> Result<(), Broken> {
        self.complete(queues)?;
        let max = queues.size(queue);
        while let Some(chain) = queues.pop(queue)? {
            if self.under_way >= max {
                return Err(Broken::TooMany { queue, max });
            }
            let request = Request::parse(queues.ram(), queue, chain, &self.id, self.write_through)?;
            self.under_way += 1;
            self.pool.submit(queues.ram(), request);
        }
        Ok(())
    }

    fn event_fds(&self) -> Vec<RawFd> {
        vec![self.pool.event().as_raw_fd()]
    }

    fn process_event(&mut self, _event: usize, queues: &mut Queues<'_>) -> Result<(), Broken> {
        // Nothing to read means that it was a spurious call.
        let _ = self.pool.event().read();
        self.complete(queues)
    }

    fn drain(&mut self, queues: &mut Queues<'_>) -> Result<(), Broken> {
        // What waits in the ring goes along with guest memory; the rest is finished here. The suite's test of moves
        // with requests under way reads both, to know that there were some.
        let (unfinished, waiting) = (self.pool.unfinished(), queues.waiting(QUEUE));
        tracing::debug!(id = self.id, unfinished, waiting, "disk requests under way at the stop");
        self.pool.wait_idle();
        self.complete(queues)
    }

    fn save(&self, transport: VirtioMmioV1) -> BlkV1 {
        let Self { disk, config: _, pool: _, id, write_through: _, under_way: _ } = self;
        let (capacity_sectors, read_only) = (disk.sectors(), disk.read_only());
        BlkV1 { transport, capacity_sectors, read_only, id: id.clone() }
    }

    fn transport(saved: &BlkV1) -> &VirtioMmioV1 {
        &saved.transport
    }

    fn check(&self, saved: &BlkV1) -> Result<(), RestoreError> {
        let BlkV1 { transport: _, capacity_sectors, read_only, id } = saved;
        let differs = |what, saved: String, here: String| {
            Err(RestoreError::Differs { record: RECORD, what, saved, here })
        };
        let (sectors, read_only_here) = (self.disk.sectors(), self.disk.read_only());
        if *capacity_sectors != sectors {
            return differs("the disk's size in sectors", capacity_sectors.to_string(), sectors.to_string());
        }
        if *read_only != read_only_here {
            return differs("read-only", read_only.to_string(), read_only_here.to_string());
        }
        if id.len() > ID_BYTES {
            let (found, expected) = (id.len() as u64, "at most 20 bytes");
            return Err(RestoreError::Field { record: RECORD, field: "id", found, expected });
        }
        Ok(())
    }

    fn restore(&mut self, saved: &BlkV1) {
        let BlkV1 { transport: _, capacity_sectors: _, read_only: _, id } = saved;
        self.id.clone_from(id);
    }
}
