//! Whole loads: what a machine asks for, and what a person may give by mistake.

use std::io::Write;
use std::path::Path;

use flate2::write::GzEncoder;
use proptest::prelude::*;
use vm_memory::GuestMemoryMmap;

use super::testing::{TestElf, bzimage, ram, read, u32_at, u64_at};
use super::*;
use crate::layout::virtio_slot;

const MEMORY_BYTES: u64 = 64 << 20;

fn source(kernel: &[u8]) -> BootSource<'_> {
    BootSource {
        kernel: BootImage::Bytes { name: "test", bytes: kernel },
        initrd: None,
        cmdline: "quiet",
        host_words: &[],
        cpus: 2,
        virtio: &[],
        generation_id: Uuid::from_u128(0x0011_2233_4455_6677_8899_aabb_ccdd_eeff),
    }
}

fn load_text(memory: &GuestMemoryMmap<()>, source: &BootSource<'_>) -> String {
    load(memory, source).unwrap_err().to_string()
}

#[test]
fn pvh_elf_with_initrd_and_devices() {
    let memory = ram(MEMORY_BYTES);
    let kernel = TestElf::default().build();
    let initrd = BootImage::Bytes { name: "initrd", bytes: b"archive" };
    let virtio = [virtio_slot(0).unwrap()];
    let loaded =
        load(&memory, &BootSource { initrd: Some(initrd), virtio: &virtio, ..source(&kernel) }).unwrap();
    assert_eq!(loaded.kernel.to_string(), "ELF, PVH entry");
    assert_eq!((loaded.entry.rip, loaded.entry.rbx), (0x10_0010, layout::PVH_START_INFO));
    assert_eq!(loaded.kernel_range, 0x10_0000..0x10_2000);
    assert_eq!(loaded.initrd_range, Some(0x3ff_f000..0x3ff_f007));
    assert_eq!(loaded.cmdline, "console=ttyS0 panic=-1 virtio_mmio.device=4K@0xd0000000:5 quiet");

    let info = read(&memory, loaded.entry.rbx, 56);
    let in_memory = read(&memory, u64_at(&info, 24), loaded.cmdline.len() + 1);
    assert_eq!(in_memory, [loaded.cmdline.as_bytes(), b"\0"].concat());
    assert_eq!(read(&memory, u64_at(&info, 32), 8), b"RSD PTR ");
    assert_eq!(read(&memory, layout::MP_TABLE, 4), b"_MP_");
    // As a Windows GUID is stored: three fields little-endian, the rest in order.
    let generation_id =
        [0x33, 0x22, 0x11, 0, 0x55, 0x44, 0x77, 0x66, 0x88, 0x99, 0xaa, 0xbb, 0xcc, 0xdd, 0xee, 0xff];
    assert_eq!(read(&memory, layout::VM_GENERATION_ID, 16), generation_id);
    assert_eq!(u32_at(&info, 12), 1);
}

#[test]
fn bzimage_file_with_a_linux64_kernel() {
    let memory = ram(MEMORY_BYTES);
    let elf = TestElf { pvh_entry: None, ..TestElf::default() }.build();
    let mut encoder = GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(&elf).unwrap();
    let mut file = tempfile::NamedTempFile::new().unwrap();
    file.write_all(&bzimage(&encoder.finish().unwrap())).unwrap();
    let loaded = load(&memory, &BootSource { kernel: BootImage::File(file.path()), ..source(&[]) }).unwrap();
    assert_eq!(loaded.kernel.to_string(), "bzImage (gzip), 64-bit Linux entry");
    assert_eq!((loaded.entry.rip, loaded.entry.rsi), (0x10_0000, layout::BOOT_PARAMS));
    assert_eq!(read(&memory, 0x10_0000, 4000), TestElf::default().code);
}

#[test]
fn what_is_not_a_kernel_is_named() {
    let memory = ram(MEMORY_BYTES);
    let text = load_text(&memory, &source(b"#!/bin/sh\n"));
    assert!(text.contains("test is not a kernel: 10 bytes, beginning with [23 21 2f 62"), "{text}");
    assert!(text.contains("ELF") && text.contains("bzImage"), "{text}");
    assert!(load_text(&memory, &source(b"")).contains("0 bytes, beginning with []"));
}

#[test]
fn unreadable_files_are_named() {
    let memory = ram(MEMORY_BYTES);
    let missing = Path::new("/nonexistent/vmlinux");
    let error = load(&memory, &BootSource { kernel: BootImage::File(missing), ..source(&[]) }).unwrap_err();
    assert!(error.to_string().contains("kernel /nonexistent/vmlinux"), "{error}");
    assert!(
        std::error::Error::source(&error).is_some_and(|cause| cause.to_string().contains("No such file"))
    );

    let directory = tempfile::tempdir().unwrap();
    let kernel = TestElf::default().build();
    let initrd = Some(BootImage::File(directory.path()));
    let text = load_text(&memory, &BootSource { initrd, ..source(&kernel) });
    assert!(text.contains("initrd") && text.contains("not a regular file"), "{text}");
}

#[test]
fn cpu_counts_are_checked() {
    let memory = ram(MEMORY_BYTES);
    let kernel = TestElf::default().build();
    for cpus in [0, 255] {
        let text = load_text(&memory, &BootSource { cpus, ..source(&kernel) });
        assert!(text.contains(&format!("{cpus} vCPUs asked for; 1 to 254")), "{text}");
    }
}

proptest! {
    #[test]
    fn arbitrary_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..2000)) {
        prop_assert!(load(&ram(2 << 20), &source(&bytes)).is_err());
    }

    #[test]
    fn damaged_elf_never_panics(flips in proptest::collection::vec((0_usize..200, any::<u8>()), 1..10)) {
        let mut elf = TestElf::default().build();
        for (at, value) in flips {
            elf[at] = value;
        }
        let _ = load(&ram(2 << 20), &source(&elf)).map_err(|error| error.to_string());
    }

    #[test]
    fn damaged_setup_headers_never_panic(flips in proptest::collection::vec((0x1f0_usize..0x250, any::<u8>()), 1..10)) {
        let mut image = bzimage(&TestElf::default().build());
        for (at, value) in flips {
            image[at] = value;
        }
        let _ = load(&ram(2 << 20), &source(&image)).map_err(|error| error.to_string());
    }
}

#[test]
fn setup_headers_cut_anywhere_never_panic() {
    let image = bzimage(&TestElf::default().build());
    for len in 0..0x300 {
        assert!(load(&ram(2 << 20), &source(&image[..len])).is_err(), "{len}");
    }
}
