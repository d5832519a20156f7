//! zlib streams (crate flate2): for comparison with what others have; zstd is better at everything.

use flate2::{Compress, Compression, Decompress, FlushCompress, FlushDecompress, Status};

use super::{CompressError, Compressor, Decompressor, Method, append, most_bytes};

pub(super) const METHOD: Method = Method {
    name: "zlib",
    encoding: 5,
    levels: 1..=9,
    // zlib-rs has a method of its own at level 1, with a third more bytes than other zlibs make there.
    default_level: 2,
    compressor: |level| {
        let level = Compression::new(METHOD.level(level));
        Ok(Box::new(ZlibCompressor { level, stream: Compress::new(level, true) }))
    },
    decompressor: || Ok(Box::new(ZlibDecompressor(Decompress::new(true)))),
};

#[derive(Debug)]
struct ZlibCompressor {
    level: Compression,
    stream: Compress,
}

#[derive(Debug)]
struct ZlibDecompressor(Decompress);

impl Compressor for ZlibCompressor {
    fn compress(&mut self, pages: &[u8], out: &mut Vec<u8>) -> bool {
        let Self { level, stream } = self;
        // What isn't at its end when that is full is too long.
        let most_bytes = most_bytes(pages);
        let shorter = append(out, most_bytes, most_bytes, |room| {
            let status = stream.compress(pages, room, FlushCompress::Finish).ok()?;
            (status == Status::StreamEnd).then(|| usize::try_from(stream.total_out()).ok()).flatten()
        });
        if shorter {
            stream.reset();
        } else {
            // zlib-rs 0.6.8 resets a stream that was given up in the middle as if no block were open: at level 1 the
            // next one has no header then, and nobody can read it.
            *stream = Compress::new(*level, true);
        }
        shorter
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
