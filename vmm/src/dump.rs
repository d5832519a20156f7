//! A snapshot as an ELF core, as `gdb` and `crash` open it: memory at its physical and, for the kernel, at its virtual
//! addresses, and the registers of each vCPU. Needs neither KVM nor a machine.
//!
//! ```text
//! ELF header | program headers | notes: CORE/NT_PRSTATUS and QEMU/0 of each vCPU | memory, region by region
//! ```
//!
//! Memory is in the file once; zero pages are holes. Several program headers show the same bytes: first each region
//! at its physical address, then what vCPU 0's page tables map in the upper half of the address space.

mod elf;
mod notes;
mod paging;

use std::fs::{File, OpenOptions, Permissions};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use tern_migration::PAGE_BYTES;
use tern_migration::snapshot::{SnapshotError, SnapshotFile};
use tern_schema::StateError;
use thiserror::Error;

use self::elf::{Segment, SegmentKind};
use crate::vcpu::VcpuV1;

/// Pages that are copied at once: two blocks of a snapshot's page table.
const COPY_PAGES: u64 = 680;
/// Only the user who made it reads it.
const MODE: u32 = 0o600;
/// What is written before it has its name.
const PARTIAL: &str = "partial";

/// Why there is no core.
#[derive(Debug, Error)]
pub enum DumpError {
    /// The snapshot.
    #[error(transparent)]
    Snapshot(#[from] SnapshotError),
    /// Its vCPUs.
    #[error("the vCPUs in it can't be read")]
    State(#[from] StateError),
    /// Something else is where the core is to be: most likely the snapshot, by mistake.
    #[error("{} exists and is no core: give another path for the core, or remove it", path.display())]
    InTheWay {
        /// Its path.
        path: PathBuf,
    },
    /// The core can't be written.
    #[error("{} can't be written", path.display())]
    Write {
        /// Its path.
        path: PathBuf,
        /// The host's reason.
        #[source]
        source: io::Error,
    },
}

/// What was written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
pub struct Dumped {
    /// vCPUs whose registers are in it.
    pub cpus: u32,
    /// Guest memory in it.
    pub memory_bytes: u64,
    /// Ranges that the guest's kernel maps.
    pub mappings: u64,
}

/// Writes `snapshot` as a core to `path`, which appears there when it is whole. `progress` is told pages copied and
/// pages in all.
pub fn write(
    snapshot: &SnapshotFile,
    path: &Path,
    progress: &mut dyn FnMut(u64, u64),
) -> Result<Dumped, DumpError> {
    require_free(path)?;
    let vcpus = vcpus(snapshot)?;
    let mappings = match vcpus.first() {
        Some(vcpu) => paging::upper_half(snapshot, vcpu),
        None => Vec::new(),
    };
    let notes: Vec<u8> = (1u32..).zip(&vcpus).flat_map(|(number, vcpu)| notes::of(number, vcpu)).collect();
    let mut partial = path.as_os_str().to_owned();
    partial.push(format!(".{PARTIAL}"));
    let partial = PathBuf::from(partial);
    let written = core(snapshot, &partial, &mappings, &notes, progress)
        .and_then(|()| std::fs::rename(&partial, path).map_err(|source| unwritten(path, source)));
    if let Err(error) = written {
        // The reason to fail is the one above; a file that was never made can't be removed.
        let _ = std::fs::remove_file(&partial);
        return Err(error);
    }
    let memory_bytes = snapshot.layout().regions.iter().map(|place| place.pages * PAGE_BYTES).sum();
    Ok(Dumped { cpus: vcpus.len() as u32, memory_bytes, mappings: mappings.len() as u64 })
}

/// Is there nothing, or an older core?
///
/// # Errors
/// There is something else.
pub fn require_free(path: &Path) -> Result<(), DumpError> {
    let free = match path.metadata() {
        Ok(found) => found.is_file() && begins_as_a_core(path).map_err(|source| unwritten(path, source))?,
        // If it can't be made there either, making it says so.
        Err(_) => true,
    };
    if free { Ok(()) } else { Err(DumpError::InTheWay { path: path.to_owned() }) }
}

fn begins_as_a_core(path: &Path) -> io::Result<bool> {
    let mut first = Vec::new();
    File::open(path)?.take(elf::CORE.len() as u64).read_to_end(&mut first)?;
    Ok(first == elf::CORE)
}

fn unwritten(path: &Path, source: io::Error) -> DumpError {
    DumpError::Write { path: path.to_owned(), source }
}

fn vcpus(snapshot: &SnapshotFile) -> Result<Vec<VcpuV1>, DumpError> {
    let mut state = snapshot.state()?;
    let cpus = snapshot.facts().cpus.min(u32::from(crate::config::CPU_LIMIT));
    (0..cpus).map(|instance| Ok(state.take(instance)?)).collect()
}

fn core(
    snapshot: &SnapshotFile,
    path: &Path,
    mappings: &[paging::Mapping],
    notes: &[u8],
    progress: &mut dyn FnMut(u64, u64),
) -> Result<(), DumpError> {
    let failed = |source| unwritten(path, source);
    let regions = &snapshot.layout().regions;
    let count = 1 + regions.len() + mappings.len();
    let notes_offset = elf::headers_bytes(count);
    let mut end = (notes_offset + notes.len() as u64).next_multiple_of(PAGE_BYTES);
    let mut offsets = Vec::with_capacity(regions.len());
    for place in regions {
        offsets.push(end);
        end += place.pages * PAGE_BYTES;
    }
    let mut segments = vec![Segment {
        kind: SegmentKind::Note,
        offset: notes_offset,
        virtual_address: 0,
        physical_address: 0,
        bytes: notes.len() as u64,
    }];
    segments.extend(regions.iter().zip(&offsets).map(|(place, offset)| Segment {
        kind: SegmentKind::Load,
        offset: *offset,
        virtual_address: place.gpa,
        physical_address: place.gpa,
        bytes: place.pages * PAGE_BYTES,
    }));
    segments.extend(mappings.iter().filter_map(|mapping| mapping.segment(regions, &offsets)));
    let head = elf::headers(&segments);
    // All of the guest's memory: as private as the snapshot, also where an older partial file is taken over.
    let mut options = OpenOptions::new();
    options.write(true).create(true).truncate(true).mode(MODE);
    let mut file = options.open(path).map_err(failed)?;
    file.set_permissions(Permissions::from_mode(MODE)).map_err(failed)?;
    file.write_all(&head)
        .and_then(|()| file.seek(SeekFrom::Start(notes_offset)).map(drop))
        .map_err(failed)?;
    file.write_all(notes).and_then(|()| file.set_len(end)).map_err(failed)?;
    let all = regions.iter().map(|place| place.pages).sum();
    let mut done = 0;
    for (region, offset) in offsets.into_iter().enumerate() {
        let copied = &mut |pages| {
            done += pages;
            progress(done, all);
        };
        copy(snapshot, region, (&mut file, offset), path, copied)?;
    }
    file.sync_all().map_err(failed)
}

/// The pages of a region that aren't zero, each verified.
fn copy(
    snapshot: &SnapshotFile,
    region: usize,
    (file, offset): (&mut File, u64),
    path: &Path,
    copied: &mut dyn FnMut(u64),
) -> Result<(), DumpError> {
    let pages = snapshot.layout().regions.get(region).map_or(0, |place| place.pages);
    let (mut entries, mut buffer) = (Vec::new(), vec![0; (COPY_PAGES * PAGE_BYTES) as usize]);
    let mut start = 0;
    while start < pages {
        let end = pages.min(start + COPY_PAGES);
        entries.clear();
        snapshot.entries(region, start..end, &mut entries)?;
        let mut first = 0;
        for run in entries.chunk_by(|one, other| one.is_zero() == other.is_zero()) {
            let page = start + first;
            first += run.len() as u64;
            if run.first().is_some_and(|entry| entry.is_zero()) {
                continue;
            }
            let out = buffer.get_mut(..run.len() * PAGE_BYTES as usize).unwrap_or_default();
            snapshot.read_stored(region, page, run, out)?;
            file.seek(SeekFrom::Start(offset + page * PAGE_BYTES))
                .and_then(|_| file.write_all(out))
                .map_err(|source| unwritten(path, source))?;
        }
        copied(end - start);
        start = end;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_core_is_replaced() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a");
        require_free(&path).unwrap();
        for (bytes, free) in [
            (b"TERNSNAP, a guest".as_slice(), false),
            (b"".as_slice(), false),
            (b"\x7fELF\x02\x01\x01".as_slice(), false),
            (elf::CORE.as_slice(), true),
        ] {
            std::fs::write(&path, bytes).unwrap();
            let found = require_free(&path).map_err(|error| error.to_string());
            assert_eq!(found.is_ok(), free, "{bytes:?}: {found:?}");
        }
        assert!(require_free(folder.path()).unwrap_err().to_string().contains("is no core"));
    }
}
