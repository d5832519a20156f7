//! Why a guest could not be saved. It goes on in every case, and no file is there that wasn't before.

use std::io;
use std::path::{Path, PathBuf};

use thiserror::Error;

use super::SnapshotError;

/// What went wrong while a file was made.
#[derive(Debug, Error)]
pub enum SaveError {
    /// Such as `/` or `..`.
    #[error("{path} names no file; give a path that ends in a file's name")]
    NoName {
        /// As given.
        path: PathBuf,
    },
    /// The path is taken by something else.
    #[error("{path} is {kind}, not a regular file; give another path, or remove it")]
    NotRegular {
        /// The path.
        path: PathBuf,
        /// Such as `a folder`.
        kind: &'static str,
    },
    /// A file that a save would destroy.
    #[error("{path} is a file, and no snapshot of a guest: give another path, or remove it")]
    NotOurs {
        /// The path.
        path: PathBuf,
    },
    /// The name that the file has while it is written is somebody else's.
    #[error("{path} {why}, and would be written over: remove it, or give another path")]
    Taken {
        /// That name.
        path: PathBuf,
        /// Such as `belongs to another user`.
        why: &'static str,
    },
    /// Another save to the same path is under way.
    #[error("{path} is already being written by another process; wait for it, or give another path")]
    Busy {
        /// The path.
        path: PathBuf,
    },
    /// The file can't be made.
    #[error("{path} can not be made; {remedy}")]
    Create {
        /// The path.
        path: PathBuf,
        /// What to do.
        remedy: &'static str,
        /// The system's words.
        #[source]
        source: io::Error,
    },
    /// The file system has no O_DIRECT.
    #[error(
        "the file system of {path} does not take direct I/O; leave out direct-io, or save to another one"
    )]
    DirectIo {
        /// The path.
        path: PathBuf,
        /// The system's words.
        #[source]
        source: io::Error,
    },
    /// Something failed half way.
    #[error("{action} {path} failed; {remedy}")]
    Write {
        /// What was being done, such as `writing`.
        action: &'static str,
        /// The path.
        path: PathBuf,
        /// What to do.
        remedy: String,
        /// The system's words.
        #[source]
        source: io::Error,
    },
    /// No thread to write with.
    #[error(
        "a thread that writes {path} could not be started; give a lower file-threads, or end other processes"
    )]
    Thread {
        /// The path.
        path: PathBuf,
        /// The system's words.
        #[source]
        source: io::Error,
    },
    /// A guest that doesn't fit into the format.
    #[error("this guest can not be described in {path}")]
    Format {
        /// The path.
        path: PathBuf,
        /// Why.
        #[source]
        source: SnapshotError,
    },
}

impl SaveError {
    pub(super) fn create(path: &Path, source: io::Error) -> Self {
        let remedy = match source.kind() {
            io::ErrorKind::NotFound => "make its folder first",
            io::ErrorKind::PermissionDenied => "give a path where the user who runs the guest may write",
            io::ErrorKind::ReadOnlyFilesystem => "give a path on a file system that is mounted for writing",
            _ => "give another path",
        };
        Self::Create { path: path.to_owned(), remedy, source }
    }

    /// `needed_bytes` is what the whole file takes at most.
    pub(super) fn write(action: &'static str, path: &Path, needed_bytes: u64, source: io::Error) -> Self {
        let remedy = match source.raw_os_error() {
            Some(libc::ENOSPC | libc::EDQUOT) => format!(
                "there must be room for up to {} MiB: free some (`df -h`), or save to another file system",
                needed_bytes.div_ceil(1 << 20)
            ),
            Some(libc::EFBIG) => format!(
                "files of {} MiB must be allowed there: raise the limit (`ulimit -f`), or save to another file system",
                needed_bytes.div_ceil(1 << 20)
            ),
            Some(libc::EIO) => "the disk has errors (`dmesg`): save to another one".to_owned(),
            Some(libc::EINVAL) => {
                "if direct-io is on, leave it out, or save to another file system".to_owned()
            }
            _ => "save to another file system".to_owned(),
        };
        Self::Write { action, path: path.to_owned(), remedy, source }
    }

    /// A short code for programs; it doesn't change between releases.
    pub fn code(&self) -> &'static str {
        match self {
            Self::NoName { .. } => "no-file-name",
            Self::NotRegular { .. } => "not-regular",
            Self::NotOurs { .. } => "not-a-snapshot",
            Self::Taken { .. } => "file-taken",
            Self::Busy { .. } => "file-busy",
            Self::Create { .. } => "file-create",
            Self::DirectIo { .. } => "direct-io",
            Self::Write { source, .. } => match source.raw_os_error() {
                Some(libc::ENOSPC | libc::EDQUOT) => "disk-full",
                _ => "file-write",
            },
            Self::Thread { .. } => "file-thread",
            Self::Format { .. } => "file-format",
        }
    }
}
