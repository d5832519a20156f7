//! What a destination knows before a guest comes: pages of snapshot files, by their content. A source that has one of
//! them sends its hash alone (PROTOCOL.md, "Known pages").
//!
//! ```text
//! files --a thread of its own: each page verified and hashed--> index --agreed, known--> source
//!                                                                  '<-- hash -- page from the file, hashed once more
//! ```
//!
//! Nothing in a file is trusted later: what is read for a hash must have that hash, or the attempt fails and the guest goes
//! on at the source. A file that is replaced meanwhile, as `tern save` does it, stays as it was for who has it open.

use std::error::Error;
use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::{Duration, Instant};

use thiserror::Error;

use crate::control::Control;
use crate::error::{MigrationError, ProtocolError};
use crate::pager::{BATCH_PAGES, Fetched, PageSource};
use crate::ram::proof::PageBytes;
use crate::ram::{Encoding, PageDigest};
use crate::snapshot::{SnapshotError, SnapshotFile, SnapshotPages};
use crate::vm::PAGE_BYTES;

const PAGE: usize = PAGE_BYTES as usize;
/// A source that has come while files are still read waits so long at most, far less than it has patience for.
const WAIT_MAX: Duration = Duration::from_secs(10);
const WAIT_PIECE: Duration = Duration::from_millis(10);

