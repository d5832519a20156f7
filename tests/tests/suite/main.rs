//! Real guests through the built binary. Every test starts processes of its own and leaves none behind, so they
//! run side by side; only the tests of the Linux guest, whose boot takes seconds, share one among several checks.

#![expect(clippy::unwrap_used, clippy::expect_used, reason = "these are tests: what is missing fails them")]

mod again;
mod balloon;
mod boot;
mod booted;
mod capabilities;
mod channels;
mod check;
mod command_line;
mod compressed;
mod control;
mod cuts;
mod deaths;
mod descriptors;
mod dirty_log;
mod disk_trouble;
mod files;
mod generation;
mod handover;
mod in_flight;
mod inspect;
mod kernel_files;
mod known;
mod linux;
mod linux_moves;
mod migration;
mod next_version;
mod other_places;
mod parameters;
mod phases;
mod postcopy;
mod restore;
mod save;
mod secure;
mod strangers;
mod under_load;
