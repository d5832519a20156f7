//! The inner loops one by one, for `benches/`.

use crate::ram::compress::{self, Compressor, Decompressor, METHODS};
use crate::ram::proof::page_hash;
use crate::ram::xbzrle::{self, Encoded};
use crate::wire::{FrameType, HEADER_BYTES, Header};

/// A page's bytes.
pub type Page = [u8; crate::vm::PAGE_BYTES as usize];

/// The hash that the proof of equality has of a page.
pub fn hash(page: u64, bytes: &Page) -> u64 {
    page_hash(0, page, bytes)
}

/// Length of the delta; 0 if there is none or it doesn't fit.
pub fn encode_delta(old: &Page, new: &Page, out: &mut [u8]) -> usize {
    match xbzrle::encode(old, new, out) {
        Encoded::Bytes(length) => length,
        Encoded::Same | Encoded::Overflow => 0,
    }
}

/// Was it a delta?
pub fn decode_delta(delta: &[u8], page: &mut Page) -> bool {
    xbzrle::decode(delta, page).is_ok()
}

/// The names of all methods of compression.
pub fn methods() -> impl Iterator<Item = &'static str> {
    METHODS.iter().map(|method| method.name)
}

/// A method's contexts for both ways.
#[derive(Debug)]
pub struct Codec {
    compressor: Box<dyn Compressor>,
    decompressor: Box<dyn Decompressor>,
}

impl Codec {
    /// Of the method of this name, at its default level.
    pub fn new(name: &str) -> Option<Self> {
        let method = compress::method(name)?;
        let compressor = (method.compressor)(method.default_level).ok()?;
        Some(Self { compressor, decompressor: (method.decompressor)().ok()? })
    }

    /// Is it worth it? Then the block is in `out`.
    pub fn compress(&mut self, pages: &[u8], out: &mut Vec<u8>) -> bool {
        out.clear();
        self.compressor.compress(pages, out)
    }

    /// Was it a block of so many pages?
    pub fn decompress(&mut self, block: &[u8], out: &mut [u8]) -> bool {
        self.decompressor.decompress(block, out).is_ok()
    }
}

/// Seals a frame of pages whose records, but not their data, are behind the room for its header, and reads and checks
/// it as its destination does.
pub fn frame(frame: &mut [u8], sequence: u32) -> bool {
    let head = (frame.len() as u32).saturating_sub(HEADER_BYTES as u32);
    Header { frame: FrameType::Pages, flags: 0, epoch: 1, sequence, length: head, head, checksum: 0 }
        .seal(frame);
    let Some((header, covered)) = frame.split_first_chunk() else { return false };
    Header::read(header).is_ok_and(|read| read.check(header, covered).is_ok())
}
