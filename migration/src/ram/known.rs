//! Pages that the destination has already, from an earlier snapshot: they are named by a hash of their content.
//!
//! ```text
//! destination --hashes, rising--> source     a page whose hash is among them --the hash--> read from the file, hashed again
//! ```
//!
//! The hash is cryptographic, and long enough to be the page's identity: two pages with the same one can't be found. So
//! the source needs no answer, and who sends hashes at random gets nothing but an error.

use ring::digest::{SHA256, digest};

use super::proof::PageBytes;
use crate::error::ProtocolError;

/// Bytes of a hash.
pub(crate) const DIGEST_BYTES: usize = 16;
/// Most hashes of one frame.
pub(crate) const DIGESTS_PER_FRAME: usize = (1 << 20) / DIGEST_BYTES;

const FRAME: &str = "known";

/// What stands for a page's content: the first 16 bytes of its SHA-256 (FIPS 180-4), as a number whose first byte is the
/// highest.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct PageDigest(u128);

impl PageDigest {
    pub(crate) fn of(page: &PageBytes) -> Self {
        let hash = digest(&SHA256, page);
        // SHA-256 has 32 bytes.
        Self::from_bytes(*hash.as_ref().first_chunk().unwrap_or(&[0; DIGEST_BYTES]))
    }

    pub(crate) fn from_bytes(bytes: [u8; DIGEST_BYTES]) -> Self {
        Self(u128::from_be_bytes(bytes))
    }

    pub(crate) fn to_bytes(self) -> [u8; DIGEST_BYTES] {
        self.0.to_be_bytes()
    }
}

/// What a source was told that the destination has.
#[derive(Debug, Default)]
pub(crate) struct KnownSet {
    /// Rising.
    digests: Vec<PageDigest>,
}

impl KnownSet {
    /// Adds what a frame holds: hashes that rise, from frame to frame too, `most` at the most in all.
    pub(crate) fn add(&mut self, bytes: &[u8], most: u64) -> Result<(), ProtocolError> {
        let (hashes, rest) = bytes.as_chunks::<DIGEST_BYTES>();
        let mismatch =
            |field, found, expected| ProtocolError::Mismatch { frame: FRAME, field, found, expected };
        if hashes.is_empty() || !rest.is_empty() {
            return Err(mismatch("length", bytes.len() as u64, DIGEST_BYTES as u64));
        }
        let found = self.len() + hashes.len() as u64;
        if found > most {
            return Err(ProtocolError::Limit { frame: FRAME, field: "hashes of all", found, max: most });
        }
        for hash in hashes {
            let digest = PageDigest::from_bytes(*hash);
            if self.digests.last().is_some_and(|last| *last >= digest) {
                let place = self.len();
                return Err(mismatch("place of a hash that does not rise", place, place + 1));
            }
            self.digests.push(digest);
        }
        Ok(())
    }

    pub(crate) fn len(&self) -> u64 {
        self.digests.len() as u64
    }

    /// What is sent in place of this page, if the destination has it.
    pub(crate) fn name(&self, page: &PageBytes) -> Option<[u8; DIGEST_BYTES]> {
        let digest = PageDigest::of(page);
        self.digests.binary_search(&digest).is_ok().then(|| digest.to_bytes())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn bytes(hashes: &[u128]) -> Vec<u8> {
        hashes.iter().flat_map(|hash| hash.to_be_bytes()).collect()
    }

    #[test]
    fn it_is_the_published_hash() {
        // sha256sum of 4096 bytes of 7.
        let known = PageDigest::of(&[7; 4096]).to_bytes();
        assert_eq!(known, 0xc9ac_7b06_2482_4f84_4f6c_7f3d_50fa_b974_u128.to_be_bytes());
    }

    #[test]
    fn hashes_rise_and_are_no_more_than_was_said() {
        let mut set = KnownSet::default();
        set.add(&bytes(&[1, 5]), 3).unwrap();
        set.add(&bytes(&[6]), 3).unwrap();
        assert_eq!(set.add(&bytes(&[7]), 3).unwrap_err().code(), "out-of-bounds");
        for wrong in [bytes(&[6]), bytes(&[8, 8]), bytes(&[9, 7]), vec![], vec![0; 15], vec![255; 17]] {
            assert_eq!(set.add(&wrong, 100).unwrap_err().code(), "out-of-bounds", "{wrong:?}");
        }
    }

    proptest! {
        #[test]
        fn what_was_told_is_named_and_nothing_else(told: std::collections::BTreeSet<u8>, asked: u8, cut: usize) {
            let page = |fill: u8| [fill; 4096];
            let mut all: Vec<_> = told.iter().map(|fill| PageDigest::of(&page(*fill))).collect();
            all.sort_unstable();
            let mut set = KnownSet::default();
            let cut = if all.is_empty() { 0 } else { cut % all.len() };
            for part in [&all[..cut], &all[cut..]].into_iter().filter(|part| !part.is_empty()) {
                let bytes: Vec<u8> = part.iter().flat_map(|digest| digest.to_bytes()).collect();
                set.add(&bytes, all.len() as u64).unwrap();
            }
            let name = set.name(&page(asked));
            prop_assert_eq!(name.is_some(), told.contains(&asked));
            prop_assert!(name.is_none_or(|name| name == PageDigest::of(&page(asked)).to_bytes()));
        }

        #[test]
        fn any_bytes_are_hashes_or_an_error(bytes: Vec<u8>, most in 0u64..20) {
            let mut set = KnownSet::default();
            if set.add(&bytes, most).is_ok() {
                prop_assert_eq!(set.len() * 16, bytes.len() as u64);
                prop_assert!(set.digests.is_sorted_by(|a, b| a < b));
            }
        }
    }
}
