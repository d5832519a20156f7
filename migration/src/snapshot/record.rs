//! The two records of a snapshot: what is known before the first page, and what only the end of the save tells.

use tern_schema::record;

use crate::vm::VmFacts;

record! {
    /// What is known before anything is written: enough to build the machine.
    pub struct Description {
        /// The machine.
        [1] facts: VmFacts,
        /// A record of the VMM's own: the options that the machine was made with. The engine carries it.
        [2] configuration: Vec<u8>,
        /// Bytes of a page.
        [3] page_bytes: u32,
    }
}

record! {
    /// What is known once all is written.
    pub struct Index {
        /// The guest was running when it was stopped for this.
        [1] running: bool,
        /// When it was stopped: milliseconds since 1970-01-01 UTC, by this host's clock.
        [2] saved_at_unix_ms: u64,
        /// Length of the machine's state; it begins behind the page tables.
        [3] state_bytes: u32,
        /// Hash of the machine's encoded state.
        [4] state_hash: u64,
        /// Sum of the hashes of all pages, modulo 2^64.
        [5] ram_hash: u64,
        /// Bit n: a page has encoding n. Memory can be mapped from the file if only 0 and 1 occur.
        [6] encodings: u64,
        /// Pages that have data in the file.
        [7 optional] pages_stored: Option<u64>,
    }
}
