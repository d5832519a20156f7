//! SHA-256 over several parts, as names in the cache.

use sha2::{Digest, Sha256};

/// A hash over a sequence of parts; each part's length goes in first, so that moving a byte from
/// one part to the next changes the result.
#[derive(Default)]
pub(crate) struct Parts(Sha256);

impl Parts {
    pub(crate) fn add(mut self, part: impl AsRef<[u8]>) -> Self {
        let part = part.as_ref();
        self.0.update((part.len() as u64).to_le_bytes());
        self.0.update(part);
        self
    }

    /// The first 16 hexadecimal digits: enough to tell builds apart, short enough to read.
    pub(crate) fn short(self) -> String {
        let mut digits = hex(&self.0.finalize());
        digits.truncate(16);
        digits
    }
}

/// The SHA-256 of some bytes, in hexadecimal.
pub(crate) fn sha256(bytes: &[u8]) -> String {
    hex(&Sha256::digest(bytes))
}

/// Bytes in hexadecimal.
pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_do_not_run_together() {
        let split = |a: &str, b: &str| Parts::default().add(a).add(b).short();
        assert_ne!(split("ab", "c"), split("a", "bc"));
        assert_ne!(split("ab", ""), split("", "ab"));
        assert_eq!(split("ab", "c"), split("ab", "c"));
        assert_eq!(split("", "").len(), 16);
    }

    #[test]
    fn the_hash_is_the_standard_one() {
        // FIPS 180-4's example.
        assert_eq!(sha256(b"abc"), "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
    }
}
