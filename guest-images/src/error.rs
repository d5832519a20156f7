//! What can go wrong between a name and an image, said so that a person can mend it.

use std::io;
use std::path::PathBuf;

/// Why an image cannot be found or built.
#[derive(Debug, thiserror::Error)]
pub enum ImageError {
    /// No image has this name.
    #[error("there is no image {name:?}; there are: {known}")]
    UnknownImage {
        /// The name asked for.
        name: String,
        /// The names there are.
        known: String,
    },
    /// Neither `XDG_CACHE_HOME` nor `HOME` says where images are kept.
    #[error("no place to keep images: set HOME or XDG_CACHE_HOME to a directory (an absolute path)")]
    NoCacheDirectory,
    /// Programs, headers or the kernel source that a build needs are not installed.
    #[error("cannot build the kernel, this is missing: {missing}\ninstall it with: {command}{note}")]
    Missing {
        /// What is missing, separated by commas.
        missing: String,
        /// The command that installs it.
        command: String,
        /// A hint on a line of its own, or nothing.
        note: String,
    },
    /// A file operation failed.
    #[error("cannot {what} {}", path.display())]
    Io {
        /// What was to be done, such as "write".
        what: &'static str,
        /// The file or directory.
        path: PathBuf,
        /// The system's reason.
        source: io::Error,
    },
    /// A tool could not be started.
    #[error("cannot run {command}")]
    Start {
        /// The program.
        command: String,
        /// The system's reason.
        source: io::Error,
    },
    /// The kernel source is damaged, or the disk is full.
    #[error("cannot unpack {}; is it whole, and is there room (2 GB) in the cache? tar says:\n{reason}", archive.display())]
    Unpack {
        /// The archive.
        archive: PathBuf,
        /// What `tar` said.
        reason: String,
    },
    /// A tool failed.
    #[error("{command} failed ({status}); its output is in {}, and ends with:\n{tail}", log.display())]
    Tool {
        /// The program and its arguments.
        command: String,
        /// How it ended.
        status: String,
        /// The file with everything that it printed.
        log: PathBuf,
        /// The last lines of it.
        tail: String,
    },
    /// The kernel's configuration does not have an option as it was asked for.
    #[error(
        "the kernel source does not take these options as they are in guest-images/linux: {options}; \
         they were renamed, or depend on others now"
    )]
    Config {
        /// The lines of the fragments that were lost.
        options: String,
    },
    /// The initramfs cannot be written.
    #[error(transparent)]
    Cpio(#[from] crate::cpio::CpioError),
    /// The source is not of the series that patches and fragments are for.
    #[error("the kernel source {} is version {found}, and the image needs {expected}.x", path.display())]
    Series {
        /// The source archive.
        path: PathBuf,
        /// Its version.
        found: String,
        /// The series needed.
        expected: &'static str,
    },
}

impl ImageError {
    /// For `map_err`: an [`ImageError::Io`] that says what was done to which file.
    pub(crate) fn io(what: &'static str, path: impl Into<PathBuf>) -> impl FnOnce(io::Error) -> ImageError {
        let path = path.into();
        move |source| ImageError::Io { what, path, source }
    }
}
