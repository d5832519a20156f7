//! The file while it is written: `PATH.partial`, locked, until it gets its name.

#![allow(
    unsafe_code,
    reason = "fallocate(2), sync_file_range(2) and fcntl's locks have no safe wrapper in std"
)]

use std::ffi::OsString;
use std::fs::{self, File, OpenOptions, Permissions};
use std::io::{self, Read};
use std::ops::Range;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

use super::head::{DESCRIPTION_OFFSET, MAGIC};
use super::reader::other_kind;
use super::save_error::SaveError;

/// What a save needs of a file. Dropped before it was published, it is removed. A trait, so that a test can make
/// each call fail.
pub(crate) trait Medium: Send + Sync {
    /// Writes pages: offset, address and length are multiples of 4096. With O_DIRECT, if that was asked for.
    fn write_pages(&self, bytes: &[u8], offset: u64) -> io::Result<()>;
    /// Writes anything else.
    fn write(&self, bytes: &[u8], offset: u64) -> io::Result<()>;
    /// Makes a range read as zeroes.
    fn clear(&self, range: Range<u64>) -> io::Result<()>;
    /// Gives the file this length.
    fn set_length(&self, bytes: u64) -> io::Result<()>;
    /// Brings a part of the file to the disk. Only to make [`Self::sync`] shorter: a failure shows there.
    fn sync_part(&self, range: Range<u64>);
    /// Brings all of the file to the disk.
    fn sync(&self) -> io::Result<()>;
    /// Is there still nothing at the file's path that must stay?
    fn check_place(&self) -> Result<(), SaveError>;
    /// Gives the file its name, in place of an older one.
    fn publish(&self) -> io::Result<()>;
    /// Brings the name to the disk.
    fn sync_folder(&self) -> io::Result<()>;
}

/// All of the guest's memory is in it: only the user who saved reads it.
const MODE: u32 = 0o600;

/// A file on a disk.
#[derive(Debug)]
pub(crate) struct Partial {
    file: File,
    /// The same file, opened with O_DIRECT.
    direct: Option<File>,
    folder: File,
    partial: PathBuf,
    path: PathBuf,
    published: AtomicBool,
}

impl Partial {
    /// Opens and locks `PATH.partial`, and empties it: one that a killed save of this user has left is taken over.
    pub(crate) fn create(path: &Path, direct_io: bool) -> Result<Self, SaveError> {
        let (path, partial, folder) = names(path)?;
        let failed = |source| SaveError::create(&path, source);
        check_older(&path)?;
        let folder = File::open(folder).map_err(failed)?;
        let file = locked(&partial, &path)?;
        let mut made = Self { file, direct: None, folder, partial, path, published: AtomicBool::new(false) };
        if direct_io {
            made.direct = Some(open_direct(&made.file, &made.path)?);
        }
        made.file.set_len(0).map_err(|source| SaveError::create(&made.path, source))?;
        Ok(made)
    }
}

/// Only an older snapshot is replaced, or an empty file: anything else, such as a disk's image, is there by mistake.
fn check_older(path: &Path) -> Result<(), SaveError> {
    let failed = |source| SaveError::create(path, source);
    match path.symlink_metadata().map(|found| other_kind(found.file_type())) {
        Ok(Some(kind)) => return Err(SaveError::NotRegular { path: path.to_owned(), kind }),
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        found => found.map_err(failed)?,
    };
    let mut first = Vec::new();
    File::open(path)
        .and_then(|file| file.take(MAGIC.len() as u64).read_to_end(&mut first))
        .map_err(failed)?;
    if first.is_empty() || first == MAGIC {
        return Ok(());
    }
    Err(SaveError::NotOurs { path: path.to_owned() })
}

/// The file's path, its name while it is written, and its folder.
fn names(path: &Path) -> Result<(PathBuf, PathBuf, PathBuf), SaveError> {
    let no_name = || SaveError::NoName { path: path.to_owned() };
    let mut partial: OsString = path.file_name().ok_or_else(no_name)?.to_owned();
    partial.push(".partial");
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    Ok((path.to_owned(), folder.join(partial), folder.to_owned()))
}

