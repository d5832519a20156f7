//! How a machine's written pages are found: `--dirty-log bitmap` or `ring[,size=ENTRIES]`. The guest doesn't see it.

use std::fmt;
use std::num::NonZeroU32;
use std::str::FromStr;

use serde::Serialize;

use super::FormError;

/// Entries of a vCPU's ring unless told otherwise: 64 MiB of written memory until the vCPU has to wait.
pub const DEFAULT_RING_ENTRIES: u32 = 16_384;
/// Least entries: KVM keeps up to 576 for itself (Linux 6.18 on processors that log writes themselves).
pub const LEAST_RING_ENTRIES: u32 = 1024;
/// Most entries that KVM takes (KVM_DIRTY_RING_MAX_ENTRIES).
pub const MOST_RING_ENTRIES: u32 = 65_536;
const LEGAL_SIZES: &str = "`size=ENTRIES`, a power of two from 1024 to 65536";

/// What a machine has for its dirty log, decided before it has vCPUs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum DirtyLogConfig {
    /// KVM's bitmaps: each migration chooses how they are read.
    #[default]
    Bitmap,
    /// A ring of so many entries for each vCPU, and no bitmaps.
    Ring(NonZeroU32),
}

impl FromStr for DirtyLogConfig {
    type Err = FormError;

    fn from_str(text: &str) -> Result<Self, FormError> {
        let (kind, option) = text.split_once(',').map_or((text, None), |(kind, rest)| (kind, Some(rest)));
        let size = match (kind, option) {
            ("bitmap", None) => return Ok(Self::Bitmap),
            ("ring", None) => DEFAULT_RING_ENTRIES.to_string(),
            ("ring", Some(option)) => match option.strip_prefix("size=") {
                Some(size) => size.to_owned(),
                None => return Err(FormError::Option { option: option.to_owned(), legal: LEGAL_SIZES }),
            },
            _ => return Err(FormError::Unknown { legal: "bitmap or ring[,size=ENTRIES]" }),
        };
        let entries = size.parse::<NonZeroU32>().ok().filter(|entries| {
            entries.is_power_of_two() && (LEAST_RING_ENTRIES..=MOST_RING_ENTRIES).contains(&entries.get())
        });
        let wrong = || FormError::Option { option: format!("size={size}"), legal: LEGAL_SIZES };
        entries.map(Self::Ring).ok_or_else(wrong)
    }
}

impl fmt::Display for DirtyLogConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Bitmap => f.write_str("bitmap"),
            Self::Ring(entries) => write!(f, "ring,size={entries}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn forms() {
        assert_eq!("bitmap".parse(), Ok(DirtyLogConfig::Bitmap));
        assert_eq!("ring".parse::<DirtyLogConfig>().unwrap().to_string(), "ring,size=16384");
        assert_eq!("ring,size=1024".parse::<DirtyLogConfig>().unwrap().to_string(), "ring,size=1024");
        for text in [
            "ring,size=1000",
            "ring,size=512",
            "ring,size=131072",
            "ring,1024",
            "ring,size=",
            "bitmap,size=1024",
        ] {
            let error = text.parse::<DirtyLogConfig>().unwrap_err().to_string();
            assert!(error.contains("size=ENTRIES"), "{text}: {error}");
        }
        assert!("manual-clear".parse::<DirtyLogConfig>().is_err());
    }

    proptest! {
        #[test]
        fn any_text_is_answered_and_what_is_legal_comes_back(text in ".{0,30}", shift in 10u32..=16) {
            let _ = text.parse::<DirtyLogConfig>();
            let legal = format!("ring,size={}", 1u32 << shift);
            prop_assert_eq!(legal.parse::<DirtyLogConfig>().unwrap().to_string(), legal);
        }
    }
}
