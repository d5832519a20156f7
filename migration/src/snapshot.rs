//! A guest in a file: the bytes are described in SNAPSHOT.md.
//!
//! ```text
//! head | description | pages, each in its fixed place | page tables | state | index
//! ```
//!
//! [`SnapshotFile`] reads one. Everything in a file is hostile until it has been checked: nothing in it can panic, and
//! nothing is allocated for more bytes than the file has. Opening reads neither pages nor their tables, so it
//! takes as long for a large guest as for a small one; both are verified as they are read.

mod cursor;
mod error;
mod head;
mod layout;
mod ledger;
mod medium;
mod outline;
mod pages;
mod reader;
mod record;
mod save;
mod save_error;
mod slot;
mod slot_writer;
mod source;
mod table;
mod workers;

pub use error::SnapshotError;
pub use head::{Extent, FORMAT_VERSION, FORMAT_VERSION_PLAIN, Head, MAGIC};
pub use layout::{Layout, RegionPlace};
pub use outline::Outline;
pub(crate) use pages::SnapshotPages;
pub use reader::{Snapshot, SnapshotFile};
pub use record::{Description, Index};
pub(crate) use save::SaveFile;
pub use save_error::SaveError;
pub use source::ReadAt;
pub use table::PageEntry;

#[cfg(test)]
mod tests;
