//! All methods by the same tests: what comes back, what isn't worth it, and what a hostile block can do.

use proptest::prelude::*;

use super::*;
use crate::vm::PAGE_BYTES;

const PAGE: usize = PAGE_BYTES as usize;

/// Words of a small vocabulary.
fn text(pages: usize, seed: u64) -> Vec<u8> {
    let words = [&b"memory "[..], b"guest ", b"of the ", b"page\n", b"\0\0\0\x01", b"destination "];
    let mut state = seed | 1;
    let mut bytes = Vec::new();
    while bytes.len() < pages * PAGE {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        bytes.extend_from_slice(words[(state >> 33) as usize % words.len()]);
    }
    bytes.truncate(pages * PAGE);
    bytes
}

fn noise(pages: usize, seed: u64) -> Vec<u8> {
    let mut state = seed | 1;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state
    };
    (0..pages * PAGE / 8).flat_map(|_| next().to_le_bytes()).collect()
}

fn block(method: &Method, pages: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    let mut compressor = (method.compressor)(method.default_level).unwrap();
    assert!(compressor.compress(pages, &mut out), "{}", method.name);
    out
}

#[test]
fn names_numbers_and_levels_are_one_each() {
    for row in METHODS {
        assert_eq!(method(row.name).unwrap().encoding, row.encoding);
        assert_eq!(method_of(row.encoding).unwrap().name, row.name);
        assert!(row.levels.contains(&row.default_level));
        // A level that doesn't exist is the nearest, not a failure.
        for level in [0, u32::MAX].into_iter().chain(row.levels.clone()) {
            let mut out = Vec::new();
            assert!((row.compressor)(level).unwrap().compress(&text(4, 1), &mut out));
        }
    }
    assert!(method("none").is_none() && method_of(0).is_none());
}

#[test]
fn each_group_stands_for_itself_and_blocks_are_appended() {
    for method in METHODS {
        let mut compressor = (method.compressor)(method.default_level).unwrap();
        let mut decompressor = (method.decompressor)().unwrap();
        let groups: Vec<Vec<u8>> =
            (1..=GROUP_PAGES_MAX).flat_map(|pages| [text(pages, pages as u64), noise(pages, 5)]).collect();
        let mut out = b"what was there".to_vec();
        let mut ends = vec![out.len()];
        for (index, group) in groups.iter().enumerate() {
            assert_eq!(compressor.compress(group, &mut out), index % 2 == 0, "{} {index}", method.name);
            ends.push(out.len());
        }
        assert!(out.starts_with(b"what was there"));
        // In another order than they were made.
        for index in (0..groups.len()).rev().filter(|index| index % 2 == 0) {
            let block = &out[ends[index]..ends[index + 1]];
            let mut pages = vec![0xee; groups[index].len()];
            decompressor.decompress(block, &mut pages).unwrap();
            assert!(pages == groups[index], "{} {index}", method.name);
            assert!(block.len() * 8 <= pages.len() * 7);
        }
    }
}

#[test]
fn a_saving_under_an_eighth_is_none() {
    for method in METHODS {
        let mut compressor = (method.compressor)(method.default_level).unwrap();
        let mixed = |noise_pages| [noise(noise_pages, 3), text(16 - noise_pages, 3)].concat();
        let mut out = Vec::new();
        assert!(!compressor.compress(&mixed(15), &mut out) && out.is_empty(), "{}", method.name);
        assert!(compressor.compress(&mixed(8), &mut out), "{}", method.name);
    }
}

#[test]
fn a_block_of_another_length_is_an_error_and_a_bomb_too() {
    for method in METHODS {
        let mut decompressor = (method.decompressor)().unwrap();
        let block_of_4 = block(method, &text(4, 9));
        let bomb = block(method, &vec![7; 16 * PAGE]);
        for (block, due) in [(&block_of_4, 3), (&block_of_4, 5), (&block_of_4, 0), (&bomb, 1), (&bomb, 15)] {
            let error = decompressor.decompress(block, &mut vec![0; due * PAGE]).unwrap_err().to_string();
            assert!(error.contains(method.name) && error.contains(&(due * PAGE).to_string()), "{error}");
        }
        for (damaged, why) in [
            (block_of_4[..block_of_4.len() - 1].to_vec(), "cut"),
            ([&block_of_4[..], &[0]].concat(), "longer"),
            ([&block_of_4[..], &block_of_4[..]].concat(), "doubled"),
            (Vec::new(), "empty"),
        ] {
            let result = decompressor.decompress(&damaged, &mut vec![0; 4 * PAGE]);
            assert!(result.is_err(), "{} {why}", method.name);
        }
        // It is still good for a block that is one.
        let mut pages = vec![0; 4 * PAGE];
        decompressor.decompress(&block_of_4, &mut pages).unwrap();
        assert!(pages == text(4, 9));
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn any_pages_come_back(pages in 1usize..=16, seed: u64, noise_bytes in 0usize..40_000) {
        let mut group = text(pages, seed);
        let end = noise_bytes.min(group.len());
        group[..end].copy_from_slice(&noise(pages, seed)[..end]);
        for method in METHODS {
            let mut out = Vec::new();
            if (method.compressor)(method.default_level).unwrap().compress(&group, &mut out) {
                let mut back = vec![0; group.len()];
                (method.decompressor)().unwrap().decompress(&out, &mut back).unwrap();
                prop_assert!(back == group);
            }
        }
    }

    #[test]
    fn any_bytes_are_a_block_or_an_error(
        bytes in prop::collection::vec(any::<u8>(), 0..300), at: usize, by: u8, which in 0usize..3,
    ) {
        let method = &METHODS[which];
        let mut decompressor = (method.decompressor)().unwrap();
        let mut out = vec![0; 2 * PAGE];
        _ = decompressor.decompress(&bytes, &mut out);
        let mut near = block(method, &text(2, 1));
        let at = at % near.len();
        near[at] ^= by;
        _ = decompressor.decompress(&near, &mut out);
    }
}

/// Some pages of noise, then text: around the border of what is worth it.
fn mixed(noisy: usize, pages: usize, seed: u64) -> Vec<u8> {
    let noisy = noisy.min(pages);
    [noise(noisy, seed), text(pages - noisy, seed)].concat()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(32))]
    /// A group that was given up in the middle leaves nothing to those behind it.
    #[test]
    fn groups_behind_one_that_was_given_up_come_back(
        groups in prop::collection::vec((0usize..=16, 1usize..=16, any::<u64>()), 1..20),
    ) {
        for method in METHODS {
            let mut compressor = (method.compressor)(method.default_level).unwrap();
            let mut decompressor = (method.decompressor)().unwrap();
            for (noisy, pages, seed) in &groups {
                let group = mixed(*noisy, *pages, *seed);
                let mut out = Vec::new();
                if compressor.compress(&group, &mut out) {
                    let mut back = vec![0xee; group.len()];
                    let done = decompressor.decompress(&out, &mut back);
                    prop_assert!(done.is_ok() && back == group, "{} {noisy} of {pages}: {done:?}", method.name);
                }
            }
        }
    }
}
