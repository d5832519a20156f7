//! LZ4 blocks (crate lz4_flex): the fastest, at about half of what text-like content takes raw.

use lz4_flex::block::{CompressTable, compress_into_with_table, decompress_into, get_maximum_output_size};

use super::{CompressError, Compressor, Decompressor, Method, append, most_bytes};

pub(super) const METHOD: Method = Method {
    name: "lz4",
    encoding: 3,
    levels: 1..=1,
    default_level: 1,
    compressor: |_level| Ok(Box::new(Lz4Compressor(CompressTable::large()))),
    decompressor: || Ok(Box::new(Lz4Decompressor)),
};

/// Has the table of places that a block's bytes were seen at.
struct Lz4Compressor(CompressTable);

#[derive(Debug)]
struct Lz4Decompressor;

impl Compressor for Lz4Compressor {
    fn compress(&mut self, pages: &[u8], out: &mut Vec<u8>) -> bool {
        // The library wants room for the worst case.
        append(out, get_maximum_output_size(pages.len()), most_bytes(pages), |room| {
            compress_into_with_table(pages, room, &mut self.0).ok()
        })
    }
}

impl Decompressor for Lz4Decompressor {
    fn decompress(&mut self, block: &[u8], out: &mut [u8]) -> Result<(), CompressError> {
        let found = decompress_into(block, out).map_err(|error| METHOD.no_block(block, out, error))?;
        METHOD.complete(block, out, found)
    }
}

impl std::fmt::Debug for Lz4Compressor {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Lz4Compressor").finish_non_exhaustive()
    }
}
