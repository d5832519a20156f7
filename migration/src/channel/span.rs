//! Pieces of memory that the kernel reads for a send or fills on a receive: bytes of ours, or guest memory.
//!
//! Guest memory changes while it is read, so it is never a Rust slice: only its address travels, and mostly
//! only the kernel looks at what is there. That makes a send of guest memory sound, and free of copies. Where
//! bytes must be looked at here (encryption), they are first copied word by word, each read once.

#![allow(unsafe_code, reason = "one constructor has a condition that only its caller can keep")]

use std::marker::PhantomData;
use std::ptr;

/// What one load reads.
#[cfg(target_arch = "x86_64")]
type Word = std::arch::x86_64::__m128i;
#[cfg(not(target_arch = "x86_64"))]
type Word = u64;

/// Bytes to send.
#[derive(Debug)]
#[repr(transparent)]
pub struct OutSpan<'a>(libc::iovec, PhantomData<&'a [u8]>);

/// Room for bytes to receive.
#[derive(Debug)]
#[repr(transparent)]
pub struct InSpan<'a>(libc::iovec, PhantomData<&'a mut [u8]>);

impl<'a> OutSpan<'a> {
    pub(crate) const fn bytes(bytes: &'a [u8]) -> Self {
        let iov_base = bytes.as_ptr().cast_mut().cast();
        Self(libc::iovec { iov_base, iov_len: bytes.len() }, PhantomData)
    }
}

impl<'a> InSpan<'a> {
    pub(crate) fn buffer(bytes: &'a mut [u8]) -> Self {
        let iov_base = bytes.as_mut_ptr().cast();
        Self(libc::iovec { iov_base, iov_len: bytes.len() }, PhantomData)
    }
}

macro_rules! span {
    ($span:ident) => {
        impl<'a> $span<'a> {
            /// Guest memory.
            ///
            /// # Safety
            ///
            /// All of it is guest memory that stays mapped for the whole of `'a`.
            pub(crate) unsafe fn guest(address: *mut u8, len: usize) -> Self {
                Self(libc::iovec { iov_base: address.cast(), iov_len: len }, PhantomData)
            }

            pub(crate) fn len(&self) -> usize {
                self.0.iov_len
            }

            /// Makes it longer if `next` begins where it ends.
            pub(crate) fn join(&mut self, next: &Self) -> bool {
                let end = self.0.iov_base.cast::<u8>().wrapping_add(self.0.iov_len);
                let adjacent = ptr::eq(end, next.0.iov_base.cast());
                if adjacent {
                    self.0.iov_len += next.0.iov_len;
                }
                adjacent
            }

            /// Takes `done` bytes from the front of `spans`; returns how many spans are empty then.
            pub(crate) fn advance(spans: &mut [Self], mut done: usize) -> usize {
                let mut empty = 0;
                for span in spans {
                    let step = done.min(span.0.iov_len);
                    span.0.iov_base = span.0.iov_base.cast::<u8>().wrapping_add(step).cast();
                    span.0.iov_len -= step;
                    done -= step;
                    if span.0.iov_len > 0 {
                        break;
                    }
                    empty += 1;
                }
                empty
            }
        }
    };
}
span!(OutSpan);
span!(InSpan);

impl<'a> OutSpan<'a> {
    /// Itself in pieces of so many bytes, the last one shorter.
    pub(crate) fn pieces(&self, bytes: usize) -> impl Iterator<Item = OutSpan<'a>> + use<'a> {
        let (base, all) = (self.0.iov_base, self.0.iov_len);
        (0..all).step_by(bytes.max(1)).map(move |start| {
            let iov_base = base.cast::<u8>().wrapping_add(start).cast();
            Self(libc::iovec { iov_base, iov_len: bytes.max(1).min(all - start) }, PhantomData)
        })
    }
}

