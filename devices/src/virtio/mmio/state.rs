//! The transport's part of a virtio device's state.

use tern_schema::record;
use virtio_bindings::virtio_mmio::{VIRTIO_MMIO_INT_CONFIG, VIRTIO_MMIO_INT_VRING};
use virtio_queue::{Queue, QueueState, QueueT};

use super::{
    ACKNOWLEDGE, DRIVER, DRIVER_OK, FAILED, FEATURES_OK, MmioDevice, MmioTransport, NEEDS_RESET, VERSION_1,
};
use crate::virtio::VirtioDevice;
use crate::{RestoreError, Stateful};

const RECORD: &str = "VirtioMmioV1";
const STATUS_BITS: u32 = ACKNOWLEDGE | DRIVER | DRIVER_OK | FEATURES_OK | NEEDS_RESET | FAILED;

record! {
    /// Saved registers and queues of a virtio-mmio device.
    pub struct VirtioMmioV1 {
        /// Device status.
        [1] status: u32,
        /// Which half of the device's features is shown.
        [2] device_features_select: u32,
        /// Which half of the driver's features is written.
        [3] driver_features_select: u32,
        /// Features that the driver wants; agreed on when `FEATURES_OK` is in the status.
        [4] driver_features: u64,
        /// Which queue the queue registers mean.
        [5] queue_select: u32,
        /// Causes of interrupt that the driver hasn't acknowledged.
        [6] interrupt_status: u32,
        /// Generation of the configuration space.
        [7] config_generation: u32,
        /// All queues, in order.
        [8] queues: Vec<VirtQueueV1>,
    }
}

record! {
    /// A split virtqueue. Whether it uses event indices follows from the features.
    pub struct VirtQueueV1 {
        /// Entries.
        [1] size: u16,
        /// Set up by the driver?
        [2] ready: bool,
        /// Descriptor table, guest-physical.
        [3] descriptors_gpa: u64,
        /// Available ring, guest-physical.
        [4] available_gpa: u64,
        /// Used ring, guest-physical.
        [5] used_gpa: u64,
        /// Index in the available ring up to which the device has taken chains.
        [6] next_available: u16,
        /// Index in the used ring up to which the device has returned chains.
        [7] next_used: u16,
    }
}

impl VirtQueueV1 {
    fn save(queue: &Queue) -> Self {
        let QueueState {
            max_size: _,
            next_avail: next_available,
            next_used,
            event_idx_enabled: _,
            size,
            ready,
            desc_table: descriptors_gpa,
            avail_ring: available_gpa,
            used_ring: used_gpa,
        } = queue.state();
        Self { size, ready, descriptors_gpa, available_gpa, used_gpa, next_available, next_used }
    }

    fn restore(&self, max_size: u16) -> Result<Queue, virtio_queue::Error> {
        let Self { size, ready, descriptors_gpa, available_gpa, used_gpa, next_available, next_used } = *self;
        Queue::try_from(QueueState {
            max_size,
            next_avail: next_available,
            next_used,
            event_idx_enabled: false,
            size,
            ready,
            desc_table: descriptors_gpa,
            avail_ring: available_gpa,
            used_ring: used_gpa,
        })
    }
}

impl<D: VirtioDevice> MmioTransport<D> {
    fn save_transport(&self) -> VirtioMmioV1 {
        let Self {
            device: _,
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
            config_generation,
        } = self;
        VirtioMmioV1 {
            status: *status,
            device_features_select: *device_features_select,
            driver_features_select: *driver_features_select,
            driver_features: *driver_features,
            queue_select: *queue_select,
            interrupt_status: *interrupt_status,
            config_generation: *config_generation,
            queues: queues.iter().map(|queue| VirtQueueV1::save(&queue.queue)).collect(),
        }
    }

