//! Kernels in the forms that people have them in, made of the Linux image's own ELF file.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use tern_tests::binary::tern_binary;

/// The kernel and the initramfs of an image that is built.
pub fn of_image(name: &str) -> (PathBuf, PathBuf) {
    let output = Command::new(tern_binary()).args(["image", "path", name]).output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    let mut lines = text.lines().map(PathBuf::from);
    (lines.next().unwrap(), lines.next().unwrap())
}

/// The same kernel without its PVH note: it boots by the 64-bit Linux protocol.
pub fn without_pvh(vmlinux: &Path, folder: &Path) -> PathBuf {
    /// XEN_ELFNOTE_PHYS32_ENTRY, size of its name and of its value in front of it.
    const NOTE: [u8; 16] = *b"\x04\0\0\0\x08\0\0\0\x12\0\0\0Xen\0";
    const SHORT_NOTE: [u8; 16] = *b"\x04\0\0\0\x04\0\0\0\x12\0\0\0Xen\0";
    let mut bytes = std::fs::read(vmlinux).unwrap();
    let at = bytes.windows(16).position(|found| found == NOTE || found == SHORT_NOTE).expect("a PVH note");
    bytes[at + 8] = 0x7f;
    let path = folder.join("vmlinux-without-pvh");
    std::fs::write(&path, bytes).unwrap();
    path
}

/// The same kernel as a bzImage: a setup header, and the ELF file packed by gzip behind it.
pub fn as_bzimage(vmlinux: &Path, folder: &Path) -> PathBuf {
    const SETUP_SECTORS: u8 = 4;
    let packed =
        Command::new("gzip").args(["-1", "-c"]).arg(vmlinux).stdin(Stdio::null()).output().unwrap().stdout;
    let mut bytes = vec![0; 512 * (usize::from(SETUP_SECTORS) + 1)];
    let mut put = |at: usize, value: &[u8]| bytes[at..at + value.len()].copy_from_slice(value);
    put(0x1f1, &[SETUP_SECTORS]);
    put(0x1f4, &(packed.len() as u32).div_ceil(16).to_le_bytes());
    put(0x1fe, &[0x55, 0xaa]);
    put(0x202, b"HdrS");
    put(0x206, &0x020f_u16.to_le_bytes());
    put(0x24c, &(packed.len() as u32).to_le_bytes());
    bytes.extend_from_slice(&packed);
    bytes.resize(bytes.len().next_multiple_of(16), 0);
    let path = folder.join("bzImage");
    std::fs::write(&path, bytes).unwrap();
    path
}
