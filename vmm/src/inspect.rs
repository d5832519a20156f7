//! What is in a file: a snapshot or a recorded stream of a migration, whole or damaged, as one tree of all its
//! parts, for people and for programs. Needs neither KVM nor a machine.

#![allow(unsafe_code, reason = "fcntl's F_SETFL has no safe wrapper in std")]

mod show;
mod snapshot;
mod state;
mod stream;

use std::fs::{File, OpenOptions};
use std::io::{self, Read};
use std::os::fd::AsRawFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use serde::Serialize;
use serde_json::Value;
use thiserror::Error;

pub use show::show;

/// A part: a file, a section, a record or a field.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct Node {
    /// Its name, and its position among several.
    pub name: String,
    /// What it holds, if that is one value. Bytes are hexadecimal text.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub value: Option<Value>,
    /// What the value counts.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub unit: Option<&'static str>,
    /// What it means.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub about: Option<String>,
    /// What is wrong with it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub problem: Option<String>,
    /// Its parts.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub children: Vec<Node>,
}

impl Node {
    fn new(name: impl Into<String>) -> Self {
        Self { name: name.into(), ..Self::default() }
    }

    fn with(name: impl Into<String>, value: impl Into<Value>) -> Self {
        Self { value: Some(value.into()), ..Self::new(name) }
    }

    fn counting(self, unit: &'static str) -> Self {
        Self { unit: Some(unit), ..self }
    }

    fn broken(name: impl Into<String>, problem: impl Into<String>) -> Self {
        Self { problem: Some(problem.into()), ..Self::new(name) }
    }

    /// Is there nothing wrong with it or its parts?
    pub fn is_sound(&self) -> bool {
        self.problem.is_none() && self.children.iter().all(Self::is_sound)
    }
}

/// Why nothing can be said of a file.
#[derive(Debug, Error)]
pub enum InspectError {
    /// It can't be read.
    #[error("{} can't be read", path.display())]
    Read {
        /// Its path.
        path: PathBuf,
        /// The host's reason.
        #[source]
        source: io::Error,
    },
    /// Nothing.
    #[error("{} is empty; copy it again from where it was saved", path.display())]
    Empty {
        /// Its path.
        path: PathBuf,
    },
    /// It is something else.
    #[error(
        "{} begins with \"{first_bytes}\": this is neither a snapshot (TERNSNAP, made by `tern save`) nor a \
         recorded stream of a migration (TERN-MIG)",
        path.display()
    )]
    Unknown {
        /// Its path.
        path: PathBuf,
        /// Its first bytes, made harmless.
        first_bytes: String,
    },
    /// A snapshot that can't be opened.
    #[error(transparent)]
    Snapshot(#[from] tern_migration::snapshot::SnapshotError),
}

/// How much to look at.
#[derive(Debug, Clone, Default)]
pub struct Wanted {
    /// Only sections of this name.
    pub section: Option<String>,
    /// Compare every page with its hash.
    pub verify: bool,
}

/// Looks at a file. `progress` is told pages verified and pages in all.
pub fn inspect(
    path: &Path,
    wanted: &Wanted,
    progress: &mut dyn FnMut(u64, u64),
) -> Result<Node, InspectError> {
    let unreadable = |source| InspectError::Read { path: path.to_owned(), source };
    let mut file = open(path).map_err(unreadable)?;
    let mut first = Vec::new();
    file.by_ref().take(8).read_to_end(&mut first).map_err(unreadable)?;
    // A file that is cut this short may still be recognised.
    let is = |magic: [u8; 8]| !first.is_empty() && magic.starts_with(&first);
    if is(tern_migration::snapshot::MAGIC) {
        return snapshot::tree(path, wanted, progress);
    }
    if is(tern_migration::stream::MAGIC) {
        return Ok(stream::tree(io::Cursor::new(first).chain(file), wanted));
    }
    if first.is_empty() {
        return Err(InspectError::Empty { path: path.to_owned() });
    }
    Err(InspectError::Unknown { path: path.to_owned(), first_bytes: first.escape_ascii().to_string() })
}

/// Opens it without waiting: a pipe that nobody writes to is empty. One that somebody writes to is read as it comes.
fn open(path: &Path) -> io::Result<File> {
    let file = OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK).open(path)?;
    // SAFETY: fcntl takes integers here, and the descriptor is open.
    if unsafe { libc::fcntl(file.as_raw_fd(), libc::F_SETFL, 0) } < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(file)
}

#[cfg(test)]
mod tests {
    use std::ffi::CString;
    use std::io::Write;
    use std::os::unix::ffi::OsStrExt;

    use super::*;

    fn look(path: &Path) -> Result<Node, InspectError> {
        inspect(path, &Wanted::default(), &mut |_, _| {})
    }

    #[test]
    fn a_pipe_is_read_and_never_waited_for() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("pipe");
        let name = CString::new(path.as_os_str().as_bytes()).unwrap();
        // SAFETY: the name is a C string that lives through the call.
        assert_eq!(unsafe { libc::mkfifo(name.as_ptr(), 0o600) }, 0);
        assert!(matches!(look(&path), Err(InspectError::Empty { .. })));
        let (reader, mut writer) = io::pipe().unwrap();
        let inspected =
            std::thread::spawn(move || look(format!("/proc/self/fd/{}", reader.as_raw_fd()).as_ref()));
        writer.write_all(&tern_migration::stream::MAGIC).unwrap();
        drop(writer);
        assert_eq!(inspected.join().unwrap().unwrap().name, "stream");
    }
}