impl OutSpan<'_> {
    /// Copies it to the end of `buffer`, up to `buffer_max_bytes` there; returns how many bytes. What a guest writes
    /// meanwhile is a mixture, and the page is dirty again.
    pub(crate) fn append_to(&self, buffer: &mut Vec<u8>, buffer_max_bytes: usize) -> usize {
        let count = self.len().min(buffer_max_bytes.saturating_sub(buffer.len()));
        buffer.reserve(count);
        let room = buffer.spare_capacity_mut();
        // SAFETY: `count` bytes from the span's address are mapped while it lives, and `reserve` has made as much room;
        // the two don't overlap, since the span was made before the room was borrowed.
        unsafe { copy_volatile(self.0.iov_base.cast(), room.as_mut_ptr().cast(), count) };
        // SAFETY: just that many were written.
        unsafe { buffer.set_len(buffer.len() + count) };
        count
    }
}

/// Copies bytes that others may write meanwhile.
///
/// # Safety
///
/// `from` and `to` have `count` bytes each, and don't overlap.
unsafe fn copy_volatile(from: *const u8, to: *mut u8, count: usize) {
    let head = from.align_offset(size_of::<Word>()).min(count);
    let words = (count - head) / size_of::<Word>();
    for at in (0..head).chain(head + words * size_of::<Word>()..count) {
        // SAFETY: `at` is below `count`.
        unsafe { to.add(at).write(from.add(at).read_volatile()) };
    }
    // SAFETY: `head` is at most `count`.
    let (from, to) = unsafe { (from.add(head).cast::<Word>(), to.add(head).cast::<Word>()) };
    for at in 0..words {
        // SAFETY: `head` and all words are at most `count` bytes, and `from` is aligned behind `head`.
        unsafe { to.add(at).write_unaligned(from.add(at).read_volatile()) };
    }
}

impl InSpan<'_> {
    /// Copies `bytes` into it from its byte `from` on, as far as there is room; returns how many.
    pub(crate) fn fill(&self, from: usize, bytes: &[u8]) -> usize {
        let count = bytes.len().min(self.len().saturating_sub(from));
        // SAFETY: `from + count` is at most the span's length, which is borrowed exclusively or guest memory; `bytes` is
        // memory of ours that no span covers.
        unsafe { self.address().wrapping_add(from).copy_from_nonoverlapping(bytes.as_ptr(), count) };
        count
    }

    pub(crate) fn address(&self) -> *mut u8 {
        self.0.iov_base.cast()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_span_is_copied_from_any_place_and_in_any_length() {
        let bytes: Vec<u8> = (0..=255).cycle().take(600).collect();
        for (from, to) in (0..40).zip(560..600).chain([(0, 0), (3, 4), (1, 17), (16, 48)]) {
            let mut buffer = vec![9; 2];
            assert_eq!(OutSpan::bytes(&bytes[from..to]).append_to(&mut buffer, 1000), to - from);
            assert_eq!((&buffer[..2], &buffer[2..]), (&[9, 9][..], &bytes[from..to]));
        }
        let mut buffer = vec![0; 90];
        assert_eq!(OutSpan::bytes(&bytes).append_to(&mut buffer, 100), 10);
        assert_eq!(OutSpan::bytes(&bytes).append_to(&mut buffer, 100), 0);
        let mut room = [0; 5];
        let span = InSpan::buffer(&mut room);
        assert_eq!((span.fill(0, b"ab"), span.fill(2, b"cdef"), span.fill(5, b"x")), (2, 3, 0));
        assert_eq!(&room, b"abcde");
    }

    #[test]
    fn spans_advance_over_their_borders() {
        let bytes = [0u8; 10];
        let mut spans =
            [OutSpan::bytes(&bytes[..4]), OutSpan::bytes(&bytes[..0]), OutSpan::bytes(&bytes[4..])];
        assert_eq!(OutSpan::advance(&mut spans, 3), 0);
        assert_eq!(OutSpan::advance(&mut spans, 2), 2);
        assert_eq!(spans.iter().map(OutSpan::len).sum::<usize>(), 5);
        let (mut one, two) = (OutSpan::bytes(&bytes[..4]), OutSpan::bytes(&bytes[4..]));
        assert!(one.join(&two) && one.len() == 10 && !one.join(&two));
        assert_eq!(one.pieces(4).map(|piece| piece.len()).collect::<Vec<_>>(), [4, 4, 2]);
    }
}
