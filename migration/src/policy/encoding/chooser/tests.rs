//! The choice against a model of threads, a socket's buffer, a link and a destination: it settles on what is best, stays
//! there, and the whole takes hardly longer than with the best from the beginning.

use super::*;

const LZ4: Candidate = Candidate { name: "lz4", encoding: 3, level: 1 };
const ZSTD: Candidate = Candidate { name: "zstd", encoding: 4, level: 1 };
const PAGES: u64 = 16;

/// Bytes a page, encoding and decoding time: raw, lz4, zstd.
type Content = [(f64, f64, f64); 3];
const TEXT: Content = [(4096.0, 0.0, 0.0), (1900.0, 6.0, 1.5), (1200.0, 12.0, 4.0)];
const RANDOM: Content = [(4096.0, 0.0, 0.0), (4096.0, 2.0, 0.0), (4096.0, 5.0, 0.0)];

/// A source's side of a migration, in one line of time: what its threads do together is done at once.
struct Model {
    link_bytes_per_s: f64,
    threads: Threads,
    buffer_bytes: f64,
    /// Bytes that the link hasn't taken yet.
    queue: f64,
    now_us: f64,
    /// Pacing holds threads back before they send.
    cap_bytes_per_s: f64,
    credit_us: f64,
}

impl Model {
    fn new(link_bytes_per_s: f64, threads: f64) -> Self {
        let threads = Threads { source: threads, destination: threads };
        let buffer_bytes = 2e6;
        Self {
            link_bytes_per_s,
            threads,
            buffer_bytes,
            queue: 0.0,
            now_us: 0.0,
            cap_bytes_per_s: 0.0,
            credit_us: 0.0,
        }
    }

    fn passes(&mut self, us: f64) {
        self.now_us += us;
        self.queue = (self.queue - us * self.link_bytes_per_s / 1e6).max(0.0);
    }

    /// A group goes; also says how long it took to try all candidates on it.
    fn send(&mut self, (bytes, encode_us, decode_us): (f64, f64, f64)) -> Sent {
        let (cost, group) = (Cost::of(bytes, encode_us, decode_us), PAGES as f64);
        let source = self.threads.source;
        let encoding_us = (SOURCE_US + encode_us) * group;
        self.passes(encoding_us / source);
        if self.cap_bytes_per_s > 0.0 {
            self.credit_us = self.credit_us.max(self.now_us) + bytes * group * 1e6 / self.cap_bytes_per_s;
            self.passes((self.credit_us - self.now_us).max(0.0));
        }
        let began = self.now_us;
        self.passes(0.5 * bytes / 4096.0 * group / source);
        // The destination takes from the link what it can work on.
        let there = cost.destination_us * group / self.threads.destination;
        let per_byte = (1e6 / self.link_bytes_per_s).max(there / (bytes * group));
        let too_many = (self.queue + bytes * group - self.buffer_bytes).max(0.0);
        self.now_us += too_many * per_byte;
        self.queue = self.queue + bytes * group - too_many;
        Sent {
            pages: PAGES,
            bytes: (bytes * group) as u64,
            sending_us: ((self.now_us - began) * source) as u64,
            encoding_us: encoding_us as u64,
        }
    }
}

const SOURCE_US: f64 = 0.6;

/// How long this content takes, group by group, and the names of all that was chosen.
fn run(mut model: Model, content: &[Content]) -> (f64, Vec<&'static str>) {
    let mut chooser = Chooser::new([LZ4, ZSTD], model.threads);
    chooser.set_cap(model.cap_bytes_per_s as u64);
    let mut chosen = Vec::new();
    for content in content {
        if chooser.wants_sample() {
            for (candidate, (bytes, encode_us, decode_us)) in [LZ4, ZSTD].into_iter().zip(&content[1..]) {
                let of = |per_page: f64| (per_page * PAGES as f64) as u64;
                let trial = Trial { bytes: of(*bytes), encode_us: of(*encode_us), decode_us: of(*decode_us) };
                chooser.sampled(candidate, PAGES, trial);
                model.passes((encode_us + decode_us) * PAGES as f64 / model.threads.source);
            }
        }
        let candidate = chooser.candidate();
        if chosen.last() != Some(&candidate.name) {
            chosen.push(candidate.name);
        }
        let index = [RAW, LZ4, ZSTD].iter().position(|row| *row == candidate).unwrap();
        let sent = model.send(content[index]);
        chooser.sent(model.now_us as u64, sent);
    }
    (model.now_us, chosen)
}

