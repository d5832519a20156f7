//! Where inputs are: `corpus/TARGET/` in the tree, and the golden bytes from which records begin.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

/// The most that a target's corpus may have in the tree.
pub const MAX_BYTES: usize = 64 << 10;
/// The most files of it.
pub const MAX_FILES: usize = 120;
/// The most of it that the engine has found.
const MAX_FOUND_BYTES: usize = 8 << 10;
const MAX_FOUND_FILES: usize = 24;

/// This crate's folder.
pub fn folder() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// A target's corpus in the tree.
pub fn corpus(target: &str) -> PathBuf {
    folder().join("corpus").join(target)
}

/// The files of a target's corpus with their content, in the order of their names.
///
/// # Errors
/// The folder or a file can't be read.
pub fn inputs(target: &str) -> io::Result<Vec<(PathBuf, Vec<u8>)>> {
    read_all(&corpus(target))
}

fn read_all(folder: &Path) -> io::Result<Vec<(PathBuf, Vec<u8>)>> {
    let entries = fs::read_dir(folder)?;
    let mut paths: Vec<PathBuf> = entries.map(|entry| Ok(entry?.path())).collect::<io::Result<_>>()?;
    paths.sort();
    paths.into_iter().map(|path| fs::read(&path).map(|bytes| (path, bytes))).collect()
}

/// The bytes of `vmm/golden/NAME.hex`, as a list of at most one.
pub fn golden(name: &str) -> Vec<Vec<u8>> {
    let path = folder().join("../vmm/golden").join(format!("{name}.hex"));
    let text = fs::read_to_string(path).unwrap_or_default();
    let hex: String = text.lines().filter(|line| !line.starts_with('#')).collect();
    let byte = |pair: &[u8]| u8::from_str_radix(str::from_utf8(pair).ok()?, 16).ok();
    let bytes: Vec<u8> = hex.as_bytes().chunks(2).filter_map(byte).collect();
    if bytes.is_empty() { Vec::new() } else { vec![bytes] }
}

/// A CPU profile that comes with tern.
///
/// # Errors
/// It is not there any more.
pub fn cpu_profile(name: &str) -> io::Result<Vec<u8>> {
    fs::read(folder().join("../vmm/cpu").join(format!("{name}.json")))
}

/// Inputs that the engine found have the hash of their content as name; what people and [`crate::Target::seeds`] put
/// there has not.
fn is_found(path: &Path) -> bool {
    let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
    name.len() == 40 && name.bytes().all(|byte| byte.is_ascii_hexdigit())
}

/// Puts the inputs in `found` in place of those that the engine found before, the shortest first, as many as the tree
/// may have.
///
/// # Errors
/// A file can't be read or written.
pub fn adopt(target: &str, found: &Path) -> io::Result<()> {
    let folder = corpus(target);
    let mut kept = Vec::new();
    for (path, bytes) in inputs(target)? {
        if is_found(&path) {
            fs::remove_file(path)?;
        } else {
            kept.push(bytes);
        }
    }
    let (mut files, mut total) = (0, 0);
    let mut new = read_all(found)?;
    new.sort_by_key(|(path, bytes)| (bytes.len(), path.clone()));
    for (path, bytes) in new {
        total += bytes.len();
        files += 1;
        if total > MAX_FOUND_BYTES || files > MAX_FOUND_FILES {
            break;
        }
        if let Some(name) = path.file_name().filter(|_| !kept.contains(&bytes)) {
            fs::write(folder.join(name), bytes)?;
        }
    }
    Ok(())
}
