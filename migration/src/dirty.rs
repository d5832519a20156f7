//! Which pages have to be sent: one bit a page, region by region.

mod bitmap;

pub use bitmap::DirtyBitmap;
