//! Split virtqueues: virtio-queue's rings, plus the checks that it leaves to its user.
//!
//! virtio-queue bounds every ring access, refuses an available index that jumps by more than the queue size,
//! and ends a chain silently at a loop, a bad index or a bad indirect table. Here such an end is told apart
//! from a proper one, and every buffer is checked to lie in guest memory before a device sees it.

use std::io;
use std::os::fd::AsRawFd;
use std::sync::atomic::Ordering;

use thiserror::Error;
use virtio_queue::{DescriptorChain, Queue, QueueOwnedT, QueueT};
use vm_memory::{Bytes, GuestAddress, GuestMemory, Permissions};
use vmm_sys_util::eventfd::EventFd;

use crate::GuestRam;

/// Chains that one call may take from a queue before other devices get their turn.
const BUDGET: u32 = 256;
/// Buffers in a chain. Drivers keep to the queue size or to a limit that the device names, all below this;
/// an indirect table of 65535 entries would cost milliseconds each time.
const SEGMENTS_MAX: usize = 1024;

/// How a driver broke the rules. The device stops until the driver resets it.
#[derive(Debug, Error)]
pub enum Broken {
    /// A ring is unusable, or lies outside guest memory.
    #[error("queue {queue}: {source}")]
    Ring {
        /// Queue's number.
        queue: usize,
        /// What virtio-queue found.
        #[source]
        source: virtio_queue::Error,
    },
    /// A chain loops, points nowhere, or has readable buffers behind writable ones.
    #[error("queue {queue}: the chain at descriptor {head} {fault}")]
    Chain {
        /// Queue's number.
        queue: usize,
        /// First descriptor.
        head: u16,
        /// What is wrong with it, in words.
        fault: &'static str,
    },
    /// More requests are under way than the queue has entries: some were made available twice.
    #[error("queue {queue}: more than {max} requests at a time")]
    TooMany {
        /// Queue's number.
        queue: usize,
        /// Most at a time.
        max: u16,
    },
    /// A buffer could not be accessed.
    #[error("guest memory: {0}")]
    Memory(#[from] vm_memory::GuestMemoryError),
}

/// A buffer that lies in guest memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Segment {
    /// Its address.
    pub address: GuestAddress,
    /// Its length, never 0.
    pub bytes: usize,
}

/// A chain of buffers that the driver made available.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Chain {
    /// First descriptor, by which the driver knows the chain.
    pub head: u16,
    /// What the device may read.
    pub readable: Vec<Segment>,
    /// What the device may write.
    pub writable: Vec<Segment>,
}

impl Chain {
    fn new(queue: usize, ram: &GuestRam, chain: DescriptorChain<&GuestRam>) -> Result<Self, Broken> {
        let head = chain.head_index();
        let broken = |fault| Broken::Chain { queue, head, fault };
        let mut found = Self { head, readable: Vec::new(), writable: Vec::new() };
        let mut ended = false;
        for (count, descriptor) in chain.enumerate() {
            if count == SEGMENTS_MAX {
                return Err(broken("has more than 1024 buffers"));
            }
            ended = !descriptor.has_next();
            let segment = Segment { address: descriptor.addr(), bytes: descriptor.len() as usize };
            let (list, access) = if descriptor.is_write_only() {
                (&mut found.writable, Permissions::Write)
            } else if found.writable.is_empty() {
                (&mut found.readable, Permissions::Read)
            } else {
                return Err(broken("has a readable buffer behind a writable one"));
            };
            if segment.bytes == 0 {
                continue;
            }
            if !ram.check_range(segment.address, segment.bytes, access) {
                return Err(broken("has a buffer outside guest memory"));
            }
            list.push(segment);
        }
        if ended { Ok(found) } else { Err(broken("loops, is too long, or leaves its table")) }
    }

    /// Bytes that the device may read.
    pub fn readable_bytes(&self) -> usize {
        self.readable.iter().map(|segment| segment.bytes).sum()
    }

    /// Bytes that the device may write.
    pub fn writable_bytes(&self) -> usize {
        self.writable.iter().map(|segment| segment.bytes).sum()
    }

    /// Reads from the readable buffers, `skip` bytes behind their start; less than `data.len()` at their end.
    pub fn read(&self, ram: &GuestRam, skip: usize, data: &mut [u8]) -> Result<usize, Broken> {
        let mut done = 0;
        for segment in pieces(&self.readable, skip, data.len()) {
            let Some(part) = data.get_mut(done..done + segment.bytes) else { break };
            ram.read_slice(part, segment.address)?;
            done += segment.bytes;
        }
        Ok(done)
    }

    /// Writes to the writable buffers, `skip` bytes behind their start; less than `data.len()` at their end.
    pub fn write(&self, ram: &GuestRam, skip: usize, data: &[u8]) -> Result<usize, Broken> {
        let mut done = 0;
        for segment in pieces(&self.writable, skip, data.len()) {
            let Some(part) = data.get(done..done + segment.bytes) else { break };
            ram.write_slice(part, segment.address)?;
            done += segment.bytes;
        }
        Ok(done)
    }
}

