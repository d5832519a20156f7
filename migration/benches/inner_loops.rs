//! The loops that all pages go through, each alone on one thread. GiB/s are of pages, before they are encoded.
//!
//! | group | bound by |
//! |---|---|
//! | copy, zero scan | memory: the buffer is larger than the caches. So the scan can't be faster than what reads it anyway |
//! | hash | from cache: the processor; from memory: that |
//! | deltas | unchanged: reading two pages; few changes: the search for the runs; half of a page: copying |
//! | compress, decompress | the processor: tables of matches and entropy coding; random content: how soon the method gives up |
//! | dirty bitmap | all dirty or clean: memory; single pages: a branch for each run |
//! | frame | the checksum of the records |
//!
//! `make microbench`, or `cargo bench -p tern-migration --features bench -- PART_OF_A_NAME`.

#![allow(missing_docs, clippy::unwrap_used, reason = "criterion's macros; a benchmark fails by panicking")]

use std::hint::black_box;
use std::time::Duration;

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use tern_migration::bench::{Codec, Page, decode_delta, encode_delta, frame, hash, methods};
use tern_migration::{DirtyBitmap, is_zero_slice};

const PAGE: usize = 4096;
/// Larger than what one processor has of the caches.
const BUFFER: usize = 256 << 20;
const GROUP_PAGES: usize = 16;

#[derive(Clone)]
#[repr(align(4096))]
struct Aligned(Page);

fn numbers(mut state: u64) -> impl FnMut() -> u64 {
    move || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state
    }
}

fn noise(pages: usize) -> Vec<u8> {
    let mut next = numbers(7);
    (0..pages * PAGE / 8).flat_map(|_| next().to_le_bytes()).collect()
}

/// Words of a small vocabulary: compresses as text does.
fn text(pages: usize) -> Vec<u8> {
    let mut next = numbers(9);
    let words: Vec<Vec<u8>> = (0..2000)
        .map(|_| {
            let length = 2 + next() % 9;
            (0..length).map(|_| b'a' + (next() % 26 * next() % 26) as u8).chain([b' ']).collect()
        })
        .collect();
    let mut bytes = Vec::new();
    while bytes.len() < pages * PAGE {
        // Small numbers are more frequent, as words are.
        let word = next() % 2000 * (next() % 2000) / 2000;
        bytes.extend_from_slice(&words[word as usize]);
    }
    bytes.truncate(pages * PAGE);
    bytes
}

fn memory(c: &mut Criterion) {
    let mut group = c.benchmark_group("memory");
    group.throughput(Throughput::Bytes(BUFFER as u64));
    let zero = vec![Aligned([0; PAGE]); BUFFER / PAGE];
    let mut to = vec![Aligned([1; PAGE]); BUFFER / PAGE];
    group.bench_function("zero scan", |b| {
        b.iter(|| zero.iter().filter(|page| is_zero_slice(&page.0)).count());
    });
    group.bench_function("copy", |b| {
        b.iter(|| to.iter_mut().zip(&zero).for_each(|(to, from)| black_box(to).0.copy_from_slice(&from.0)));
    });
    let hashes = |pages: &[Aligned]| (0..).zip(pages).fold(0, |sum, (at, page)| sum ^ hash(at, &page.0));
    group.bench_function("hash", |b| b.iter(|| hashes(black_box(&to))));
    // A batch, as it was just received.
    let batch = &to[..256];
    group.throughput(Throughput::Bytes(size_of_val(batch) as u64));
    group.bench_function("hash, from cache", |b| b.iter(|| hashes(black_box(batch))));
    group.finish();
}

