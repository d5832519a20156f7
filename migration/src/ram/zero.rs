//! Is a page all zero? Reads memory that a guest may be writing, so it works on addresses, never on slices.
//!
//! A page that is being written while it is looked at may be called either; the write has marked it dirty
//! then, and it is looked at again.

#![allow(unsafe_code, reason = "volatile reads and SSE2 loads of memory that the guest writes meanwhile")]

/// Bytes looked at between two decisions.
const BLOCK_BYTES: usize = 128;

/// # Safety
///
/// `bytes` bytes at `start` are mapped and readable; `start` is a multiple of 16 and `bytes` of 128.
pub(crate) unsafe fn is_zero(start: *const u8, bytes: usize) -> bool {
    debug_assert!(start.addr().is_multiple_of(16) && bytes.is_multiple_of(BLOCK_BYTES));
    (0..bytes).step_by(BLOCK_BYTES).all(|offset| {
        // SAFETY: the block is inside what the caller vouches for, and aligned as its start is.
        unsafe { block_is_zero(start.wrapping_add(offset)) }
    })
}

/// # Safety
///
/// 128 bytes at `block` are mapped and readable, and `block` is a multiple of 16.
#[cfg(target_arch = "x86_64")]
unsafe fn block_is_zero(block: *const u8) -> bool {
    use std::arch::x86_64::{
        __m128i, _mm_cmpeq_epi8, _mm_load_si128, _mm_movemask_epi8, _mm_or_si128, _mm_setzero_si128,
    };
    let block = block.cast::<__m128i>();
    // SAFETY: eight aligned loads are the 128 bytes that the caller vouches for. They are the intrinsic's
    // own instruction; whatever value a racing write leaves in them is a valid integer. SSE2 is part of
    // x86-64.
    unsafe {
        let load = |index: usize| _mm_load_si128(block.wrapping_add(index));
        let first = _mm_or_si128(_mm_or_si128(load(0), load(1)), _mm_or_si128(load(2), load(3)));
        let second = _mm_or_si128(_mm_or_si128(load(4), load(5)), _mm_or_si128(load(6), load(7)));
        let equal = _mm_cmpeq_epi8(_mm_or_si128(first, second), _mm_setzero_si128());
        _mm_movemask_epi8(equal) == 0xffff
    }
}

/// # Safety
///
/// 128 bytes at `block` are mapped and readable, and `block` is a multiple of 16.
#[cfg(not(target_arch = "x86_64"))]
unsafe fn block_is_zero(block: *const u8) -> bool {
    // SAFETY: the caller's promise is the same.
    unsafe { block_is_zero_scalar(block) }
}

/// The same in plain words: for other processors, and to test the fast one against.
///
/// # Safety
///
/// 128 bytes at `block` are mapped and readable, and `block` is a multiple of 16.
#[cfg(any(test, not(target_arch = "x86_64")))]
unsafe fn block_is_zero_scalar(block: *const u8) -> bool {
    let words = block.cast::<u64>();
    // SAFETY: sixteen aligned words are the 128 bytes that the caller vouches for.
    (0..16).fold(0, |all, index| all | unsafe { words.wrapping_add(index).read_volatile() }) == 0
}

/// [`is_zero`] for bytes of ours, for measurements. False unless they are aligned to 16 and a multiple of
/// 128 long.
#[doc(hidden)]
pub fn is_zero_slice(bytes: &[u8]) -> bool {
    let fits = bytes.as_ptr().addr().is_multiple_of(16) && bytes.len().is_multiple_of(BLOCK_BYTES);
    // SAFETY: a slice is mapped and readable, and its alignment and length were just checked.
    fits && unsafe { is_zero(bytes.as_ptr(), bytes.len()) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[repr(align(4096))]
    struct Page([u8; 4096]);

    fn scalar(page: &Page) -> bool {
        (0..4096).step_by(BLOCK_BYTES).all(|at| {
            // SAFETY: the block is inside the page.
            unsafe { block_is_zero_scalar(page.0.as_ptr().wrapping_add(at)) }
        })
    }

    proptest! {
        #[test]
        fn fast_and_plain_agree_with_the_truth(
            bytes in prop::collection::vec((0usize..4096, any::<u8>()), 0..3),
        ) {
            let mut page = Page([0; 4096]);
            bytes.iter().for_each(|(at, value)| page.0[*at] = *value);
            let truth = page.0.iter().all(|byte| *byte == 0);
            prop_assert_eq!((is_zero_slice(&page.0), scalar(&page)), (truth, truth));
        }
    }

    #[test]
    fn every_single_bit_counts() {
        let mut page = Page([0; 4096]);
        for bit in 0..4096 * 8 {
            page.0[bit / 8] = 1 << (bit % 8);
            assert!(!is_zero_slice(&page.0) && !scalar(&page), "bit {bit}");
            page.0[bit / 8] = 0;
        }
        assert!(is_zero_slice(&page.0) && scalar(&page));
    }
}
