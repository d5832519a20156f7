//! bzImages of each compression, and broken ones.

use std::io::{Cursor, Write};

use lzma_rust2::{CheckType, FilterType, XzOptions, XzWriter};
use proptest::prelude::*;

use super::*;
use crate::boot::image::opened_bytes;
use crate::boot::testing::{TestElf, bzimage};

const MEMORY_BYTES: u64 = 64 << 20;

fn with_size(mut packed: Vec<u8>, unpacked: &[u8]) -> Vec<u8> {
    packed.extend((unpacked.len() as u32).to_le_bytes());
    packed
}

fn gzip(content: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::best());
    encoder.write_all(content).unwrap();
    encoder.finish().unwrap()
}

/// As the kernel's `xz_wrap.sh` does: x86 filter, LZMA2, CRC32.
fn xz(content: &[u8]) -> Vec<u8> {
    let mut options = XzOptions::with_preset(6);
    options.set_check_sum_type(CheckType::Crc32);
    options.prepend_pre_filter(FilterType::BcjX86, 0);
    let mut writer = XzWriter::new(Vec::new(), options).unwrap();
    writer.write_all(content).unwrap();
    with_size(writer.finish().unwrap(), content)
}

fn zstd(content: &[u8]) -> Vec<u8> {
    let level = ruzstd::encoding::CompressionLevel::Fastest;
    with_size(ruzstd::encoding::compress_to_vec(Cursor::new(content), level), content)
}

fn lz4(content: &[u8]) -> Vec<u8> {
    let mut frame = vec![0x02, 0x21, 0x4c, 0x18];
    for block in content.chunks(LZ4_LEGACY_BLOCK_BYTES) {
        let packed = lz4_flex::block::compress(block);
        frame.extend((packed.len() as u32).to_le_bytes());
        frame.extend(packed);
    }
    with_size(frame, content)
}

fn unpack_bytes(image: &[u8], memory_bytes: u64) -> Result<(Compression, Vec<u8>), BootError> {
    let head = &image[..image.len().min(HEADER_BYTES)];
    unpack(&mut opened_bytes("vmlinuz", image), head, memory_bytes)
}

fn unpack_error(image: &[u8], memory_bytes: u64) -> String {
    let error = unpack_bytes(image, memory_bytes).unwrap_err();
    let cause = std::error::Error::source(&error).map(|cause| format!(" / {cause}")).unwrap_or_default();
    format!("{error}{cause}")
}

type Packer = fn(&[u8]) -> Vec<u8>;

fn all_packers() -> [(Compression, Packer); 4] {
    [(Compression::Gzip, gzip), (Compression::Xz, xz), (Compression::Zstd, zstd), (Compression::Lz4, lz4)]
}

#[test]
fn each_compression_unpacks() {
    let elf = TestElf::default().build();
    for (compression, pack) in all_packers() {
        let packed = pack(&elf);
        assert!(packed.len() < elf.len(), "{compression} did not pack");
        assert_eq!(unpack_bytes(&bzimage(&packed), MEMORY_BYTES).unwrap(), (compression, elf.clone()));
    }
}

#[test]
fn lz4_of_several_blocks_unpacks() {
    let content: Vec<u8> = (0..LZ4_LEGACY_BLOCK_BYTES + 1000).map(|i| (i / 3000) as u8).collect();
    assert_eq!(unpack_bytes(&bzimage(&lz4(&content)), MEMORY_BYTES).unwrap(), (Compression::Lz4, content));
}

#[test]
fn an_unpacked_payload_is_taken_as_it_is() {
    let elf = TestElf::default().build();
    assert_eq!(unpack_bytes(&bzimage(&elf), MEMORY_BYTES).unwrap(), (Compression::Plain, elf));
}