/// Why files can't be known.
#[derive(Debug, Error)]
pub enum KnownError {
    /// A file is no snapshot that can be read.
    #[error(transparent)]
    File(#[from] SnapshotError),
    /// No thread to read them.
    #[error("the thread that reads known files can not be started")]
    Thread(#[source] io::Error),
}

/// Pages of one guest that was here before.
#[derive(Clone)]
pub(crate) struct KnownSource {
    /// For people.
    pub(crate) name: String,
    /// Pages of each region.
    pub(crate) regions: Vec<u64>,
    pub(crate) pages: Arc<dyn PageSource>,
}

/// The pages of some snapshot files, for all attempts of a process. Reading them begins at once, and goes on beside all
/// else; it ends when the last handle is dropped.
#[derive(Debug)]
pub struct KnownPages {
    names: String,
    pages_all: u64,
    pages_read: AtomicU64,
    state: Mutex<State>,
}

#[derive(Debug)]
enum State {
    Reading,
    Ready(Arc<KnownIndex>),
    Failed(String),
}

/// All pages that were found, by hash.
#[derive(Debug)]
pub(crate) struct KnownIndex {
    /// Rising, each hash once.
    entries: Vec<Entry>,
    sources: Vec<KnownSource>,
}

#[derive(Debug, Clone, Copy)]
struct Entry {
    digest: PageDigest,
    source: u16,
    region: u16,
    page: u64,
}

impl KnownPages {
    /// Opens snapshot files, and begins to read them in a thread of its own. `ended` is told how that went, in words.
    pub fn open(
        paths: &[PathBuf],
        ended: impl FnOnce(Result<&str, &str>) + Send + 'static,
    ) -> Result<Arc<Self>, KnownError> {
        let open = |path: &PathBuf| KnownSource::open(path);
        let sources = paths.iter().map(open).collect::<Result<Vec<_>, _>>()?;
        let known = Self::reading(&sources);
        let weak = Arc::downgrade(&known);
        let read = move || {
            if let Some(text) = Self::read(&weak, sources) {
                ended(text.as_ref().map(String::as_str).map_err(String::as_str));
            }
        };
        std::thread::Builder::new().name("known".into()).spawn(read).map_err(KnownError::Thread)?;
        Ok(known)
    }

    /// The same with all pages read.
    #[cfg(any(test, feature = "fake"))]
    pub(crate) fn of(sources: Vec<KnownSource>) -> Arc<Self> {
        let known = Self::reading(&sources);
        Self::read(&Arc::downgrade(&known), sources);
        known
    }

    fn reading(sources: &[KnownSource]) -> Arc<Self> {
        let names: Vec<&str> = sources.iter().map(|source| source.name.as_str()).collect();
        let pages_all = sources.iter().flat_map(|source| &source.regions).sum();
        let state = Mutex::new(State::Reading);
        Arc::new(Self { names: names.join(", "), pages_all, pages_read: AtomicU64::new(0), state })
    }

    /// Reads all; says how it went, unless nobody wants to know any more.
    fn read(known: &Weak<Self>, sources: Vec<KnownSource>) -> Option<Result<String, String>> {
        let began = Instant::now();
        let note = |pages| known.upgrade().map(|known| known.pages_read.fetch_add(pages, Relaxed)).is_some();
        let found = KnownIndex::read(sources, note);
        let known = known.upgrade()?;
        let (state, text) = match found {
            Ok(index) => {
                let pages = index.entries.len();
                let text = format!("{pages} different pages, read in {} ms", began.elapsed().as_millis());
                (State::Ready(Arc::new(index)), Ok(format!("{}: {text}", known.names)))
            }
            Err(error) => (State::Failed(error.clone()), Err(error)),
        };
        *known.state.lock().unwrap_or_else(PoisonError::into_inner) = state;
        Some(text)
    }

    /// How much of the files has been read.
    pub fn progress_percent(&self) -> u64 {
        self.pages_read.load(Relaxed).saturating_mul(100).checked_div(self.pages_all).unwrap_or(100)
    }

    /// What was found, as far as that is known now; or why nothing can be sent by name, in words.
    pub(crate) fn now(&self) -> Result<Arc<KnownIndex>, String> {
        match &*self.state.lock().unwrap_or_else(PoisonError::into_inner) {
            State::Ready(index) => Ok(Arc::clone(index)),
            State::Failed(reason) => Err(format!("no page is known from {}: {reason}", self.names)),
            State::Reading => {
                let percent = self.progress_percent();
                Err(format!("no page is known from {}: {percent} % of it has been read yet", self.names))
            }
        }
    }

    /// The same, after some waiting if files are still read.
    pub(crate) fn ready(&self, control: &Control) -> Result<Result<Arc<KnownIndex>, String>, MigrationError> {
        let began_us = control.now_us();
        loop {
            let reads = matches!(*self.state.lock().unwrap_or_else(PoisonError::into_inner), State::Reading);
            if !reads || control.since_us(began_us) > WAIT_MAX.as_micros() as u64 {
                return Ok(self.now());
            }
            control.pause(WAIT_PIECE)?;
        }
    }
}

impl KnownSource {
    fn open(path: &Path) -> Result<Self, SnapshotError> {
        let snapshot = SnapshotFile::open(path)?;
        let regions = snapshot.layout().regions.iter().map(|region| region.pages).collect();
        let pages = SnapshotPages { path: path.to_owned(), snapshot: Arc::new(snapshot) };
        Ok(Self { name: path.display().to_string(), regions, pages: Arc::new(pages) })
    }
}

impl KnownIndex {
    /// Hashes all pages that aren't zero. `go_on` is told how many pages were passed; false ends it early.
    fn read(sources: Vec<KnownSource>, mut go_on: impl FnMut(u64) -> bool) -> Result<Self, String> {
        let mut entries = Vec::new();
        let mut buffer = vec![0; BATCH_PAGES * PAGE];
        for (number, source) in sources.iter().enumerate() {
            let number = u16::try_from(number).map_err(|_| "there are too many of them".to_owned())?;
            for (region, pages) in (0u16..).zip(&source.regions) {
                let mut page = 0;
                while page < *pages {
                    let fetched = source.pages.fetch(region.into(), page..*pages, &mut buffer);
                    let passed = match fetched.map_err(|error| chain(&*error))? {
                        Fetched::Zero(count) => count,
                        Fetched::Content(count) => {
                            let contents = buffer.as_chunks::<PAGE>().0.iter().take(count as usize);
                            entries.extend((page..).zip(contents).map(|(page, content)| Entry {
                                digest: PageDigest::of(content),
                                source: number,
                                region,
                                page,
                            }));
                            count
                        }
                    };
                    page = page.saturating_add(passed.max(1));
                    if !go_on(passed) {
                        return Err("nobody waits for it".to_owned());
                    }
                }
            }
        }
        // The first file that has a page is the one that it is read from.
        entries.sort_by_key(|entry| entry.digest);
        entries.dedup_by_key(|entry| entry.digest);
        Ok(Self { entries, sources })
    }

    /// Rising hashes, at most so many.
    pub(crate) fn digests(&self, most: u64) -> impl ExactSizeIterator<Item = PageDigest> + '_ {
        let most = usize::try_from(most).unwrap_or(usize::MAX).min(self.entries.len());
        self.entries.iter().take(most).map(|entry| entry.digest)
    }

    /// Reads the page with this hash, for the page at `place` of the guest that comes.
    pub(crate) fn read_page(
        &self,
        digest: PageDigest,
        place: (u16, u64),
        out: &mut PageBytes,
    ) -> Result<(), MigrationError> {
        let found = self.entries.binary_search_by_key(&digest, |entry| entry.digest).ok();
        let Some(entry) = found.and_then(|at| self.entries.get(at)) else {
            let reason = "no page with this hash is known here, and none was offered".to_owned();
            let (region, page) = place;
            return Err(ProtocolError::Undecodable {
                encoding: Encoding::Known.info().name,
                region,
                page,
                reason,
            }
            .into());
        };
        let Some(source) = self.sources.get(usize::from(entry.source)) else { return Ok(()) };
        let changed = |reason: String| MigrationError::KnownChanged {
            name: source.name.clone(),
            region: entry.region,
            page: entry.page,
            reason,
        };
        let page = entry.page..entry.page.saturating_add(1);
        match source.pages.fetch(entry.region.into(), page, out) {
            Ok(Fetched::Content(_)) if PageDigest::of(out) == digest => Ok(()),
            Ok(_) => Err(changed("its content is another".to_owned())),
            Err(error) => Err(changed(chain(&*error))),
        }
    }
}

/// An error with its causes.
fn chain(error: &(dyn Error + 'static)) -> String {
    let (mut text, mut next) = (error.to_string(), error.source());
    while let Some(error) = next {
        text = format!("{text}: {error}");
        next = error.source();
    }
    text
}

impl fmt::Debug for KnownSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("KnownSource").field("name", &self.name).finish_non_exhaustive()
    }
}
