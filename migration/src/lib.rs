//! The migration engine: it moves a running guest between two virtual machines that it sees through two
//! traits, [`SourceVm`] and [`DestinationVm`].

mod dirty;
mod vm;

pub use dirty::DirtyBitmap;
pub use vm::{DestinationVm, GuestRam, MemoryRegion, PAGE_BYTES, SectionOffer, SourceVm, VmError, VmFacts};
