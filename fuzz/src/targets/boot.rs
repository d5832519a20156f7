//! A kernel's file into guest memory.

use tern_vmm::boot::{BootImage, BootSource, load};
use tern_vmm::layout;
use vm_memory::GuestMemoryMmap;

use super::{Target, Verdict};

const RAM_BYTES: u64 = 8 << 20;

pub(super) fn target() -> Target {
    Target::new(
        "kernel",
        "an ELF vmlinux or a bzImage",
        // A payload may unpack to no more than guest memory holds; the packers' own windows come with it.
        (4 * RAM_BYTES as usize, 64),
        kernel,
        || {
            let elf = elf();
            vec![elf.clone(), bzimage(&elf)]
        },
    )
}

fn kernel(bytes: &[u8]) -> Verdict {
    let Ok(memory) = GuestMemoryMmap::<()>::from_ranges(&layout::ram_regions(RAM_BYTES)) else {
        return Verdict::Refused;
    };
    let kernel = BootImage::Bytes { name: "kernel", bytes };
    let generation_id = Default::default();
    let source = BootSource {
        kernel,
        initrd: None,
        cmdline: "",
        host_words: &[],
        cpus: 1,
        virtio: &[],
        generation_id,
    };
    match load(&memory, &source) {
        Ok(loaded) => {
            assert!(loaded.kernel_range.end <= RAM_BYTES, "{loaded:x?} is outside of memory");
            Verdict::Accepted
        }
        Err(_) => Verdict::Refused,
    }
}

/// An ELF file of one segment with a PVH note.
fn elf() -> Vec<u8> {
    const ENTRY: u64 = 0x10_0000;
    let code = [0xf4u8; 64];
    let note =
        [[4u32, 4, 18].map(u32::to_le_bytes).concat(), b"Xen\0".to_vec(), 0x10_0010u32.to_le_bytes().into()]
            .concat();
    let header = |kind: u32, offset: u64, gpa: u64, file_bytes: u64, memory_bytes: u64| {
        let numbers = [offset, gpa, gpa, file_bytes, memory_bytes, 0x1000].map(u64::to_le_bytes);
        [[kind, 5].map(u32::to_le_bytes).concat(), numbers.concat()].concat()
    };
    let (note_at, code_at) = (64 + 2 * 56, 64 + 2 * 56 + note.len() as u64);
    [
        b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0".to_vec(),
        [2u16, 62].map(u16::to_le_bytes).concat(),
        1u32.to_le_bytes().into(),
        [ENTRY, 64, 0].map(u64::to_le_bytes).concat(),
        0u32.to_le_bytes().into(),
        [64u16, 56, 2, 0, 0, 0].map(u16::to_le_bytes).concat(),
        header(1, code_at, ENTRY, code.len() as u64, 0x2000),
        header(4, note_at, 0, note.len() as u64, 0),
        note,
        code.to_vec(),
    ]
    .concat()
}

/// A bzImage around it, its payload in a gzip file of one stored block.
fn bzimage(elf: &[u8]) -> Vec<u8> {
    let length = elf.len() as u16;
    let payload = [
        &[0x1f, 0x8b, 8, 0, 0, 0, 0, 0, 0, 0xff, 1][..],
        &length.to_le_bytes(),
        &(!length).to_le_bytes(),
        elf,
        &crc32fast::hash(elf).to_le_bytes(),
        &u32::from(length).to_le_bytes(),
    ]
    .concat();
    let (start, offset) = (5 * 512, 0x100usize);
    let mut image = vec![0; start + offset];
    let fields: [(usize, &[u8]); 5] = [
        (0x1fe, &[0x55, 0xaa]),
        (0x202, b"HdrS"),
        (0x206, &[0x0f, 0x02]),
        (0x248, &(offset as u32).to_le_bytes()),
        (0x24c, &(payload.len() as u32).to_le_bytes()),
    ];
    for (at, bytes) in fields {
        image.iter_mut().skip(at).zip(bytes).for_each(|(place, byte)| *place = *byte);
    }
    // The payload's size stands behind it as well, as the kernel's build appends it.
    [image, payload].concat()
}
