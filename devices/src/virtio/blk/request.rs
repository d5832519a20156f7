//! Requests as the driver writes them (virtio 1.2, section 5.2.6).
//!
//! ```text
//! readable: type u32 | reserved u32 | sector u64 | data out      writable: data in | status u8
//! ```
//!
//! How the parts are spread over descriptors doesn't matter.

use virtio_bindings::virtio_blk::{
    VIRTIO_BLK_T_DISCARD, VIRTIO_BLK_T_FLUSH, VIRTIO_BLK_T_GET_ID, VIRTIO_BLK_T_IN, VIRTIO_BLK_T_OUT,
    VIRTIO_BLK_T_WRITE_ZEROES,
};

use super::{ID_BYTES, RANGES_MAX};
use crate::GuestRam;
use crate::virtio::{Broken, Chain};

const HEADER_BYTES: usize = 16;
const RANGE_BYTES: usize = 16;

/// What the driver wants.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Operation {
    /// Fill `data in` from the disk.
    Read { sector: u64 },
    /// Write `data out` to the disk.
    Write { sector: u64 },
    /// Make completed writes durable.
    Flush,
    /// The guest doesn't need these sectors any more.
    Discard(Vec<Range>),
    /// Make these sectors read as zeros.
    WriteZeroes(Vec<Range>),
    /// Fill `data in` with the disk's name.
    GetId([u8; ID_BYTES]),
    /// No such type.
    Unknown,
}

/// Sectors of a discard or write-zeroes request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Range {
    pub(super) sector: u64,
    pub(super) sectors: u32,
    pub(super) flags: u32,
}

/// A request whose buffers lie in guest memory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Request {
    pub(super) operation: Operation,
    /// A write must be durable before it is complete.
    pub(super) write_through: bool,
    chain: Chain,
}

impl Request {
    /// Reads the header. A chain without room for header and status can't even be answered: the driver is broken.
    pub(super) fn parse(
        ram: &GuestRam,
        queue: usize,
        chain: Chain,
        id: &str,
        write_through: bool,
    ) -> Result<Self, Broken> {
        let mut header = [0; HEADER_BYTES];
        if chain.read(ram, 0, &mut header)? < HEADER_BYTES || chain.writable.is_empty() {
            let fault = "is too short for a block request's header and status";
            return Err(Broken::Chain { queue, head: chain.head, fault });
        }
        let [t0, t1, t2, t3, _, _, _, _, sector @ ..] = header;
        let sector = u64::from_le_bytes(sector);
        let operation = match u32::from_le_bytes([t0, t1, t2, t3]) {
            VIRTIO_BLK_T_IN => Operation::Read { sector },
            VIRTIO_BLK_T_OUT => Operation::Write { sector },
            VIRTIO_BLK_T_FLUSH => Operation::Flush,
            VIRTIO_BLK_T_DISCARD => Operation::Discard(ranges(ram, &chain)?),
            VIRTIO_BLK_T_WRITE_ZEROES => Operation::WriteZeroes(ranges(ram, &chain)?),
            VIRTIO_BLK_T_GET_ID => {
                let mut name = [0; ID_BYTES];
                name.iter_mut().zip(id.bytes()).for_each(|(to, byte)| *to = byte);
                Operation::GetId(name)
            }
            _ => Operation::Unknown,
        };
        Ok(Self { operation, write_through, chain })
    }

    /// The descriptor by which the driver knows the request.
    pub(super) fn head(&self) -> u16 {
        self.chain.head
    }

    /// Bytes of `data out`.
    pub(super) fn out_bytes(&self) -> usize {
        self.chain.readable_bytes() - HEADER_BYTES
    }

    /// Bytes of `data in`.
    pub(super) fn in_bytes(&self) -> usize {
        self.chain.writable_bytes() - 1
    }

    /// Copies from `data out`, `skip` bytes behind its start.
    pub(super) fn read_out(&self, ram: &GuestRam, skip: usize, data: &mut [u8]) -> Result<(), Broken> {
        self.chain.read(ram, HEADER_BYTES + skip, data).map(|_| ())
    }

    /// Copies to `data in`, `skip` bytes behind its start.
    pub(super) fn write_in(&self, ram: &GuestRam, skip: usize, data: &[u8]) -> Result<(), Broken> {
        self.chain.write(ram, skip, data).map(|_| ())
    }

    /// Writes the status, the last writable byte.
    pub(super) fn write_status(&self, ram: &GuestRam, status: u8) -> Result<(), Broken> {
        self.chain.write(ram, self.in_bytes(), &[status]).map(|_| ())
    }
}

/// The ranges in `data out`; none if they are too many or incomplete, which no such request may have.
fn ranges(ram: &GuestRam, chain: &Chain) -> Result<Vec<Range>, Broken> {
    let bytes = chain.readable_bytes() - HEADER_BYTES;
    if !bytes.is_multiple_of(RANGE_BYTES) || bytes > RANGES_MAX as usize * RANGE_BYTES {
        return Ok(Vec::new());
    }
    let mut data = vec![0; bytes];
    chain.read(ram, HEADER_BYTES, &mut data)?;
    let (chunks, _) = data.as_chunks::<RANGE_BYTES>();
    Ok(chunks.iter().map(Range::decode).collect())
}

impl Range {
    fn decode(bytes: &[u8; RANGE_BYTES]) -> Self {
        let [s0, s1, s2, s3, s4, s5, s6, s7, n0, n1, n2, n3, f0, f1, f2, f3] = *bytes;
        Self {
            sector: u64::from_le_bytes([s0, s1, s2, s3, s4, s5, s6, s7]),
            sectors: u32::from_le_bytes([n0, n1, n2, n3]),
            flags: u32::from_le_bytes([f0, f1, f2, f3]),
        }
    }
}
