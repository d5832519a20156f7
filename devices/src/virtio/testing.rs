//! A driver for tests: talks to a device through registers, rings and interrupts only.
//!
//! (virtio-queue's own mock driver lets its available ring reach into its used ring, so it isn't used.)

use std::sync::Arc;
use std::time::{Duration, Instant};

use virtio_queue::desc::split::Descriptor;
use vm_memory::{Bytes, GuestAddress};
use vmm_sys_util::eventfd::EventFd;

use super::VirtioDevice;
use super::mmio::MmioTransport;
use crate::{BusDevice, EventSource, GuestRam};

pub(super) const RAM_BYTES: usize = 4 << 20;
/// Free for buffers.
pub(super) const DATA: u64 = 0x10_0000;
pub(super) const ALL_FEATURES: u64 = u64::MAX;
const AVAILABLE: u64 = 0x4000;
const USED: u64 = 0x8000;
const RING_BYTES: u64 = 0x1_0000;
const PATIENCE: Duration = Duration::from_secs(20);

pub(super) const NEXT: u16 = 1;
pub(super) const WRITE: u16 = 2;
pub(super) const INDIRECT: u16 = 4;

/// A buffer of the driver's: address, length, may the device write?
pub(super) type Buffer = (u64, u32, bool);

#[derive(Debug, Default, Clone)]
struct Ring {
    size: u16,
    next_descriptor: u16,
    available: u16,
    used: u16,
}

pub(super) struct Driver<D> {
    pub(super) transport: MmioTransport<D>,
    pub(super) ram: GuestRam,
    pub(super) interrupt: EventFd,
    rings: Vec<Ring>,
}

pub(super) fn ram() -> GuestRam {
    GuestRam::from_ranges(&[(GuestAddress(0), RAM_BYTES)]).unwrap()
}

/// Guest-physical address of a queue's descriptor table.
pub(super) fn table(queue: usize) -> u64 {
    RING_BYTES * (queue as u64 + 1)
}

pub(super) fn available(queue: usize) -> u64 {
    table(queue) + AVAILABLE
}

pub(super) fn used_ring(queue: usize) -> u64 {
    table(queue) + USED
}

impl<D: VirtioDevice> Driver<D> {
    /// A device that no driver has touched.
    pub(super) fn new(device: D) -> Self {
        Self::with_ram(device, ram())
    }

    pub(super) fn with_ram(device: D, ram: GuestRam) -> Self {
        let interrupt = EventFd::new(libc::EFD_NONBLOCK).unwrap();
        let line = Arc::new(interrupt.try_clone().unwrap());
        let transport = MmioTransport::new(device, ram.clone(), line).unwrap();
        let rings = D::QUEUE_MAX_SIZES.iter().map(|size| Ring { size: *size, ..Ring::default() }).collect();
        Self { transport, ram, interrupt, rings }
    }

    /// A device at work, with those of its features that `mask` has.
    pub(super) fn started(device: D, mask: u64) -> Self {
        let mut driver = Self::new(device);
        driver.negotiate(mask);
        driver.set_up_queues();
        driver.write(0x70, 0xf);
        assert_eq!(driver.read(0x70), 0xf);
        driver.run();
        driver
    }

    /// The same driver goes on with another device: after a migration.
    pub(super) fn moved_to(&self, device: D) -> Self {
        let mut driver = Self::with_ram(device, self.ram.clone());
        driver.rings.clone_from(&self.rings);
        driver
    }

    pub(super) fn negotiate(&mut self, mask: u64) {
        self.write(0x70, 1);
        self.write(0x70, 3);
        for half in 0..2u32 {
            self.write(0x14, half);
            let offered = self.read(0x10);
            self.write(0x24, half);
            self.write(0x20, offered & u32::from_le_bytes(half_of(mask, half)));
        }
        self.write(0x70, 0xb);
        assert_eq!(self.read(0x70), 0xb);
    }

    pub(super) fn set_up_queues(&mut self) {
        for queue in 0..self.rings.len() {
            self.write(0x30, u32::try_from(queue).unwrap());
            self.write(0x38, self.rings[queue].size.into());
            let places = [table(queue), available(queue), used_ring(queue)];
            for (register, gpa) in [0x80, 0x90, 0xa0].into_iter().zip(places) {
                self.write(register, u32::try_from(gpa).unwrap());
                self.write(register + 4, 0);
            }
            self.write(0x44, 1);
            assert_eq!(self.read(0x44), 1);
        }
    }

