//! Which pages have to be sent: one bit a page, region by region; and how a host finds them.

mod bitmap;
mod mode;
mod order;

pub use bitmap::DirtyBitmap;
pub(crate) use mode::DIRTY_LOG_CHOICES;
pub use mode::{DirtyLogMode, VcpuDirty};
pub(crate) use order::{dirty_chunks, hot_last};
