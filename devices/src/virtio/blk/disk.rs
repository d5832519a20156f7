//! What a request does to the file.

use std::fs::File;
use std::io::{self, Seek, SeekFrom};
use std::os::unix::fs::FileExt;
use std::sync::Mutex;

use virtio_bindings::virtio_blk::{
    VIRTIO_BLK_S_IOERR, VIRTIO_BLK_S_OK, VIRTIO_BLK_S_UNSUPP, VIRTIO_BLK_WRITE_ZEROES_FLAG_UNMAP,
};
use vmm_sys_util::fallocate::{FallocateMode, fallocate};

use super::activity::DiskFailures;
use super::request::{Operation, Range, Request};
use super::{DISCARD_MAX_SECTORS, ID_BYTES, SEGMENT_MAX_BYTES, SEGMENTS_MAX, ZEROES_MAX_SECTORS};
use crate::GuestRam;
use crate::state::lock;

const SECTOR_BYTES: u64 = 512;
const REQUEST_MAX_BYTES: usize = SEGMENT_MAX_BYTES as usize * SEGMENTS_MAX as usize;
/// Data goes through a buffer of this size between file and guest memory.
const BUFFER_BYTES: usize = 256 << 10;

/// Why a request failed, as far as the guest learns it.
#[derive(Debug)]
enum Failure {
    /// The guest asked for something impossible.
    Refused,
    /// There is no such request.
    Unsupported,
    /// The host failed.
    Host(io::Error),
}

impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Self {
        Self::Host(error)
    }
}

/// The file behind a disk. Its methods may run in several threads at a time.
#[derive(Debug)]
pub(super) struct Disk {
    file: File,
    read_only: bool,
    sectors: u64,
    failures: Mutex<DiskFailures>,
}

impl Disk {
    pub(super) fn new(mut file: File, read_only: bool) -> io::Result<Self> {
        let sectors = file.seek(SeekFrom::End(0))? / SECTOR_BYTES;
        Ok(Self { file, read_only, sectors, failures: Mutex::default() })
    }

    pub(super) fn sectors(&self) -> u64 {
        self.sectors
    }

    /// Requests that failed on the host.
    pub(super) fn failures(&self) -> DiskFailures {
        lock(&self.failures).clone()
    }

    pub(super) fn read_only(&self) -> bool {
        self.read_only
    }

    /// Carries out a request, status byte included. Returns how many bytes were written to guest memory.
    pub(super) fn execute(&self, ram: &GuestRam, request: &Request) -> usize {
        let (status, data_bytes) = match self.operate(ram, request) {
            Ok(data_bytes) => (VIRTIO_BLK_S_OK, data_bytes),
            Err(Failure::Refused) => (VIRTIO_BLK_S_IOERR, 0),
            Err(Failure::Unsupported) => (VIRTIO_BLK_S_UNSUPP, 0),
            Err(Failure::Host(error)) => {
                self.report(request, &error);
                (VIRTIO_BLK_S_IOERR, 0)
            }
        };
        match request.write_status(ram, status.to_le_bytes()[0]) {
            Ok(()) => data_bytes + 1,
            Err(error) => {
                tracing::error!(%error, "the status of a disk request could not be written");
                0
            }
        }
    }

    /// A full file system fails every write: one warning will do.
    fn report(&self, request: &Request, error: &io::Error) {
        let operation = &request.operation;
        let path = crate::path::of(&self.file);
        let path = path.display();
        let mut failures = lock(&self.failures);
        let is_first = failures.count == 0;
        failures.count = failures.count.saturating_add(1);
        failures.latest = Some(format!("{path}: {operation:?}: {error}"));
        drop(failures);
        if is_first {
            tracing::warn!(
                %path, ?operation, %error,
                "a disk request failed on the host, and the guest sees an I/O error; if its disk is full, make room"
            );
        } else {
            tracing::debug!(?operation, %error, "a disk request failed on the host");
        }
    }

    fn operate(&self, ram: &GuestRam, request: &Request) -> Result<usize, Failure> {
        let written = match &request.operation {
            Operation::Read { sector } => return self.read(ram, request, *sector),
            Operation::GetId(id) => return get_id(ram, request, id),
            Operation::Unknown => return Err(Failure::Unsupported),
            Operation::Flush => self.file.sync_data(),
            _ if self.read_only => return Err(Failure::Refused),
            Operation::Write { sector } => {
                self.write(ram, request, *sector)?;
                self.write_through(request)
            }
            Operation::Discard(ranges) => {
                self.each(ranges, DISCARD_MAX_SECTORS, 0, |_, at, bytes| self.discard(at, bytes))?;
                Ok(())
            }
            Operation::WriteZeroes(ranges) => {
                let flags = VIRTIO_BLK_WRITE_ZEROES_FLAG_UNMAP;
                self.each(ranges, ZEROES_MAX_SECTORS, flags, |range, at, bytes| self.zero(range, at, bytes))?;
                self.write_through(request)
            }
        };
        Ok(written.map(|()| 0)?)
    }

