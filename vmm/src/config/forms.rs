//! The forms of the command line's values: `FILE,readonly`, `tap=NAME,mac=..`, `unix:PATH`, ...
//!
//! The command line says which flag and value an error belongs to; the texts here say what is legal.

use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use serde::Serialize;
use tern_migration::channel::{FORMS, Uri};
use thiserror::Error;

use super::SizeError;
use super::mac::{MacAddress, MacError};
use super::restore::RestoreConfig;
use crate::control::chain;
use crate::vcpu::{Profile, ProfileError};

/// What is wrong with a value's form.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum FormError {
    /// A part after a comma that the flag doesn't know.
    #[error("unknown option `{option}`: legal is {legal} (a comma inside a path is written `,,`)")]
    Option {
        /// What was found.
        option: String,
        /// What may stand there.
        legal: &'static str,
    },
    /// A path is missing.
    #[error("the file's name is missing: write {form}")]
    NoPath {
        /// How to write it.
        form: &'static str,
    },
    /// `tap=` is missing, or its name is.
    #[error("the TAP interface is missing: write tap=NAME[,mac=02:00:00:00:00:01]")]
    NoTap,
    /// A name that the kernel would not take for an interface.
    #[error("`{name}` can't be an interface: names have 1 to 15 characters without `/` and spaces")]
    TapName {
        /// What was found.
        name: String,
    },
    /// The address of an interface.
    #[error(transparent)]
    Mac(#[from] MacError),
    /// A size that isn't one.
    #[error(transparent)]
    Size(#[from] SizeError),
    /// Two kinds of huge pages.
    #[error("thp= is for anon and memfd: the pages of backing=hugetlbfs are huge already")]
    Thp,
    /// None of a flag's forms.
    #[error("unknown form: legal is {legal}")]
    Unknown {
        /// What may stand there.
        legal: &'static str,
    },
    /// No address of a migration.
    #[error("{problem}; legal forms: {FORMS}")]
    Uri {
        /// What is wrong.
        problem: &'static str,
    },
    /// A CPU name with characters that no profile has.
    #[error(
        "not a CPU: write `host`, the name of a profile (letters, digits, `-`, `_`, `.`), or a file's path (with a `/`, \
         or ending in .json)"
    )]
    Cpu,
    /// A CPU profile's file that can't be used.
    #[error("{text}")]
    Profile {
        /// Which, and why.
        text: String,
    },
}

/// A disk: a file and how it may be used.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct DiskConfig {
    /// The backing file or block device.
    pub path: PathBuf,
    /// The guest can't write it.
    pub readonly: bool,
}

impl FromStr for DiskConfig {
    type Err = FormError;

    fn from_str(text: &str) -> Result<Self, FormError> {
        let mut parts = split_options(text).into_iter();
        let path = parts.next().filter(|path| !path.is_empty());
        let path = path.ok_or(FormError::NoPath { form: "FILE[,readonly]" })?.into();
        let mut readonly = false;
        for option in parts {
            match option.as_str() {
                "readonly" => readonly = true,
                _ => return Err(FormError::Option { option, legal: "`readonly`" }),
            }
        }
        Ok(Self { path, readonly })
    }
}

/// A network interface as the command line gives it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NetForm {
    /// Name of the host's TAP interface.
    pub tap: String,
    /// The guest's address, if it was given.
    pub mac: Option<MacAddress>,
}

impl FromStr for NetForm {
    type Err = FormError;

    fn from_str(text: &str) -> Result<Self, FormError> {
        let (mut tap, mut mac) = (None, None);
        for option in split_options(text) {
            match option.split_once('=') {
                Some(("tap", name)) => tap = Some(name.to_owned()),
                Some(("mac", address)) => mac = Some(address.parse()?),
                _ => return Err(FormError::Option { option, legal: "`tap=NAME` and `mac=ADDRESS`" }),
            }
        }
        let tap = tap.filter(|name| !name.is_empty()).ok_or(FormError::NoTap)?;
        let bad = |c: char| c == '/' || c.is_whitespace() || c.is_control();
        // IFNAMSIZ is 16 with the final NUL.
        if tap.len() > 15 || tap == "." || tap == ".." || tap.contains(bad) {
            return Err(FormError::TapName { name: tap });
        }
        Ok(Self { tap, mac })
    }
}

/// Where the guest's serial port goes.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum SerialConfig {
    /// The terminal of the process.
    #[default]
    Stdio,
    /// A file, written only; made anew.
    File(PathBuf),
    /// A listening unix socket, one client at a time.
    Unix(PathBuf),
    /// Nowhere.
    Null,
}

