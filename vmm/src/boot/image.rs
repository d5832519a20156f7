//! A kernel or initrd as given: a file or bytes. Tells ELF from bzImage and has the kernel loaded.

use std::fs::File;
use std::io::{Cursor, Read, Seek};
use std::ops::Range;
use std::path::Path;

use vm_memory::{GuestMemoryBackend, ReadVolatile};

use super::memory_map::LowRam;
use super::{BootError, Compression, Protocol, bzimage, elf};

/// Where a kernel or initrd comes from.
#[derive(Clone, Copy, Debug)]
pub enum BootImage<'a> {
    /// A regular file.
    File(&'a Path),
    /// Bytes at hand, such as an image embedded in the program.
    Bytes {
        /// What errors call it.
        name: &'a str,
        /// The whole image.
        bytes: &'a [u8],
    },
}

/// What an image can be read through: plain reads for headers, volatile ones straight into guest memory.
pub(super) trait ImageReader: Read + ReadVolatile + Seek {}
impl<T: Read + ReadVolatile + Seek> ImageReader for T {}

/// An image that has been opened: its name for errors, its size, its content.
pub(super) struct Opened<R> {
    pub(super) name: String,
    pub(super) bytes: u64,
    pub(super) reader: R,
}

impl<R> Opened<R> {
    pub(super) fn unreadable(&self, what: &'static str, source: std::io::Error) -> BootError {
        BootError::Unreadable { what, name: self.name.clone(), source }
    }
}

/// Opens `path`, which must be a regular file: a pipe could block for ever and cannot be sought in.
pub(super) fn open(what: &'static str, path: &Path) -> Result<Opened<File>, BootError> {
    let name = path.display().to_string();
    let attempt = || {
        // Asked by path first, since opening a FIFO would already block.
        let metadata = std::fs::metadata(path)?;
        Ok(if metadata.is_file() { Some((File::open(path)?, metadata.len())) } else { None })
    };
    match attempt() {
        Ok(Some((reader, bytes))) => Ok(Opened { name, bytes, reader }),
        Ok(None) => Err(BootError::NotAFile { what, name }),
        Err(source) => Err(BootError::Unreadable { what, name, source }),
    }
}

/// Bytes at hand as an opened image.
pub(super) fn opened_bytes<'a>(name: &str, bytes: &'a [u8]) -> Opened<Cursor<&'a [u8]>> {
    Opened { name: name.to_owned(), bytes: bytes.len() as u64, reader: Cursor::new(bytes) }
}

/// A kernel in guest memory.
pub(super) struct LoadedKernel {
    pub(super) protocol: Protocol,
    pub(super) entry_gpa: u64,
    pub(super) range: Range<u64>,
    pub(super) packed: Option<Compression>,
}

pub(super) fn load_kernel<M: GuestMemoryBackend>(
    memory: &M,
    ram: &LowRam,
    image: &BootImage<'_>,
) -> Result<LoadedKernel, BootError> {
    match image {
        BootImage::File(path) => load_opened(memory, ram, open("kernel", path)?),
        BootImage::Bytes { name, bytes } => load_opened(memory, ram, opened_bytes(name, bytes)),
    }
}

fn load_opened<M: GuestMemoryBackend, R: ImageReader>(
    memory: &M,
    ram: &LowRam,
    mut image: Opened<R>,
) -> Result<LoadedKernel, BootError> {
    let mut head = Vec::new();
    let read = (&mut image.reader).take(bzimage::HEADER_BYTES as u64).read_to_end(&mut head);
    if let Err(source) = read {
        return Err(image.unreadable("kernel", source));
    }
    if head.starts_with(elf::MAGIC) {
        return elf::load(memory, ram, &mut image, None);
    }
    if bzimage::is_bzimage(&head) {
        let (compression, vmlinux) = bzimage::unpack(&mut image, &head, ram.total_bytes)?;
        let mut inner = opened_bytes(&image.name, &vmlinux);
        return elf::load(memory, ram, &mut inner, Some(compression));
    }
    Err(BootError::NotAKernel { name: image.name, bytes: image.bytes, first: hex(&head) })
}

/// The first bytes of something unknown, for an error.
pub(super) fn hex(bytes: &[u8]) -> String {
    let shown: Vec<String> = bytes.iter().take(8).map(|byte| format!("{byte:02x}")).collect();
    shown.join(" ")
}
