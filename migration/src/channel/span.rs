//! Pieces of memory that the kernel reads for a send or fills on a receive: bytes of ours, or guest memory.
//!
//! Guest memory changes while it is read, so it is never a Rust slice: only its address travels, and only
//! the kernel looks at what is there. That makes a send of guest memory sound, and free of copies.

#![allow(unsafe_code, reason = "one constructor has a condition that only its caller can keep")]

use std::marker::PhantomData;
use std::ptr;

/// Bytes to send.
#[derive(Debug)]
#[repr(transparent)]
pub struct OutSpan<'a>(libc::iovec, PhantomData<&'a [u8]>);

/// Room for bytes to receive.
#[derive(Debug)]
#[repr(transparent)]
pub struct InSpan<'a>(libc::iovec, PhantomData<&'a mut [u8]>);

impl<'a> OutSpan<'a> {
    pub(crate) fn bytes(bytes: &'a [u8]) -> Self {
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

impl InSpan<'_> {
    pub(crate) fn address(&self) -> *mut u8 {
        self.0.iov_base.cast()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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
