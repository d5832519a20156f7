//! The virtio-mmio transport, version 2 (virtio 1.2, section 4.2).
//!
//! ```text
//! ACKNOWLEDGE -> DRIVER -> FEATURES_OK -> (queues are set up) -> DRIVER_OK -> at work
//!      ^                                                                       | the driver breaks a rule
//!      '------------------- the driver writes 0 ------------------ DEVICE_NEEDS_RESET
//! ```
//!
//! A kick, whether it comes by ioeventfd or as a register write, makes the queue's event readable; the work
//! is done in the event loop, so that no vCPU waits for it.

use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::sync::Arc;

use virtio_bindings::virtio_config::{
    VIRTIO_CONFIG_S_ACKNOWLEDGE, VIRTIO_CONFIG_S_DRIVER, VIRTIO_CONFIG_S_DRIVER_OK, VIRTIO_CONFIG_S_FAILED,
    VIRTIO_CONFIG_S_FEATURES_OK, VIRTIO_CONFIG_S_NEEDS_RESET, VIRTIO_F_VERSION_1,
};
use virtio_bindings::virtio_mmio::{VIRTIO_MMIO_INT_CONFIG, VIRTIO_MMIO_INT_VRING};
use virtio_bindings::virtio_ring::{VIRTIO_RING_F_EVENT_IDX, VIRTIO_RING_F_INDIRECT_DESC};
use virtio_queue::QueueT;
use vmm_sys_util::eventfd::EventFd;

use super::queue::VirtQueue;
use super::{Broken, Queues, VirtioDevice};
use crate::irq::raise;
use crate::{BusDevice, EventSource, GuestRam, Interrupt};

mod registers;
mod state;
#[cfg(test)]
mod tests;

pub use state::{VirtQueueV1, VirtioMmioV1};

/// Where `QueueNotify` is: the address of the ioeventfds, relative to the device's registers.
pub const QUEUE_NOTIFY_OFFSET: u64 = 0x50;

const ACKNOWLEDGE: u32 = VIRTIO_CONFIG_S_ACKNOWLEDGE;
const DRIVER: u32 = VIRTIO_CONFIG_S_DRIVER;
const DRIVER_OK: u32 = VIRTIO_CONFIG_S_DRIVER_OK;
const FEATURES_OK: u32 = VIRTIO_CONFIG_S_FEATURES_OK;
const NEEDS_RESET: u32 = VIRTIO_CONFIG_S_NEEDS_RESET;
const FAILED: u32 = VIRTIO_CONFIG_S_FAILED;

const VERSION_1: u64 = 1 << VIRTIO_F_VERSION_1;
const EVENT_IDX: u64 = 1 << VIRTIO_RING_F_EVENT_IDX;
const INDIRECT_DESC: u64 = 1 << VIRTIO_RING_F_INDIRECT_DESC;

/// What the VMM does with any virtio device.
pub trait MmioDevice: BusDevice + EventSource {
    /// The queues' events, in order: each wants an ioeventfd at [`QUEUE_NOTIFY_OFFSET`], 4 bytes, with its
    /// index as datamatch.
    fn queue_events(&self) -> Vec<&EventFd>;
    /// Finishes what is under way. Until [`Self::resume`], the device doesn't touch guest memory.
    fn pause(&mut self);
    /// Goes on. Every queue is looked at and the interrupt raised again, so that neither a kick nor an
    /// interrupt that was lost on the way hangs the guest.
    fn resume(&mut self);
    /// Machine reset.
    fn reset(&mut self);
    /// Did the driver break the rules? Then the device rests until the driver resets it.
    fn needs_reset(&self) -> bool;
}

/// A virtio device behind its MMIO registers.
pub struct MmioTransport<D> {
    // Glue.
    device: D,
    ram: GuestRam,
    interrupt: Arc<dyn Interrupt>,
    paused: bool,
    // State.
    queues: Vec<VirtQueue>,
    status: u32,
    device_features_select: u32,
    driver_features_select: u32,
    driver_features: u64,
    queue_select: u32,
    interrupt_status: u32,
    config_generation: u32,
}

impl<D: VirtioDevice> MmioTransport<D> {
    /// Puts registers before `device`. Errors: no more file descriptors.
    pub fn new(device: D, ram: GuestRam, interrupt: Arc<dyn Interrupt>) -> io::Result<Self> {
        let queues = D::QUEUE_MAX_SIZES.iter().map(|size| VirtQueue::new(*size));
        Ok(Self {
            queues: queues.collect::<io::Result<_>>()?,
            device,
            ram,
            interrupt,
            paused: false,
            status: 0,
            device_features_select: 0,
            driver_features_select: 0,
            driver_features: 0,
            queue_select: 0,
            interrupt_status: 0,
            config_generation: 0,
        })
    }

    /// The device behind the registers.
    pub fn device(&self) -> &D {
        &self.device
    }