#[test]
fn other_compressions_are_named() {
    for (magic, name) in [(&b"BZh9"[..], "bzip2"), (b"\x5d\0\0\x80", "lzma"), (b"\x89LZO", "lzo")] {
        let text = unpack_error(&bzimage(magic), MEMORY_BYTES);
        assert!(text.contains(&format!("packed as {name}")) && text.contains("CONFIG_KERNEL_ZSTD"), "{text}");
    }
    let text = unpack_error(&bzimage(b"\x01\x02\x03\x04"), MEMORY_BYTES);
    assert!(text.contains("an unknown format (beginning with [01 02 03 04])"), "{text}");
}

#[test]
fn bombs_are_refused_by_what_they_say_and_by_what_they_do() {
    let content = vec![0_u8; 3 << 20];
    for (compression, pack) in all_packers() {
        let honest = unpack_error(&bzimage(&pack(&content)), 1 << 20);
        assert!(
            honest.contains("unpacks to 3145728 bytes, the limit here is 1048576"),
            "{compression}: {honest}"
        );
        let mut lying = pack(&content);
        let size = lying.len() - 4;
        lying[size..].copy_from_slice(&1000_u32.to_le_bytes());
        let caught = unpack_error(&bzimage(&lying), 1 << 20);
        // lz4 unpacks a block at a time and may overshoot the 1001 bytes asked for; by no more than that.
        let stopped = caught.contains("it says 1000") || caught.contains("the limit here is 1048576");
        assert!(stopped, "{compression}: {caught}");
    }
}

#[test]
fn damaged_payloads_say_so() {
    let elf = TestElf::default().build();
    for (compression, pack) in all_packers() {
        let mut packed = pack(&elf);
        packed.truncate(packed.len() / 2);
        let text = unpack_error(&bzimage(&with_size(packed, &elf)), MEMORY_BYTES);
        assert!(text.contains("vmlinuz"), "{compression}: {text}");
    }
}

#[test]
fn header_fields_are_checked_with_both_values() {
    let image = bzimage(&gzip(b"x"));
    let with = |at: usize, bytes: &[u8]| {
        let mut image = image.clone();
        image[at..at + bytes.len()].copy_from_slice(bytes);
        image
    };
    let old = unpack_error(&with(VERSION, &[4, 2]), MEMORY_BYTES);
    assert!(old.contains("2.04, needed is 2.08"), "{old}");
    let far = unpack_error(&with(PAYLOAD_OFFSET, &[0xff; 4]), MEMORY_BYTES);
    assert!(far.contains("payload is 0x1000009ff.."), "{far}");
    let long = unpack_error(&with(PAYLOAD_LENGTH, &[0xff; 4]), MEMORY_BYTES);
    assert!(long.contains("the file has"), "{long}");
    let none = unpack_error(&with(PAYLOAD_LENGTH, &[0; 4]), MEMORY_BYTES);
    assert!(none.contains("payload is 0xb00..0xb00"), "{none}");
}

#[test]
fn truncation_anywhere_is_an_error() {
    let image = bzimage(&xz(&TestElf::default().build()));
    let payload_end = image.len() - b"signature".len();
    for len in 0..payload_end {
        assert!(unpack_bytes(&image[..len], MEMORY_BYTES).is_err(), "{len} of {payload_end} bytes");
    }
    assert!(unpack_bytes(&image[..payload_end], MEMORY_BYTES).is_ok());
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn flipped_bytes_never_panic(which in 0_usize..4, flips in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..8)) {
        let mut payload = all_packers()[which].1(&TestElf::default().build());
        for (at, value) in flips {
            let at = at.index(payload.len());
            payload[at] = value;
        }
        let _ = unpack_bytes(&bzimage(&payload), 1 << 20).map_err(|error| error.to_string());
    }

    #[test]
    fn arbitrary_payloads_never_panic(which in 0_usize..4, tail in proptest::collection::vec(any::<u8>(), 0..400)) {
        let mut payload = SUPPORTED[which].0.to_vec();
        payload.extend(tail);
        let _ = unpack_bytes(&bzimage(&payload), 1 << 20).map_err(|error| error.to_string());
    }
}
