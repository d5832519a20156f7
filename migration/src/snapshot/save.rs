//! Saves a guest into a file: the engine's other way for a guest to go. A file never takes the right to run the
//! guest, so whatever happens here, the guest is still the source's.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use tern_schema::encode_record;

use super::head::{DESCRIPTION_MAX_BYTES, DESCRIPTION_OFFSET};
use super::ledger::Totals;
use super::medium::{Medium, Partial};
use super::outline::STATE_MAX_BYTES;
use super::save_error::SaveError;
use super::workers::{Fault, Workers};
use super::{Description, Extent, FORMAT_VERSION, FORMAT_VERSION_PLAIN, Head, Index, Layout, SnapshotError};
use crate::channel::throttle::Throttle;
use crate::config::{LiveParameters, Parameters};
use crate::control::Control;
use crate::error::MigrationError;
use crate::ram::compress::{self, Method};
use crate::ram::job::{Job, Moved};
use crate::ram::{ENCODINGS_PLAIN, proof};
use crate::source::carrier::{Carrier, Proposal, Terms};
use crate::stats::{Proof, Report};
use crate::wire::{Commit, RoundEnd};

/// Blocks of a page table that are written at once.
const BLOCKS_AT_ONCE: u64 = 256;
/// Brought to the disk at once: a cancel is obeyed between two of them.
const SYNC_BYTES: u64 = 32 << 20;

/// A file that is being written.
pub(crate) struct SaveFile {
    control: Arc<Control>,
    live: LiveParameters,
    path: PathBuf,
    threads: u64,
    /// Until `agree`.
    medium: Option<Box<dyn Medium>>,
    /// From `agree` on.
    open: Option<Open>,
    written_bytes: u64,
}

/// What is known once the guest has described itself.
struct Open {
    workers: Workers,
    description: Extent,
    state: Vec<u8>,
    running: bool,
    saved_at_unix_ms: u64,
    /// What hashing had cost when the latest round with the guest running was over.
    live_hash_us: u64,
    proof: Proof,
}

impl SaveFile {
    /// Takes the path; nothing that is there already is touched.
    pub(crate) fn create(
        path: &Path,
        live: &LiveParameters,
        control: &Arc<Control>,
    ) -> Result<Self, MigrationError> {
        let medium = Partial::create(path, live.get().direct_io)?;
        Ok(Self::over(Box::new(medium), path, live, control))
    }

    pub(crate) fn over(
        medium: Box<dyn Medium>,
        path: &Path,
        live: &LiveParameters,
        control: &Arc<Control>,
    ) -> Self {
        let (path, threads, control) = (path.to_owned(), live.get().file_threads, Arc::clone(control));
        Self {
            control,
            live: live.clone(),
            path,
            threads,
            medium: Some(medium),
            open: None,
            written_bytes: 0,
        }
    }

    fn failed(&self, fault: Fault) -> MigrationError {
        let (action, source) = match fault {
            Fault::File(action, source) => (action, source),
            Fault::Other(error) => return error,
        };
        let needed = self.open.as_ref().map_or(0, |open| open.workers.shared.layout.state_offset);
        SaveError::write(action, &self.path, needed, source).into()
    }

    /// How memory is compressed, if it is. A disk says nothing of what binds: `auto` is the method that saves most for its
    /// time.
    fn compression(&self) -> Option<(&'static Method, u32)> {
        let Parameters { compress: name, compress_level, .. } = self.live.get();
        let method = compress::method(if name == compress::AUTO { "zstd" } else { name })?;
        let level = if name == compress::AUTO { 0 } else { compress_level };
        Some((
            method,
            if level == 0 { method.default_level } else { u32::try_from(level).unwrap_or(u32::MAX) },
        ))
    }

    /// The oldest version of the format that can say what is in the file: an older release reads what it can.
    fn version(&self) -> u32 {
        if self.compression().is_some() { FORMAT_VERSION } else { FORMAT_VERSION_PLAIN }
    }

    fn uncancelled(&self) -> Result<(), MigrationError> {
        if self.control.cancel.is_cancelled() { Err(MigrationError::Cancelled) } else { Ok(()) }
    }

    fn opened(&self) -> Result<&Open, MigrationError> {
        // The engine comes to terms before anything else.
        self.open.as_ref().ok_or_else(|| SaveError::NoName { path: self.path.clone() }.into())
    }

