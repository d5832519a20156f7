//! The table of what each page should hold, and the two sums that guard the table itself.
//! The sums live elsewhere in memory (with the worker), so a table page that went back in
//! time no longer adds up, even when the pages it speaks of went back with it.

/// What was last written to a page.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
#[repr(C)]
pub(crate) struct Entry {
    pub(crate) generation: u32,
    pub(crate) checksum: u32,
}

/// What a table, or a part of one, adds up to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub(crate) struct Sums {
    pub(crate) generations: u64,
    pub(crate) digest: u64,
}

impl Sums {
    /// The sums of `entries`, the first of which has index `first`.
    pub(crate) fn of(entries: &[Entry], first: usize) -> Self {
        let mut sums = Self::default();
        for (offset, entry) in entries.iter().enumerate() {
            sums.add(first + offset, *entry);
        }
        sums
    }

    pub(crate) fn add(&mut self, index: usize, entry: Entry) {
        self.generations = self.generations.wrapping_add(u64::from(entry.generation));
        self.digest = self.digest.wrapping_add(mixed(index, entry));
    }

    /// Follows one entry from `old` to `new`.
    pub(crate) fn replace(&mut self, index: usize, old: Entry, new: Entry) {
        self.generations =
            self.generations.wrapping_sub(u64::from(old.generation)).wrapping_add(u64::from(new.generation));
        self.digest = self.digest.wrapping_sub(mixed(index, old)).wrapping_add(mixed(index, new));
    }

    pub(crate) fn merge(&mut self, other: Self) {
        self.generations = self.generations.wrapping_add(other.generations);
        self.digest = self.digest.wrapping_add(other.digest);
    }
}

fn mixed(index: usize, entry: Entry) -> u64 {
    let word = u64::from(entry.generation) << 32 | u64::from(entry.checksum);
    let spread =
        (word ^ (index as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    spread ^ spread >> 29
}
