//! Situations, and what is right in them.

use super::*;

const LZ4: Candidate = Candidate { name: "lz4", encoding: 3, level: 1 };
const ZSTD: Candidate = Candidate { name: "zstd", encoding: 4, level: 1 };
const ZLIB: Candidate = Candidate { name: "zlib", encoding: 5, level: 1 };

/// Content like text: about what `make bench` measures of groups of 16 pages.
const TEXT: [(Candidate, f64, f64, f64); 4] =
    [(RAW, 4096.0, 0.0, 0.0), (LZ4, 1900.0, 6.0, 1.5), (ZSTD, 1200.0, 12.0, 4.0), (ZLIB, 1350.0, 45.0, 12.0)];
/// Random content: the methods give up, each after its own time.
const RANDOM: [(Candidate, f64, f64, f64); 4] =
    [(RAW, 4096.0, 0.0, 0.0), (LZ4, 4096.0, 2.0, 0.0), (ZSTD, 4096.0, 5.0, 0.0), (ZLIB, 4096.0, 90.0, 0.0)];

const MBIT: f64 = 1e6 / 8.0;

fn known(content: &[(Candidate, f64, f64, f64)]) -> Vec<Known> {
    let known = |(candidate, bytes, encode_us, decode_us): &(Candidate, f64, f64, f64)| Known {
        candidate: *candidate,
        cost: Cost::of(*bytes, *encode_us, *decode_us),
    };
    content.iter().map(known).collect()
}

struct Situation {
    what: &'static str,
    content: [(Candidate, f64, f64, f64); 4],
    link: Option<f64>,
    cap: u64,
    threads: (f64, f64),
    stopped: bool,
    right: (Candidate, Bound),
}

#[test]
fn each_situation_has_its_choice() {
    let one = (1.0, 1.0);
    let case = |what, content, link, threads, right| Situation {
        what,
        content,
        link,
        cap: 0,
        threads,
        stopped: false,
        right,
    };
    let slow_zstd_there =
        [TEXT[0], (LZ4, 1900.0, 3.0, 2.0), (ZSTD, 1200.0, 6.0, 60.0), (ZLIB, 1350.0, 45.0, 90.0)];
    let cases = [
        case("text, 100 Mb/s", TEXT, Some(100.0 * MBIT), one, (ZSTD, Bound::Link)),
        case("text, 1 Gb/s", TEXT, Some(1000.0 * MBIT), one, (ZSTD, Bound::Source)),
        case("text, 1 Gb/s, four threads", TEXT, Some(1000.0 * MBIT), (4.0, 4.0), (ZSTD, Bound::Link)),
        case("text, 2.5 Gb/s", TEXT, Some(2500.0 * MBIT), one, (LZ4, Bound::Source)),
        case("text, 10 Gb/s", TEXT, Some(10_000.0 * MBIT), one, (RAW, Bound::Link)),
        case("text, 10 Gb/s, eight threads", TEXT, Some(10_000.0 * MBIT), (8.0, 8.0), (LZ4, Bound::Link)),
        case("text, the link is no limit", TEXT, None, one, (RAW, Bound::Destination)),
        case("random, 100 Mb/s", RANDOM, Some(100.0 * MBIT), one, (RAW, Bound::Link)),
        case("random, the link is no limit", RANDOM, None, (4.0, 1.0), (RAW, Bound::Destination)),
        case("text, 1 Gb/s, half a processor", TEXT, Some(1000.0 * MBIT), (0.5, 1.0), (LZ4, Bound::Link)),
        case("destination slow", slow_zstd_there, Some(300.0 * MBIT), (4.0, 1.0), (LZ4, Bound::Link)),
        case(
            "destination slow, slow link",
            slow_zstd_there,
            Some(200.0 * MBIT),
            (4.0, 1.0),
            (ZSTD, Bound::Destination),
        ),
    ];
    let cap = |cap, link, stopped, right| Situation {
        what: "a limit",
        content: TEXT,
        link,
        cap,
        threads: one,
        stopped,
        right,
    };
    let limits = [
        cap(12_500_000, None, false, (ZSTD, Bound::Cap)),
        cap(12_500_000, Some(1e9), false, (ZSTD, Bound::Cap)),
        cap(1_000_000_000, Some(12.5e6), false, (ZSTD, Bound::Link)),
        // While the guest is stopped no limit is applied.
        cap(12_500_000, None, true, (RAW, Bound::Latency)),
        cap(12_500_000, Some(10_000.0 * MBIT), true, (RAW, Bound::Latency)),
        cap(0, Some(100.0 * MBIT), true, (ZSTD, Bound::Latency)),
    ];
    for Situation { what, content, link, cap, threads, stopped, right } in cases.into_iter().chain(limits) {
        let figures = Figures {
            known: &known(&content),
            link_bytes_per_s: link,
            cap_bytes_per_s: cap,
            threads: Threads { source: threads.0, destination: threads.1 },
            stopped,
        };
        let choice = figures.choose();
        let found = (figures.known[choice.index].candidate, choice.bound);
        assert_eq!(found, right, "{what}, {link:?}, cap {cap}, stopped {stopped}: {choice}");
    }
}

#[test]
fn a_choice_says_why() {
    let known = known(&TEXT);
    let threads = Threads { source: 1.0, destination: 1.0 };
    let mut figures = Figures {
        known: &known,
        link_bytes_per_s: Some(12.5e6),
        cap_bytes_per_s: 0,
        threads,
        stopped: false,
    };
    assert_eq!(
        figures.choose().to_string(),
        "zstd 1: the link binds (12.5 MB/s); pages a second: raw 3052, lz4 1 6579, zstd 1 10417, zlib 1 9259"
    );
    figures.cap_bytes_per_s = 2_000_000;
    assert!(figures.choose().to_string().starts_with("zstd 1: max-bandwidth binds (2.0 MB/s); "));
    figures.stopped = true;
    assert!(figures.choose().to_string().contains("the guest is stopped"));
}
