//! Zstandard frames (crate zstd, the reference library): fewer bytes than LZ4, for a few times its work.

use zstd::bulk;

use super::{CompressError, Compressor, Decompressor, Method, append, most_bytes};

pub(super) const METHOD: Method = Method {
    name: "zstd",
    encoding: 4,
    // Higher ones want a lot of memory for windows that a group never fills.
    levels: 1..=19,
    default_level: 1,
    compressor: |level| {
        let level = i32::try_from(METHOD.level(level)).map_err(|error| METHOD.setup(error))?;
        let mut context = bulk::Compressor::new(level).map_err(|error| METHOD.setup(error))?;
        // The length is known, and the proof guards the content.
        context.include_contentsize(false).map_err(|error| METHOD.setup(error))?;
        context.include_checksum(false).map_err(|error| METHOD.setup(error))?;
        Ok(Box::new(ZstdCompressor(context)))
    },
    decompressor: || {
        let context = bulk::Decompressor::new().map_err(|error| METHOD.setup(error))?;
        Ok(Box::new(ZstdDecompressor(context)))
    },
};

struct ZstdCompressor(bulk::Compressor<'static>);

struct ZstdDecompressor(bulk::Decompressor<'static>);

impl Compressor for ZstdCompressor {
    fn compress(&mut self, pages: &[u8], out: &mut Vec<u8>) -> bool {
        // Gives up as soon as that is full.
        let most_bytes = most_bytes(pages);
        append(out, most_bytes, most_bytes, |room| self.0.compress_to_buffer(pages, room).ok())
    }
}

impl Decompressor for ZstdDecompressor {
    fn decompress(&mut self, block: &[u8], out: &mut [u8]) -> Result<(), CompressError> {
        // In one go it needs no window of its own, whatever the frame asks for.
        let found = self.0.decompress_to_buffer(block, out);
        METHOD.complete(block, out, found.map_err(|error| METHOD.no_block(block, out, error))?)
    }
}

impl std::fmt::Debug for ZstdCompressor {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("ZstdCompressor").finish_non_exhaustive()
    }
}

impl std::fmt::Debug for ZstdDecompressor {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("ZstdDecompressor").finish_non_exhaustive()
    }
}
