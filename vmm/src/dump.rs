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

use std::fs::{File, OpenOptions};
use std::io::{self, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use tern_migration::PAGE_BYTES;
use tern_migration::snapshot::{SnapshotError, SnapshotFile};
use tern_schema::StateError;
use thiserror::Error;

use self::elf::{Segment, SegmentKind};
use crate::vcpu::VcpuV1;

/// Pages that are copied at once: two blocks of a snapshot's page table.
const COPY_PAGES: u64 = 680;
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
    let mut file = OpenOptions::new().write(true).create(true).truncate(true).open(path).map_err(failed)?;
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