/// Opens `partial` and locks it for this process alone.
fn locked(partial: &Path, path: &Path) -> Result<File, SaveError> {
    let failed = |source| SaveError::create(path, source);
    // Whoever held the lock before may have renamed or removed the file meanwhile: then it isn't ours.
    loop {
        let mut options = OpenOptions::new();
        options.read(true).write(true).create(true).truncate(false).mode(MODE);
        options.custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK | libc::O_CLOEXEC);
        let file = match options.open(partial) {
            Ok(file) => file,
            Err(error) => {
                let kind = partial.symlink_metadata().ok().and_then(|found| other_kind(found.file_type()));
                let other = |kind| SaveError::NotRegular { path: partial.to_owned(), kind };
                return Err(kind.map_or_else(|| failed(error), other));
            }
        };
        let found = file.metadata().map_err(failed)?;
        if let Some(kind) = other_kind(found.file_type()) {
            return Err(SaveError::NotRegular { path: partial.to_owned(), kind });
        }
        match lock(&file) {
            Err(error) if matches!(error.raw_os_error(), Some(libc::EAGAIN | libc::EACCES)) => {
                return Err(SaveError::Busy { path: path.to_owned() });
            }
            other => other.map_err(failed)?,
        }
        let same = |there: fs::Metadata| (there.dev(), there.ino()) == (found.dev(), found.ino());
        if partial.symlink_metadata().is_ok_and(same) {
            // SAFETY: geteuid takes nothing and can't fail.
            require_leftover(&file, partial, unsafe { libc::geteuid() })?;
            file.set_permissions(Permissions::from_mode(MODE)).map_err(failed)?;
            return Ok(file);
        }
    }
}

/// Has a save of `user` made this file? It is emptied, and whoever owns it owns what is saved in it.
fn require_leftover(file: &File, partial: &Path, user: u32) -> Result<(), SaveError> {
    let failed = |source| SaveError::create(partial, source);
    let found = file.metadata().map_err(failed)?;
    let taken = |why| Err(SaveError::Taken { path: partial.to_owned(), why });
    if found.uid() != user {
        return taken("belongs to another user");
    }
    if found.nlink() != 1 {
        return taken("has a second name (a hard link)");
    }
    // Up to the description it is all zero until the head is written, which nothing else is that has content.
    let mut first = vec![0; DESCRIPTION_OFFSET as usize];
    let length = file.read_at(&mut first, 0).map_err(failed)?;
    first.truncate(length);
    if first.starts_with(&MAGIC) || first.iter().all(|byte| *byte == 0) {
        return Ok(());
    }
    taken("holds something else than an unfinished save")
}

/// An exclusive lock that belongs to the open file and ends with it (fcntl(2), "Open file description locks").
fn lock(file: &File) -> io::Result<()> {
    let whole = libc::flock {
        l_type: libc::F_WRLCK as libc::c_short,
        l_whence: libc::SEEK_SET as libc::c_short,
        l_start: 0,
        l_len: 0,
        l_pid: 0,
    };
    // SAFETY: the kernel reads the structure, which lives through the call.
    checked(unsafe { libc::fcntl(file.as_raw_fd(), libc::F_OFD_SETLK, &raw const whole) })
}

fn open_direct(file: &File, path: &Path) -> Result<File, SaveError> {
    // By its descriptor: it is the same file for certain.
    let same = format!("/proc/self/fd/{}", file.as_raw_fd());
    let opened = OpenOptions::new().write(true).custom_flags(libc::O_DIRECT | libc::O_CLOEXEC).open(same);
    opened.map_err(|source| match source.raw_os_error() {
        Some(libc::EINVAL | libc::EOPNOTSUPP) => SaveError::DirectIo { path: path.to_owned(), source },
        _ => SaveError::create(path, source),
    })
}

