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

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::OpenOptionsExt;
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
    #[error("{} exists and is neither a core nor empty: give another path for the core, or remove it", path.display())]
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
    let unfinished = Unfinished::create(path)?;
    core(snapshot, &unfinished, &mappings, &notes, progress)?;
    unfinished.publish(path)?;
    let memory_bytes = snapshot.layout().regions.iter().map(|place| place.pages * PAGE_BYTES).sum();
    Ok(Dumped { cpus: vcpus.len() as u32, memory_bytes, mappings: mappings.len() as u64 })
}

/// Is there nothing, an empty file, or an older core?
///
/// # Errors
/// There is something else.
pub fn require_free(path: &Path) -> Result<(), DumpError> {
    let free = match path.symlink_metadata() {
        Ok(found) => found.is_file() && begins_as_a_core(path).map_err(|source| unwritten(path, source))?,
        // If it can't be made there either, making it says so.
        Err(_) => true,
    };
    if free { Ok(()) } else { Err(DumpError::InTheWay { path: path.to_owned() }) }
}

fn begins_as_a_core(path: &Path) -> io::Result<bool> {
    let mut first = Vec::new();
    File::open(path)?.take(elf::CORE.len() as u64).read_to_end(&mut first)?;
    Ok(first.is_empty() || first == elf::CORE)
}

/// A core that isn't whole, in a file of its own beside it. Dropped before it is published, it is removed.
struct Unfinished {
    file: File,
    path: PathBuf,
}

impl Unfinished {
    /// Never a file that is there already: nobody else's is written to, nor a save's unfinished one.
    fn create(core: &Path) -> Result<Self, DumpError> {
        let mut path = core.as_os_str().to_owned();
        path.push(format!(".dump-{}", std::process::id()));
        let path = PathBuf::from(path);
        let mut options = OpenOptions::new();
        options.write(true).create_new(true).mode(MODE).custom_flags(libc::O_NOFOLLOW);
        let file = options.open(&path).map_err(|source| unwritten(&path, source))?;
        Ok(Self { file, path })
    }

    /// Gives it its name, if that is still free.
    fn publish(&self, core: &Path) -> Result<(), DumpError> {
        require_free(core)?;
        fs::rename(&self.path, core).map_err(|source| unwritten(core, source))?;
        let folder = core.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
        if let Err(error) = File::open(folder).and_then(|folder| folder.sync_all()) {
            tracing::warn!(
                "{} is written, but its name may not survive a power failure: its folder can't be synced: {error}",
                core.display()
            );
        }
        Ok(())
    }
}

impl Drop for Unfinished {
    fn drop(&mut self) {
        // Once published there is nothing of that name; and what can't be removed has been made by this process.
        let _ = fs::remove_file(&self.path);
    }
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
    out: &Unfinished,
    mappings: &[paging::Mapping],
    notes: &[u8],
    progress: &mut dyn FnMut(u64, u64),
) -> Result<(), DumpError> {
    let Unfinished { file, path } = out;
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
    let mut file = file;
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
        copy(snapshot, region, (file, offset), path, copied)?;
    }
    file.sync_all().map_err(failed)
}

/// The pages of a region that aren't zero, each verified.
fn copy(
    snapshot: &SnapshotFile,
    region: usize,
    (mut file, offset): (&File, u64),
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
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn only_a_core_is_replaced() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a");
        require_free(&path).unwrap();
        for (bytes, free) in [
            (b"TERNSNAP, a guest".as_slice(), false),
            (b"".as_slice(), true),
            (b"\x7fELF\x02\x01\x01".as_slice(), false),
            (elf::CORE.as_slice(), true),
        ] {
            fs::write(&path, bytes).unwrap();
            let found = require_free(&path).map_err(|error| error.to_string());
            assert_eq!(found.is_ok(), free, "{bytes:?}: {found:?}");
        }
        assert!(require_free(folder.path()).unwrap_err().to_string().contains("neither a core nor empty"));
        let link = folder.path().join("link");
        std::os::unix::fs::symlink(&path, &link).unwrap();
        require_free(&link).unwrap_err();
    }

    #[test]
    fn an_unfinished_core_is_in_nobodys_way() {
        let folder = tempfile::tempdir().unwrap();
        let (path, partial) = (folder.path().join("a"), folder.path().join("a.partial"));
        fs::write(&partial, "TERNSNAP of a save that goes on").unwrap();
        let names = || fs::read_dir(folder.path()).unwrap().count();

        let unfinished = Unfinished::create(&path).unwrap();
        assert_eq!(unfinished.file.metadata().unwrap().permissions().mode() & 0o777, MODE);
        assert!(Unfinished::create(&path).is_err());
        assert_eq!(names(), 2);
        fs::write(&path, "somebody's").unwrap();
        unfinished.publish(&path).unwrap_err();
        drop(unfinished);
        assert_eq!((names(), fs::read(&path).unwrap()), (2, b"somebody's".to_vec()));

        fs::remove_file(&path).unwrap();
        let unfinished = Unfinished::create(&path).unwrap();
        (&unfinished.file).write_all(&elf::CORE).unwrap();
        unfinished.publish(&path).unwrap();
        drop(unfinished);
        assert_eq!((names(), fs::read(&path).unwrap()), (2, elf::CORE.to_vec()));
        assert_eq!(fs::read(&partial).unwrap(), b"TERNSNAP of a save that goes on");
    }
}