    fn too_long(&self, part: &'static str, found: u64, max: u64) -> MigrationError {
        let source = SnapshotError::Limit { part, field: "length", found, max };
        SaveError::Format { path: self.path.clone(), source }.into()
    }

    fn medium(&self) -> Result<&dyn Medium, MigrationError> {
        Ok(&*self.opened()?.workers.shared.medium)
    }

    fn put(&mut self, bytes: &[u8], offset: u64) -> Result<(), MigrationError> {
        let written = self.medium()?.write(bytes, offset);
        written.map_err(|error| self.failed(Fault::File("writing", error)))?;
        self.written_bytes += bytes.len() as u64;
        Ok(())
    }

    /// Writes the page tables; returns what they come to.
    fn put_tables(&mut self) -> Result<Totals, MigrationError> {
        let mut totals = Totals::default();
        let places = self.opened()?.workers.shared.layout.regions.clone();
        for (region, place) in (0u16..).zip(&places) {
            for first in (0..place.blocks()).step_by(BLOCKS_AT_ONCE as usize) {
                self.uncancelled()?;
                let blocks = first..place.blocks().min(first + BLOCKS_AT_ONCE);
                let mut bytes = Vec::new();
                let ledger = self.opened()?.workers.shared.ledger();
                ledger.encode(region, place.pages, blocks, &mut totals, &mut bytes);
                drop(ledger);
                self.put(&bytes, place.block_offset(first))?;
            }
        }
        Ok(totals)
    }

    /// State, index and, last, the head that makes it a whole file. Returns its length.
    fn put_end(&mut self, totals: Totals, state_hash: u64) -> Result<u64, MigrationError> {
        let Open { workers, description, state, running, saved_at_unix_ms, .. } = self.opened()?;
        let (state, description) = (state.clone(), *description);
        let state_offset = workers.shared.layout.state_offset;
        let index = encode_record(&Index {
            running: *running,
            saved_at_unix_ms: *saved_at_unix_ms,
            state_bytes: u32::try_from(state.len()).unwrap_or(u32::MAX),
            state_hash,
            ram_hash: totals.ram_hash,
            encodings: totals.encodings,
            pages_stored: Some(totals.pages_stored),
        });
        let index_place = Extent::of(state_offset + state.len() as u64, &index);
        let file_bytes = index_place.offset + index.len() as u64;
        self.put(&state, state_offset)?;
        self.put(&index, index_place.offset)?;
        self.put(
            &Head { version: self.version(), description, index: Some(index_place), file_bytes }.bytes(),
            0,
        )?;
        Ok(file_bytes)
    }

    /// Piece by piece, since one whole sync can't be cancelled.
    fn sync(&self, file_bytes: u64) -> Result<(), MigrationError> {
        let medium = self.medium()?;
        for start in (0..file_bytes).step_by(SYNC_BYTES as usize) {
            self.uncancelled()?;
            medium.sync_part(start..file_bytes.min(start + SYNC_BYTES));
        }
        medium.sync().map_err(|error| self.failed(Fault::File("syncing", error)))
    }
}

impl Carrier for SaveFile {
    fn gives_away(&self) -> bool {
        false
    }

    fn agree(&mut self, proposal: Proposal<'_>, _: &mut Report) -> Result<Terms, MigrationError> {
        let Proposal { offer, configuration, ram } = proposal;
        let mut facts = offer.facts;
        // Nobody can ask a file for an older version: who can't read this one has to see it at once.
        facts.sections.iter_mut().for_each(|section| section.oldest = None);
        let description = Description { facts, configuration, page_bytes: offer.page_bytes };
        let format = |source| SaveError::Format { path: self.path.clone(), source };
        let layout = Layout::of(&description.facts.memory).map_err(format)?;
        let bytes = encode_record(&description);
        if bytes.len() as u64 > DESCRIPTION_MAX_BYTES {
            return Err(self.too_long("description", bytes.len() as u64, DESCRIPTION_MAX_BYTES));
        }
        let Some(medium) = self.medium.take() else { return Err(MigrationError::Cancelled) };
        let length = layout.state_offset;
        let throttle = Throttle::new(&self.live, &self.control);
        let compression = self.compression();
        let workers =
            Workers::start(medium, layout, ram, (self.threads, compression), throttle, &self.control)
                .map_err(|source| SaveError::Thread { path: self.path.clone(), source })?;
        let description = Extent::of(DESCRIPTION_OFFSET, &bytes);
        self.open = Some(Open {
            workers,
            description,
            state: Vec::new(),
            running: false,
            saved_at_unix_ms: 0,
            live_hash_us: 0,
            proof: Proof::default(),
        });
        let sized = self.medium()?.set_length(length);
        sized.map_err(|error| self.failed(Fault::File("sizing", error)))?;
        self.put(&bytes, DESCRIPTION_OFFSET)?;
        self.put(&Head { version: self.version(), description, index: None, file_bytes: 0 }.bytes(), 0)?;
        Ok(Terms { encodings: ENCODINGS_PLAIN, ..Terms::default() })
    }

