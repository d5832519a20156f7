//! What guest memory is on this host: `--memory 2G[,backing=anon|memfd|hugetlbfs][,thp=on|off]`. The guest doesn't see it.

use std::fmt;
use std::str::FromStr;

use serde::Serialize;

use super::{ByteSize, FormError};

const LEGAL: &str = "`backing=anon`, `backing=memfd` or `backing=hugetlbfs`, and `thp=on` or `thp=off`";

/// Where the pages come from.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum MemoryBacking {
    /// Anonymous memory of this process.
    #[default]
    Anon,
    /// A file in memory (memfd_create(2)), mapped shared.
    Memfd,
    /// The same of huge pages of 2 MiB, which the host has set aside (vm.nr_hugepages).
    Hugetlbfs,
}

/// What guest memory is on this host.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct MemoryKind {
    /// Where the pages come from.
    pub backing: MemoryBacking,
    /// Transparent huge pages: asked for, or refused; without a word the host's default.
    pub thp: Option<bool>,
}

/// `--memory`: how much, and of what kind.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MemoryForm {
    /// How much.
    pub size: ByteSize,
    /// Of what kind.
    pub kind: MemoryKind,
}

impl MemoryBacking {
    fn name(self) -> &'static str {
        match self {
            Self::Anon => "anon",
            Self::Memfd => "memfd",
            Self::Hugetlbfs => "hugetlbfs",
        }
    }
}

impl FromStr for MemoryForm {
    type Err = FormError;

    fn from_str(text: &str) -> Result<Self, FormError> {
        let mut parts = text.split(',');
        let size = parts.next().unwrap_or_default().parse().map_err(FormError::Size)?;
        let mut kind = MemoryKind::default();
        for option in parts {
            match option {
                "backing=anon" => kind.backing = MemoryBacking::Anon,
                "backing=memfd" => kind.backing = MemoryBacking::Memfd,
                "backing=hugetlbfs" => kind.backing = MemoryBacking::Hugetlbfs,
                "thp=on" => kind.thp = Some(true),
                "thp=off" => kind.thp = Some(false),
                _ => return Err(FormError::Option { option: option.to_owned(), legal: LEGAL }),
            }
        }
        if let (MemoryBacking::Hugetlbfs, Some(_)) = (kind.backing, kind.thp) {
            return Err(FormError::Thp);
        }
        Ok(Self { size, kind })
    }
}

impl fmt::Display for MemoryKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { backing, thp } = self;
        f.write_str(backing.name())?;
        match thp {
            Some(true) => f.write_str(", with transparent huge pages"),
            Some(false) => f.write_str(", without transparent huge pages"),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::SizeError;
    use super::*;

    fn parse(text: &str) -> Result<MemoryForm, String> {
        text.parse::<MemoryForm>().map_err(|error| error.to_string())
    }

    #[test]
    fn forms() {
        assert_eq!(parse("2G").unwrap(), MemoryForm { size: ByteSize(2 << 30), kind: MemoryKind::default() });
        let kind = MemoryKind { backing: MemoryBacking::Memfd, thp: Some(true) };
        assert_eq!(parse("64M,backing=memfd,thp=on").unwrap(), MemoryForm { size: ByteSize(64 << 20), kind });
        assert_eq!(parse("64M,thp=off").unwrap().kind.thp, Some(false));
        assert_eq!(parse("2M,backing=hugetlbfs").unwrap().kind.backing, MemoryBacking::Hugetlbfs);
        for text in ["2G,backing=file", "2G,", "2G,thp", "2G,backing=memfd thp=on"] {
            assert!(parse(text).unwrap_err().contains("`backing=memfd`"), "{text}");
        }
        assert_eq!("12Q".parse::<MemoryForm>(), Err(FormError::Size(SizeError::Malformed)));
        assert!(parse("2G,backing=hugetlbfs,thp=off").unwrap_err().contains("are huge already"));
    }

    proptest! {
        #[test]
        fn any_text_is_answered(text in "[0-9]{0,4}[KMG]?(,(backing|thp|x)=?[a-z]{0,9}){0,3}") {
            let _ = parse(&text);
        }
    }
}
