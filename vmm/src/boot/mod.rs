//! Puts a kernel into guest memory, with all that it expects to find there, and says how vCPU 0 enters it.
//!
//! ```text
//! file or bytes --+-- ELF --------------------------+-- PVH note ---> pvh     --+
//!                 '-- bzImage -- unpack payload ----'-- none -------> linux64 --+--> Loaded { entry, .. }
//!                     initrd, command line, ACPI tables, MP table --------------'
//! ```
//!
//! Nothing here knows KVM's file descriptors: [`Entry`] is plain data, and [`configure_regs`],
//! [`configure_sregs`] and [`configure_lapic`] fill the structures that the vCPU thread then sets.

pub mod acpi;
pub mod bzimage;
pub mod cmdline;
pub mod elf;
mod error;
mod image;
pub mod initrd;
mod linux64;
mod memory_map;
pub mod mptable;
mod pvh;
mod registers;
#[cfg(test)]
mod testing;

use std::fmt;
use std::ops::Range;

use uuid::Uuid;
use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend};

pub use crate::layout::VirtioSlot;
pub use bzimage::Compression;
pub use error::BootError;
pub use image::BootImage;
pub use registers::{Entry, Protocol, configure_lapic, configure_regs, configure_sregs};

use crate::layout;

/// What to boot, and what the guest is to be told about its machine.
#[derive(Clone, Debug)]
pub struct BootSource<'a> {
    /// An ELF `vmlinux` or a bzImage.
    pub kernel: BootImage<'a>,
    /// The initial RAM disk, passed on as it is.
    pub initrd: Option<BootImage<'a>>,
    /// The user's command line. Its words win over all others.
    pub cmdline: &'a str,
    /// Words that this host needs (its quirks), each `key` or `key=value`.
    pub host_words: &'a [String],
    /// vCPUs, 1 to [`layout::MAX_CPUS`]. APIC ids count from 0.
    pub cpus: u8,
    /// The virtio-mmio devices, in order.
    pub virtio: &'a [VirtioSlot],
    /// The VM generation ID.
    pub generation_id: Uuid,
}

/// What has been put into guest memory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Loaded {
    /// Where and how vCPU 0 begins. The others wait for SIPI.
    pub entry: Entry,
    /// What the kernel file was.
    pub kernel: KernelKind,
    /// The whole command line, as the guest sees it.
    pub cmdline: String,
    /// Guest-physical range of the kernel, bss included.
    pub kernel_range: Range<u64>,
    /// Guest-physical range of the initrd.
    pub initrd_range: Option<Range<u64>>,
}

/// What a kernel file was, for people: `bzImage (zstd), PVH entry`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KernelKind {
    /// How a bzImage's payload was packed; none for an ELF file.
    pub packed: Option<Compression>,
    /// How the kernel is entered.
    pub protocol: Protocol,
}

impl fmt::Display for KernelKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.packed {
            Some(compression) => write!(f, "bzImage ({compression}), {} entry", self.protocol),
            None => write!(f, "ELF, {} entry", self.protocol),
        }
    }
}

/// Loads kernel, initrd, command line and tables into `memory`, laid out as [`layout::ram_regions`] says.
///
/// `memory` must read as zeros: a kernel's bss is not written, so that it costs no page. Before loading again for a
/// guest that was reset, discard its RAM.
///
/// # Errors
/// A [`BootError`] that names the file or figure at fault and the remedy. `memory` may be partly written then.
pub fn load<M: GuestMemoryBackend>(memory: &M, source: &BootSource<'_>) -> Result<Loaded, BootError> {
    if source.cpus == 0 || source.cpus > layout::MAX_CPUS {
        return Err(BootError::CpuCount { cpus: source.cpus, max: layout::MAX_CPUS });
    }
    let cmdline = cmdline::compose(source.cmdline, source.host_words, source.virtio)?;
    let ram = memory_map::LowRam::of(memory)?;
    let kernel = image::load_kernel(memory, &ram, &source.kernel)?;
    let initrd_range = match &source.initrd {
        Some(initrd) => Some(initrd::load(memory, &ram, initrd, kernel.range.end)?),
        None => None,
    };
    write_cmdline(memory, &cmdline)?;
    let acpi = acpi::AcpiConfig { cpus: source.cpus, virtio: source.virtio };
    acpi::write_tables(memory, &acpi)?;
    let generation_id = source.generation_id.to_bytes_le();
    write(memory, layout::VM_GENERATION_ID, &generation_id, "the VM generation ID")?;
    mptable::write_table(memory, source.cpus)?;

    let hand_over = HandOver {
        map: memory_map::entries(memory),
        cmdline_bytes: cmdline.len(),
        initrd: initrd_range.clone(),
    };
    let entry = match kernel.protocol {
        Protocol::Pvh => pvh::write_start_info(memory, &hand_over, kernel.entry_gpa)?,
        Protocol::Linux64 => linux64::write_boot_params(memory, &hand_over, kernel.entry_gpa)?,
    };
    let kind = KernelKind { packed: kernel.packed, protocol: kernel.protocol };
    Ok(Loaded { entry, kernel: kind, cmdline, kernel_range: kernel.range, initrd_range })
}

/// What both boot protocols tell the kernel.
struct HandOver {
    map: Vec<memory_map::MapEntry>,
    cmdline_bytes: usize,
    initrd: Option<Range<u64>>,
}

fn write_cmdline<M: GuestMemoryBackend>(memory: &M, cmdline: &str) -> Result<(), BootError> {
    let mut bytes = cmdline.as_bytes().to_vec();
    bytes.push(0);
    write(memory, layout::CMDLINE, &bytes, "the command line")
}

/// Writes a boot structure, whose name an error then carries.
fn write<M: GuestMemoryBackend>(
    memory: &M,
    gpa: u64,
    bytes: &[u8],
    structure: &'static str,
) -> Result<(), BootError> {
    memory.write_slice(bytes, GuestAddress(gpa)).map_err(|source| BootError::GuestMemory {
        structure,
        gpa,
        source,
    })
}

#[cfg(test)]
mod tests;
