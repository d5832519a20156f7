//! Who may use a disk's file: the locks of a machine's disks, which its owner holds and which pass with the guest.
//!
//! They are OFD locks (fcntl(2), F_OFD_SETLK) over the whole file, exclusive where the guest may write and shared where it
//! may only read. The kernel ends them with the process, however that ends. NFS carries them to its server, so they hold
//! between hosts; a file system that has none is used without, and that is said.

#![allow(unsafe_code, reason = "fcntl(2) with a struct flock has no safe wrapper in the crates used here")]

use std::fs::{self, File};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use thiserror::Error;

/// A disk that can't be had.
#[derive(Debug, Error)]
pub enum LockError {
    /// Somebody else has it.
    #[error(
        "--disk {}: {holder} uses it{}; end that first, or give this guest a copy", path.display(),
        if *readonly { " and may write it" } else { "" }
    )]
    Held {
        /// The disk's file.
        path: PathBuf,
        /// Who, as far as it can be seen.
        holder: String,
        /// This side only wanted to read.
        readonly: bool,
    },
    /// The host refuses.
    #[error("--disk {}: its lock can't be changed", path.display())]
    Host {
        /// The disk's file.
        path: PathBuf,
        /// The host's reason.
        #[source]
        source: io::Error,
    },
}

struct Disk {
    file: File,
    path: PathBuf,
    readonly: bool,
}

/// The locks of all disks of one process: all are held, or none.
pub struct DiskLocks {
    disks: Vec<Disk>,
    held: Mutex<bool>,
}

impl DiskLocks {
    /// Of these files, which must be the ones that the disks use: a lock belongs to an open file.
    pub fn new(disks: impl Iterator<Item = io::Result<(File, PathBuf, bool)>>) -> io::Result<Self> {
        let disk = |(file, path, readonly)| Disk { file, path, readonly };
        let disks = disks.map(|found| found.map(disk)).collect::<io::Result<_>>()?;
        Ok(Self { disks, held: Mutex::new(false) })
    }

    /// Takes all. After an error none is held that was not before.
    ///
    /// # Errors
    /// One is somebody else's, or the host refuses.
    pub fn take(&self) -> Result<(), LockError> {
        let mut held = self.held.lock().unwrap_or_else(PoisonError::into_inner);
        if *held {
            return Ok(());
        }
        for (number, disk) in self.disks.iter().enumerate() {
            if let Err(error) = disk.take() {
                self.disks.iter().take(number).for_each(|taken| _ = change(&taken.file, libc::F_UNLCK));
                return Err(error);
            }
        }
        *held = true;
        Ok(())
    }

    /// Lets go of all.
    ///
    /// # Errors
    /// The host refuses; some may be gone then, and [`Self::take`] takes them again.
    pub fn release(&self) -> Result<(), LockError> {
        let mut held = self.held.lock().unwrap_or_else(PoisonError::into_inner);
        *held = false;
        self.disks.iter().try_for_each(|disk| match change(&disk.file, libc::F_UNLCK) {
            Err(error) if !has_no_locks(&error) => Err(disk.failed(error)),
            _ => Ok(()),
        })
    }
}

impl Disk {
    fn failed(&self, source: io::Error) -> LockError {
        LockError::Host { path: self.path.clone(), source }
    }

    fn take(&self) -> Result<(), LockError> {
        let kind = if self.readonly { libc::F_RDLCK } else { libc::F_WRLCK };
        match change(&self.file, kind) {
            Ok(()) => Ok(()),
            Err(error) if matches!(error.raw_os_error(), Some(libc::EAGAIN | libc::EACCES)) => {
                let holder = holder(&self.file);
                Err(LockError::Held { path: self.path.clone(), holder, readonly: self.readonly })
            }
            Err(error) if has_no_locks(&error) => {
                let path = self.path.display();
                tracing::warn!(
                    %path, %error,
                    "the file system of this disk has no locks: nothing keeps another process from writing it as well"
                );
                Ok(())
            }
            Err(error) => Err(self.failed(error)),
        }
    }
}

fn has_no_locks(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::ENOLCK | libc::EOPNOTSUPP | libc::ENOSYS | libc::EINVAL))
}