    fn hear(&mut self) -> Result<(), MigrationError> {
        self.uncancelled()
    }

    fn pages(&mut self, job: Job) -> Result<(), MigrationError> {
        let put = self.opened()?.workers.pool.put(job);
        put.map_err(|fault| self.failed(fault))
    }

    fn has_room(&mut self, most: Duration) -> Result<bool, MigrationError> {
        let room = self.opened()?.workers.pool.has_room(Some(most));
        room.map_err(|fault| self.failed(fault))
    }

    fn is_idle(&mut self, most: Duration) -> Result<bool, MigrationError> {
        let idle = self.opened()?.workers.pool.is_idle(Some(most));
        idle.map_err(|fault| self.failed(fault))
    }

    fn threads(&self) -> usize {
        usize::try_from(self.threads).unwrap_or(usize::MAX)
    }

    fn take_moved(&mut self) -> Moved {
        self.open.as_ref().map_or_else(Moved::default, |open| open.workers.shared.tally.take())
    }

    fn end_round(&mut self, end: &RoundEnd) -> Result<(), MigrationError> {
        if let Some(open) = &mut self.open {
            open.proof.hash_us = open.workers.shared.hash_us();
            if end.last {
                open.proof.stopped_hash_us = open.proof.hash_us.saturating_sub(open.live_hash_us);
            } else {
                open.live_hash_us = open.proof.hash_us;
            }
        }
        self.uncancelled()
    }

    fn state(&mut self, state: &[u8], running: bool) -> Result<u64, MigrationError> {
        // Nobody could read it.
        if state.len() as u64 > STATE_MAX_BYTES {
            return Err(self.too_long("state", state.len() as u64, STATE_MAX_BYTES));
        }
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        if let Some(open) = &mut self.open {
            open.state = state.to_vec();
            open.running = running;
            open.saved_at_unix_ms = u64::try_from(now.as_millis()).unwrap_or(u64::MAX);
        }
        self.uncancelled().map(|()| 0)
    }

    fn settle(&mut self) -> Result<(), MigrationError> {
        let totals = self.put_tables()?;
        let state_hash = proof::state_hash(&self.opened()?.state);
        let file_bytes = self.put_end(totals, state_hash)?;
        if let Some(open) = &mut self.open {
            (open.proof.memory, open.proof.state) = (Some(totals.ram_hash), Some(state_hash));
        }
        self.sync(file_bytes)
    }

    fn commit(&mut self, _: &Commit, report: &mut Report) -> Result<u64, MigrationError> {
        // A save takes long: somebody may have put a file there meanwhile.
        self.medium()?.check_place()?;
        self.medium()?.publish().map_err(|error| self.failed(Fault::File("naming", error)))?;
        // From here on the file is there, whole, under its name, and there is nothing to remove.
        if let Some(open) = self.open.take()
            && let Err(error) = open.workers.shared.medium.sync_folder()
        {
            report.warnings.push(format!(
                "{} is saved, but its name may not survive a power failure: its folder can't be synced: {error}",
                self.path.display()
            ));
        }
        Ok(0)
    }

    fn proof(&self) -> Option<Proof> {
        self.open.as_ref().map(|open| open.proof)
    }

    fn message_bytes(&self) -> u64 {
        self.written_bytes
    }

    fn abandon(&mut self, _: &MigrationError) {
        // Dropping the file removes it.
        (self.open, self.medium) = (None, None);
    }
}

#[cfg(test)]
mod tests;