/// The part of `segments` that starts after `skip` bytes and is at most `bytes` long.
pub(crate) fn pieces(segments: &[Segment], skip: usize, bytes: usize) -> impl Iterator<Item = Segment> {
    let (mut skip, mut left) = (skip, bytes);
    segments.iter().filter_map(move |segment| {
        let skipped = skip.min(segment.bytes);
        skip -= skipped;
        let bytes = (segment.bytes - skipped).min(left);
        left -= bytes;
        // Inside a segment that was checked, so the sum can't overflow.
        let address = GuestAddress(segment.address.0 + skipped as u64);
        (bytes > 0).then_some(Segment { address, bytes })
    })
}

/// A queue with its notification.
pub(crate) struct VirtQueue {
    pub(crate) queue: Queue,
    /// The driver's kick: an ioeventfd, and `QueueNotify` writes that come as exits.
    pub(crate) event: EventFd,
    used: bool,
    budget: u32,
}

impl VirtQueue {
    pub(crate) fn new(max_size: u16) -> io::Result<Self> {
        let event = EventFd::new(libc::EFD_NONBLOCK | libc::EFD_CLOEXEC)?;
        let queue = Queue::new(max_size).map_err(io::Error::other)?;
        Ok(Self { queue, event, used: false, budget: BUDGET })
    }

    /// Has this queue to be looked at again?
    pub(crate) fn kick(&self) {
        if let Err(error) = self.event.write(1) {
            tracing::error!(fd = self.event.as_raw_fd(), %error, "a virtio queue could not be kicked");
        }
    }
}

/// The queues of a device at work.
pub struct Queues<'a> {
    pub(crate) ram: &'a GuestRam,
    pub(crate) queues: &'a mut [VirtQueue],
}

impl Queues<'_> {
    /// Guest memory.
    pub fn ram(&self) -> &GuestRam {
        self.ram
    }

    /// Takes the next chain. None: there is none, and the driver will kick when there is; or this call has
    /// worked enough and the queue has been kicked to come back.
    pub fn pop(&mut self, queue: usize) -> Result<Option<Chain>, Broken> {
        let Some(virt_queue) = self.queues.get_mut(queue) else { return Ok(None) };
        if !virt_queue.queue.ready() {
            return Ok(None);
        }
        if virt_queue.budget == 0 {
            virt_queue.kick();
            return Ok(None);
        }
        let ring = |source| Broken::Ring { queue, source };
        // Twice: the driver may have added a chain just before it could see that we want to be kicked.
        for _ in 0..2 {
            let next = virt_queue.queue.iter(self.ram).map_err(ring)?.next();
            if let Some(chain) = next {
                virt_queue.budget -= 1;
                return Chain::new(queue, self.ram, chain).map(Some);
            }
            if !virt_queue.queue.enable_notification(self.ram).map_err(ring)? {
                return Ok(None);
            }
        }
        // A driver that moves its index back and forth.
        virt_queue.kick();
        Ok(None)
    }

    /// Chains that the driver has made available and that were not popped yet, for people.
    pub fn waiting(&self, queue: usize) -> u16 {
        let queue = self.queues.get(queue).map(|virt_queue| &virt_queue.queue).filter(|queue| queue.ready());
        let available = queue.and_then(|queue| {
            let index = queue.avail_idx(self.ram, Ordering::Acquire).ok()?;
            Some(index.0.wrapping_sub(queue.next_avail()))
        });
        available.unwrap_or(0)
    }

    /// Gives the last `count` chains back to the queue, as if they had not been popped.
    pub fn undo_pop(&mut self, queue: usize, count: u16) {
        if let Some(virt_queue) = self.queues.get_mut(queue) {
            virt_queue.budget += u32::from(count);
            let next = virt_queue.queue.next_avail().wrapping_sub(count);
            virt_queue.queue.set_next_avail(next);
        }
    }

    /// Returns a chain to the driver; `written_bytes` is how much the device wrote into it.
    pub fn push(&mut self, queue: usize, head: u16, written_bytes: usize) -> Result<(), Broken> {
        let Some(virt_queue) = self.queues.get_mut(queue) else { return Ok(()) };
        if !virt_queue.queue.ready() {
            return Ok(());
        }
        let written = u32::try_from(written_bytes).unwrap_or(u32::MAX);
        let added = virt_queue.queue.add_used(self.ram, head, written);
        added.map_err(|source| Broken::Ring { queue, source })?;
        virt_queue.used = true;
        Ok(())
    }

    /// Asks for another call of `process_queue`, because this one has worked enough.
    pub fn come_back(&self, queue: usize) {
        if let Some(virt_queue) = self.queues.get(queue) {
            virt_queue.kick();
        }
    }

    /// Entries of a queue.
    pub fn size(&self, queue: usize) -> u16 {
        self.queues.get(queue).map_or(0, |virt_queue| virt_queue.queue.size())
    }

    /// Lets each queue work again, after the work of one call.
    pub(crate) fn end_turn(&mut self) -> Result<bool, Broken> {
        let mut interrupt = false;
        for (queue, virt_queue) in self.queues.iter_mut().enumerate() {
            virt_queue.budget = BUDGET;
            if std::mem::take(&mut virt_queue.used) {
                let needed = virt_queue.queue.needs_notification(self.ram);
                interrupt |= needed.map_err(|source| Broken::Ring { queue, source })?;
            }
        }
        Ok(interrupt)
    }
}
