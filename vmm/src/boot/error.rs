//! Why a guest could not be loaded: what was wrong, both values, the remedy. Causes are in the chain.

use std::io;

use super::Compression;

/// A boot that failed before the first guest instruction.
#[derive(Debug, thiserror::Error)]
pub enum BootError {
    /// The file could not be opened or read.
    #[error("cannot read {what} {name}; check the path and its permissions")]
    Unreadable {
        /// `kernel` or `initrd`.
        what: &'static str,
        /// Path of the file.
        name: String,
        /// The system's answer.
        source: io::Error,
    },
    /// A directory, socket or pipe where a file should be.
    #[error(
        "{what} {name} is not a regular file; give the path of an uncompressed ELF vmlinux, a bzImage or an initramfs"
    )]
    NotAFile {
        /// `kernel` or `initrd`.
        what: &'static str,
        /// Path of the file.
        name: String,
    },
    /// Neither ELF nor bzImage.
    #[error(
        "kernel {name} is not a kernel: {bytes} bytes, beginning with [{first}]; \
         accepted are an uncompressed x86-64 ELF (vmlinux) and a bzImage (often /boot/vmlinuz-*)"
    )]
    NotAKernel {
        /// Path of the file.
        name: String,
        /// Size of the file.
        bytes: u64,
        /// Its first bytes in hexadecimal.
        first: String,
    },
    /// An ELF file that cannot be entered on this machine.
    #[error(
        "kernel {name}: {reason}; give an uncompressed x86-64 vmlinux (ELF64, EXEC or DYN) or a bzImage of the same build"
    )]
    BadElf {
        /// Path of the file.
        name: String,
        /// What was found and what was expected.
        reason: String,
    },
    /// A bzImage with impossible fields.
    #[error(
        "kernel {name} is a damaged or unsupported bzImage: {reason}; rebuild or copy it again, or give its uncompressed vmlinux"
    )]
    BadBzImage {
        /// Path of the file.
        name: String,
        /// What was found and what was expected.
        reason: String,
    },
    /// A bzImage whose payload is packed in a way that is not supported.
    #[error(
        "kernel {name}: its payload is packed as {found} (beginning with [{first}]); supported are gzip, xz, zstd and lz4: \
         build with CONFIG_KERNEL_ZSTD or give its uncompressed vmlinux (scripts/extract-vmlinux of the kernel source unpacks it)"
    )]
    UnknownCompression {
        /// Path of the file.
        name: String,
        /// Name of the format if it is known by sight.
        found: &'static str,
        /// The payload's first bytes in hexadecimal.
        first: String,
    },
    /// The payload does not unpack.
    #[error(
        "kernel {name}: its {compression} payload of {packed_bytes} bytes does not unpack; copy or build the file again"
    )]
    Unpack {
        /// Path of the file.
        name: String,
        /// How it is packed.
        compression: Compression,
        /// Bytes of the payload.
        packed_bytes: u64,
        /// The decoder's answer.
        source: io::Error,
    },
    /// The payload unpacks to more than could be loaded.
    #[error(
        "kernel {name}: its {compression} payload unpacks to {unpacked_bytes} bytes, the limit here is {limit_bytes} \
         (guest memory, at most 1 GiB); give the guest more memory with --memory, or a smaller kernel"
    )]
    UnpackedTooLarge {
        /// Path of the file.
        name: String,
        /// How it is packed.
        compression: Compression,
        /// What the image says, or what came out before unpacking stopped.
        unpacked_bytes: u64,
        /// The most that is accepted.
        limit_bytes: u64,
    },
    /// The kernel does not fit.
    #[error(
        "too little memory: {what} needs guest memory up to {needed_bytes} bytes, the guest has {given_bytes} below 3 GiB; raise --memory"
    )]
    TooLittleMemory {
        /// What did not fit.
        what: String,
        /// Least memory that would do.
        needed_bytes: u64,
        /// RAM below the 32-bit hole.
        given_bytes: u64,
    },
    /// The initrd does not fit between the kernel and the end of RAM.
    #[error(
        "initrd {name} is too large: {bytes} bytes, {free_bytes} are free between the kernel's end and the end of memory below 3 GiB; \
         raise --memory or shrink the initrd"
    )]
    InitrdTooLarge {
        /// Path of the file.
        name: String,
        /// Its size.
        bytes: u64,
        /// What is free.
        free_bytes: u64,
    },
    /// The initrd has no content.
    #[error("initrd {name} is empty; give a cpio archive (it may be compressed) or leave --initrd out")]
    InitrdEmpty {
        /// Path of the file.
        name: String,
    },
    /// The command line is longer than kernels read.
    #[error(
        "command line too long: {bytes} bytes, the limit is {limit_bytes}, of which {ours_bytes} are tern's own words; shorten --cmdline: {cmdline}"
    )]
    CmdlineTooLong {
        /// Its length.
        bytes: usize,
        /// Most that is accepted.
        limit_bytes: usize,
        /// How much the user did not write.
        ours_bytes: usize,
        /// The line itself.
        cmdline: String,
    },
    /// A control character in the command line.
    #[error(
        "command line has the control character {found:#04x} at byte {position}; write it on one line, with spaces"
    )]
    CmdlineControl {
        /// The character.
        found: u8,
        /// Where in the user's line.
        position: usize,
    },
    /// No vCPU, or more than APIC ids reach.
    #[error("{cpus} vCPUs asked for; 1 to {max} can be described to a guest: change --cpus")]
    CpuCount {
        /// What was asked for.
        cpus: u8,
        /// The most.
        max: u8,
    },
    /// A table outgrew its place.
    #[error("{table} needs {bytes} bytes, its place has {room_bytes}; use fewer devices or vCPUs")]
    TableTooLarge {
        /// Name of the table.
        table: &'static str,
        /// Its size.
        bytes: u64,
        /// What there is.
        room_bytes: u64,
    },
    /// Guest memory refused a write: it is not laid out as `layout::ram_regions` says.
    #[error(
        "cannot write {structure} to guest memory at {gpa:#x}; this is a defect of tern, please report it"
    )]
    GuestMemory {
        /// What was to be written.
        structure: &'static str,
        /// Where.
        gpa: u64,
        /// The memory's answer.
        source: vm_memory::GuestMemoryError,
    },
}
