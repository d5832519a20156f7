//! Which bytes of two pages differ: a bit for each, as fast as the processor compares. All versions have the same
//! result, so all that follows is written once.

#![allow(unsafe_code, reason = "SSE2 and AVX2 loads, and functions that need AVX2")]

use super::PageBytes;
#[cfg(target_arch = "x86_64")]
pub(super) use x86::{avx2, sse2};

/// Bit n of word m is byte 64 m + n.
pub(super) type Masks = [u64; 64];

/// A bit is set where the bytes differ.
pub(super) fn differing(old: &PageBytes, new: &PageBytes) -> Masks {
    #[cfg(target_arch = "x86_64")]
    {
        if std::arch::is_x86_feature_detected!("avx2") {
            // SAFETY: the processor has AVX2.
            return unsafe { avx2(old, new) };
        }
        sse2(old, new)
    }
    #[cfg(not(target_arch = "x86_64"))]
    scalar(old, new)
}

/// 64 bytes at a time of both pages.
fn each(old: &PageBytes, new: &PageBytes, mut differing: impl FnMut(&[u8; 64], &[u8; 64]) -> u64) -> Masks {
    let mut masks = [0; 64];
    let (old, new) = (old.as_chunks().0, new.as_chunks().0);
    for (mask, (old, new)) in masks.iter_mut().zip(old.iter().zip(new)) {
        *mask = differing(old, new);
    }
    masks
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use std::arch::x86_64::{
        __m128i, __m256i, _mm_cmpeq_epi8, _mm_loadu_si128, _mm_movemask_epi8, _mm256_cmpeq_epi8,
        _mm256_loadu_si256, _mm256_movemask_epi8,
    };

    use super::{Masks, PageBytes, each};

    pub(crate) fn sse2(old: &PageBytes, new: &PageBytes) -> Masks {
        each(old, new, |old, new| {
            let (old, new) = (old.as_ptr().cast::<__m128i>(), new.as_ptr().cast::<__m128i>());
            let part = |index: usize| {
                // SAFETY: four unaligned loads of 16 bytes are the 64 bytes of each. SSE2 is part of x86-64.
                let equal = unsafe {
                    let (old, new) = (_mm_loadu_si128(old.add(index)), _mm_loadu_si128(new.add(index)));
                    _mm_movemask_epi8(_mm_cmpeq_epi8(old, new))
                };
                u64::from(equal as u16) << (16 * index)
            };
            !(part(0) | part(1) | part(2) | part(3))
        })
    }

    #[target_feature(enable = "avx2")]
    pub(crate) fn avx2(old: &PageBytes, new: &PageBytes) -> Masks {
        each(old, new, |old, new| {
            let (old, new) = (old.as_ptr().cast::<__m256i>(), new.as_ptr().cast::<__m256i>());
            let part = |index: usize| {
                // SAFETY: two unaligned loads of 32 bytes are the 64 bytes of each.
                let equal = unsafe {
                    _mm256_cmpeq_epi8(_mm256_loadu_si256(old.add(index)), _mm256_loadu_si256(new.add(index)))
                };
                u64::from(_mm256_movemask_epi8(equal) as u32) << (32 * index)
            };
            !(part(0) | part(1))
        })
    }
}

/// The same in plain words: for other processors, and to test the fast ones against.
#[cfg(any(test, not(target_arch = "x86_64")))]
pub(super) fn scalar(old: &PageBytes, new: &PageBytes) -> Masks {
    const LOW: u64 = 0x7f7f_7f7f_7f7f_7f7f;
    // Times this, the lowest bits of the eight bytes are the highest byte.
    const GATHER: u64 = 0x0102_0408_1020_4080;
    each(old, new, |old, new| {
        let words = old.as_chunks().0.iter().zip(new.as_chunks().0).enumerate();
        words.fold(0, |mask, (index, (old, new))| {
            let changed = u64::from_le_bytes(*old) ^ u64::from_le_bytes(*new);
            // The highest bit of each byte that isn't zero.
            let high = (((changed & LOW) + LOW) | changed) & !LOW;
            mask | ((high >> 7).wrapping_mul(GATHER) >> 56) << (8 * index)
        })
    })
}
