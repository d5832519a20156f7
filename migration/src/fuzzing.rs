//! Private parsers, each as a function that says whether it took the bytes. For the fuzz targets alone; the
//! larger parts are driven through the crate's own API.

use crate::wire::{
    Agreed, Commit, Failed, HEADER_BYTES, Header, Hello, Offer, Prepared, Refused, RoundEnd, Running,
};
use tern_schema::{Record, decode_record, encode_record};

/// The hash of a whole encoded state, as a file's index has it.
pub fn state_hash(bytes: &[u8]) -> u64 {
    crate::ram::proof::state_hash(bytes)
}

/// A header and what it covers.
pub fn frame(bytes: &[u8]) -> bool {
    let Some((header, payload)) = bytes.split_first_chunk::<HEADER_BYTES>() else { return false };
    let Ok(read) = Header::read(header) else { return false };
    let covered = payload.get(..read.head as usize);
    covered.is_some_and(|covered| read.check(header, covered).is_ok())
}

/// A message: the first byte says which, the rest is the record. What is taken must come back as it is.
pub fn message(bytes: &[u8]) -> bool {
    let Some((which, bytes)) = bytes.split_first() else { return false };
    match which % 9 {
        0 => comes_back::<Hello>(bytes),
        1 => comes_back::<Offer>(bytes),
        2 => comes_back::<Agreed>(bytes),
        3 => comes_back::<Refused>(bytes),
        4 => comes_back::<RoundEnd>(bytes),
        5 => comes_back::<Prepared>(bytes),
        6 => comes_back::<Commit>(bytes),
        7 => comes_back::<Running>(bytes),
        _ => comes_back::<Failed>(bytes),
    }
}

fn comes_back<R: Record + PartialEq>(bytes: &[u8]) -> bool {
    let Ok(record) = decode_record::<R>(bytes) else { return false };
    assert!(decode_record::<R>(&encode_record(&record)).as_ref() == Ok(&record), "{} changed", R::RECORD);
    true
}
