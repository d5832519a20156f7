//! A guest in a file.

use std::sync::OnceLock;

use tern_migration::snapshot::Snapshot;

use super::{Target, Verdict};
use crate::recording::{options, save};
use crate::sparse::Sparse;

/// Guests that are larger are only looked at.
const PAGES_MAX: u64 = 1024;
const PAGE_BYTES: u64 = 4096;

pub(super) fn targets() -> Vec<Target> {
    vec![
        Target::new(
            "snapshot",
            "a sparse file (`src/sparse.rs`), as it is",
            // The input is a list of holes and pieces: a description of 1 MiB and a state of 64 MiB may be holes.
            (160 << 20, 64),
            |bytes| read_all(&Sparse::parse(bytes)),
            seeds,
        ),
        Target::new(
            "snapshot-sealed",
            "a sparse file (`src/sparse.rs`), its checksums made right",
            (160 << 20, 64),
            |bytes| {
                let mut file = Sparse::parse(bytes);
                file.seal();
                read_all(&file)
            },
            seeds,
        ),
    ]
}

fn seeds() -> Vec<Vec<u8>> {
    static SAVED: OnceLock<Vec<Vec<u8>>> = OnceLock::new();
    let saved = |compress| save(&options(), compress).ok().flatten().map(|(file, _)| file.bytes());
    SAVED.get_or_init(|| ["none", "lz4", "zstd", "zlib"].into_iter().filter_map(saved).collect()).clone()
}

/// All that a restore reads.
fn read_all(file: &Sparse) -> Verdict {
    let Ok(snapshot) = Snapshot::parse(file.clone()) else { return Verdict::Refused };
    if snapshot.state().is_err() {
        return Verdict::Refused;
    }
    let pages: u64 = snapshot.layout().regions.iter().map(|region| region.pages).fold(0, u64::saturating_add);
    for (region, place) in snapshot.layout().regions.iter().enumerate() {
        let count = place.pages.min(PAGES_MAX);
        let mut memory = vec![0xa5; (count * PAGE_BYTES) as usize];
        if snapshot.read_pages(region, 0..count, &mut memory).is_err() {
            return Verdict::Refused;
        }
    }
    Verdict::accepted(pages <= PAGES_MAX && snapshot.verify_tables().is_ok())
}
