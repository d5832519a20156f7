//! Guest memory as the engine sees it: pages of regions, how they are encoded, and how a batch of them
//! looks on the wire.

mod batch;
mod cache;
pub(crate) mod compress;
mod decoder;
mod encode;
mod encoder;
mod group;
mod guest;
pub(crate) mod job;
mod known;
pub(crate) mod pool;
pub(crate) mod proof;
mod receive;
pub(crate) mod xbzrle;
mod zero;

pub(crate) use batch::{BATCH_PAGES_MAX, Batch, PageRecord, RECORD_BYTES};
pub(crate) use cache::PageCache;
pub(crate) use decoder::{Coded, Decoder};
pub(crate) use encode::{ENCODINGS, ENCODINGS_MASK, ENCODINGS_PLAIN, Encoding, EncodingInfo, encoding_names};
pub(crate) use encoder::{Encoder, Outgoing};
pub(crate) use group::{Auto, Compression};
pub(crate) use guest::RamView;
pub(crate) use known::{DIGEST_BYTES, DIGESTS_PER_FRAME, KnownSet, PageDigest};
pub(crate) use receive::{Decoding, Incoming, PageReceiver, PageRounds, check as check_records};
#[doc(hidden)]
pub use zero::is_zero_slice;

/// Pages whose dirty bits are cleared at once, just before they are read. A multiple of 64.
pub(crate) const CHUNK_PAGES: u64 = 2048;
