//! From a configuration to a kernel in memory: images by name, the words that this host needs, the plan.

use std::path::PathBuf;

use serde::Serialize;
use tern_devices::GuestRam;

use crate::boot::{self, BootImage, BootSource, Loaded, VirtioSlot, cmdline};
use crate::config::{BootConfig, KernelSource, VmConfig};

use super::RunError;

/// The files and words of a boot.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Plan {
    /// An ELF or bzImage file; none for the image that tern carries in itself.
    pub kernel: Option<PathBuf>,
    /// The initial RAM disk.
    pub initrd: Option<PathBuf>,
    /// The image's words and the user's, which win.
    pub cmdline: String,
    /// The words that this host needs.
    pub host_words: Vec<String>,
}

/// Finds out what is to be booted. Reads no kernel yet.
pub fn plan(boot: &BootConfig, host_words: &[String]) -> Result<Plan, RunError> {
    let (kernel, initrd, words) = match &boot.kernel {
        KernelSource::File(path) => (Some(path.clone()), None, ""),
        KernelSource::Image(name) if name == PULSE => (None, None, ""),
        KernelSource::Image(name) => {
            let found = tern_guest_images::path(name)
                .map_err(|source| RunError::Image { name: name.clone(), source })?;
            let image = found.ok_or_else(|| RunError::ImageMissing { name: name.clone() })?;
            (Some(image.kernel), image.initramfs, image.cmdline)
        }
    };
    let cmdline = cmdline::with_image_words(words, &boot.cmdline);
    let initrd = boot.initrd.clone().or(initrd);
    Ok(Plan { kernel, initrd, cmdline, host_words: host_words.to_vec() })
}

const PULSE: &str = "pulse";

/// Puts the kernel into memory.
pub(super) fn load(ram: &GuestRam, config: &VmConfig, plan: &Plan) -> Result<Loaded, RunError> {
    let slots: Vec<VirtioSlot> = config.virtio_slots().into_iter().map(|(_, slot)| slot).collect();
    let kernel = match &plan.kernel {
        Some(path) => BootImage::File(path),
        None => BootImage::Bytes { name: PULSE, bytes: tern_guest_images::PULSE },
    };
    let source = BootSource {
        kernel,
        initrd: plan.initrd.as_deref().map(BootImage::File),
        cmdline: &plan.cmdline,
        host_words: &plan.host_words,
        cpus: config.cpus,
        virtio: &slots,
        generation_id: config.generation_id,
    };
    Ok(boot::load(ram, &source)?)
}