impl FromStr for SerialConfig {
    type Err = FormError;

    fn from_str(text: &str) -> Result<Self, FormError> {
        let path = |path: &str, form| {
            if path.is_empty() { Err(FormError::NoPath { form }) } else { Ok(PathBuf::from(path)) }
        };
        match text.split_once(':') {
            None if text == "stdio" => Ok(Self::Stdio),
            None if text == "null" => Ok(Self::Null),
            Some(("file", rest)) => path(rest, "file:PATH").map(Self::File),
            Some(("unix", rest)) => path(rest, "unix:PATH").map(Self::Unix),
            _ => Err(FormError::Unknown { legal: "stdio, null, file:PATH or unix:PATH" }),
        }
    }
}

impl fmt::Display for SerialConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Stdio => f.write_str("stdio"),
            Self::File(path) => write!(f, "file:{}", path.display()),
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
            Self::Null => f.write_str("null"),
        }
    }
}

/// How the guest arrives, in a process that doesn't boot it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Incoming {
    /// Listen when `migrate-incoming` says where.
    Defer,
    /// Listen at once, at this address, or take the connection that it is.
    Uri(String),
    /// It is in a file.
    File(RestoreConfig),
}

impl FromStr for Incoming {
    type Err = FormError;

    fn from_str(text: &str) -> Result<Self, FormError> {
        if text == "defer" {
            return Ok(Self::Defer);
        }
        match text.strip_prefix("file:") {
            Some("") => return Err(FormError::NoPath { form: "file:PATH" }),
            Some(path) => return Ok(Self::File(RestoreConfig::new(path.into()))),
            None => {}
        }
        check_uri(text)?;
        Ok(Self::Uri(text.to_owned()))
    }
}

/// Is `text` an address of a migration? The engine parses it again when it is used.
///
/// # Errors
/// It is none.
pub fn check_uri(text: &str) -> Result<(), FormError> {
    text.parse::<Uri>().map(drop).map_err(|error| FormError::Uri { problem: error.problem })
}

/// Which CPU the guest sees.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum CpuModel {
    /// All that the host has and KVM can give.
    #[default]
    Host,
    /// A named set of features, the same on every host that has them.
    Profile(String),
    /// One from a file.
    File(Box<Profile>),
}

impl CpuModel {
    /// Is it the path of a file, not a name?
    pub fn is_path(text: &str) -> bool {
        text.contains('/') || text.ends_with(".json")
    }

    /// From what [`Self::to_string`] made of it: opens no file.
    ///
    /// # Errors
    /// It made no such text.
    pub fn from_saved(text: &str) -> Result<Self, FormError> {
        if Self::is_path(text) && !text.starts_with('{') { Err(FormError::Cpu) } else { text.parse() }
    }
}

/// As it is parsed again: a profile from a file is told whole, since its file may be gone.
impl fmt::Display for CpuModel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Host => f.write_str("host"),
            Self::Profile(name) => f.write_str(name),
            Self::File(profile) => f.write_str(&profile.to_json()),
        }
    }
}

/// A file is read here: what comes later, such as the guest's reset, must not depend on it.
impl FromStr for CpuModel {
    type Err = FormError;

    fn from_str(text: &str) -> Result<Self, FormError> {
        let legal = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
        let bad = |error: ProfileError| FormError::Profile { text: chain(&error) };
        match text {
            "host" => Ok(Self::Host),
            "" => Err(FormError::Cpu),
            whole if whole.starts_with('{') => {
                let fault = |fault| bad(ProfileError::File { path: "{...}".into(), fault });
                Profile::parse(whole.as_bytes()).map(|profile| Self::File(Box::new(profile))).map_err(fault)
            }
            path if Self::is_path(path) => {
                Profile::read(Path::new(path)).map(|profile| Self::File(Box::new(profile))).map_err(bad)
            }
            name if name.chars().all(legal) => Ok(Self::Profile(name.to_owned())),
            _ => Err(FormError::Cpu),
        }
    }
}

