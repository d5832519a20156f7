//! Decisions, as functions of figures: no clock and no socket inside.

pub(crate) mod downtime;
#[cfg_attr(not(test), expect(dead_code, reason = "the encoder that uses it comes with the page pipeline"))]
pub(crate) mod encoding;
pub(crate) mod link;
