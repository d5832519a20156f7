//! What finding written pages costs, by mode and by the kind of memory: `cargo bench -p tern --bench dirty_log`.
//!
//! A guest of 512 MiB whose two vCPUs write 256 MiB at random, as fast as they can. For each way, medians of several
//! rounds: `start` of the log, and for each GiB of guest memory `fetch` and `clear` of what the guest wrote in half a
//! second; and how much the guest writes while the log runs, against before.
//!
//! What bounds them: `start` and `clear` the walk over the shadow or nested page tables, and whether huge pages in
//! them have to be split; `fetch` the copy of the bitmap, which is memory, or the ring's reset, which is again the
//! walk; the guest the fault at its first write to each page after it was cleared.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a benchmark fails by panicking")]

#[path = "../tests/bench/mod.rs"]
mod bench;
#[path = "../tests/host/mod.rs"]
mod host;

use std::time::{Duration, Instant};

use bench::{Bench, number};
use tern_migration::{DirtyBitmap, DirtyLogMode, SourceVm};
use tern_vmm::config::MemoryForm;
use tern_vmm::run_control::Hold;
use tern_vmm::vm::Vm;

const MEMORY_BYTES: u64 = 512 << 20;
const PAGES: u64 = MEMORY_BYTES / 4096;
const CHUNK_PAGES: u64 = 2048;
const GUEST: &str = "cpus=2 ws=256M rate=max pattern=random content=constant interval=100";
const ROUNDS: usize = 7;
const ROUND: Duration = Duration::from_millis(500);
const GIB: f64 = (1u64 << 30) as f64;

fn ms(time: Duration) -> f64 {
    time.as_secs_f64() * 1e3
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
}

/// Pages a second that the guest wrote between beats `from` and the last one, by its own clock.
fn rate(heard: &str, from: usize) -> f64 {
    let heard = heard.rfind('\n').and_then(|end| heard.get(..end)).unwrap_or_default();
    let beats = |cpu: &str| {
        let beats: Vec<&str> =
            heard.lines().skip(from).filter(|l| l.starts_with("B ") && l.contains(cpu)).collect();
        let (Some(first), Some(last)) = (beats.first(), beats.last()) else { return 0.0 };
        let [pages, us] =
            ["total", "t_us"].map(|name| number(last, name).saturating_sub(number(first, name)) as f64);
        if us > 0.0 { pages / us * 1e6 } else { 0.0 }
    };
    beats(" cpu=0 ") + beats(" cpu=1 ")
}

/// Lines that are whole.
fn lines(bench: &mut Bench) -> usize {
    bench.heard().matches('\n').count()
}

fn timed<T>(action: impl FnOnce() -> T) -> (f64, T) {
    let started = Instant::now();
    let done = action();
    (ms(started.elapsed()), done)
}

fn fetch(vm: &mut Vm, dirty: &mut DirtyBitmap) -> f64 {
    timed(|| vm.dirty_log_fetch(dirty).unwrap()).0
}

fn clear(vm: &mut Vm, dirty: &mut DirtyBitmap) -> f64 {
    let mut spent = 0.0;
    for start in (0..PAGES).step_by(CHUNK_PAGES as usize) {
        let mut runs = Vec::new();
        dirty.take_runs(0, (start / 64) as usize..((start + CHUNK_PAGES) / 64) as usize, &mut runs);
        if !runs.is_empty() {
            spent += timed(|| vm.dirty_log_clear(0, start..start + CHUNK_PAGES).unwrap()).0;
        }
    }
    spent
}

fn measure(memory: &str, log: &str, mode: DirtyLogMode) {
    let Some(mut bench) = Bench::new(2) else { return };
    let name = if mode == DirtyLogMode::Ring { log } else { mode.name() };
    let form: MemoryForm = format!("512M,{memory}").parse().unwrap();
    let config = bench.config();
    (config.memory_bytes, config.memory_kind) = (MEMORY_BYTES, form.kind);
    config.dirty_log = log.parse().unwrap();
    let mut vm = bench.boot(GUEST);
    if vm.can_log(Some(mode)).is_err() {
        return println!("{memory:<24} {name:<16} this host can't");
    }
    bench.wait_until("the first filling", |heard| heard.contains("A ready"));
    let at = lines(&mut bench);
    std::thread::sleep(ROUND * 4);
    let before = rate(bench.heard(), at);
    let at = lines(&mut bench);
    let (start_ms, _) = timed(|| vm.dirty_log_start(Some(mode)).unwrap());
    let mut dirty = DirtyBitmap::new([PAGES]);
    let first_fetch_ms = fetch(&mut vm, &mut dirty);
    dirty.set_all();
    let first_clear_ms = clear(&mut vm, &mut dirty);
    let (mut fetches, mut clears, mut pages) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..ROUNDS {
        std::thread::sleep(ROUND);
        fetches.push(fetch(&mut vm, &mut dirty));
        pages.push(dirty.count() as f64);
        clears.push(clear(&mut vm, &mut dirty));
    }
    let logged = rate(bench.heard(), at);
    vm.dirty_log_stop().unwrap();
    vm.core().run().hold(Hold::Ended);
    let per_gib = GIB / MEMORY_BYTES as f64;
    println!(
        "{memory:<24} {name:<16} {:>9.2} {:>9.2} {:>9.2} {:>9.0} {:>9.2} {:>9.2} {:>10.0} {:>10.0} {:>6.1} %",
        start_ms * per_gib,
        first_fetch_ms * per_gib,
        first_clear_ms * per_gib,
        median(pages),
        median(fetches) * per_gib,
        median(clears) * per_gib,
        before,
        logged,
        logged / before * 100.0,
    );
}

fn main() {
    println!(
        "{:<24} {:<16} {:>9} {:>9} {:>9} {:>9} {:>9} {:>9} {:>10} {:>10} {:>8}",
        "memory",
        "mode",
        "start",
        "1st fetch",
        "1st clear",
        "pages",
        "fetch",
        "clear",
        "before/s",
        "logged/s",
        "ratio"
    );
    println!(
        "{:<24} {:<16} all times in ms for each GiB of guest memory; pages the guest writes a second",
        "", ""
    );
    for memory in ["backing=anon,thp=off", "backing=anon,thp=on", "backing=memfd,thp=on", "backing=hugetlbfs"]
    {
        if memory == "backing=hugetlbfs" && huge_pages_free() < MEMORY_BYTES >> 21 {
            println!("{memory:<24} the host has fewer than {} free huge pages", MEMORY_BYTES >> 21);
            continue;
        }
        measure(memory, "bitmap", DirtyLogMode::ManualClear);
        measure(memory, "bitmap", DirtyLogMode::Bitmap);
        measure(memory, "ring,size=65536", DirtyLogMode::Ring);
        measure(memory, "ring,size=1024", DirtyLogMode::Ring);
    }
}

fn huge_pages_free() -> u64 {
    let free = std::fs::read_to_string("/sys/kernel/mm/hugepages/hugepages-2048kB/free_hugepages");
    free.ok().and_then(|free| free.trim().parse().ok()).unwrap_or(0)
}
