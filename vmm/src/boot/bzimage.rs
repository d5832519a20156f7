//! Unpacks a bzImage's payload, the kernel proper, on the host: the decompressor inside the image would
//! take minutes where ring-0 code is interpreted, and is no faster anywhere else.
//!
//! ```text
//! +--------------+-----------------+--------------------------------+-----------+
//! | setup header | setup sectors   | 32-bit code ... payload ...    | signature |
//! | at 0x1f1     | 512 bytes each  | payload_offset, payload_length |           |
//! +--------------+-----------------+--------------------------------+-----------+
//!                                    '- packed vmlinux, then its unpacked size (u32; gzip's own trailer)
//! ```
//! Fields: Linux' `Documentation/arch/x86/boot.rst`.

use std::fmt;
use std::io::{self, Read, SeekFrom};

use super::BootError;
use super::image::{ImageReader, Opened, hex};

/// How much of a file's start is enough to read all fields that matter here.
pub(super) const HEADER_BYTES: usize = 0x250;

const SETUP_SECTORS: usize = 0x1f1;
const BOOT_FLAG: usize = 0x1fe;
const MAGIC: usize = 0x202;
const VERSION: usize = 0x206;
const PAYLOAD_OFFSET: usize = 0x248;
const PAYLOAD_LENGTH: usize = 0x24c;
const SECTOR_BYTES: u64 = 512;
/// A `setup_sects` of 0 means 4.
const DEFAULT_SETUP_SECTORS: u8 = 4;
/// Boot protocol 2.08 (Linux 2.6.26) introduced the payload fields.
const MIN_VERSION: u16 = 0x0208;
/// No kernel comes near it; a payload that has or unpacks to more is not one.
const MAX_UNPACKED_BYTES: u64 = 1 << 30;
/// Blocks of the lz4 legacy frame unpack to at most this (lz4's frame format document, "Legacy frame").
const LZ4_LEGACY_BLOCK_BYTES: usize = 8 << 20;

/// How a payload is packed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Compression {
    /// DEFLATE in a gzip member.
    Gzip,
    /// LZMA2 in an xz stream, usually behind the x86 BCJ filter.
    Xz,
    /// A Zstandard frame.
    Zstd,
    /// lz4's legacy frame.
    Lz4,
    /// Not packed at all.
    Plain,
}

impl fmt::Display for Compression {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Gzip => "gzip",
            Self::Xz => "xz",
            Self::Zstd => "zstd",
            Self::Lz4 => "lz4",
            Self::Plain => "uncompressed",
        })
    }
}

/// First bytes of the formats that can be unpacked.
const SUPPORTED: [(&[u8], Compression); 5] = [
    (&[0x1f, 0x8b], Compression::Gzip),
    (&[0xfd, b'7', b'z', b'X', b'Z', 0], Compression::Xz),
    (&[0x28, 0xb5, 0x2f, 0xfd], Compression::Zstd),
    (&[0x02, 0x21, 0x4c, 0x18], Compression::Lz4),
    (super::elf::MAGIC, Compression::Plain),
];

/// First bytes of the others that kernels can be built with.
const KNOWN: [(&[u8], &str); 3] =
    [(b"BZh", "bzip2"), (&[0x5d, 0, 0], "lzma"), (&[0x89, b'L', b'Z', b'O'], "lzo")];

/// Whether a file that begins with `head` is a bzImage.
pub(super) fn is_bzimage(head: &[u8]) -> bool {
    head.get(BOOT_FLAG..BOOT_FLAG + 2) == Some(&[0x55, 0xaa]) && head.get(MAGIC..MAGIC + 4) == Some(b"HdrS")
}

/// Unpacks the payload of `image`, whose first bytes are `head`, to at most `memory_bytes`.
pub(super) fn unpack<R: ImageReader>(
    image: &mut Opened<R>,
    head: &[u8],
    memory_bytes: u64,
) -> Result<(Compression, Vec<u8>), BootError> {
    let payload = read_payload(image, head)?;
    let name = || image.name.clone();
    let Some(compression) = recognise(&payload) else {
        let known = KNOWN.iter().find(|(magic, _)| payload.starts_with(magic));
        let found = known.map_or("an unknown format", |(_, format)| format);
        return Err(BootError::UnknownCompression { name: name(), found, first: hex(&payload) });
    };
    let bad = |reason: String| BootError::BadBzImage { name: name(), reason };
    let Some((packed, declared)) = payload.split_last_chunk::<4>() else {
        return Err(bad(format!("a payload of {} bytes", payload.len())));
    };
    let declared = u64::from(u32::from_le_bytes(*declared));
    let limit_bytes = memory_bytes.min(MAX_UNPACKED_BYTES);
    let too_large = |unpacked_bytes| BootError::UnpackedTooLarge {
        name: name(),
        compression,
        unpacked_bytes,
        limit_bytes,
    };
    if compression == Compression::Plain {
        return Ok((compression, payload));
    }
    if declared > limit_bytes {
        return Err(too_large(declared));
    }
    // gzip's last four bytes are the size and belong to it.
    let packed = if compression == Compression::Gzip { payload.as_slice() } else { packed };
    let unpacked = decode(compression, packed, declared).map_err(|source| BootError::Unpack {
        name: name(),
        compression,
        packed_bytes: packed.len() as u64,
        source,
    })?;
    let unpacked_bytes = unpacked.len() as u64;
    if unpacked_bytes > limit_bytes {
        return Err(too_large(unpacked_bytes));
    }
    if unpacked_bytes != declared {
        return Err(bad(format!(
            "its payload unpacks to {unpacked_bytes} bytes or more, it says {declared}"
        )));
    }
    Ok((compression, unpacked))
}

