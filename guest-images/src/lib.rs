//! The guests that prove migration: `pulse`, a bare program, and a small Linux.
//!
//! ```text
//! catalog      which images there are, and their kernel command lines
//! image        a name -> files: in the cache, or built now
//! cache        finished things by content; locks, drafts, renames
//! kernel       source + patches + fragments -> vmlinux     (source, tools, make, manifest)
//! initramfs    agent -> cpio                               (cpio)
//! ```
//!
//! The library prints nothing: a build reports [`Progress`], and errors say what to install or mend.
//! `pulse` and the agent are compiled by this crate's build script and are inside the library.

mod cache;
mod catalog;
mod cpio;
mod error;
mod hash;
mod image;
mod initramfs;
mod kernel;
mod make;
mod manifest;
mod progress;
mod source;
mod tether;
mod tools;

pub use cache::Cache;
pub use catalog::{
    AGENT, CMDLINE_ALWAYS, CMDLINE_INTERPRETED_RING0, ImageInfo, KernelVariant, Kind, PULSE, images,
};
pub use error::ImageError;
pub use image::{ImagePaths, Images};
pub use progress::{Progress, Step};

type Result<T> = std::result::Result<T, ImageError>;

/// [`Images::path`] in the user's cache.
pub fn path(name: &str) -> Result<Option<ImagePaths>> {
    Images::new(Cache::of_user()?).path(name)
}

/// [`Images::build`] in the user's cache.
pub fn build(name: &str, jobs: usize, progress: &mut dyn FnMut(Progress)) -> Result<ImagePaths> {
    Images::new(Cache::of_user()?).build(name, jobs, progress)
}
