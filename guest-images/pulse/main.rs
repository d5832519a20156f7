//! pulse: a guest that writes memory, checks what it wrote, and says how time passes.
//!
//! `boot.s` brings each vCPU to ring 3 and calls `cpu_main`. vCPU 0 sets up the rest, starts
//! the others, and from then on all run `worker`. README.md has the contract.

#![no_std]
#![no_main]

mod apic;
mod boot;
mod clock;
mod cpu;
mod ledger;
mod line;
mod memcpy;
mod memory;
mod options;
mod page;
mod pattern;
mod serial;
mod span;
mod torture;
mod watch;
mod worker;

use core::sync::atomic::{AtomicBool, AtomicPtr, AtomicU32, Ordering};

use line::Line;
use options::Options;
use span::Span;
use watch::Watch;

/// What all vCPUs work from, and how they wait for each other.
struct Plan {
    options: Options,
    /// RAM from `start` up.
    span: Span,
    /// The ledgers of all vCPUs, one after another.
    table: *mut ledger::Entry,
    pages_per_cpu: u64,
    tsc_khz: u64,
    timer: apic::Timer,
    /// Of vCPU 0, if it is tortured.
    avx: cpu::Avx,
    start_tsc: u64,
    filled: AtomicU32,
    finished: AtomicU32,
    ready: AtomicBool,
}

/// Set by vCPU 0, on whose stack it lives for ever, before it starts the others.
static PLAN: AtomicPtr<Plan> = AtomicPtr::new(core::ptr::null_mut());

/// Where each vCPU comes from `boot.s`, in ring 3.
#[allow(unsafe_code, reason = "called by its name from assembly; reads what vCPU 0 left on its stack")]
#[unsafe(no_mangle)]
extern "C" fn cpu_main(start_info: u32, cpu: u32) -> ! {
    if cpu == 0 {
        run_first(u64::from(start_info));
    }
    apic::started();
    // SAFETY: vCPU 0 has stored it before it started this one, and never returns.
    let plan = unsafe { &*PLAN.load(Ordering::Acquire) };
    apic::enable(plan.timer);
    work(cpu, plan)
}

fn work(cpu: u32, plan: &Plan) -> ! {
    if plan.options.torture { torture::run(cpu, plan) } else { worker::run(cpu, plan) }
}

/// Waits for all vCPUs, and ends the guest.
fn end(cpu: u32, plan: &Plan) -> ! {
    plan.finished.fetch_add(1, Ordering::AcqRel);
    if cpu != 0 {
        cpu::stop();
    }
    while plan.finished.load(Ordering::Acquire) < plan.options.cpus {
        core::hint::spin_loop();
    }
    cpu::power_off()
}

fn run_first(start_info: u64) -> ! {
    let start_tsc = cpu::rdtsc();
    cpu::fill_idt();
    serial::init();
    let mut text = [0; memory::COMMAND_LINE_BYTES];
    let Some(info) = memory::StartInfo::read(start_info, &mut text) else {
        fail(Line::new("ERROR no PVH start info with a memory map"));
    };
    let options = match Options::parse(info.command_line) {
        Ok(options) => options,
        Err(word) => fail(Line::new("ERROR command line").text("word", word)),
    };
    memory::map_all();
    let tsc_khz = clock::tsc_khz();
    let timer = apic::choose_timer(tsc_khz);
    apic::enable(timer);

    let span = info.ram_from(options.start);
    let pages_per_cpu = options.ws_bytes / options::PAGE_BYTES / u64::from(options.cpus);
    let pages = pages_per_cpu * u64::from(options.cpus);
    let table = memory::after_image();
    let table_end = table + pages * size_of::<ledger::Entry>() as u64;
    if pages > span.pages() {
        fail(Line::new("ERROR ws is larger than the RAM behind start").number("ram", span.pages() * 4096));
    }
    if table_end > options.start {
        fail(
            Line::new("ERROR start is below the end of the tables")
                .number("start_min", table_end.next_multiple_of(4096)),
        );
    }
    let torture = options.torture;
    let mut plan = Plan {
        options,
        span,
        table: table as *mut ledger::Entry,
        pages_per_cpu,
        tsc_khz,
        timer,
        avx: if torture { cpu::switch_on_avx() } else { cpu::Avx::Absent },
        start_tsc,
        filled: AtomicU32::new(0),
        finished: AtomicU32::new(0),
        ready: AtomicBool::new(false),
    };
    PLAN.store(&raw mut plan, Ordering::Release);
    banner(&plan);
    for other in 1..plan.options.cpus {
        if !apic::start(other, tsc_khz) {
            fail(Line::new("ERROR a vCPU did not start").number("cpu", u64::from(other)));
        }
    }
    work(0, &plan)
}

fn banner(plan: &Plan) {
    let options = &plan.options;
    let line = Line::new("A tern-pulse 1")
        .number("cpus", u64::from(options.cpus))
        .number("ws", plan.pages_per_cpu * u64::from(options.cpus) * options::PAGE_BYTES);
    let line = match options.rate_pages_per_s {
        Some(rate) => line.number("rate", rate),
        None => line.text("rate", "max"),
    };
    let mut line = line
        .text("pattern", options.pattern.name())
        .number("bytes", options.changed_bytes)
        .text("content", options.content.name())
        .number("start", options.start)
        .number("interval_ms", options.interval_ms)
        .number("tsc_khz", plan.tsc_khz);
    if options.torture {
        line = line.text("torture", "on").text("avx", torture::avx_word(plan.avx));
    }
    serial::print(line.finish(), &mut Watch::new());
}

/// Says why pulse can't run, and ends the guest.
fn fail(mut line: Line) -> ! {
    serial::print(line.finish(), &mut Watch::new());
    cpu::power_off()
}

/// Where `boot.s` sends a vCPU that took an exception. Prints even if the lock is lost.
#[allow(unsafe_code, reason = "called by its name from assembly")]
#[unsafe(no_mangle)]
extern "C" fn report_fault(cpu: u32, vector: u64, error: u64, rip: u64, cr2: u64) -> ! {
    let mut line = Line::new("CORRUPT")
        .number("cpu", u64::from(cpu))
        .number("exception", vector)
        .hex("error", error)
        .hex("rip", rip)
        .hex("cr2", cr2);
    serial::print_anyway(line.finish());
    cpu::stop()
}

#[panic_handler]
fn panic(info: &core::panic::PanicInfo<'_>) -> ! {
    let (file, at) = info.location().map_or(("?", 0), |place| (place.file(), u64::from(place.line())));
    let mut line = Line::new("CORRUPT panic").text("file", file).number("line", at);
    serial::print_anyway(line.finish());
    cpu::stop()
}