    /// Changes what the device's configuration space says, and tells a driver that is at work (virtio 1.2, 2.5.1).
    pub fn reconfigure(&mut self, change: impl FnOnce(&mut D)) {
        change(&mut self.device);
        self.config_generation = self.config_generation.wrapping_add(1);
        if self.at_work() {
            self.raise(VIRTIO_MMIO_INT_CONFIG);
        }
    }

    /// All features on offer.
    fn offered(&self) -> u64 {
        self.device.features() | VERSION_1 | EVENT_IDX | INDIRECT_DESC
    }

    /// When this is false, the device has been reset and nothing is under way.
    fn at_work(&self) -> bool {
        self.status & (DRIVER_OK | NEEDS_RESET | FAILED) == DRIVER_OK
    }

    /// Lets the device work on its queues, and then tells the driver what has been used.
    fn turn(&mut self, work: impl FnOnce(&mut D, &mut Queues<'_>) -> Result<(), Broken>) {
        if self.paused || !self.at_work() {
            return;
        }
        let mut queues = Queues { ram: &self.ram, queues: &mut self.queues };
        let worked = work(&mut self.device, &mut queues);
        let ended = queues.end_turn();
        match worked.and(ended) {
            Ok(true) => self.raise(VIRTIO_MMIO_INT_VRING),
            Ok(false) => {}
            Err(broken) => self.break_down(&broken),
        }
    }

    fn raise(&mut self, cause: u32) {
        self.interrupt_status |= cause;
        raise(&*self.interrupt, <D::Saved as tern_schema::Section>::NAME);
    }

    /// Virtio 1.2, 2.1.2: set `DEVICE_NEEDS_RESET`, and say so if the driver is at work.
    fn break_down(&mut self, why: &Broken) {
        let device = <D::Saved as tern_schema::Section>::NAME;
        tracing::warn!(device, %why, "the guest's driver broke the rules; the device waits to be reset");
        self.device.reset();
        self.status |= NEEDS_RESET;
        if self.status & DRIVER_OK != 0 {
            self.raise(VIRTIO_MMIO_INT_CONFIG);
        }
    }

    #[cfg(test)]
    pub(super) fn queues(&mut self) -> Queues<'_> {
        Queues { ram: &self.ram, queues: &mut self.queues }
    }

    fn process_queue(&mut self, queue: usize) {
        self.turn(|device, queues| device.process_queue(queue, queues));
    }

    fn process_event(&mut self, event: usize) {
        self.turn(|device, queues| device.process_event(event, queues));
    }

    /// Starts the device with what the driver has agreed to.
    fn activate(&mut self) -> io::Result<()> {
        for virt_queue in &mut self.queues {
            virt_queue.queue.set_event_idx(self.driver_features & EVENT_IDX != 0);
        }
        self.device.activate(self.driver_features)
    }
}

impl<D: VirtioDevice> MmioDevice for MmioTransport<D> {
    fn queue_events(&self) -> Vec<&EventFd> {
        self.queues.iter().map(|queue| &queue.event).collect()
    }

    fn pause(&mut self) {
        self.turn(D::drain);
        self.paused = true;
    }

    fn resume(&mut self) {
        self.paused = false;
        if !self.at_work() {
            if self.interrupt_status != 0 {
                raise(&*self.interrupt, <D::Saved as tern_schema::Section>::NAME);
            }
            return;
        }
        for queue in 0..self.queues.len() {
            self.process_queue(queue);
        }
        for event in 0..self.device.event_fds().len() {
            self.process_event(event);
        }
        self.raise(VIRTIO_MMIO_INT_VRING);
    }

    fn reset(&mut self) {
        let Self {
            device,
            ram: _,
            interrupt: _,
            paused: _,
            queues,
            status,
            device_features_select,
            driver_features_select,
            driver_features,
            queue_select,
            interrupt_status,
            // Only ever grows, so that a driver notices any change.
            config_generation: _,
        } = self;
        device.reset();
        for virt_queue in queues {
            virt_queue.queue.reset();
        }
        (*status, *driver_features, *interrupt_status) = (0, 0, 0);
        (*device_features_select, *driver_features_select, *queue_select) = (0, 0, 0);
    }

    fn needs_reset(&self) -> bool {
        self.status & NEEDS_RESET != 0
    }
}

impl<D: VirtioDevice> EventSource for MmioTransport<D> {
    fn fds(&self) -> Vec<(RawFd, u32)> {
        let queues = self.queues.iter().map(|queue| queue.event.as_raw_fd());
        queues.chain(self.device.event_fds()).zip(0..).collect()
    }

    fn ready(&mut self, token: u32) {
        let token = token as usize;
        match self.queues.get(token) {
            Some(virt_queue) => {
                // Nothing to read means that it was a spurious call.
                let _ = virt_queue.event.read();
                self.process_queue(token);
            }
            None if token - self.queues.len() < self.device.event_fds().len() => {
                self.process_event(token - self.queues.len());
            }
            None => {}
        }
    }
}