/// Splits at commas; two of them are one in the text.
fn split_options(text: &str) -> Vec<String> {
    let mut parts = vec![String::new()];
    let mut rest = text.chars().peekable();
    while let Some(c) = rest.next() {
        match (c, parts.last_mut()) {
            (',', Some(part)) if rest.next_if_eq(&',').is_some() => part.push(','),
            (',', _) => parts.push(String::new()),
            (c, Some(part)) => part.push(c),
            (_, None) => {}
        }
    }
    parts
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn disks() {
        let disk = |path: &str, readonly| DiskConfig { path: path.into(), readonly };
        assert_eq!("a.img".parse(), Ok(disk("a.img", false)));
        assert_eq!("/x/a.img,readonly".parse(), Ok(disk("/x/a.img", true)));
        assert_eq!("a,,b.img,readonly".parse(), Ok(disk("a,b.img", true)));
        assert_eq!(",readonly".parse::<DiskConfig>(), Err(FormError::NoPath { form: "FILE[,readonly]" }));
        let text = "a,ro".parse::<DiskConfig>().unwrap_err().to_string();
        assert!(text.contains("`ro`") && text.contains("`readonly`"), "{text}");
    }

    #[test]
    fn nets() {
        let net: NetForm = "tap=tern0,mac=02:00:00:00:00:01".parse().unwrap();
        assert_eq!((net.tap.as_str(), net.mac), ("tern0", Some(MacAddress([2, 0, 0, 0, 0, 1]))));
        assert_eq!("tap=t".parse::<NetForm>().unwrap().mac, None);
        assert_eq!("mac=02:00:00:00:00:01".parse::<NetForm>(), Err(FormError::NoTap));
        assert_eq!("tap=".parse::<NetForm>(), Err(FormError::NoTap));
        assert!("tap=a-name-of-16-ch".parse::<NetForm>().is_ok());
        for text in ["tap=a-name-of-16-chr", "tap=a/b", "tap=..", "tap=t,mac=1", "tern0"] {
            assert!(text.parse::<NetForm>().is_err(), "{text}");
        }
    }

    #[test]
    fn serials() {
        assert_eq!("stdio".parse(), Ok(SerialConfig::Stdio));
        assert_eq!("null".parse(), Ok(SerialConfig::Null));
        assert_eq!("file:/tmp/a:b".parse(), Ok(SerialConfig::File("/tmp/a:b".into())));
        assert_eq!("unix:s".parse(), Ok(SerialConfig::Unix("s".into())));
        assert_eq!("unix:".parse::<SerialConfig>(), Err(FormError::NoPath { form: "unix:PATH" }));
        assert!("pty".parse::<SerialConfig>().unwrap_err().to_string().contains("stdio, null"));
    }

    #[test]
    fn addresses() {
        assert_eq!("defer".parse(), Ok(Incoming::Defer));
        assert_eq!("file:a b".parse(), Ok(Incoming::File(RestoreConfig::new("a b".into()))));
        for text in [
            "tcp:localhost:4444",
            "tcp::0",
            "tcp:[::1]:4444",
            "unix:/tmp/m",
            "vsock::4444",
            "fd:7",
            "exec:nc -l 4444",
        ] {
            assert_eq!(text.parse(), Ok(Incoming::Uri(text.to_owned())));
        }
        for text in
            ["tcp:4444", "tcp:a:b", "tcp:a:70000", "tcp:::1:4", "unix:", "exec:", "", "tcp:a:", "file:"]
        {
            assert!(text.parse::<Incoming>().is_err(), "{text}");
        }
    }

    #[test]
    fn cpus() {
        assert_eq!("host".parse(), Ok(CpuModel::Host));
        assert_eq!("x86-64-v2".parse(), Ok(CpuModel::Profile("x86-64-v2".into())));
        assert_eq!("a b".parse::<CpuModel>(), Err(FormError::Cpu));
        let read: CpuModel = concat!(env!("CARGO_MANIFEST_DIR"), "/cpu/x86-64-v3.json").parse().unwrap();
        assert_eq!(read, CpuModel::File(Box::new(Profile::named("x86-64-v3").unwrap())));
        assert_eq!(CpuModel::from_saved(&read.to_string()), Ok(read));
        assert_eq!(CpuModel::from_saved("/dev/null"), Err(FormError::Cpu));
        let text = "no-such.json".parse::<CpuModel>().unwrap_err().to_string();
        assert!(text.contains("no-such.json can't be read: No such file"), "{text}");
        assert!("{}".parse::<CpuModel>().unwrap_err().to_string().contains("tern-cpu-profile"));
    }

    proptest! {
        #[test]
        fn any_text_is_answered(text in ".{0,60}") {
            let _ = text.parse::<DiskConfig>();
            let _ = text.parse::<NetForm>();
            let _ = text.parse::<SerialConfig>();
            let _ = text.parse::<Incoming>();
            let _ = text.parse::<CpuModel>();
        }

        #[test]
        fn every_path_can_be_written(path in "[ -~]{1,40}") {
            let disk: DiskConfig = path.replace(',', ",,").parse().unwrap();
            prop_assert_eq!(disk.path, PathBuf::from(path));
        }
    }
}
