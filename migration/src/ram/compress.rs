//! The methods of compression, in one table. A new one is a file and a row.
//!
//! What is compressed is a group of up to 16 pages: blocks of 4 KiB compress badly. Contexts and buffers are made once
//! for each thread. What is decompressed is hostile: it fills exactly what is due, or it is an error, and it takes no
//! memory that its length asks for.

mod lz4;
mod zlib;
mod zstd;

use std::fmt::Debug;
use std::ops::RangeInclusive;

use crate::vm::PAGE_BYTES;

/// Most pages of a group.
pub(crate) const GROUP_PAGES_MAX: usize = 16;

/// Most bytes of a group, before it is compressed.
pub(crate) const GROUP_BYTES_MAX: usize = GROUP_PAGES_MAX * PAGE_BYTES as usize;

/// A group is sent compressed only if that saves this part of it: less is not worth the other side's time.
const LEAST_SAVING: usize = 8;

/// One row of the table.
#[derive(Debug)]
pub(crate) struct Method {
    /// As in the parameter `compress`.
    pub(crate) name: &'static str,
    /// On the wire and in files.
    pub(crate) encoding: u8,
    /// A higher level takes more time and gives fewer bytes.
    pub(crate) levels: RangeInclusive<u32>,
    pub(crate) default_level: u32,
    /// For a level of this method; another one counts as the nearest.
    pub(crate) compressor: fn(u32) -> Result<Box<dyn Compressor>, CompressError>,
    pub(crate) decompressor: fn() -> Result<Box<dyn Decompressor>, CompressError>,
}

/// In place of a method's name: whichever is best now.
pub(crate) const AUTO: &str = "auto";

/// All methods, by rising cost.
pub(crate) const METHODS: &[Method] = &[lz4::METHOD, zstd::METHOD, zlib::METHOD];

/// Compresses groups. One for each thread.
pub(crate) trait Compressor: Debug + Send {
    /// Appends the block that these whole pages make to `out` if it is shorter by at least an eighth; else `out` is as
    /// it was, and the answer is false.
    fn compress(&mut self, pages: &[u8], out: &mut Vec<u8>) -> bool;
}

/// Decompresses blocks. One for each thread.
pub(crate) trait Decompressor: Debug + Send {
    /// Fills all of `out`. After an error it holds anything.
    fn decompress(&mut self, block: &[u8], out: &mut [u8]) -> Result<(), CompressError>;
}

/// Why a method can't be used, or bytes are no block of it.
#[derive(Debug, thiserror::Error)]
pub(crate) enum CompressError {
    #[error("{method} can not be set up here: {reason}")]
    Setup { method: &'static str, reason: String },
    #[error(
        "a block of {block_bytes} bytes that should be {pages_bytes} bytes of pages by {method} is none: {reason}"
    )]
    Block { method: &'static str, block_bytes: usize, pages_bytes: usize, reason: String },
    #[error(
        "a block of {block_bytes} bytes by {method} has {found_bytes} bytes of pages where {pages_bytes} are due"
    )]
    Length { method: &'static str, block_bytes: usize, found_bytes: usize, pages_bytes: usize },
}

/// The method of this name.
pub(crate) fn method(name: &str) -> Option<&'static Method> {
    METHODS.iter().find(|method| method.name == name)
}

/// The method of this number on the wire.
pub(crate) fn method_of(encoding: u8) -> Option<&'static Method> {
    METHODS.iter().find(|method| method.encoding == encoding)
}

/// Longest block that is worth it.
fn most_bytes(pages: &[u8]) -> usize {
    pages.len() - pages.len() / LEAST_SAVING
}

/// Lets `compress` write behind the end of `out`, where it has `room_bytes`, and keeps what it wrote if that is at most
/// `most_bytes`. `compress` says how much that is.
fn append(
    out: &mut Vec<u8>,
    room_bytes: usize,
    most_bytes: usize,
    compress: impl FnOnce(&mut [u8]) -> Option<usize>,
) -> bool {
    let start = out.len();
    out.resize(start + room_bytes, 0);
    let written = out.get_mut(start..).and_then(compress);
    let kept = written.filter(|written| *written <= most_bytes.min(room_bytes));
    out.truncate(start + kept.unwrap_or(0));
    kept.is_some()
}

impl Method {
    /// The level of this method that is nearest.
    fn level(&self, level: u32) -> u32 {
        level.clamp(*self.levels.start(), *self.levels.end())
    }

    fn setup(&self, error: impl ToString) -> CompressError {
        CompressError::Setup { method: self.name, reason: error.to_string() }
    }

    fn no_block(&self, block: &[u8], out: &[u8], reason: impl ToString) -> CompressError {
        let (block_bytes, pages_bytes, reason) = (block.len(), out.len(), reason.to_string());
        CompressError::Block { method: self.name, block_bytes, pages_bytes, reason }
    }

    /// All that is due has come.
    fn complete(&self, block: &[u8], out: &[u8], found_bytes: usize) -> Result<(), CompressError> {
        if found_bytes == out.len() {
            return Ok(());
        }
        let (block_bytes, pages_bytes) = (block.len(), out.len());
        Err(CompressError::Length { method: self.name, block_bytes, found_bytes, pages_bytes })
    }
}

#[cfg(test)]
mod tests;
