//! The path behind a descriptor, for messages to people.

use std::os::fd::{AsRawFd, RawFd};
use std::path::PathBuf;

/// Where `file` was opened, as the kernel knows it; its number where there is no path.
pub(crate) fn of(file: &impl AsRawFd) -> PathBuf {
    let fd: RawFd = file.as_raw_fd();
    std::fs::read_link(format!("/proc/self/fd/{fd}")).unwrap_or_else(|_| format!("descriptor {fd}").into())
}

#[cfg(test)]
mod tests {
    #[test]
    fn a_file_has_its_path() {
        let file = tempfile::NamedTempFile::new().unwrap();
        assert_eq!(super::of(file.as_file()), file.path());
    }
}
