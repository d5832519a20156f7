//! The ways in which a host tells which pages were written, and what they tell beside that.

use std::fmt;

use serde::Serialize;

/// Choices of the parameter `dirty-log`: the default, and all modes.
pub const DIRTY_LOG_CHOICES: &[&str] = &["auto", "manual-clear", "bitmap", "ring"];

/// A way to find the pages that were written (parameter `dirty-log`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum DirtyLogMode {
    /// One bit a page; reading the log clears all of it and write-protects memory again.
    Bitmap,
    /// One bit a page; reading leaves it, and each chunk is cleared just before its pages are read.
    ManualClear,
    /// A list of pages for each vCPU, which it fills itself; reading empties it.
    Ring,
}

impl DirtyLogMode {
    /// The mode of a choice; none: `auto`.
    pub fn named(name: &str) -> Option<Self> {
        [Self::Bitmap, Self::ManualClear, Self::Ring].into_iter().find(|mode| mode.name() == name)
    }

    /// As parameter and report have it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Bitmap => "bitmap",
            Self::ManualClear => "manual-clear",
            Self::Ring => "ring",
        }
    }
}

impl fmt::Display for DirtyLogMode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

/// What one vCPU has written since the dirty log was started.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct VcpuDirty {
    /// Pages that it made dirty; one that it wrote again after it was read counts again.
    pub pages: u64,
    /// How often it had to wait since its ring was full.
    pub ring_full_exits: u64,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_choice_but_the_default_is_a_mode() {
        let modes: Vec<_> = DIRTY_LOG_CHOICES.iter().map(|name| DirtyLogMode::named(name)).collect();
        assert_eq!(modes.iter().filter(|mode| mode.is_none()).count(), 1);
        assert_eq!(modes[0], None);
        for (name, mode) in DIRTY_LOG_CHOICES.iter().zip(&modes).skip(1) {
            assert_eq!(mode.map(DirtyLogMode::name), Some(*name));
        }
    }
}
