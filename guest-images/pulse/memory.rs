//! What the VMM tells of memory (PVH's `hvm_start_info`), and the page tables for all of it.
//!
//! ```text
//! 0x8000        trampoline of the other vCPUs (once they start)
//! 1 MiB         pulse itself: code, tables, stacks
//! image_end     the ledger, 8 bytes for each page of the working set
//! start=        the working set, over all RAM from there up; 16 MiB unless said otherwise
//! ```

#![allow(unsafe_code, reason = "the loader leaves addresses, and page tables are made from numbers")]

use crate::span::Span;

pub(crate) const COMMAND_LINE_BYTES: usize = 2048;

const START_MAGIC: u32 = 0x336e_c578;
const RAM: u32 = 1;
const GIB: u64 = 1 << 30;
const HUGE_PAGE: u64 = 2 << 20;
/// Identity-mapped; RAM above is not used.
const MAPPED_GIB: usize = 64;
const PRESENT_WRITABLE_USER: u64 = 7;
const HUGE: u64 = 0x80;

#[repr(align(4096))]
struct Directories([[u64; 512]; MAPPED_GIB]);

static mut DIRECTORIES: Directories = Directories([[0; 512]; MAPPED_GIB]);

unsafe extern "C" {
    static mut pdpt: [u64; 512];
    static image_end: [u8; 0];
}

/// `hvm_start_info` of version 1 (Xen's `public/arch-x86/hvm/start_info.h`).
#[repr(C)]
struct RawStartInfo {
    magic: u32,
    version: u32,
    flags: u32,
    modules: u32,
    module_list: u64,
    command_line: u64,
    rsdp: u64,
    memory_map: u64,
    memory_map_entries: u32,
    reserved: u32,
}

#[repr(C)]
#[derive(Clone, Copy)]
struct MapEntry {
    base: u64,
    bytes: u64,
    kind: u32,
    reserved: u32,
}

/// A copy of what is needed, since the working set may overwrite the original.
pub(crate) struct StartInfo<'a> {
    pub(crate) command_line: &'a str,
    entries: [Option<MapEntry>; 32],
}

impl<'a> StartInfo<'a> {
    /// `None` if there is no start info of version 1 or later at this address.
    pub(crate) fn read(address: u64, text: &'a mut [u8; COMMAND_LINE_BYTES]) -> Option<Self> {
        // SAFETY: PVH passes the address of the structure, within the first GiB, which is mapped.
        let raw = unsafe { (address as *const RawStartInfo).read_unaligned() };
        if raw.magic != START_MAGIC || raw.version < 1 || raw.memory_map == 0 {
            return None;
        }
        let mut entries = [None; 32];
        for (index, slot) in entries.iter_mut().enumerate().take(raw.memory_map_entries as usize) {
            // SAFETY: the structure gives the number of entries.
            *slot = Some(unsafe { (raw.memory_map as *const MapEntry).add(index).read_unaligned() });
        }
        Some(Self { command_line: copy_text(raw.command_line, text), entries })
    }

    /// RAM from `start` up to what is mapped. The map's ranges rise, as loaders write them.
    pub(crate) fn ram_from(&self, start: u64) -> Span {
        let mut span = Span::default();
        for entry in self.entries.iter().flatten().filter(|entry| entry.kind == RAM) {
            span.add(entry.base, entry.bytes, start, MAPPED_GIB as u64 * GIB);
        }
        span
    }
}

fn copy_text(address: u64, text: &mut [u8; COMMAND_LINE_BYTES]) -> &str {
    let mut len = 0;
    while address != 0 && len < text.len() {
        // SAFETY: PVH's command line ends with a zero byte, which ends the loop.
        match unsafe { (address as *const u8).add(len).read() } {
            0 => break,
            byte => text[len] = byte,
        }
        len += 1;
    }
    core::str::from_utf8(&text[..len]).unwrap_or("")
}

/// Maps everything above the first GiB, in ring 3 and so at full speed. It includes the
/// LAPIC's page, which is why it comes before `apic`.
pub(crate) fn map_all() {
    for gib in 1..MAPPED_GIB {
        // SAFETY: only vCPU 0 runs yet, and these directories are not linked in before they are filled.
        unsafe {
            let directory = (&raw mut DIRECTORIES.0[gib]).cast::<u64>();
            for index in 0..512 {
                let frame = gib as u64 * GIB + index * HUGE_PAGE;
                directory.add(index as usize).write_volatile(frame | PRESENT_WRITABLE_USER | HUGE);
            }
            (&raw mut pdpt[gib]).write_volatile(directory as u64 | PRESENT_WRITABLE_USER);
        }
    }
}

/// The first free address behind this program.
pub(crate) fn after_image() -> u64 {
    (&raw const image_end) as u64
}
