//! Where a guest goes or comes from: a host, a socket, a descriptor, a command or a file.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

use thiserror::Error;

/// An address of a peer, or a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Uri {
    /// TCP.
    Tcp {
        /// Name or address, without brackets; empty: any address of this host (listening only).
        host: String,
        /// Port; 0: any free one (listening only).
        port: u16,
    },
    /// A unix socket.
    Unix {
        /// Its path.
        path: PathBuf,
    },
    /// An AF_VSOCK address: a host and its own guests, or loopback.
    Vsock {
        /// Whose: 1 is this machine (loopback), 2 the host; [`CID_ANY`]: any of this machine (listening only).
        cid: u32,
        /// Port.
        port: u32,
    },
    /// A connected stream socket that this process was given.
    Fd {
        /// Its number if it was inherited, its name if it was passed since.
        name: String,
    },
    /// A command whose standard input and output are the connection.
    Exec {
        /// For `/bin/sh -c`.
        command: String,
    },
    /// A file to save into: see [`crate::snapshot`].
    File {
        /// Its path.
        path: PathBuf,
    },
}

/// A text that is no address.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("\"{text}\": {problem}; legal forms: {FORMS}")]
pub struct UriError {
    /// The text.
    pub text: String,
    /// What is wrong with it.
    pub problem: &'static str,
}

/// All forms, for people.
pub const FORMS: &str =
    "tcp:HOST:PORT, tcp:[IPV6]:PORT, unix:PATH, vsock:CID:PORT, fd:NUMBER, exec:COMMAND, file:PATH";
/// Any address of this machine.
pub const CID_ANY: u32 = libc::VMADDR_CID_ANY;
/// Longest name of a descriptor.
const NAME_MAX_BYTES: usize = 64;
/// Longest path that a unix socket's address can hold.
const UNIX_PATH_MAX_BYTES: usize = 107;

impl FromStr for Uri {
    type Err = UriError;

    fn from_str(text: &str) -> Result<Self, UriError> {
        parse(text).map_err(|problem| UriError { text: text.to_owned(), problem })
    }
}

fn parse(text: &str) -> Result<Uri, &'static str> {
    match text.split_once(':') {
        Some(("tcp", rest)) => parse_tcp(rest),
        Some(("vsock", rest)) => parse_vsock(rest),
        Some(("fd", name)) => parse_fd(name),
        Some(("exec", command)) if command.trim().is_empty() => Err("the command is missing"),
        Some(("exec", command)) if command.contains('\0') => Err("the command contains a zero byte"),
        Some(("exec", command)) => Ok(Uri::Exec { command: command.to_owned() }),
        Some(("unix" | "file", "")) => Err("the path is missing"),
        Some(("unix", path)) if path.len() > UNIX_PATH_MAX_BYTES => {
            Err("the path is longer than 107 bytes, the most that a unix socket can have")
        }
        Some(("unix" | "file", path)) if path.contains('\0') => Err("the path contains a zero byte"),
        Some(("unix", path)) => Ok(Uri::Unix { path: PathBuf::from(path) }),
        Some(("file", path)) => Ok(Uri::File { path: PathBuf::from(path) }),
        Some(_) => Err("the transport is not known"),
        None => Err("the transport is missing"),
    }
}

fn parse_tcp(rest: &str) -> Result<Uri, &'static str> {
    let (host, port) = match rest.strip_prefix('[') {
        Some(rest) => rest.split_once("]:").ok_or("\"]:PORT\" is missing")?,
        None => rest.rsplit_once(':').ok_or("the port is missing")?,
    };
    if !rest.starts_with('[') && host.contains(':') {
        return Err("an IPv6 address stands in brackets");
    }
    if host.contains(['[', ']', '\0']) {
        return Err("the host is no name and no address");
    }
    if port.is_empty() || !port.bytes().all(|b| b.is_ascii_digit()) {
        return Err("the port is not a number");
    }
    let port = port.parse().map_err(|_| "the port is greater than 65535")?;
    Ok(Uri::Tcp { host: host.to_owned(), port })
}

fn parse_vsock(rest: &str) -> Result<Uri, &'static str> {
    let (cid, port) = rest.split_once(':').ok_or("the port is missing")?;
    let number = |text: &str, problem| {
        let digits = !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
        if digits { text.parse().map_err(|_| problem) } else { Err(problem) }
    };
    let cid = if cid.is_empty() { CID_ANY } else { number(cid, "the CID is not a number of 32 bits")? };
    Ok(Uri::Vsock { cid, port: number(port, "the port is not a number of 32 bits")? })
}

fn parse_fd(name: &str) -> Result<Uri, &'static str> {
    let legal = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    if name.is_empty() || name.len() > NAME_MAX_BYTES || !name.chars().all(legal) {
        return Err("a descriptor is a number, or a name of letters, digits, `-`, `_` and `.`");
    }
    Ok(Uri::Fd { name: name.to_owned() })
}

impl fmt::Display for Uri {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp { host, port } if host.contains(':') => write!(f, "tcp:[{host}]:{port}"),
            Self::Tcp { host, port } => write!(f, "tcp:{host}:{port}"),
            Self::Unix { path } => write!(f, "unix:{}", path.display()),
            Self::Vsock { cid: CID_ANY, port } => write!(f, "vsock::{port}"),
            Self::Vsock { cid, port } => write!(f, "vsock:{cid}:{port}"),
            Self::Fd { name } => write!(f, "fd:{name}"),
            Self::Exec { command } => write!(f, "exec:{command}"),
            Self::File { path } => write!(f, "file:{}", path.display()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn legal_forms_come_back_as_they_are() {
        for text in [
            "tcp:host:1",
            "tcp:[::1]:65535",
            "tcp:10.0.0.1:4444",
            "unix:/run/a:b",
            "tcp::0",
            "file:a b",
            "vsock:1:4444",
            "vsock::4444",
            "fd:7",
            "fd:a-socket.1",
            "exec:ssh host-b socat - UNIX-CONNECT:/run/b.sock",
        ] {
            assert_eq!(text.parse::<Uri>().unwrap().to_string(), text);
        }
    }

    #[test]
    fn errors_name_the_legal_forms() {
        let wrong = [
            "",
            "tcp",
            "tcp:",
            "tcp:host",
            "tcp:host:",
            "tcp:host:70000",
            "tcp:::1:5",
            "tcp:h:-1",
            "unix:",
            "file:",
            "udp:h:1",
            "tcp:[::1]5",
            "tcp:[[a]:5",
            "tcp:a]:5",
            "vsock:1",
            "vsock:x:1",
            "vsock:1:",
            "vsock:4294967296:1",
            "vsock:1:+1",
            "fd:",
            "fd:a b",
            "exec:",
            "exec: ",
        ];
        for text in wrong {
            let error = text.parse::<Uri>().unwrap_err().to_string();
            assert!(
                error.starts_with(&format!("\"{text}\": ")) && error.contains("tcp:[IPV6]:PORT"),
                "{error}"
            );
        }
    }

    proptest! {
        #[test]
        fn any_text_is_an_address_or_an_error(text: String) {
            for transport in ["tcp", "vsock", "fd", "exec"] {
                if let Ok(uri) = format!("{transport}:{text}").parse::<Uri>() {
                    prop_assert_eq!(uri.to_string().parse::<Uri>(), Ok(uri));
                }
            }
        }
    }
}
