//! The registers (virtio 1.2, section 4.2.2) and the status of the device (section 3.1.1).

use virtio_bindings::virtio_mmio::{
    VIRTIO_MMIO_CONFIG, VIRTIO_MMIO_CONFIG_GENERATION, VIRTIO_MMIO_DEVICE_FEATURES,
    VIRTIO_MMIO_DEVICE_FEATURES_SEL, VIRTIO_MMIO_DEVICE_ID, VIRTIO_MMIO_DRIVER_FEATURES,
    VIRTIO_MMIO_DRIVER_FEATURES_SEL, VIRTIO_MMIO_INTERRUPT_ACK, VIRTIO_MMIO_INTERRUPT_STATUS,
    VIRTIO_MMIO_MAGIC_VALUE, VIRTIO_MMIO_QUEUE_AVAIL_HIGH, VIRTIO_MMIO_QUEUE_AVAIL_LOW,
    VIRTIO_MMIO_QUEUE_DESC_HIGH, VIRTIO_MMIO_QUEUE_DESC_LOW, VIRTIO_MMIO_QUEUE_NOTIFY, VIRTIO_MMIO_QUEUE_NUM,
    VIRTIO_MMIO_QUEUE_NUM_MAX, VIRTIO_MMIO_QUEUE_READY, VIRTIO_MMIO_QUEUE_SEL, VIRTIO_MMIO_QUEUE_USED_HIGH,
    VIRTIO_MMIO_QUEUE_USED_LOW, VIRTIO_MMIO_SHM_BASE_HIGH, VIRTIO_MMIO_SHM_BASE_LOW,
    VIRTIO_MMIO_SHM_LEN_HIGH, VIRTIO_MMIO_SHM_LEN_LOW, VIRTIO_MMIO_STATUS, VIRTIO_MMIO_VENDOR_ID,
    VIRTIO_MMIO_VERSION,
};
use virtio_queue::{Queue, QueueT};

use super::{
    ACKNOWLEDGE, DRIVER, DRIVER_OK, FAILED, FEATURES_OK, MmioDevice, MmioTransport, NEEDS_RESET, VERSION_1,
};
use crate::BusDevice;
use crate::virtio::{Broken, VirtioDevice};

/// "virt".
const MAGIC: u32 = 0x7472_6976;
const VERSION: u32 = 2;
/// "tern".
const VENDOR: u32 = 0x6e72_6574;
/// Length and address of a shared memory region that doesn't exist.
const NO_SHARED_MEMORY: u32 = u32::MAX;

impl<D: VirtioDevice> MmioTransport<D> {
    fn selected(&self) -> Option<&Queue> {
        self.queues.get(self.queue_select as usize).map(|queue| &queue.queue)
    }

    fn read_register(&self, register: u32) -> u32 {
        match register {
            VIRTIO_MMIO_MAGIC_VALUE => MAGIC,
            VIRTIO_MMIO_VERSION => VERSION,
            VIRTIO_MMIO_DEVICE_ID => D::DEVICE_TYPE,
            VIRTIO_MMIO_VENDOR_ID => VENDOR,
            VIRTIO_MMIO_DEVICE_FEATURES => half(self.offered(), self.device_features_select),
            VIRTIO_MMIO_QUEUE_NUM_MAX => self.selected().map_or(0, |queue| queue.max_size().into()),
            VIRTIO_MMIO_QUEUE_READY => self.selected().is_some_and(QueueT::ready).into(),
            VIRTIO_MMIO_INTERRUPT_STATUS => self.interrupt_status,
            VIRTIO_MMIO_STATUS => self.status,
            VIRTIO_MMIO_SHM_LEN_LOW
            | VIRTIO_MMIO_SHM_LEN_HIGH
            | VIRTIO_MMIO_SHM_BASE_LOW
            | VIRTIO_MMIO_SHM_BASE_HIGH => NO_SHARED_MEMORY,
            VIRTIO_MMIO_CONFIG_GENERATION => self.config_generation,
            _ => 0,
        }
    }

    fn write_register(&mut self, register: u32, value: u32) {
        match register {
            VIRTIO_MMIO_DEVICE_FEATURES_SEL => self.device_features_select = value,
            VIRTIO_MMIO_DRIVER_FEATURES_SEL => self.driver_features_select = value,
            VIRTIO_MMIO_DRIVER_FEATURES => self.write_driver_features(value),
            VIRTIO_MMIO_QUEUE_SEL => self.queue_select = value,
            VIRTIO_MMIO_QUEUE_NOTIFY => {
                if let Some(virt_queue) = self.queues.get(value as usize) {
                    virt_queue.kick();
                }
            }
            VIRTIO_MMIO_INTERRUPT_ACK => self.interrupt_status &= !value,
            VIRTIO_MMIO_STATUS => self.write_status(value),
            _ => self.write_queue(register, value),
        }
    }

    fn write_driver_features(&mut self, value: u32) {
        if self.status & FEATURES_OK != 0 {
            return;
        }
        let (shift, mask) = match self.driver_features_select {
            0 => (0, 0xffff_ffff),
            1 => (32, 0xffff_ffff << 32),
            _ => return,
        };
        self.driver_features = (self.driver_features & !mask) | u64::from(value) << shift;
    }