/// Sets or ends the lock of the whole file; doesn't wait.
fn change(file: &File, kind: i32) -> io::Result<()> {
    // SAFETY: all-zero is a valid struct flock: from the start to the end, and `l_pid` has to be 0.
    let mut lock: libc::flock = unsafe { std::mem::zeroed() };
    lock.l_type = kind as libc::c_short;
    lock.l_whence = libc::SEEK_SET as libc::c_short;
    // SAFETY: the descriptor is open, and the kernel reads the struct, which lives over the call.
    let result = unsafe { libc::fcntl(file.as_raw_fd(), libc::F_OFD_SETLK, &raw const lock) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Who has the lock that is in the way: the kernel doesn't say (`l_pid` is -1), but each process's open files do.
fn holder(file: &File) -> String {
    let found = file.metadata().ok().and_then(|wanted| {
        let processes = fs::read_dir("/proc").ok()?.flatten();
        let numbers = processes.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
        numbers.into_iter().find(|pid| *pid != std::process::id() && has_locked(*pid, &wanted))
    });
    let Some(pid) = found else {
        return "another process or host, or one that this user can't see,".to_owned();
    };
    let words = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    let words = String::from_utf8_lossy(&words).replace('\0', " ");
    let shown: String = words.trim().chars().filter(|c| !c.is_control()).take(80).collect();
    format!("process {pid} ({shown})")
}

/// Has this process a lock on that file?
fn has_locked(pid: u32, wanted: &fs::Metadata) -> bool {
    let Ok(files) = fs::read_dir(format!("/proc/{pid}/fd")) else { return false };
    files.flatten().any(|entry| {
        let same = fs::metadata(entry.path()).is_ok_and(|found| {
            (found.dev(), found.ino(), found.rdev()) == (wanted.dev(), wanted.ino(), wanted.rdev())
        });
        same && entry.file_name().to_str().is_some_and(|number| shows_lock(pid, number))
    })
}

/// proc_pid_fdinfo(5): a line `lock:` for each lock that was taken through this open file.
fn shows_lock(pid: u32, number: &str) -> bool {
    let path = format!("/proc/{pid}/fdinfo/{number}");
    fs::read_to_string(Path::new(&path)).is_ok_and(|text| text.lines().any(|line| line.starts_with("lock:")))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn locks(path: &Path, readonly: bool) -> DiskLocks {
        let file = File::options().read(true).write(!readonly).open(path).unwrap();
        DiskLocks::new([Ok((file, path.to_owned(), readonly))].into_iter()).unwrap()
    }

    #[test]
    fn one_writer_or_many_readers() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("disk");
        fs::write(&path, "x").unwrap();
        let [one, other] = [false, false].map(|readonly| locks(&path, readonly));
        let [reader, second] = [true, true].map(|readonly| locks(&path, readonly));
        one.take().unwrap();
        one.take().unwrap();
        assert!(other.take().is_err() && reader.take().is_err());
        one.release().unwrap();
        other.take().unwrap();
        drop(other);
        reader.take().unwrap();
        second.take().unwrap();
        let text = one.take().unwrap_err().to_string();
        assert!(text.contains("uses it; end that first"), "{text}");
    }

    #[test]
    fn who_has_it_is_found_and_none_stays_half_taken() {
        let folder = tempfile::tempdir().unwrap();
        let paths = ["a", "b"].map(|name| folder.path().join(name));
        paths.iter().for_each(|path| fs::write(path, "x").unwrap());
        let open = |path: &Path| File::options().read(true).write(true).open(path).unwrap();
        let both = DiskLocks::new(paths.iter().map(|path| Ok((open(path), path.clone(), false)))).unwrap();
        // Another process takes the second: flock(1) is about other locks, so the shell's own is inherited.
        let [first, second] = [0, 1].map(|number| locks(&paths[number], false));
        second.take().unwrap();
        assert!(matches!(both.take(), Err(LockError::Held { path, .. }) if path == paths[1]));
        first.take().unwrap();
        assert!(has_locked(std::process::id(), &fs::metadata(&paths[1]).unwrap()));
    }
}
