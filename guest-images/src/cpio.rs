//! Writes cpio archives in the "newc" form, which the kernel unpacks as its first file system.
//! Format: the kernel's `Documentation/driver-api/early-userspace/buffer-format.rst`.
//!
//! Device nodes are only entries of the archive, so nobody needs to be root. The same entries
//! give the same bytes: no times, no owners.

/// What an entry is, apart from its name and permissions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Node<'a> {
    /// A directory.
    Directory,
    /// A regular file and its bytes.
    File(&'a [u8]),
    /// A character device: major and minor number.
    CharacterDevice(u32, u32),
}

/// An archive that is being written.
#[derive(Debug, Default)]
pub struct Archive {
    bytes: Vec<u8>,
    entries: u32,
}

/// The name that marks the end of an archive.
const TRAILER: &str = "TRAILER!!!";
/// Lengths are eight hexadecimal digits.
const MAX_LENGTH: usize = u32::MAX as usize;

/// Why an entry cannot be written.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum CpioError {
    /// Names are relative, without NUL, and not the end mark.
    #[error("{name:?} cannot be a name in a cpio archive: it must be relative, not empty, and without NUL")]
    Name {
        /// The offending name.
        name: String,
    },
    /// A file or a name too long for the format.
    #[error("{name:?} with {length} bytes does not fit in a cpio archive (limit {MAX_LENGTH})")]
    Length {
        /// The entry's name.
        name: String,
        /// Its length in bytes.
        length: usize,
    },
}

impl Archive {
    /// An empty archive.
    pub fn new() -> Self {
        Archive::default()
    }

    /// Adds an entry; `permissions` are the low twelve bits of a mode. Directories come before what is in them.
    pub fn add(&mut self, name: &str, permissions: u32, node: Node<'_>) -> Result<(), CpioError> {
        if name.is_empty() || name.starts_with('/') || name.contains('\0') || name == TRAILER {
            return Err(CpioError::Name { name: name.to_owned() });
        }
        let (kind, data, device) = match node {
            Node::Directory => (0o040_000, &[][..], (0, 0)),
            Node::File(data) => (0o100_000, data, (0, 0)),
            Node::CharacterDevice(major, minor) => (0o020_000, &[][..], (major, minor)),
        };
        let length = data.len().max(name.len() + 1);
        if length > MAX_LENGTH {
            return Err(CpioError::Length { name: name.to_owned(), length });
        }
        self.entries += 1;
        self.write(name, kind | permissions & 0o7777, data, device);
        Ok(())
    }

    /// The finished archive.
    pub fn finish(mut self) -> Vec<u8> {
        self.entries = 0;
        self.write(TRAILER, 0, &[], (0, 0));
        self.bytes
    }

    /// Writes header, name and data. The caller has checked the lengths.
    fn write(&mut self, name: &str, mode: u32, data: &[u8], (major, minor): (u32, u32)) {
        let (data_length, name_length) = (data.len() as u32, name.len() as u32 + 1);
        // Inode, mode, user, group, links, time, length, 2 of the file system's device, 2 of the node's, name length, check.
        let fields = [self.entries, mode, 0, 0, 1, 0, data_length, 0, 0, major, minor, name_length, 0];
        self.bytes.extend_from_slice(b"070701");
        for field in fields {
            self.bytes.extend_from_slice(format!("{field:08X}").as_bytes());
        }
        self.bytes.extend_from_slice(name.as_bytes());
        self.bytes.push(0);
        self.pad();
        self.bytes.extend_from_slice(data);
        self.pad();
    }

    /// Each part starts at a multiple of four bytes.
    fn pad(&mut self) {
        self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[derive(Clone, Debug, PartialEq, Eq)]
    struct Entry {
        name: String,
        mode: u32,
        data: Vec<u8>,
        device: (u32, u32),
    }

    /// Reads an archive back, strictly.
    fn read(bytes: &[u8]) -> Vec<Entry> {
        let mut entries = Vec::new();
        let mut at = 0;
        loop {
            assert_eq!(&bytes[at..at + 6], b"070701");
            let field = |index: usize| {
                let digits = &bytes[at + 6 + index * 8..at + 14 + index * 8];
                u32::from_str_radix(std::str::from_utf8(digits).unwrap(), 16).unwrap()
            };
            let name_end = at + 110 + field(11) as usize;
            let name = std::str::from_utf8(&bytes[at + 110..name_end - 1]).unwrap().to_owned();
            assert_eq!(bytes[name_end - 1], 0);
            let data_at = name_end.next_multiple_of(4);
            let data_end = data_at + field(6) as usize;
            assert!(bytes[name_end..data_at].iter().all(|&byte| byte == 0));
            let entry = Entry {
                name,
                mode: field(1),
                data: bytes[data_at..data_end].to_vec(),
                device: (field(9), field(10)),
            };
            at = data_end.next_multiple_of(4);
            if entry.name == TRAILER {
                assert_eq!(at, bytes.len(), "nothing follows the trailer");
                return entries;
            }
            entries.push(entry);
        }
    }

    fn any_entry() -> impl Strategy<Value = Entry> {
        let data = proptest::collection::vec(any::<u8>(), 0..70);
        ("[a-z0-9._][a-z0-9./_-]{0,40}", 0..0o10_000u32, data, any::<(u32, u32)>(), 0..3).prop_map(
            |(name, permissions, data, device, kind)| match kind {
                0 => Entry { name, mode: 0o040_000 | permissions, data: vec![], device: (0, 0) },
                1 => Entry { name, mode: 0o100_000 | permissions, data, device: (0, 0) },
                _ => Entry { name, mode: 0o020_000 | permissions, data: vec![], device },
            },
        )
    }

    proptest! {
        #[test]
        fn a_reader_finds_what_was_written(entries in proptest::collection::vec(any_entry(), 0..20)) {
            let mut archive = Archive::new();
            for entry in &entries {
                let node = match entry.mode & 0o170_000 {
                    0o040_000 => Node::Directory,
                    0o100_000 => Node::File(&entry.data),
                    _ => Node::CharacterDevice(entry.device.0, entry.device.1),
                };
                archive.add(&entry.name, entry.mode, node).unwrap();
            }
            prop_assert_eq!(read(&archive.finish()), entries);
        }
    }

    #[test]
    fn names_that_would_end_or_escape_the_archive_are_refused() {
        for name in ["", "/init", "a\0b", TRAILER] {
            let refused = Archive::new().add(name, 0o644, Node::File(b"x"));
            assert_eq!(refused, Err(CpioError::Name { name: name.to_owned() }));
        }
    }
}
