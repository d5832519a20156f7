//! Where a guest goes: a link to a peer that takes it over, or a file that keeps a copy. All that differs
//! between the two is behind this trait; rounds, the stop and every way to fail are the same code for both.
//!
//! ```text
//! agree -> (pages* is_idle end_round)+ -> state -> settle -> commit
//!   '-------- any error, or cancel: last_words, abandon; the guest goes on at the source
//! ```

use std::time::Duration;

use tern_schema::ChosenVersion;

use super::serving::{Lacking, Served};
use crate::channel::Uri;
use crate::error::MigrationError;
use crate::handover::Answer;
use crate::ram::job::{Job, Moved};
use crate::stats::{Downtime, Proof, Report, XbzrleReport};
use crate::vm::GuestRam;
use crate::wire::{Commit, Offer, RoundEnd};

/// What is offered to the other end.
#[derive(Debug)]
pub(crate) struct Proposal<'v> {
    pub(crate) offer: Offer,
    /// For a file: what a new process needs to build the machine.
    pub(crate) configuration: Vec<u8>,
    /// Carriers read pages by themselves.
    pub(crate) ram: &'v GuestRam,
}

/// How the guest will go there.
#[derive(Debug, Default)]
pub(crate) struct Terms {
    /// How long the other end takes to answer.
    pub(crate) round_trip_us: u64,
    /// The other end compares: memory is hashed, and the last `end_round` says with what result.
    pub(crate) hashes: bool,
    /// Bit n: pages may be sent in encoding n.
    pub(crate) encodings: u64,
    /// The guest may go on there before all of its memory has come.
    pub(crate) postcopy: bool,
    /// Pages that the other end says it has.
    pub(crate) known_pages: u64,
    /// The versions that the other end has chosen; none: the newest of all.
    pub(crate) sections: Option<Vec<ChosenVersion>>,
}

/// What was hashed so far.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Hashed {
    /// Sum over all pages.
    pub(crate) memory: u64,
    /// Time of all threads together.
    pub(crate) spent_us: u64,
}

/// One way for a guest to go.
pub(crate) trait Carrier {
    /// Does the guest change hands? If so, `commit` is the point of no return, and this side never runs
    /// the guest again. If not, it stays this side's whatever happens.
    fn gives_away(&self) -> bool;

    /// Comes to terms; notes in `report` who is at the other end.
    fn agree(&mut self, proposal: Proposal<'_>, report: &mut Report) -> Result<Terms, MigrationError>;

    /// Between two batches with the guest running: an error if the other end wants this to end.
    fn hear(&mut self) -> Result<(), MigrationError> {
        Ok(())
    }

    /// Takes pages that were cleared in the dirty log before; their content may be read until `is_idle` has said that
    /// all is sent. A page may come again in a later round, and then counts.
    fn pages(&mut self, job: Job) -> Result<(), MigrationError>;

    /// Would `pages` go on at once? Waits for that, for `most` at the longest.
    fn has_room(&mut self, most: Duration) -> Result<bool, MigrationError>;

    /// Are all pages sent that were taken? Waits for that, for `most` at the longest.
    fn is_idle(&mut self, most: Duration) -> Result<bool, MigrationError>;

    /// How many threads send; 0: `pages` itself does.
    fn threads(&self) -> usize;

    /// What has been sent since this was last asked.
    fn take_moved(&mut self) -> Moved;

    /// What has become of deltas, if they were agreed.
    fn deltas(&self) -> Option<XbzrleReport> {
        None
    }

    /// How pages are compressed and why, if that is this end's choice.
    fn chosen(&self) -> Option<String> {
        None
    }

    /// The proof of all memory that was sent, and what hashing has cost, if the engine makes it.
    fn hashed(&self) -> Option<Hashed> {
        None
    }

    /// The round is over, and all its pages are sent. The last one has been made with the guest stopped.
    fn end_round(&mut self, end: &RoundEnd) -> Result<(), MigrationError>;

    /// Takes the encoded state of a guest that is stopped and `running` before. Returns how long the other
    /// end took to load it.
    fn state(&mut self, state: &[u8], running: bool) -> Result<u64, MigrationError>;

    /// The last that can be cancelled, such as waiting for a disk. A kept guest may run already.
    fn settle(&mut self) -> Result<(), MigrationError> {
        Ok(())
    }

    /// The proof that this end has made, once it is settled; none if the engine makes it.
    fn proof(&self) -> Option<Proof> {
        None
    }

    /// Makes it final; what went wrong without undoing that goes into `report`. Returns how long the other end took
    /// to start the guest.
    fn commit(&mut self, commit: &Commit, report: &mut Report) -> Result<u64, MigrationError>;

    /// The guest is the other end's, and this side knows it: says so, if anybody listens.
    fn settled(&mut self, downtime: &Downtime) {
        let _ = downtime;
    }

    /// Post-copy, and the guest is stopped: says which pages the other end lacks. From [`Self::state`] on it gets those that
    /// somebody waits for.
    fn lacks(&mut self, lacking: Lacking) -> Result<(), MigrationError> {
        let _ = lacking;
        Err(MigrationError::NoPostcopy { reason: "a file takes no guest over" })
    }

    /// Post-copy, and the guest is the other end's: goes on for `most` with what it lacks. True: it has all. An error: the
    /// connections have broken, and both ends have what they had.
    fn serve(&mut self, most: Duration) -> Result<bool, MigrationError> {
        let _ = most;
        Ok(true)
    }

    /// Post-copy: ends all connections, however they are; pages that are on their way may be lost.
    fn part(&mut self) {}

    /// Post-copy: connects again, and hears what has become of the guest.
    fn find(&mut self) -> Result<Answer, MigrationError> {
        Ok(Answer::Unknown)
    }

    /// Post-copy, after [`Self::find`]: all other connections, and from here on what has not come.
    fn go_on(&mut self) -> Result<(), MigrationError> {
        Ok(())
    }

    /// Post-copy: where the other end is looked for from now on.
    fn look_at(&mut self, uri: &Uri) {
        let _ = uri;
    }

    /// What post-copy has done so far.
    fn served(&self) -> Served {
        Served::default()
    }

    /// Bytes so far that are neither pages, their records nor state.
    fn message_bytes(&self) -> u64;

    /// The reason that the other end has left, if it explains `error`; else `error`.
    fn last_words(&mut self, error: MigrationError) -> MigrationError {
        error
    }

    /// It has failed or was cancelled, and the guest goes on here: undoes what was done, tells the peer.
    fn abandon(&mut self, error: &MigrationError);
}
