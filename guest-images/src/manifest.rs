//! `manifest.json` of a built kernel: exactly what it was made from.

use crate::{ImageError, Result};
use serde::Serialize;
use std::path::Path;
use std::process::Command;

/// A file that went in.
#[derive(Debug, Serialize)]
pub(crate) struct NamedHash {
    pub(crate) name: String,
    pub(crate) sha256: String,
}

/// Everything that went into a kernel.
#[derive(Debug, Serialize)]
pub(crate) struct KernelManifest {
    pub(crate) image: String,
    pub(crate) builder_version: String,
    pub(crate) kernel_release: String,
    /// `NAME=VERSION`, if a package brought the source.
    pub(crate) source_package: Option<String>,
    pub(crate) source_archive: String,
    pub(crate) source_sha256: String,
    pub(crate) patches: Vec<NamedHash>,
    pub(crate) fragments: Vec<NamedHash>,
    /// Of `config`, beside the manifest.
    pub(crate) config_sha256: String,
    pub(crate) compiler: String,
    pub(crate) linker: String,
    pub(crate) built_utc: String,
}

impl KernelManifest {
    pub(crate) fn write(&self, path: &Path) -> Result<()> {
        let failed =
            |source: std::io::Error| ImageError::Io { what: "write", path: path.to_path_buf(), source };
        let text = serde_json::to_string_pretty(self).map_err(|error| failed(error.into()))?;
        std::fs::write(path, text + "\n").map_err(failed)
    }
}

/// The first line that a program prints, or "unknown": a manifest without it is still of use.
pub(crate) fn first_line(program: &str, arguments: &str) -> String {
    let output = Command::new(program).args(arguments.split(' ')).env("LC_ALL", "C").output();
    let text = output.map(|output| String::from_utf8_lossy(&output.stdout).into_owned()).unwrap_or_default();
    text.lines().next().unwrap_or("unknown").to_owned()
}
