//! Real guests through the built binary. Every test starts processes of its own and leaves none behind, so they
//! run side by side; only the tests of the Linux guest, whose boot takes seconds, share one among several checks.

mod boot;
mod migration;
mod parameters;
mod phases;
mod strangers;
