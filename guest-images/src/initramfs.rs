//! The Linux guest's first and only file system: the agent, and what it mounts on.

use crate::cpio::{Archive, CpioError, Node};

/// An initramfs whose init is `agent`. Not compressed: unpacking costs an interpreting host more
/// than the bytes do.
pub(crate) fn build(agent: &[u8]) -> Result<Vec<u8>, CpioError> {
    let mut archive = Archive::new();
    archive.add("dev", 0o755, Node::Directory)?;
    // Opened by the kernel as init's standard input and output, before anything is mounted.
    archive.add("dev/console", 0o600, Node::CharacterDevice(5, 1))?;
    for directory in ["proc", "sys", "tmp"] {
        archive.add(directory, 0o755, Node::Directory)?;
    }
    archive.add("init", 0o755, Node::File(agent))?;
    Ok(archive.finish())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;
    use std::process::{Command, Stdio};

    #[test]
    fn the_same_agent_gives_the_same_bytes_and_another_others() {
        assert_eq!(build(b"agent").unwrap(), build(b"agent").unwrap());
        assert_ne!(build(b"agent").unwrap(), build(b"other").unwrap());
    }

    #[test]
    fn the_real_one_is_small_and_starts_with_the_agent() {
        let archive = build(crate::AGENT).unwrap();
        assert!(crate::AGENT.starts_with(b"\x7fELF"));
        assert!(archive.len() < 100 << 10, "{} bytes", archive.len());
    }

    #[test]
    fn cpio_itself_reads_it_where_there_is_one() {
        let cpio = Command::new("cpio").arg("-it").stdin(Stdio::piped()).stdout(Stdio::piped()).spawn();
        let mut cpio = match cpio {
            Ok(cpio) => cpio,
            // The property test in `cpio` reads archives back without the program.
            Err(error) => return assert_eq!(error.kind(), std::io::ErrorKind::NotFound),
        };
        cpio.stdin.take().unwrap().write_all(&build(b"agent").unwrap()).unwrap();
        let output = cpio.wait_with_output().unwrap();
        assert!(output.status.success());
        assert_eq!(String::from_utf8(output.stdout).unwrap(), "dev\ndev/console\nproc\nsys\ntmp\ninit\n");
    }
}
