//! What a bus and an event loop need of a device.

use std::os::fd::RawFd;

/// Registers in port or MMIO space.
pub trait BusDevice: Send {
    /// The guest reads `data.len()` bytes at `offset` from the device's first register. Whatever is not a
    /// register leaves zeros.
    fn read(&mut self, offset: u64, data: &mut [u8]);
    /// The guest writes `data` at `offset`. Whatever is not a register is ignored.
    fn write(&mut self, offset: u64, data: &[u8]);
}

/// A device that works when file descriptors become readable.
pub trait EventSource: Send {
    /// The descriptors to watch for reading, **edge-triggered** (`EPOLLIN | EPOLLET`), each with the token
    /// that [`Self::ready`] wants. The list never changes, and all live as long as the device.
    fn fds(&self) -> Vec<(RawFd, u32)>;
    /// The descriptor of `token` is readable. Never blocks, and does a bounded amount of work: what is left
    /// makes a descriptor readable again. Spurious calls and unknown tokens are harmless.
    fn ready(&mut self, token: u32);
}
