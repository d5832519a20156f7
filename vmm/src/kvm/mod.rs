//! KVM: the ioctls that kvm-ioctls lacks, the dirty log, and the state of the in-kernel chips.

mod chips;
mod dirty_log;
mod dirty_ring;
#[cfg(test)]
mod fake;
mod ioctl;
mod log_calls;
#[cfg(test)]
mod oracle;
mod permission;
mod ring_memory;

pub use chips::{ChipError, ClockV1, IoapicV1, PicV1, PitChannelV1, PitV1};
pub use dirty_log::{DirtyLog, Slot, StartError, set_slot};
pub use dirty_ring::{DirtyRings, ResetRings, RingMemory};
pub use ioctl::{carry_pending_events, get_nested_state, set_nested_state};
pub use ioctl::{clear_dirty_log, get_dirty_log, get_sregs2, get_tsc_offset, get_xsave2, has_tsc_offset};
pub use ioctl::{set_sregs2, set_tsc_offset, set_xsave};
pub use log_calls::LogCalls;
pub use permission::permit_large_registers;
pub use ring_memory::{RingMapping, RingReset, enable_dirty_rings, most_ring_entries};
