//! Decisions, as functions of figures: no clock and no socket inside.

pub(crate) mod downtime;
pub(crate) mod encoding;
pub(crate) mod link;
pub(crate) mod postcopy;
pub(crate) mod push_order;