    pub(super) fn read(&mut self, register: u64) -> u32 {
        let mut bytes = [0; 4];
        self.transport.read(register, &mut bytes);
        u32::from_le_bytes(bytes)
    }

    pub(super) fn write(&mut self, register: u64, value: u32) {
        self.transport.write(register, &value.to_le_bytes());
    }

    /// Writes one descriptor.
    pub(super) fn describe(&self, queue: usize, index: u16, gpa: u64, bytes: u32, flags: u16, next: u16) {
        let at = GuestAddress(table(queue) + 16 * u64::from(index));
        self.ram.write_obj(Descriptor::new(gpa, bytes, flags, next), at).unwrap();
    }

    /// Makes the chain that starts at `head` available.
    pub(super) fn offer(&mut self, queue: usize, head: u16) {
        let Ring { size, available: index, .. } = &mut self.rings[queue];
        let slot = available(queue) + 4 + 2 * u64::from(*index % *size);
        self.ram.write_obj(head, GuestAddress(slot)).unwrap();
        *index = index.wrapping_add(1);
        self.ram.write_obj(*index, GuestAddress(available(queue) + 2)).unwrap();
    }

    /// Makes a chain of `buffers` available, without a kick. Returns its head.
    pub(super) fn add(&mut self, queue: usize, buffers: &[Buffer]) -> u16 {
        let (size, head) = (self.rings[queue].size, self.rings[queue].next_descriptor);
        for (position, (gpa, bytes, writable)) in (0u16..).zip(buffers) {
            let index = (head + position) % size;
            let last = usize::from(position) + 1 == buffers.len();
            let flags = if last { 0 } else { NEXT } | if *writable { WRITE } else { 0 };
            self.describe(queue, index, *gpa, *bytes, flags, (index + 1) % size);
        }
        self.rings[queue].next_descriptor = (head + u16::try_from(buffers.len()).unwrap()) % size;
        self.offer(queue, head);
        head
    }

    pub(super) fn kick(&mut self, queue: usize) {
        self.write(0x50, u32::try_from(queue).unwrap());
        self.run();
    }

    /// What an event loop does, once.
    pub(super) fn run(&mut self) {
        for (_, token) in self.transport.fds() {
            self.transport.ready(token);
        }
    }

    /// The next used element: head and length.
    pub(super) fn used(&mut self, queue: usize) -> Option<(u16, u32)> {
        let Ring { size, used, .. } = &mut self.rings[queue];
        let base = used_ring(queue);
        if self.ram.read_obj::<u16>(GuestAddress(base + 2)).unwrap() == *used {
            return None;
        }
        let at = base + 4 + 8 * u64::from(*used % *size);
        *used = used.wrapping_add(1);
        // `used_event`: interrupt when the next one is used, too.
        let event = available(queue) + 4 + 2 * u64::from(*size);
        self.ram.write_obj(*used, GuestAddress(event)).unwrap();
        let [head, bytes]: [u32; 2] = self.ram.read_obj(GuestAddress(at)).unwrap();
        Some((u16::try_from(head).unwrap(), bytes))
    }

    /// Waits for `count` used elements, as an event loop would.
    pub(super) fn wait_used(&mut self, queue: usize, count: usize) -> Vec<(u16, u32)> {
        let deadline = Instant::now() + PATIENCE;
        let mut all = Vec::new();
        while all.len() < count && Instant::now() < deadline {
            self.run();
            all.extend(std::iter::from_fn(|| self.used(queue)));
            std::thread::yield_now();
        }
        assert_eq!(all.len(), count, "the device has hung");
        all
    }

    pub(super) fn bytes(&self, gpa: u64, count: usize) -> Vec<u8> {
        let mut bytes = vec![0; count];
        self.ram.read_slice(&mut bytes, GuestAddress(gpa)).unwrap();
        bytes
    }

    pub(super) fn put(&self, gpa: u64, bytes: &[u8]) {
        self.ram.write_slice(bytes, GuestAddress(gpa)).unwrap();
    }

    pub(super) fn interrupted(&self) -> bool {
        self.interrupt.read().is_ok()
    }
}

fn half_of(features: u64, half: u32) -> [u8; 4] {
    let [a, b, c, d, e, f, g, h] = features.to_le_bytes();
    if half == 0 { [a, b, c, d] } else { [e, f, g, h] }
}
