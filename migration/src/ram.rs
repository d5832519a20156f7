//! Guest memory as the engine sees it: pages of regions, how they are encoded, and how a batch of them
//! looks on the wire.

mod batch;
#[cfg_attr(not(test), expect(dead_code, reason = "the encoder that uses it comes with the page pipeline"))]
mod cache;
#[cfg_attr(not(test), expect(dead_code, reason = "the encoder that uses it comes with the page pipeline"))]
pub(crate) mod compress;
mod encode;
mod guest;
pub(crate) mod proof;
mod receive;
mod send;
#[cfg_attr(
    not(any(test, feature = "fuzz")),
    expect(dead_code, reason = "the encoder that uses it comes with the page pipeline")
)]
pub(crate) mod xbzrle;
mod zero;

pub(crate) use batch::{BATCH_PAGES_MAX, Batch, PageRecord, RECORD_BYTES};
pub(crate) use encode::{ENCODINGS, ENCODINGS_MASK, Encoding, EncodingInfo, encoding_names};
pub(crate) use guest::RamView;
pub(crate) use receive::PageReceiver;
pub(crate) use send::{CHUNK_PAGES, PageSender};
#[doc(hidden)]
pub use zero::is_zero_slice;
