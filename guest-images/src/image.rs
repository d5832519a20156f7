//! From a name to files: finds an image in the cache, or builds it.

use crate::cache::Cache;
use crate::catalog::{self, CMDLINE_ALWAYS, KernelVariant, Kind};
use crate::hash::Parts;
use crate::progress::{Progress, Step};
use crate::source::Source;
use crate::{AGENT, ImageError, Result, initramfs, kernel, tools};
use std::fs;
use std::path::PathBuf;

/// The files of an image that is there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ImagePaths {
    /// An ELF file that starts through its PVH note.
    pub kernel: PathBuf,
    /// The initramfs, if the image has one.
    pub initramfs: Option<PathBuf>,
    /// Kernel parameters that the image needs on every host.
    pub cmdline: &'static str,
    /// What the kernel was built from, in JSON, if it was built here.
    pub manifest: Option<PathBuf>,
}

/// The images in a cache.
#[derive(Clone, Debug)]
pub struct Images {
    cache: Cache,
}

impl Images {
    /// The images in `cache`.
    pub fn new(cache: Cache) -> Self {
        Images { cache }
    }

    /// The files of the image called `name`; `None` if it is yet to be built.
    ///
    /// Without the kernel's source on this machine, the newest kernel of the same recipe will do: the
    /// source is needed to build, and not to run.
    pub fn path(&self, name: &str) -> Result<Option<ImagePaths>> {
        match &catalog::find(name)?.kind {
            Kind::Embedded(bytes) => self.embedded(name, bytes).map(Some),
            Kind::Linux(variant) => {
                let found = match Source::find() {
                    Some(source) => self.cache.get(&kernel::key(name, variant, &source.identity()?)),
                    None => self.cache.newest(&kernel::key_prefix(name, variant)),
                };
                found.map(|kernel| self.linux(kernel)).transpose()
            }
        }
    }

    /// The files of the image called `name`, built first if they are not there. `jobs` is for `make -j`.
    pub fn build(&self, name: &str, jobs: usize, progress: &mut dyn FnMut(Progress)) -> Result<ImagePaths> {
        if let Some(found) = self.path(name)? {
            return Ok(found);
        }
        match &catalog::find(name)?.kind {
            Kind::Embedded(bytes) => self.embedded(name, bytes),
            Kind::Linux(variant) => {
                let kernel = self.build_kernel(name, variant, jobs, progress)?;
                self.linux(kernel)
            }
        }
    }

    fn build_kernel(
        &self,
        image: &str,
        variant: &KernelVariant,
        jobs: usize,
        progress: &mut dyn FnMut(Progress),
    ) -> Result<PathBuf> {
        let source = tools::check()?;
        let key = kernel::key(image, variant, &source.identity()?);
        let log = self.cache.root().join("logs").join(format!("{key}.log"));
        // Two closures report, one after the other.
        let progress = std::cell::RefCell::new(progress);
        self.cache.get_or_build(
            &key,
            || (progress.borrow_mut())(Progress::of(Step::Waiting)),
            |directory| {
                let build = kernel::Build { image, variant, source: &source, jobs, directory, log: &log };
                build.run(&mut **progress.borrow_mut())
            },
        )
    }

    /// An image of one file, which the library has inside.
    fn embedded(&self, name: &str, bytes: &[u8]) -> Result<ImagePaths> {
        let key = format!("{name}-{}", Parts::default().add(bytes).short());
        let kernel = self.store(&key, name, bytes)?;
        Ok(ImagePaths { kernel, initramfs: None, cmdline: "", manifest: None })
    }

    /// A kernel of the cache, with the initramfs, which is kept apart: a new agent needs no new kernel.
    fn linux(&self, directory: PathBuf) -> Result<ImagePaths> {
        let archive = initramfs::build(AGENT)?;
        let key = format!("initramfs-{}", Parts::default().add(&archive).short());
        let initramfs = self.store(&key, "initramfs.cpio", &archive)?;
        Ok(ImagePaths {
            kernel: directory.join("vmlinux"),
            initramfs: Some(initramfs),
            cmdline: CMDLINE_ALWAYS,
            manifest: Some(directory.join("manifest.json")),
        })
    }

    fn store(&self, key: &str, file: &str, bytes: &[u8]) -> Result<PathBuf> {
        let fill = |directory: &std::path::Path| {
            let path = directory.join(file);
            fs::write(&path, bytes).map_err(ImageError::io("write", path))
        };
        Ok(self.cache.get_or_build(key, || (), fill)?.join(file))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn images() -> (tempfile::TempDir, Images) {
        let directory = tempfile::tempdir().unwrap();
        let images = Images::new(Cache::at(directory.path().join("tern")));
        (directory, images)
    }

    #[test]
    fn pulse_is_there_at_once_and_is_what_the_library_has() {
        let (_keep, images) = images();
        let paths = images.path("pulse").unwrap().unwrap();
        assert_eq!(fs::read(&paths.kernel).unwrap(), crate::PULSE);
        assert_eq!(paths.initramfs, None);
        assert_eq!(images.build("pulse", 1, &mut |_| ()).unwrap(), paths);
    }

    #[test]
    fn an_unknown_image_is_answered_with_the_names() {
        let (_keep, images) = images();
        let error = images.path("windows").unwrap_err().to_string();
        assert_eq!(error, "there is no image \"windows\"; there are: pulse, linux, linux-up");
        assert!(matches!(images.build("windows", 1, &mut |_| ()), Err(ImageError::UnknownImage { .. })));
    }

    #[test]
    fn a_kernel_is_found_with_its_initramfs_once_it_is_built() {
        let (_keep, images) = images();
        assert_eq!(images.path("linux").unwrap(), None);
        let Kind::Linux(variant) = &catalog::find("linux").unwrap().kind else { panic!("linux is built") };
        let source = Source::find().map_or_else(|| "none".to_owned(), |source| source.identity().unwrap());
        let key = kernel::key("linux", variant, &source);
        let fill = |to: &std::path::Path| {
            fs::write(to.join("vmlinux"), "kernel").map_err(ImageError::io("write", to))
        };
        images.cache.get_or_build(&key, || (), fill).unwrap();

        let paths = images.path("linux").unwrap().unwrap();
        assert_eq!(fs::read_to_string(&paths.kernel).unwrap(), "kernel");
        assert_eq!(fs::read(paths.initramfs.unwrap()).unwrap(), initramfs::build(AGENT).unwrap());
        assert!(paths.cmdline.contains("console=ttyS0"));
        assert_eq!(images.path("linux-up").unwrap(), None);
    }
}
