//! zlib streams (crate flate2): for comparison with what others have; zstd is better at everything.

use flate2::{Compress, Compression, Decompress, FlushCompress, FlushDecompress, Status};

use super::{CompressError, Compressor, Decompressor, Method, append, most_bytes};

pub(super) const METHOD: Method = Method {
    name: "zlib",
    encoding: 5,
    levels: 1..=9,
    default_level: 1,
    compressor: |level| {
        let level = Compression::new(METHOD.level(level));
        Ok(Box::new(ZlibCompressor(Compress::new(level, true))))
    },
    decompressor: || Ok(Box::new(ZlibDecompressor(Decompress::new(true)))),
};

#[derive(Debug)]
struct ZlibCompressor(Compress);

#[derive(Debug)]
struct ZlibDecompressor(Decompress);

impl Compressor for ZlibCompressor {
    fn compress(&mut self, pages: &[u8], out: &mut Vec<u8>) -> bool {
        self.0.reset();
        // What isn't at its end when that is full is too long.
        let most_bytes = most_bytes(pages);
        append(out, most_bytes, most_bytes, |room| {
            let status = self.0.compress(pages, room, FlushCompress::Finish).ok()?;
            (status == Status::StreamEnd).then(|| usize::try_from(self.0.total_out()).ok()).flatten()
        })
    }
}

impl Decompressor for ZlibDecompressor {
    fn decompress(&mut self, block: &[u8], out: &mut [u8]) -> Result<(), CompressError> {
        self.0.reset(true);
        let status = self.0.decompress(block, out, FlushDecompress::Finish);
        let status = status.map_err(|error| METHOD.no_block(block, out, error))?;
        if status != Status::StreamEnd {
            return Err(METHOD.no_block(block, out, "it does not end where the pages do"));
        }
        if self.0.total_in() != block.len() as u64 {
            return Err(METHOD.no_block(block, out, "there is more behind its end"));
        }
        METHOD.complete(block, out, usize::try_from(self.0.total_out()).unwrap_or(usize::MAX))
    }
}
