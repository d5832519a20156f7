//! bzImages of each compression, and broken ones.