fn recognise(payload: &[u8]) -> Option<Compression> {
    SUPPORTED.iter().find(|(magic, _)| payload.starts_with(magic)).map(|(_, compression)| *compression)
}

/// Reads the payload, and no byte that the file doesn't have.
fn read_payload<R: ImageReader>(image: &mut Opened<R>, head: &[u8]) -> Result<Vec<u8>, BootError> {
    let (offset, length) = payload_place(head, image.bytes)
        .map_err(|reason| BootError::BadBzImage { name: image.name.clone(), reason })?;
    let mut payload = Vec::new();
    let read = image
        .reader
        .seek(SeekFrom::Start(offset))
        .and_then(|_| (&mut image.reader).take(length).read_to_end(&mut payload));
    match read {
        Ok(_) => Ok(payload),
        Err(source) => Err(image.unreadable("kernel", source)),
    }
}

/// Offset and length of the payload within a file of `image_bytes`.
fn payload_place(head: &[u8], image_bytes: u64) -> Result<(u64, u64), String> {
    let cut = || format!("it is cut short within its setup header, at {} bytes", head.len());
    let u32_at =
        |at: usize| head.get(at..at + 4).and_then(|bytes| bytes.try_into().ok()).map(u32::from_le_bytes);
    let version = u32_at(VERSION).ok_or_else(cut)? as u16;
    if version < MIN_VERSION {
        let (major, minor) = (version >> 8, version & 0xff);
        return Err(format!(
            "its boot protocol is {major}.{minor:02}, needed is 2.08 or newer (Linux 2.6.26)"
        ));
    }
    let sectors = match head.get(SETUP_SECTORS).copied().ok_or_else(cut)? {
        0 => DEFAULT_SETUP_SECTORS,
        sectors => sectors,
    };
    let code = (u64::from(sectors) + 1) * SECTOR_BYTES;
    let offset = code + u64::from(u32_at(PAYLOAD_OFFSET).ok_or_else(cut)?);
    let length = u64::from(u32_at(PAYLOAD_LENGTH).ok_or_else(cut)?);
    let end = offset + length;
    if length == 0 || end > image_bytes {
        return Err(format!("its payload is {offset:#x}..{end:#x}, the file has {image_bytes:#x} bytes"));
    }
    if length > MAX_UNPACKED_BYTES {
        return Err(format!("its payload has {length} bytes, at most {MAX_UNPACKED_BYTES} are read"));
    }
    Ok((offset, length))
}

/// Unpacks `packed`, stopping one byte after `declared`: enough to see that there is more.
fn decode(compression: Compression, packed: &[u8], declared: u64) -> io::Result<Vec<u8>> {
    let mut unpacked = Vec::new();
    unpacked.try_reserve_exact(declared as usize + 1)?;
    match compression {
        Compression::Gzip => read_bounded(flate2::read::GzDecoder::new(packed), declared, &mut unpacked)?,
        Compression::Xz => {
            // The dictionary never needs to be larger than the result; xz presets reach 64 MiB, kernels use 32.
            let dictionary_limit_kib = (MAX_UNPACKED_BYTES / 1024) as u32;
            let reader = lzma_rust2::XzReader::new_mem_limit(packed, false, dictionary_limit_kib);
            read_bounded(reader, declared, &mut unpacked)?;
        }
        Compression::Zstd => {
            let reader = ruzstd::decoding::StreamingDecoder::new(packed).map_err(io::Error::other)?;
            read_bounded(reader, declared, &mut unpacked)?;
        }
        Compression::Lz4 => decode_lz4_legacy(packed, declared, &mut unpacked)?,
        Compression::Plain => unpacked.extend_from_slice(packed),
    }
    Ok(unpacked)
}

fn read_bounded(reader: impl Read, declared: u64, unpacked: &mut Vec<u8>) -> io::Result<()> {
    reader.take(declared + 1).read_to_end(unpacked).map(|_| ())
}

/// The legacy frame: after the magic, blocks of a u32 length and as many bytes, until the input ends.
fn decode_lz4_legacy(packed: &[u8], declared: u64, unpacked: &mut Vec<u8>) -> io::Result<()> {
    let bad = |text: String| io::Error::new(io::ErrorKind::InvalidData, text);
    let mut rest = &packed[4..];
    let mut block = vec![0; LZ4_LEGACY_BLOCK_BYTES];
    while !rest.is_empty() && unpacked.len() as u64 <= declared {
        let Some((length, after)) = rest.split_first_chunk::<4>() else {
            return Err(bad(format!("{} bytes where a block length should be", rest.len())));
        };
        let length = u32::from_le_bytes(*length) as usize;
        let Some((content, after)) = after.split_at_checked(length) else {
            return Err(bad(format!("a block of {length} bytes, {} are left", after.len())));
        };
        let bytes = lz4_flex::block::decompress_into(content, &mut block).map_err(io::Error::other)?;
        unpacked.extend_from_slice(&block[..bytes]);
        rest = after;
    }
    Ok(())
}

#[cfg(test)]
mod tests;
