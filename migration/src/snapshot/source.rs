//! Where a snapshot's bytes come from: a file, or bytes in memory for tests, fuzzing and `tern inspect`.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use super::SnapshotError;

/// Bytes that can be read from any place, by several threads at once.
pub trait ReadAt {
    /// Number of bytes.
    fn length(&self) -> io::Result<u64>;
    /// Reads some bytes at `offset`; 0 at the end.
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize>;
}

impl ReadAt for File {
    fn length(&self) -> io::Result<u64> {
        Ok(self.metadata()?.len())
    }

    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        FileExt::read_at(self, buffer, offset)
    }
}

impl ReadAt for &[u8] {
    fn length(&self) -> io::Result<u64> {
        Ok(self.len() as u64)
    }

    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        let left = usize::try_from(offset).ok().and_then(|offset| self.get(offset..)).unwrap_or_default();
        let count = left.len().min(buffer.len());
        for (to, from) in buffer.iter_mut().zip(left) {
            *to = *from;
        }
        Ok(count)
    }
}

/// Fills `buffer` with what is at `offset`; an early end is an error that names `part`.
pub(super) fn read_exact(
    source: &impl ReadAt,
    part: &'static str,
    offset: u64,
    buffer: &mut [u8],
) -> Result<(), SnapshotError> {
    let bytes = buffer.len();
    let (mut left, mut at) = (buffer, offset);
    while !left.is_empty() {
        match source.read_at(left, at) {
            Ok(0) => {
                let expected = offset.saturating_add(bytes as u64);
                return Err(SnapshotError::Truncated { part, expected, found: at });
            }
            Ok(count) => {
                at = at.saturating_add(count as u64);
                left = left.get_mut(count..).unwrap_or_default();
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(source) => return Err(SnapshotError::Read { part, offset: at, bytes: left.len(), source }),
        }
    }
    Ok(())
}

/// As [`read_exact`], into a buffer of its own. The end is looked for first: no more is allocated than there is.
pub(super) fn read_vec(
    source: &impl ReadAt,
    part: &'static str,
    offset: u64,
    bytes: u64,
) -> Result<Vec<u8>, SnapshotError> {
    let failed = |error| SnapshotError::Read { part, offset, bytes: 0, source: error };
    let found = source.length().map_err(failed)?;
    let expected = offset.saturating_add(bytes);
    let length = usize::try_from(bytes).ok().filter(|_| expected <= found);
    let Some(length) = length else { return Err(SnapshotError::Truncated { part, expected, found }) };
    let mut buffer = vec![0; length];
    read_exact(source, part, offset, &mut buffer)?;
    Ok(buffer)
}
