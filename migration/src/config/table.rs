//! All parameters.

use std::fmt::Write as _;
use std::ops::RangeInclusive;
use std::sync::Arc;

use super::Parameters;
use super::capability::{CAPABILITIES, Capability};
use super::parameter::{Kind, Parameter, Place, Scope};
use crate::dirty::DIRTY_LOG_CHOICES;

/// What `compress` may be.
const COMPRESS: &[&str] = &["none", "lz4", "zstd", "zlib", "auto"];

/// Stands for paths with commas between them in `--help`.
pub const FILES: &str = "FILE[,FILE]";

/// The choice of `on-timeout` that ends in a long stop instead of a failure.
pub const ON_TIMEOUT_STOP: &str = "stop";

/// The choice of `postcopy` with which no guest is handed over before all of its memory is there.
pub const POSTCOPY_OFF: &str = "off";
/// The choice with which post-copy begins only when it is asked to.
pub const POSTCOPY_MANUAL: &str = "manual";
/// What `postcopy` may be.
const POSTCOPY: &[&str] =
    &[POSTCOPY_OFF, "auto", POSTCOPY_MANUAL, "at-once", "after-first-pass", "when-precopy-stops-paying"];

/// All parameters.
pub const PARAMETERS: &[Parameter] = &[
    Parameter::number("max-bandwidth", "bytes/s", 262_144..=1 << 50, 0, |p| &mut p.max_bandwidth_bytes_per_s)
        .zero_is("unlimited")
        .means("Most bytes a second that are sent while the guest runs; not applied while it is stopped."),
    Parameter::number("downtime-limit", "ms", 0..=2_000_000, 300, |p| &mut p.downtime_limit_ms)
        .means("Longest stop of the guest that is accepted: it is stopped when the rest fits into this."),
    Parameter::number("max-total-time", "ms", 1..=u32::MAX as u64, 0, |p| &mut p.max_total_time_ms)
        .zero_is("none")
        .means("Longest time before the guest is stopped; then `on-timeout` says what happens."),
    Parameter::number("channels", "connections", 1..=64, 1, |p| &mut p.channels)
        .fixed()
        .means("Connections that memory takes at the same time."),
    Parameter::choice("compress", COMPRESS, |p| &mut p.compress)
        .fixed()
        .means("How pages are compressed, up to 16 together, also in a file; auto: by what the link and the processors make best, in a file zstd."),
    Parameter::number("compress-level", "level", 1..=19, 0, |p| &mut p.compress_level)
        .zero_is("the method's default")
        .fixed()
        .means("Level of the compression; a method takes the nearest that it has: zlib has 1 to 9, zstd 1 to 19, lz4 one; auto takes the defaults."),
    Parameter::number("max-postcopy-bandwidth", "bytes/s", 262_144..=1 << 50, 0, |p| {
        &mut p.max_postcopy_bandwidth_bytes_per_s
    })
    .zero_is("unlimited")
    .means("Post-copy: most bytes a second of pages that nobody waits for; those that somebody waits for are never held back."),
    Parameter::number("postcopy-hold", "ms", 1..=u32::MAX as u64, 0, |p| &mut p.postcopy_hold_ms)
        .zero_is("none")
        .means("Post-copy: how long the source keeps its copy of memory after the destination has all of it."),
    Parameter::number("compress-threads", "threads", 1..=64, 0, |p| &mut p.compress_threads)
        .zero_is("one a CPU, at most 8")
        .fixed()
        .means("Threads that compress; as many as there are channels if those are more."),
    Parameter::number("decompress-threads", "threads", 1..=64, 0, |p| &mut p.decompress_threads)
        .zero_is("one a CPU, at most 8")
        .of(Scope::Destination)
        .fixed()
        .means("Threads that decode what is compressed or a delta."),
    Parameter::text("known", FILES, "none", |p| &mut p.known)
        .of(Scope::Destination)
        .fixed()
        .means("Snapshot files (tern save) of this guest or a like one, with commas between them: pages that are in them aren't sent."),
    Parameter::number("xbzrle-cache-size", "bytes", 1 << 20..=1 << 50, 64 << 20, |p| &mut p.xbzrle_cache_bytes)
        .fixed()
        .means("Memory for what the destination has, with which xbzrle finds out what has changed."),
    Parameter::choice("on-timeout", &["fail", ON_TIMEOUT_STOP], |p| &mut p.on_timeout)
        .means("When max-total-time is over: fail, or stop the guest and send the rest, whatever the downtime."),
    Parameter::number("switchover-limit", "ms", 1..=u32::MAX as u64, 600_000, |p| &mut p.switchover_limit_ms)
        .zero_is("none")
        .means("Longest wait of pause-before-switchover; then the migration fails and the guest runs on."),
    Parameter::number("file-threads", "threads", 1..=16, 4, |p| &mut p.file_threads)
        .of(Scope::Files)
        .fixed()
        .means("Files: threads that write."),
    Parameter::switch("direct-io", false, |p| &mut p.direct_io)
        .of(Scope::Files)
        .fixed()
        .means("Files: write memory past the host's page cache (O_DIRECT)."),
    Parameter::choice("dirty-log", DIRTY_LOG_CHOICES, |p| &mut p.dirty_log).fixed().means(
        "How the pages that the guest writes are found; auto: ring where the machine was made with one, else \
         manual-clear where the host has it.",
    ),
    Parameter::choice("tls", &["auto", "require", "off"], |p| &mut p.tls)
        .of(Scope::Each)
        .fixed()
        .means("TLS: auto uses it where there are credentials, and needs it off this host (but for exec: and fd:)."),
    Parameter::text("tls-creds", "DIR", "none", |p| &mut p.tls_creds)
        .of(Scope::Each)
        .fixed()
        .means("TLS: folder of certificates, as `tern tls init` makes it."),
    Parameter::text("tls-psk", "FILE", "none", |p| &mut p.tls_psk)
        .of(Scope::Each)
        .fixed()
        .means("TLS: file with a secret of at least 32 random bytes that both sides have, in place of certificates."),
    Parameter::text("tls-hostname", "NAME", "the address's host", |p| &mut p.tls_hostname)
        .fixed()
        .means("TLS: name that the destination's certificate must have."),
    Parameter::text("tls-allow", "NAMES", "all of the CA's", |p| &mut p.tls_allow)
        .of(Scope::Destination)
        .fixed()
        .means("TLS: names, with commas between them, of which a source's certificate must have one."),
    Parameter::choice("postcopy", POSTCOPY, |p| &mut p.postcopy).fixed().means(
        "When the guest goes on at the destination while part of its memory is still here (post-copy); auto: \
         after-first-pass; manual: by migrate-start-postcopy.",
    ),
    Parameter::switch("insecure", false, |p| &mut p.insecure)
        .of(Scope::Each)
        .fixed()
        .means("Let a guest cross a network without TLS: anybody on the way can read and change it."),
];