fn deltas(c: &mut Criterion) {
    let old: Page = noise(1).try_into().unwrap();
    let changed =
        |part: fn(usize) -> bool| -> Page { std::array::from_fn(|at| old[at] ^ u8::from(part(at))) };
    let cases = [
        ("unchanged", changed(|_| false)),
        ("64 bytes in a row", changed(|at| (1000..1064).contains(&at))),
        ("64 single bytes", changed(|at| at % 64 == 5)),
        ("half of the page", changed(|at| at < PAGE / 2)),
        ("half of each 16 bytes", changed(|at| at % 16 < 8)),
    ];
    let mut group = c.benchmark_group("delta");
    group.throughput(Throughput::Bytes(PAGE as u64));
    for (name, new) in &cases {
        let mut out = vec![0; PAGE];
        let length = encode_delta(&old, new, &mut out);
        let id = |what| BenchmarkId::new(what, format!("{name}, {length} bytes"));
        group.bench_function(id("encode"), |b| {
            let mut room = vec![0; PAGE];
            b.iter(|| encode_delta(black_box(&old), black_box(new), &mut room));
        });
        if length > 0 {
            let mut page = old;
            group.bench_function(id("decode"), |b| {
                b.iter(|| decode_delta(black_box(&out[..length]), &mut page))
            });
        }
    }
    group.finish();
}

fn compression(c: &mut Criterion) {
    // More than one group, so that nothing learns the content by heart.
    const GROUPS: usize = 64;
    for (content, bytes) in [("text", text(GROUPS * GROUP_PAGES)), ("random", noise(GROUPS * GROUP_PAGES))] {
        let mut group = c.benchmark_group(content);
        group.throughput(Throughput::Bytes(bytes.len() as u64));
        for method in methods() {
            let mut codec = Codec::new(method).unwrap();
            let mut out = Vec::new();
            let groups = || bytes.chunks(GROUP_PAGES * PAGE);
            let mut blocks: Vec<Vec<u8>> = Vec::new();
            for pages in groups() {
                if codec.compress(pages, &mut out) {
                    blocks.push(out.clone());
                }
            }
            let length: usize = blocks.iter().map(Vec::len).sum();
            let percent = if blocks.is_empty() { 100 } else { 100 * length / bytes.len() };
            let id = |what| BenchmarkId::new(what, format!("{method}, to {percent} %"));
            group.bench_function(id("compress"), |b| {
                b.iter(|| groups().filter(|pages| codec.compress(pages, &mut out)).count());
            });
            if blocks.len() == GROUPS {
                let mut pages = vec![0; GROUP_PAGES * PAGE];
                group.bench_function(id("decompress"), |b| {
                    b.iter(|| blocks.iter().filter(|block| codec.decompress(block, &mut pages)).count());
                });
            }
        }
        group.finish();
    }
}

fn bookkeeping(c: &mut Criterion) {
    // 64 GiB of memory.
    const PAGES: u64 = 16 << 20;
    let mut group = c.benchmark_group("dirty bitmap");
    group.throughput(Throughput::Bytes(PAGES / 8));
    for (name, step) in [("clean", 0), ("all dirty", 1), ("one of 64", 64), ("one of 2", 2)] {
        let mut dirty = DirtyBitmap::new([PAGES]);
        if step > 0 {
            (0..PAGES).step_by(step).for_each(|page| dirty.set(0, page));
        }
        group.bench_function(name, |b| {
            let mut runs = Vec::with_capacity(PAGES as usize / 2);
            b.iter_batched_ref(
                || dirty.clone(),
                |dirty| {
                    runs.clear();
                    dirty.take_runs(0, 0..PAGES as usize / 64, &mut runs);
                    runs.len()
                },
                criterion::BatchSize::LargeInput,
            );
        });
    }
    group.finish();
    let mut group = c.benchmark_group("frame");
    for records in [1, 256] {
        let mut bytes = vec![3; 24 + records * 16];
        let mut sequence = 0;
        group.throughput(Throughput::Elements(1));
        group.bench_function(BenchmarkId::new("seal, read and check", format!("{records} records")), |b| {
            b.iter(|| {
                sequence += 1;
                assert!(frame(&mut bytes, sequence));
            });
        });
    }
    group.finish();
}

/// Short: a minute in all. Options of the command line go before.
fn short() -> Criterion {
    Criterion::default()
        .sample_size(20)
        .warm_up_time(Duration::from_millis(300))
        .measurement_time(Duration::from_millis(1000))
}

criterion_group! { name = loops; config = short(); targets = memory, deltas, compression, bookkeeping }
criterion_main!(loops);
