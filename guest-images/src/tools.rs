//! What a kernel build needs from the system, and how to get it.

use crate::ImageError;
use crate::source::Source;
use std::env;
use std::ffi::OsStr;
use std::path::Path;

/// Programs to look for in `PATH`, and the Debian package that each is in.
const PROGRAMS: [(&str, &str); 10] = [
    ("make", "make"),
    ("gcc", "gcc"),
    ("ld", "binutils"),
    ("flex", "flex"),
    ("bison", "bison"),
    ("bc", "bc"),
    ("perl", "perl"),
    ("tar", "tar"),
    ("xz", "xz-utils"),
    ("patch", "patch"),
];

/// Headers that the kernel's own build tools include: any of the paths will do.
const HEADERS: [(&str, &[&str], &str); 2] = [
    ("the C library's headers", &["/usr/include/stdlib.h", "/usr/local/include/stdlib.h"], "libc6-dev"),
    ("libelf's headers", &["/usr/include/gelf.h", "/usr/local/include/gelf.h"], "libelf-dev"),
];

/// Where to look; a test looks elsewhere.
pub(crate) struct Places<'a> {
    pub(crate) path: &'a OsStr,
    /// Prepended to the headers' paths.
    pub(crate) root: &'a Path,
}

/// Checks everything that a build needs, and names all that is missing at once. Returns the source.
pub(crate) fn check() -> Result<Source, ImageError> {
    let path = env::var_os("PATH").unwrap_or_default();
    check_in(&Places { path: &path, root: Path::new("/") }, Source::find())
}

fn check_in(places: &Places<'_>, source: Option<Source>) -> Result<Source, ImageError> {
    let in_path =
        |program: &str| env::split_paths(places.path).any(|directory| directory.join(program).is_file());
    let under_root = |path: &&str| places.root.join(path.trim_start_matches('/')).is_file();
    let programs =
        PROGRAMS.iter().filter(|(program, _)| !in_path(program)).map(|&(name, package)| (name, package));
    let headers = HEADERS
        .iter()
        .filter(|(_, paths, _)| !paths.iter().any(under_root))
        .map(|&(name, _, package)| (name, package));
    let mut missing: Vec<(&str, &str)> = programs.chain(headers).collect();
    match source {
        Some(source) if missing.is_empty() => return Ok(source),
        Some(_) => {}
        None => missing.push((Source::DESCRIPTION, Source::PACKAGE)),
    }
    let column = |pick: fn(&(&'static str, &'static str)) -> &'static str, separator| {
        missing.iter().map(pick).collect::<Vec<_>>().join(separator)
    };
    Err(ImageError::Missing {
        missing: column(|entry| entry.0, ", "),
        command: format!("apt-get install {}", column(|entry| entry.1, " ")),
        note: if missing.iter().any(|entry| entry.1 == Source::PACKAGE) {
            Source::note()
        } else {
            String::new()
        },
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    /// A root with every tool and header, except those named.
    fn root_without(missing: &[&str]) -> tempfile::TempDir {
        let root = tempfile::tempdir().unwrap();
        let programs = PROGRAMS.iter().map(|entry| format!("bin/{}", entry.0));
        let headers = HEADERS.iter().map(|entry| entry.1[0].trim_start_matches('/').to_owned());
        for file in programs.chain(headers).filter(|file| !missing.iter().any(|name| file.ends_with(name))) {
            let path = root.path().join(file);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, "").unwrap();
        }
        root
    }

    fn check(missing: &[&str], source: Option<Source>) -> Result<Source, ImageError> {
        let root = root_without(missing);
        let path = root.path().join("bin");
        check_in(&Places { path: path.as_os_str(), root: root.path() }, source)
    }

    fn source() -> Option<Source> {
        Some(Source::at("/somewhere/linux.tar.xz"))
    }

    #[test]
    fn with_everything_there_is_nothing_to_say() {
        assert!(check(&[], source()).is_ok());
    }

    #[test]
    fn all_that_is_missing_is_named_with_one_command() {
        let error = check(&["/flex", "/bc", "gelf.h"], source()).unwrap_err().to_string();
        assert!(error.contains("missing: flex, bc, libelf's headers\n"), "{error}");
        assert!(error.ends_with("apt-get install flex bc libelf-dev"), "{error}");
    }

    #[test]
    fn a_missing_source_package_is_named_with_the_way_around_it() {
        let error = check(&[], None).unwrap_err().to_string();
        assert!(error.contains("apt-get install linux-source-6.12\n"), "{error}");
        assert!(error.contains("TERN_LINUX_SOURCE"), "{error}");
    }
}