    fn write_through(&self, request: &Request) -> io::Result<()> {
        if request.write_through { self.file.sync_data() } else { Ok(()) }
    }

    /// Byte offset of whole sectors that lie on the disk.
    fn place(&self, sector: u64, bytes: u64) -> Result<u64, Failure> {
        let end = sector.checked_add(bytes / SECTOR_BYTES).ok_or(Failure::Refused)?;
        if !bytes.is_multiple_of(SECTOR_BYTES) || end > self.sectors {
            return Err(Failure::Refused);
        }
        Ok(sector * SECTOR_BYTES)
    }

    fn read(&self, ram: &GuestRam, request: &Request, sector: u64) -> Result<usize, Failure> {
        let bytes = request.in_bytes();
        transfer(bytes, self.place(sector, bytes as u64)?, |at, skip, buffer| {
            self.file.read_exact_at(buffer, at)?;
            request.write_in(ram, skip, buffer).map_err(io::Error::other)
        })?;
        Ok(bytes)
    }

    fn write(&self, ram: &GuestRam, request: &Request, sector: u64) -> Result<(), Failure> {
        let bytes = request.out_bytes();
        transfer(bytes, self.place(sector, bytes as u64)?, |at, skip, buffer| {
            request.read_out(ram, skip, buffer).map_err(io::Error::other)?;
            self.file.write_all_at(buffer, at)
        })
    }

    /// Checks all ranges before the first is touched.
    fn each(
        &self,
        ranges: &[Range],
        max_sectors: u32,
        known_flags: u32,
        act: impl Fn(&Range, u64, u64) -> io::Result<()>,
    ) -> Result<(), Failure> {
        if ranges.iter().any(|range| range.flags & !known_flags != 0) {
            return Err(Failure::Unsupported);
        }
        let place = |range: &Range| self.place(range.sector, u64::from(range.sectors) * SECTOR_BYTES);
        if ranges.is_empty()
            || ranges.iter().any(|range| range.sectors > max_sectors || place(range).is_err())
        {
            return Err(Failure::Refused);
        }
        for range in ranges.iter().filter(|range| range.sectors > 0) {
            act(range, place(range)?, u64::from(range.sectors) * SECTOR_BYTES)?;
        }
        Ok(())
    }

    /// Discarding is a hint: a file system that can't punch holes keeps the data.
    fn discard(&self, at: u64, bytes: u64) -> io::Result<()> {
        let punched = fallocate(&self.file, FallocateMode::PunchHole, true, at, bytes);
        match punched.map_err(io::Error::from) {
            Err(error) if error.raw_os_error() == Some(libc::EOPNOTSUPP) => Ok(()),
            other => other,
        }
    }

    fn zero(&self, range: &Range, at: u64, bytes: u64) -> io::Result<()> {
        // A hole reads as zeros.
        let unmap = range.flags & VIRTIO_BLK_WRITE_ZEROES_FLAG_UNMAP != 0;
        if unmap && fallocate(&self.file, FallocateMode::PunchHole, true, at, bytes).is_ok() {
            return Ok(());
        }
        if fallocate(&self.file, FallocateMode::ZeroRange, true, at, bytes).is_ok() {
            return Ok(());
        }
        let zeros = [0; 4096];
        let mut left = bytes;
        while left > 0 {
            let part = zeros.get(..usize::try_from(left).unwrap_or(zeros.len())).unwrap_or(&zeros);
            self.file.write_all_at(part, at + (bytes - left))?;
            left -= part.len() as u64;
        }
        Ok(())
    }
}

fn get_id(ram: &GuestRam, request: &Request, id: &[u8; ID_BYTES]) -> Result<usize, Failure> {
    let count = request.in_bytes().min(ID_BYTES);
    request.write_in(ram, 0, id.get(..count).unwrap_or(id)).map_err(io::Error::other)?;
    Ok(count)
}

/// Calls `step(file offset, bytes done, buffer)` until `bytes` are done.
fn transfer(
    bytes: usize,
    start: u64,
    mut step: impl FnMut(u64, usize, &mut [u8]) -> io::Result<()>,
) -> Result<(), Failure> {
    if bytes > REQUEST_MAX_BYTES {
        return Err(Failure::Refused);
    }
    let mut buffer = vec![0; bytes.min(BUFFER_BYTES)];
    let mut done = 0;
    while done < bytes {
        let count = (bytes - done).min(BUFFER_BYTES);
        let Some(part) = buffer.get_mut(..count) else { break };
        step(start + done as u64, done, part)?;
        done += count;
    }
    Ok(())
}