    /// Queues are set up after the features and before the device works.
    fn write_queue(&mut self, register: u32, value: u32) {
        if self.status & (FEATURES_OK | DRIVER_OK | NEEDS_RESET) != FEATURES_OK {
            return;
        }
        let number = self.queue_select as usize;
        let Some(queue) = self.queues.get_mut(number).map(|queue| &mut queue.queue) else { return };
        let ring = |source| Broken::Ring { queue: number, source };
        match register {
            VIRTIO_MMIO_QUEUE_READY if value == 0 => queue.set_ready(false),
            VIRTIO_MMIO_QUEUE_READY => {
                queue.set_ready(true);
                if !queue.is_valid(&self.ram) {
                    queue.set_ready(false);
                    self.break_down(&ring(virtio_queue::Error::FindMemoryRegion));
                }
            }
            // A queue doesn't change under way.
            _ if queue.ready() => {}
            VIRTIO_MMIO_QUEUE_NUM => {
                let size = u16::try_from(value).map_err(|_| virtio_queue::Error::InvalidSize);
                if let Err(source) = size.and_then(|size| queue.try_set_size(size)) {
                    self.break_down(&ring(source));
                }
            }
            // A misaligned address is not taken, so the ring stays where no driver puts one: at 0.
            VIRTIO_MMIO_QUEUE_DESC_LOW => queue.set_desc_table_address(Some(value), None),
            VIRTIO_MMIO_QUEUE_DESC_HIGH => queue.set_desc_table_address(None, Some(value)),
            VIRTIO_MMIO_QUEUE_AVAIL_LOW => queue.set_avail_ring_address(Some(value), None),
            VIRTIO_MMIO_QUEUE_AVAIL_HIGH => queue.set_avail_ring_address(None, Some(value)),
            VIRTIO_MMIO_QUEUE_USED_LOW => queue.set_used_ring_address(Some(value), None),
            VIRTIO_MMIO_QUEUE_USED_HIGH => queue.set_used_ring_address(None, Some(value)),
            _ => {}
        }
    }

    /// Bits only come, in their order, and all go with a 0. A bit that may not come yet stays away, which
    /// the driver sees when it reads the status back.
    fn write_status(&mut self, value: u32) {
        if value == 0 {
            return self.reset();
        }
        let wants = |bit| value & bit != 0;
        if wants(FAILED) {
            self.device.reset();
        }
        self.status |= value & (ACKNOWLEDGE | DRIVER | FAILED);
        if wants(FEATURES_OK) && self.may_agree() {
            self.status |= FEATURES_OK;
        }
        let new = self.status & DRIVER_OK == 0;
        if wants(DRIVER_OK) && new && self.status & (FEATURES_OK | NEEDS_RESET | FAILED) == FEATURES_OK {
            self.start();
        }
    }

    fn may_agree(&self) -> bool {
        let known = self.driver_features & !self.offered() == 0;
        let modern = self.driver_features & VERSION_1 != 0;
        self.status & (ACKNOWLEDGE | DRIVER) == ACKNOWLEDGE | DRIVER && known && modern
    }

    fn start(&mut self) {
        if let Err(error) = self.activate() {
            let device = <D::Saved as tern_schema::Section>::NAME;
            tracing::error!(device, %error, "the device could not be started");
            self.status |= NEEDS_RESET;
            return;
        }
        self.status |= DRIVER_OK;
        // The driver may have filled queues before, and the host may have something to say.
        for virt_queue in &self.queues {
            virt_queue.kick();
        }
    }
}

/// Half of the features.
fn half(features: u64, select: u32) -> u32 {
    let [a, b, c, d, e, f, g, h] = features.to_le_bytes();
    match select {
        0 => u32::from_le_bytes([a, b, c, d]),
        1 => u32::from_le_bytes([e, f, g, h]),
        _ => 0,
    }
}

impl<D: VirtioDevice> BusDevice for MmioTransport<D> {
    fn read(&mut self, offset: u64, data: &mut [u8]) {
        data.fill(0);
        if let Some(at) = offset.checked_sub(VIRTIO_MMIO_CONFIG.into()) {
            let config = usize::try_from(at).ok().and_then(|at| self.device.config().get(at..));
            for (to, byte) in data.iter_mut().zip(config.unwrap_or_default()) {
                *to = *byte;
            }
        } else if let (Ok(register), 4) = (u32::try_from(offset), data.len()) {
            data.copy_from_slice(&self.read_register(register).to_le_bytes());
        }
    }

    fn write(&mut self, offset: u64, data: &[u8]) {
        if let Some(at) = offset.checked_sub(VIRTIO_MMIO_CONFIG.into()) {
            let config =
                usize::try_from(at).ok().and_then(|at| Some((at, self.device.config().get(at..)?.len())));
            if let Some((at, room)) = config {
                self.device.write_config(at, data.get(..room).unwrap_or(data));
            }
        } else if let (Ok(register), Ok(bytes)) = (u32::try_from(offset), <[u8; 4]>::try_from(data)) {
            self.write_register(register, u32::from_le_bytes(bytes));
        }
    }
}
