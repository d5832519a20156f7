//! The coverage-guided engine: libFuzzer over the target that `TERN_FUZZ_TARGET` names. `scripts/fuzz` builds it
//! with the compiler's counters and runs it.

#![no_main]
#![allow(clippy::expect_used, clippy::panic, reason = "the engine finds failures by panics")]

use std::sync::OnceLock;

use libfuzzer_sys::{Corpus, fuzz_target};
use tern_fuzz::{Target, find, memory};

fn target() -> &'static Target {
    static TARGET: OnceLock<&Target> = OnceLock::new();
    TARGET.get_or_init(|| {
        let name = std::env::var("TERN_FUZZ_TARGET").expect("TERN_FUZZ_TARGET names the target");
        find(&name).unwrap_or_else(|| panic!("there is no target {name}"))
    })
}

fuzz_target!(|bytes: &[u8]| -> Corpus {
    let target = target();
    let (_, most) = memory::most_bytes(|| target.run(bytes));
    let allowed = target.allowed_bytes(bytes.len());
    assert!(most <= allowed, "{most} bytes were held, {allowed} are allowed");
    Corpus::Keep
});