/// How rows are written: name and value first, then what isn't as usual.
impl Parameter {
    const fn row(name: &'static str, kind: Kind, place: Place) -> Self {
        Self { name, kind, scope: Scope::Source, fixed: false, meaning: "", place }
    }

    const fn number(
        name: &'static str,
        unit: &'static str,
        range: RangeInclusive<u64>,
        default: u64,
        place: fn(&mut Parameters) -> &mut u64,
    ) -> Self {
        Self::row(name, Kind::Number { unit, range, zero: None, default }, Place::Number(place))
    }

    const fn switch(name: &'static str, default: bool, place: fn(&mut Parameters) -> &mut bool) -> Self {
        Self::row(name, Kind::Switch { default }, Place::Switch(place))
    }

    pub(super) const fn choice(
        name: &'static str,
        names: &'static [&'static str],
        place: fn(&mut Parameters) -> &mut &'static str,
    ) -> Self {
        Self::row(name, Kind::Choice { names }, Place::Choice(place))
    }

    pub(super) const fn text(
        name: &'static str,
        form: &'static str,
        absent: &'static str,
        place: fn(&mut Parameters) -> &mut Option<Arc<str>>,
    ) -> Self {
        Self::row(name, Kind::Text { form, absent }, Place::Text(place))
    }

    const fn zero_is(mut self, meaning: &'static str) -> Self {
        if let Kind::Number { zero, .. } = &mut self.kind {
            *zero = Some(meaning);
        }
        self
    }

    const fn of(mut self, scope: Scope) -> Self {
        self.scope = scope;
        self
    }

    const fn fixed(mut self) -> Self {
        self.fixed = true;
        self
    }

    pub(super) const fn means(mut self, meaning: &'static str) -> Self {
        self.meaning = meaning;
        self
    }
}

/// Both tables in markdown, as they stand in PROTOCOL.md.
pub fn tables_markdown() -> String {
    let mut out =
        String::from("| parameter | whose | unit | legal | default | meaning |\n|---|---|---|---|---|---|\n");
    for row in PARAMETERS {
        let whose = match row.scope {
            Scope::Source => "source",
            Scope::Files => "files",
            Scope::Each => "each side",
            Scope::Destination => "destination",
        };
        let (unit, legal, default) = (row.unit(), row.legal(), row.shown(&row.default()));
        let _ =
            writeln!(out, "| `{}` | {whose} | {unit} | {legal} | {default} | {} |", row.name, row.meaning);
    }
    out.push_str("\n| capability | default | meaning |\n|---|---|---|\n");
    for Capability { name, default, meaning, .. } in CAPABILITIES {
        let _ = writeln!(out, "| `{name}` | {} | {meaning} |", if *default { "on" } else { "off" });
    }
    out
}