fn checked(result: libc::c_int) -> io::Result<()> {
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

impl Partial {
    /// For file systems that can't make holes.
    pub(super) fn clear_by_writing(&self, range: Range<u64>) -> io::Result<()> {
        const ZEROES: [u8; 4096] = [0; 4096];
        let mut at = range.start;
        while at < range.end {
            let step = (range.end - at).min(ZEROES.len() as u64);
            self.file.write_all_at(ZEROES.get(..step as usize).unwrap_or_default(), at)?;
            at += step;
        }
        Ok(())
    }
}

impl Medium for Partial {
    fn write_pages(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        self.direct.as_ref().unwrap_or(&self.file).write_all_at(bytes, offset)
    }

    fn write(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        self.file.write_all_at(bytes, offset)
    }

    fn clear(&self, range: Range<u64>) -> io::Result<()> {
        let mode = libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE;
        let offset =
            |at: u64| libc::off_t::try_from(at).map_err(|_| io::Error::from(io::ErrorKind::InvalidInput));
        let (start, bytes) = (offset(range.start)?, offset(range.end.saturating_sub(range.start))?);
        // SAFETY: fallocate takes integers and touches no memory of ours.
        let punched = checked(unsafe { libc::fallocate(self.file.as_raw_fd(), mode, start, bytes) });
        match punched {
            Err(error) if error.raw_os_error() == Some(libc::EOPNOTSUPP) => self.clear_by_writing(range),
            other => other,
        }
    }

    fn set_length(&self, bytes: u64) -> io::Result<()> {
        self.file.set_len(bytes)
    }

    fn sync_part(&self, range: Range<u64>) {
        let flags = libc::SYNC_FILE_RANGE_WAIT_BEFORE
            | libc::SYNC_FILE_RANGE_WRITE
            | libc::SYNC_FILE_RANGE_WAIT_AFTER;
        let bytes = range.end.saturating_sub(range.start);
        // SAFETY: sync_file_range takes integers and touches no memory of ours.
        unsafe { libc::sync_file_range(self.file.as_raw_fd(), range.start as i64, bytes as i64, flags) };
    }

    fn sync(&self) -> io::Result<()> {
        self.file.sync_all()
    }

    fn check_place(&self) -> Result<(), SaveError> {
        check_older(&self.path)
    }

    fn publish(&self) -> io::Result<()> {
        fs::rename(&self.partial, &self.path)?;
        self.published.store(true, Ordering::Relaxed);
        Ok(())
    }

    fn sync_folder(&self) -> io::Result<()> {
        self.folder.sync_all()
    }
}

impl Drop for Partial {
    /// Still locked, so it is this save's file that goes.
    fn drop(&mut self) {
        if !self.published.load(Ordering::Relaxed) {
            // What can't be removed is taken over by the next save to this path.
            let _ = fs::remove_file(&self.partial);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_a_save_of_the_same_user_has_left_is_taken_over() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("vm");
        let partial = folder.path().join("vm.partial");
        let create = || Partial::create(&path, false).map(drop).map_err(|error| error.to_string());
        let mut late = vec![0; 8192];
        late[1024] = 1;
        for foreign in [&b"a person's notes"[..], b"TERN", &late] {
            fs::write(&partial, foreign).unwrap();
            assert!(create().unwrap_err().contains("vm.partial holds something else"));
            assert_eq!(fs::read(&partial).unwrap(), foreign);
        }
        late[1024] = 0;
        late[4096] = 1;
        for left in [&b""[..], b"TERNSNAP and more", &late] {
            fs::write(&partial, left).unwrap();
            fs::set_permissions(&partial, Permissions::from_mode(0o666)).unwrap();
            let made = Partial::create(&path, false).unwrap();
            let found = made.file.metadata().unwrap();
            assert_eq!((found.len(), found.mode() & 0o777), (0, 0o600));
            made.publish().unwrap();
            assert_eq!(fs::metadata(&path).unwrap().mode() & 0o777, 0o600);
        }
        fs::write(&partial, "").unwrap();
        fs::hard_link(&partial, folder.path().join("other")).unwrap();
        assert!(create().unwrap_err().contains("has a second name"));
        let file = File::open(&path).unwrap();
        let other_user = file.metadata().unwrap().uid().wrapping_add(1);
        let error = require_leftover(&file, &path, other_user).unwrap_err();
        assert!(error.to_string().contains("belongs to another user") && error.code() == "file-taken");
    }
}