    fn check_transport(&self, saved: &VirtioMmioV1) -> Result<(), RestoreError> {
        let has = |bits: u32| saved.status & bits == bits;
        let features = saved.driver_features;
        let agreed = !has(FEATURES_OK) || features & !self.offered() == 0 && features & VERSION_1 != 0;
        let interrupts = VIRTIO_MMIO_INT_VRING | VIRTIO_MMIO_INT_CONFIG;
        let count = saved.queues.len();
        let fields = [
            (
                saved.status & !STATUS_BITS == 0,
                "status",
                saved.status.into(),
                "only the bits of virtio 1.2 exist",
            ),
            (
                !has(DRIVER_OK) || has(FEATURES_OK),
                "status",
                saved.status.into(),
                "DRIVER_OK needs FEATURES_OK",
            ),
            (
                !has(FEATURES_OK) || has(ACKNOWLEDGE | DRIVER),
                "status",
                saved.status.into(),
                "FEATURES_OK needs ACKNOWLEDGE and DRIVER",
            ),
            (agreed, "driver_features", features, "the device here offers fewer features, or other ones"),
            (
                saved.interrupt_status & !interrupts == 0,
                "interrupt_status",
                saved.interrupt_status.into(),
                "only the bits 0 and 1 exist",
            ),
            (count == self.queues.len(), "queues", count as u64, "the device has another number of queues"),
        ];
        if let Some((_, field, found, expected)) = fields.into_iter().find(|(legal, ..)| !legal) {
            return Err(RestoreError::Field { record: RECORD, field, found, expected });
        }
        let queues = saved.queues.iter().zip(D::QUEUE_MAX_SIZES).enumerate();
        queues.into_iter().try_for_each(|(number, (queue, max))| self.check_queue(saved, number, queue, *max))
    }

    fn check_queue(
        &self,
        saved: &VirtioMmioV1,
        queue: usize,
        state: &VirtQueueV1,
        max_size: u16,
    ) -> Result<(), RestoreError> {
        let VirtQueueV1 { size, ready, descriptors_gpa, available_gpa, used_gpa, next_available, next_used } =
            *state;
        let bad = |field, found, expected| {
            Err(RestoreError::Queue { record: RECORD, queue, field, found, expected })
        };
        let restored = match state.restore(max_size) {
            Ok(restored) => restored,
            Err(virtio_queue::Error::InvalidDescTableAlign) => {
                return bad("descriptors_gpa", descriptors_gpa, "a multiple of 16");
            }
            Err(virtio_queue::Error::InvalidAvailRingAlign) => {
                return bad("available_gpa", available_gpa, "a multiple of 2");
            }
            Err(virtio_queue::Error::InvalidUsedRingAlign) => {
                return bad("used_gpa", used_gpa, "a multiple of 4");
            }
            Err(_) => return bad("size", size.into(), "a power of two, at most the device's maximum"),
        };
        if !ready {
            return Ok(());
        }
        let under_way = next_available.wrapping_sub(next_used);
        match () {
            () if saved.status & FEATURES_OK == 0 => bad("ready", 1, "no queue is ready before FEATURES_OK"),
            () if !restored.is_valid(&self.ram) => {
                bad("descriptors_gpa", descriptors_gpa, "all three rings lie in guest memory")
            }
            () if saved.status & NEEDS_RESET == 0 && under_way > size => {
                bad("next_available", next_available.into(), "at most the queue's size ahead of next_used")
            }
            () => Ok(()),
        }
    }

    fn restore_transport(&mut self, saved: &VirtioMmioV1) {
        let VirtioMmioV1 {
            status,
            device_features_select,
            driver_features_select,
            driver_features,
            queue_select,
            interrupt_status,
            config_generation,
            queues,
        } = saved;
        self.status = *status;
        self.device_features_select = *device_features_select;
        self.driver_features_select = *driver_features_select;
        self.driver_features = *driver_features;
        self.queue_select = *queue_select;
        self.interrupt_status = *interrupt_status;
        self.config_generation = *config_generation;
        for (virt_queue, (state, max_size)) in
            self.queues.iter_mut().zip(queues.iter().zip(D::QUEUE_MAX_SIZES))
        {
            if let Ok(queue) = state.restore(*max_size) {
                virt_queue.queue = queue;
            }
        }
    }
}

impl<D: VirtioDevice> Stateful for MmioTransport<D> {
    type Saved = D::Saved;

    /// The device must be paused: what is under way doesn't travel.
    fn save(&self) -> D::Saved {
        self.device.save(self.save_transport())
    }

    fn check(&self, saved: &D::Saved) -> Result<(), RestoreError> {
        self.device.check(saved)?;
        self.check_transport(D::transport(saved))
    }

    /// Leaves the device paused: it works from `resume` on.
    fn restore(&mut self, saved: D::Saved) -> Result<(), RestoreError> {
        self.check(&saved)?;
        self.reset();
        self.paused = true;
        self.device.restore(&saved);
        self.restore_transport(D::transport(&saved));
        if !self.at_work() {
            return Ok(());
        }
        self.activate().map_err(|source| RestoreError::Activate { record: RECORD, source })
    }
}
