//! Interrupt lines as a device sees them.

use std::io;

use vmm_sys_util::eventfd::EventFd;

/// An edge-triggered interrupt line.
pub trait Interrupt: Send + Sync {
    /// Raises the line once. Raising it again before the guest has looked is harmless.
    fn trigger(&self) -> io::Result<()>;
}

/// An eventfd that `KVM_IRQFD` has tied to a GSI.
impl Interrupt for EventFd {
    fn trigger(&self) -> io::Result<()> {
        self.write(1)
    }
}

/// Raises `line`; a line that can't be raised is the host's fault, so it is reported and the guest goes on.
pub(crate) fn raise(line: &dyn Interrupt, device: &'static str) {
    if let Err(error) = line.trigger() {
        tracing::error!(device, %error, "the interrupt could not be raised");
    }
}
