//! Post-copy: the guest runs at the destination while part of its memory is still at the source.
//!
//! ```text
//! source                                              destination
//! pages that were not sent, or written since: M ----> drops them, and waits for whoever touches one
//! state, COMMIT ------------------------------------> the guest runs
//!   urgent connection   <---- request --------------- somebody waits for a page
//!                       ----- page-in --------------> placed, and he is woken
//!   all others          ----- page-in, page-in -----> placed before anybody asks
//!                       <---- have-all -------------- the source's copy may go
//! ```
//!
//! Each page of M is sent once a connection: who sends takes it from a [`pages::PagePool`]. How the two sides do their
//! part is in `source/serving.rs` and `destination/arrival.rs`; here is what both have, and what a machine must be able to
//! do.

pub(crate) mod batch;
pub(crate) mod lines;
pub(crate) mod pages;
pub(crate) mod request;
