//! A file that is mostly holes, in few bytes: snapshots put each thing into a place of its own, megabytes apart.
//!
//! ```text
//! length of the file u64 | pieces: offset u64, length u16, bytes
//! ```

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use tern_migration::snapshot::{Description, Layout, ReadAt};
use tern_schema::decode_record;

const BLOCK_BYTES: usize = 4096;
/// Where a snapshot's description is.
const DESCRIPTION_OFFSET: u64 = 4096;
const HEAD_BYTES: usize = 48;
/// Blocks of a page table that get a right checksum.
const BLOCKS_MAX: u64 = 16;

/// The file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sparse {
    /// Length of the file.
    pub length: u64,
    /// What is not zero, by offset; a later piece lies over an earlier one.
    pub pieces: Vec<(u64, Vec<u8>)>,
}

impl Sparse {
    /// What is in `bytes`, without the zeroes.
    pub fn of(bytes: &[u8]) -> Self {
        let blocks = (0u64..).step_by(BLOCK_BYTES).zip(bytes.chunks(BLOCK_BYTES));
        let without_end = |block: &[u8]| {
            let used = block.iter().rposition(|byte| *byte != 0).map_or(0, |last| last + 1);
            block.get(..used).unwrap_or_default().to_vec()
        };
        let pieces = blocks.map(|(offset, block)| (offset, without_end(block)));
        Self { length: bytes.len() as u64, pieces: pieces.filter(|(_, piece)| !piece.is_empty()).collect() }
    }

    /// The form above; what is cut short is made whole.
    pub fn parse(bytes: &[u8]) -> Self {
        let (length, mut rest) = bytes.split_first_chunk().unwrap_or((&[0; 8], &[]));
        let (length, mut pieces) = (u64::from_le_bytes(*length), Vec::new());
        while let Some((offset, behind)) = rest.split_first_chunk::<8>() {
            let Some((count, behind)) = behind.split_first_chunk::<2>() else { break };
            let (piece, behind) = behind.split_at(behind.len().min(u16::from_le_bytes(*count).into()));
            pieces.push((u64::from_le_bytes(*offset), piece.to_vec()));
            rest = behind;
        }
        Self { length, pieces }
    }

    /// The form above.
    pub fn bytes(&self) -> Vec<u8> {
        let mut out = self.length.to_le_bytes().to_vec();
        for (offset, piece) in &self.pieces {
            out.extend_from_slice(&offset.to_le_bytes());
            out.extend_from_slice(&(piece.len() as u16).to_le_bytes());
            out.extend_from_slice(piece);
        }
        out
    }

    /// Makes `file` this one.
    ///
    /// # Errors
    /// The file can't be written.
    pub fn write_to(&self, file: &File) -> io::Result<()> {
        file.set_len(0)?;
        file.set_len(self.length)?;
        for (offset, piece) in self.pieces.iter().filter(|(offset, _)| *offset < self.length) {
            let room = usize::try_from(self.length - offset).unwrap_or(usize::MAX);
            file.write_all_at(piece.get(..room).unwrap_or(piece), *offset)?;
        }
        Ok(())
    }

    /// `count` bytes at `offset`.
    pub fn at(&self, offset: u64, count: usize) -> Vec<u8> {
        let mut out = vec![0; count];
        for (start, piece) in &self.pieces {
            let skip = usize::try_from(offset.saturating_sub(*start)).unwrap_or(usize::MAX);
            let before = usize::try_from(start.saturating_sub(offset)).unwrap_or(usize::MAX);
            let to = out.iter_mut().skip(before);
            to.zip(piece.iter().skip(skip)).for_each(|(to, from)| *to = *from);
        }
        out
    }

    /// Lays `bytes` over what is at `offset`.
    pub fn put(&mut self, offset: u64, bytes: Vec<u8>) {
        self.pieces.push((offset, bytes));
    }

    fn word(&self, offset: u64) -> u32 {
        self.at(offset, 4).first_chunk().map_or(0, |bytes| u32::from_le_bytes(*bytes))
    }

    fn put_word(&mut self, offset: u64, word: u32) {
        self.put(offset, word.to_le_bytes().to_vec());
    }

    /// Makes the checksums of a snapshot right, as `migration/SNAPSHOT.md` has them: of the head, the description, the
    /// index, and the first blocks of each region's table. Hashes stay as they are.
    pub fn seal(&mut self) {
        let description = self.at(DESCRIPTION_OFFSET, (self.word(12) as usize).min(1 << 20));
        self.put_word(16, crc32fast::hash(&description));
        let index_offset = self.at(24, 8).first_chunk().map_or(0, |bytes| u64::from_le_bytes(*bytes));
        let index = self.at(index_offset, (self.word(20) as usize).min(BLOCK_BYTES));
        self.put_word(40, crc32fast::hash(&index));
        let memory = decode_record::<Description>(&description).map(|described| described.facts.memory);
        let layout = memory.ok().and_then(|memory| Layout::of(&memory).ok());
        for region in layout.iter().flat_map(|layout| &layout.regions) {
            for block in 0..region.pages.div_ceil(340).min(BLOCKS_MAX) {
                let offset = region.table_offset.saturating_add(block * BLOCK_BYTES as u64);
                let bytes = self.at(offset, BLOCK_BYTES);
                self.put_word(offset, crc32fast::hash(bytes.get(4..).unwrap_or_default()));
            }
        }
        let head = self.at(0, HEAD_BYTES);
        self.put_word(44, crc32fast::hash(head.get(..44).unwrap_or_default()));
    }
}

impl ReadAt for Sparse {
    fn length(&self) -> io::Result<u64> {
        Ok(self.length)
    }

    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        let left = usize::try_from(self.length.saturating_sub(offset)).unwrap_or(usize::MAX);
        let count = left.min(buffer.len());
        let found = self.at(offset, count);
        buffer.iter_mut().zip(found).for_each(|(to, from)| *to = from);
        Ok(count)
    }
}
