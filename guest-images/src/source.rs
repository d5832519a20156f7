//! The kernel's source: the distribution's package, or an archive that the user names.

use crate::ImageError;
use crate::hash::hex;
use sha2::{Digest, Sha256};
use std::fs::File;
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// The series that the fragments and patches are for.
pub(crate) const SERIES: &str = "6.12";
const VARIABLE: &str = "TERN_LINUX_SOURCE";

/// A compressed tar archive with one directory: the kernel's source.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Source {
    pub(crate) archive: PathBuf,
}

impl Source {
    /// What a message calls it.
    pub(crate) const DESCRIPTION: &str = "the kernel source";
    /// Where it comes from.
    pub(crate) const PACKAGE: &str = "linux-source-6.12";
    const PACKAGED: &str = "/usr/src/linux-source-6.12.tar.xz";

    /// For those who don't have the package.
    pub(crate) fn note() -> String {
        format!("\nor set {VARIABLE} to a linux-{SERIES}.x.tar.xz of your own")
    }

    #[cfg(test)]
    pub(crate) fn at(archive: &str) -> Source {
        Source { archive: archive.into() }
    }

    /// The archive that `TERN_LINUX_SOURCE` names, or else the package's.
    pub(crate) fn find() -> Option<Source> {
        let archive = std::env::var_os(VARIABLE).map_or_else(|| PathBuf::from(Self::PACKAGED), PathBuf::from);
        archive.is_file().then_some(Source { archive })
    }

    /// The version of the package that brought the archive, if one did.
    pub(crate) fn package_version(&self) -> Option<String> {
        if self.archive != Path::new(Self::PACKAGED) {
            return None;
        }
        let output = Command::new("dpkg-query").args(["-W", "-f=${Version}", Self::PACKAGE]).output().ok()?;
        let version = String::from_utf8(output.stdout).ok()?;
        (output.status.success() && !version.is_empty()).then_some(version)
    }

    /// What tells this source from another in a cache key: the package's version, which is quick to
    /// ask for, or else the archive's hash.
    pub(crate) fn identity(&self) -> Result<String, ImageError> {
        match self.package_version() {
            Some(version) => Ok(format!("{} {version}", Self::PACKAGE)),
            None => self.read(&mut io::sink(), &mut |_, _| ()).map(|hash| format!("sha256 {hash}")),
        }
    }

    /// Unpacks the archive's directory as `to`, and returns the archive's SHA-256. `progress` gets
    /// bytes read and bytes in all.
    pub(crate) fn unpack(&self, to: &Path, progress: &mut dyn FnMut(u64, u64)) -> Result<String, ImageError> {
        std::fs::create_dir_all(to).map_err(ImageError::io("create the directory", to))?;
        let start = |source| ImageError::Start { command: "tar".to_owned(), source };
        let mut tar = Command::new("tar")
            .args([
                "--extract",
                "--strip-components=1",
                "--no-same-owner",
                "--file=-",
                self.decompressor(),
                "-C",
            ])
            .arg(to)
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .map_err(start)?;
        let read = match tar.stdin.take() {
            Some(mut stdin) => self.read(&mut stdin, progress),
            None => return Err(start(io::ErrorKind::BrokenPipe.into())),
        };
        let output = tar.wait_with_output().map_err(start)?;
        if !output.status.success() {
            let reason = String::from_utf8_lossy(&output.stderr).trim_end().to_owned();
            return Err(ImageError::Unpack { archive: self.archive.clone(), reason });
        }
        read
    }

    fn decompressor(&self) -> &'static str {
        match self.archive.extension().and_then(|extension| extension.to_str()) {
            Some("gz") => "--gzip",
            Some("zst") => "--zstd",
            _ => "--xz",
        }
    }

    /// Copies the archive to `to`, and returns its SHA-256.
    fn read(&self, to: &mut dyn Write, progress: &mut dyn FnMut(u64, u64)) -> Result<String, ImageError> {
        let failed = || ImageError::io("read the kernel source", &self.archive);
        let mut file = File::open(&self.archive).map_err(failed())?;
        let total = file.metadata().map_err(failed())?.len();
        let (mut hash, mut done, mut buffer) = (Sha256::new(), 0, vec![0; 1 << 20]);
        loop {
            let count = file.read(&mut buffer).map_err(failed())?;
            if count == 0 {
                return Ok(hex(&hash.finalize()));
            }
            hash.update(&buffer[..count]);
            to.write_all(&buffer[..count]).map_err(failed())?;
            done += count as u64;
            progress(done, total);
        }
    }
}

/// `VERSION.PATCHLEVEL.SUBLEVEL` from a kernel's top Makefile.
pub(crate) fn version_of(makefile: &str) -> String {
    let value = |name: &str| {
        let line = makefile.lines().find_map(|line| line.strip_prefix(name)?.trim_start().strip_prefix('='));
        line.map_or("?", str::trim)
    };
    format!("{}.{}.{}", value("VERSION"), value("PATCHLEVEL"), value("SUBLEVEL"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    #[test]
    fn the_version_is_read_from_the_makefile() {
        let makefile = "# SPDX\nVERSION = 6\nPATCHLEVEL = 12\nSUBLEVEL = 117\nEXTRAVERSION =\n";
        assert_eq!(version_of(makefile), "6.12.117");
        assert_eq!(version_of("nothing"), "?.?.?");
    }

    #[test]
    fn an_archive_unpacks_without_its_top_directory_and_is_hashed() {
        let directory = tempfile::tempdir().unwrap();
        let top = directory.path().join("linux-1");
        fs::create_dir(&top).unwrap();
        fs::write(top.join("Makefile"), "VERSION = 6\n").unwrap();
        let archive = directory.path().join("linux.tar.gz");
        let mut tar = Command::new("tar");
        tar.arg("-czf").arg(&archive).arg("-C").arg(directory.path()).arg("linux-1");
        assert!(tar.status().unwrap().success());

        let source = Source { archive: archive.clone() };
        let (to, mut last) = (directory.path().join("unpacked"), (0, 0));
        let hash = source.unpack(&to, &mut |done, total| last = (done, total)).unwrap();
        assert_eq!(fs::read_to_string(to.join("Makefile")).unwrap(), "VERSION = 6\n");
        let bytes = fs::read(&archive).unwrap();
        assert_eq!(hash, crate::hash::sha256(&bytes));
        assert_eq!(last, (bytes.len() as u64, bytes.len() as u64));
        assert_eq!(source.identity().unwrap(), format!("sha256 {hash}"));
    }

    #[test]
    fn what_is_not_an_archive_is_said_to_be_none() {
        let directory = tempfile::tempdir().unwrap();
        let archive = directory.path().join("linux.tar.xz");
        fs::write(&archive, "not an archive").unwrap();
        let error = Source { archive }.unpack(&directory.path().join("to"), &mut |_, _| ()).unwrap_err();
        assert!(matches!(error, ImageError::Unpack { .. }), "{error}");
    }
}