fn best(model: impl Fn() -> Model, content: &[Content]) -> f64 {
    let alone = |index: usize| {
        let mut model = model();
        content.iter().for_each(|content| _ = model.send(content[index]));
        model.now_us
    };
    (0..3).map(alone).fold(f64::INFINITY, f64::min)
}

#[test]
fn it_settles_on_the_best_and_stays() {
    const GROUPS: usize = 16_384;
    for (mbit, threads, content, last, worse_percent) in [
        (100.0, 1.0, TEXT, "zstd", 3.0),
        (1000.0, 1.0, TEXT, "zstd", 5.0),
        (1000.0, 4.0, TEXT, "zstd", 5.0),
        (2500.0, 1.0, TEXT, "lz4", 5.0),
        (20_000.0, 1.0, TEXT, "raw", 5.0),
        (100.0, 1.0, RANDOM, "raw", 1.0),
        (1000.0, 2.0, RANDOM, "raw", 2.0),
        (20_000.0, 2.0, RANDOM, "raw", 5.0),
    ] {
        let model = || Model::new(mbit * 1e6 / 8.0, threads);
        let content = vec![content; GROUPS];
        let (took, chosen) = run(model(), &content);
        let least = best(model, &content);
        let what =
            format!("{mbit} Mb/s, {threads} threads: {chosen:?}, {took:.0} us, the best {least:.0} us");
        assert_eq!(chosen.last(), Some(&last), "{what}");
        // Each of them once while the link is found out, and back.
        assert!(chosen.len() <= 5, "{what}");
        assert!(took <= least * (1.0 + worse_percent / 100.0), "{what}");
    }
}

#[test]
fn a_limit_is_known_before_anything_is_sent() {
    let model = || Model { cap_bytes_per_s: 12.5e6, ..Model::new(2.5e9, 2.0) };
    let content = vec![TEXT; 4096];
    let (took, chosen) = run(model(), &content);
    assert_eq!(chosen, ["zstd"]);
    assert!(took <= best(model, &content) * 1.02);
}

#[test]
fn other_content_is_found_and_noise_is_not_followed() {
    let model = || Model::new(12.5e6, 1.0);
    let half = 8192;
    let content = [vec![RANDOM; half], vec![TEXT; half]].concat();
    let (_, chosen) = run(model(), &content);
    assert_eq!(chosen.last(), Some(&"zstd"), "{chosen:?}");
    // Every other group is random: those go raw by themselves, and the choice stays.
    let content: Vec<_> = (0..half).map(|group| if group % 2 == 0 { TEXT } else { RANDOM }).collect();
    let (_, chosen) = run(model(), &content);
    assert!(chosen.len() <= 3 && chosen.last() == Some(&"zstd"), "{chosen:?}");
}

#[test]
fn samples_are_few() {
    let mut chooser = Chooser::new([LZ4, ZSTD], Threads { source: 1.0, destination: 1.0 });
    let mut samples = 0;
    for group in 0..100_000u64 {
        if chooser.wants_sample() {
            samples += 1;
            for candidate in [LZ4, ZSTD] {
                chooser.sampled(candidate, 16, Trial { bytes: 65536, encode_us: 100, decode_us: 0 });
            }
        }
        chooser.sent(group * 35, Sent { pages: 16, bytes: 65536, sending_us: 20, encoding_us: 15 });
    }
    assert!((90..350).contains(&samples), "{samples}");
    // A fiftieth of the time, whatever the interval says.
    assert!(samples * 200 <= 100_000 * 35 / 50 + 200, "{samples}");
}

#[test]
fn the_last_round_is_about_latency() {
    let mut chooser = Chooser::new([LZ4, ZSTD], Threads { source: 2.0, destination: 2.0 });
    chooser.set_cap(12_500_000);
    assert!(chooser.wants_sample());
    assert_eq!(chooser.methods().collect::<Vec<_>>(), [LZ4, ZSTD]);
    chooser.sampled(LZ4, 16, Trial { bytes: 30_000, encode_us: 96, decode_us: 24 });
    chooser.sampled(ZSTD, 16, Trial { bytes: 19_200, encode_us: 192, decode_us: 64 });
    assert_eq!((chooser.candidate(), chooser.wants_sample()), (ZSTD, false));
    assert!(chooser.choice().to_string().contains("max-bandwidth"));
    chooser.stop();
    assert_eq!(chooser.choice().bound, Bound::Latency);
    assert_eq!(chooser.candidate(), RAW);
}
