//! How fast this machine looks for zero pages and moves a guest of 1 GiB between two threads, one line each.
//! `cargo run --release -p tern-migration --features fake --example throughput`

use std::error::Error;
use std::hint::black_box;
use std::time::Instant;

use tern_migration::channel::{Listener, Uri, connect};
use tern_migration::destination::receive;
use tern_migration::fake::{FakeVm, Options};
use tern_migration::source::{Outcome, migrate};
use tern_migration::{Control, LiveParameters, Parameters, Side, Unobserved, is_zero_slice};

const GIB: f64 = (1u64 << 30) as f64;

fn main() -> Result<(), Box<dyn Error>> {
    for (name, bytes) in [("in cache", 1 << 20), ("in memory", 1 << 28)] {
        println!("zero scan {name}: {:.1} GiB/s", scan(bytes));
    }
    let folder = std::env::temp_dir().join(format!("tern-throughput-{}", std::process::id()));
    for uri in [Uri::Unix { path: folder }, "tcp:127.0.0.1:0".parse()?] {
        for run in 1..=3 {
            for verify in [true, false] {
                println!("{uri} run {run}, verify {verify}: {}", transfer(&uri, verify)?);
            }
        }
    }
    Ok(())
}

/// Best of five.
fn scan(bytes: usize) -> f64 {
    // Written once, or all of it would be the kernel's one zero page; with room to begin at a multiple of 16.
    let mut memory = vec![1u8; bytes + 16];
    black_box(&mut memory).fill(0);
    let start = memory.as_ptr().align_offset(16);
    let pages: Vec<&[u8]> = memory.get(start..start + bytes).unwrap_or_default().chunks(4096).collect();
    let once = || {
        let started = Instant::now();
        let zero = pages.iter().filter(|page| is_zero_slice(black_box(page))).count();
        assert_eq!(zero, pages.len());
        bytes as f64 / GIB / started.elapsed().as_secs_f64()
    };
    (0..5).map(|_| once()).fold(0.0, f64::max)
}

fn transfer(uri: &Uri, verify: bool) -> Result<String, Box<dyn Error>> {
    let options =
        Options { region_pages: vec![1 << 18], touched_every: 1, writes_per_call: 0, ..Options::default() };
    let (source, destination) = (FakeVm::booted(options.clone())?, FakeVm::new(options)?);
    let listener = Listener::bind(uri)?;
    let near_control = Control::new(Side::Source, Box::new(Unobserved))?;
    let far_control = Control::new(Side::Destination, Box::new(Unobserved))?;
    let near = connect(listener.uri(), &near_control)?;
    let far = listener.accept(&far_control)?;
    let mut parameters = Parameters::default();
    parameters.capabilities.verify = verify;
    let live = LiveParameters::new(parameters);
    let end = std::thread::scope(|scope| {
        let receiving = scope.spawn(|| receive(destination, far, &far_control).is_ok());
        let end = migrate(source, near, &live, &near_control);
        let received = receiving.join().unwrap_or(false);
        (matches!(end.outcome, Outcome::Completed) && received).then_some(())
    });
    end.ok_or("the migration did not complete")?;
    let report = near_control.report();
    let hash_ms = |control: &Control| control.report().proof.map_or(0.0, |proof| proof.hash_us as f64 / 1e3);
    let live_s = report.live_us as f64 / 1e6;
    Ok(format!(
        "{:.2} GiB/s ({:.0} ms for {} pages; {:.0} ms and {:.0} ms of hashing)",
        report.bytes.total() as f64 / GIB / live_s,
        live_s * 1e3,
        report.pages.sent(),
        hash_ms(&near_control),
        hash_ms(&far_control),
    ))
}
