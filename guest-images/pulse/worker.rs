//! What each vCPU does for ever: visit pages at the given rate, check and rewrite them, and print
//! a heartbeat each interval. With nothing to do it halts.

#![allow(unsafe_code, reason = "the working set is plain memory at addresses of our choice")]

use core::sync::atomic::Ordering;

use crate::Plan;
use crate::cpu;
use crate::ledger::{Entry, Sums};
use crate::line::Line;
use crate::options::{PAGE_BYTES, Poke};
use crate::page::{Page, Random, Writing, Wrong};
use crate::pattern::Walk;
use crate::serial;
use crate::watch::Watch;

/// No shorter sleeps: going to sleep and waking costs up to a millisecond on some hosts.
const SHORTEST_SLEEP_MS: u64 = 2;
/// Table entries added up between two turns.
const ENTRIES_PER_TURN: usize = 4096;
/// A page that fails is rewritten, so that it is reported once; and this is the end in any case.
const MOST_REPORTS: u32 = 100;

/// Above all memory that pulse maps.
const UNMAPPED: usize = 1 << 45;

struct Worker<'a> {
    cpu: u32,
    plan: &'a Plan,
    writing: Writing,
    /// Index of this vCPU's first page in the span and in the table.
    first: u64,
    pages: u64,
    walk: Walk,
    sums: Sums,
    watch: Watch,
    cycles_per_page: u64,
    page_due: u64,
    interval: u64,
    beat_due: u64,
    seq: u64,
    written: u64,
    verified: u64,
    total: u64,
    reports: u32,
}

/// Runs a vCPU's share of the plan until `quit`.
pub(crate) fn run(cpu: u32, plan: &Plan) -> ! {
    let mut worker = Worker::new(cpu, plan);
    worker.fill();
    worker.begin_together();
    loop {
        let now = worker.watch.turn();
        if now >= worker.beat_due && serial::try_lock() {
            worker.beat(now);
            serial::unlock();
            worker.after_beat();
        } else if worker.pages != 0 && now >= worker.page_due {
            worker.visit_next();
            worker.pace(now);
        } else {
            worker.sleep(now);
        }
    }
}

impl<'a> Worker<'a> {
    fn new(cpu: u32, plan: &'a Plan) -> Self {
        let options = &plan.options;
        let share = u64::from(options.cpus) * plan.tsc_khz * 1000;
        Self {
            cpu,
            plan,
            writing: Writing { content: options.content, changed_bytes: options.changed_bytes },
            first: plan.pages_per_cpu * u64::from(cpu),
            pages: plan.pages_per_cpu,
            walk: Walk::new(options.pattern, plan.pages_per_cpu, Random::new(u64::from(cpu)).next()),
            sums: Sums::default(),
            watch: Watch::new(),
            cycles_per_page: options.rate_pages_per_s.map_or(0, |rate| share / rate),
            page_due: 0,
            interval: options.interval_ms * plan.tsc_khz,
            beat_due: 0,
            seq: 0,
            written: 0,
            verified: 0,
            total: 0,
            reports: 0,
        }
    }

    /// Writes every page and its entry once, so that each later visit has something to check.
    fn fill(&mut self) {
        for index in 0..self.pages {
            let (page, number) = self.page(index);
            let entry = self.writing.fill(page, number);
            self.set_entry(index, entry);
            self.sums.add(index as usize, entry);
            self.watch.turn();
        }
    }

    /// Waits for all vCPUs; the first one then says `A ready`.
    fn begin_together(&mut self) {
        self.plan.filled.fetch_add(1, Ordering::AcqRel);
        if self.cpu == 0 {
            while self.plan.filled.load(Ordering::Acquire) < self.plan.options.cpus {
                self.watch.turn();
            }
            serial::print(Line::new("A ready").finish(), &mut self.watch);
            self.plan.ready.store(true, Ordering::Release);
        }
        while !self.plan.ready.load(Ordering::Acquire) {
            self.watch.turn();
        }
        let now = self.watch.turn();
        self.watch.take_gap();
        self.page_due = now;
        self.beat_due = now + self.interval;
    }

    fn visit_next(&mut self) {
        let index = self.walk.next();
        let before = self.entry(index);
        let (page, number) = self.page(index);
        let after = match self.writing.check(page, number, before) {
            Ok(()) => self.writing.advance(page, number, before),
            Err(wrong) => {
                self.report(number * PAGE_BYTES, wrong, before);
                self.writing.fill(page, number)
            }
        };
        self.set_entry(index, after);
        self.sums.replace(index as usize, before, after);
        self.verified += 1;
        self.written += 1;
        self.total += 1;
    }

    /// Sets when the next page is due. What a long gap has missed is not made up for.
    fn pace(&mut self, now: u64) {
        self.page_due += self.cycles_per_page;
        if self.page_due + self.interval < now {
            self.page_due = now;
        }
    }

    fn sleep(&mut self, now: u64) {
        let page_due = if self.pages == 0 { u64::MAX } else { self.page_due };
        let nap = self.plan.options.nap_ms.map_or(u64::MAX, |nap_ms| now + nap_ms * self.plan.tsc_khz);
        let until = page_due.min(self.beat_due).min(nap).max(now + SHORTEST_SLEEP_MS * self.plan.tsc_khz);
        self.watch.asleep_until(until);
        self.plan.timer.sleep(until, self.plan.tsc_khz);
    }

    /// Prints the heartbeat; the serial port is ours.
    fn beat(&mut self, now: u64) {
        let gap_tsc = self.watch.take_gap();
        let mut line = Line::new("B")
            .number("seq", self.seq)
            .number("cpu", u64::from(self.cpu))
            .number("t_us", (now - self.plan.start_tsc) * 1000 / self.plan.tsc_khz)
            .number("written", self.written)
            .number("verified", self.verified)
            .number("total", self.total)
            .number("gap_us", gap_tsc * 1000 / self.plan.tsc_khz)
            .number("gap_tsc", gap_tsc);
        serial::print_locked(line.finish(), &mut self.watch);
        self.seq += 1;
        self.written = 0;
        self.verified = 0;
        self.beat_due += self.interval;
        if self.beat_due < now {
            self.beat_due = now + self.interval;
        }
    }

    fn after_beat(&mut self) {
        if let Some(wrong) = self.watch.take_wrong() {
            self.report(0, wrong, Entry::default());
        }
        self.check_table();
        let options = &self.plan.options;
        if self.cpu == 0 && options.poke_beat == Some(self.seq) && self.pages != 0 {
            self.poke(options.poke);
        }
        if options.quit_beats.is_some_and(|beats| self.seq >= beats) {
            self.finish();
        }
    }

    /// The table must still add up to what this vCPU has put in, whoever copied it meanwhile.
    fn check_table(&mut self) {
        let mut found = Sums::default();
        let mut index = 0;
        while index < self.pages as usize {
            let count = ENTRIES_PER_TURN.min(self.pages as usize - index);
            // SAFETY: this vCPU's part of the table, which only it writes, and not meanwhile.
            let entries = unsafe { core::slice::from_raw_parts(self.entry_at(index as u64), count) };
            found.merge(Sums::of(entries, index));
            index += count;
            self.watch.turn();
        }
        if found != self.sums {
            let (expected, found_digest) = (self.sums.digest, found.digest);
            let entry = Entry::default();
            let address = self.entry_at(0) as u64;
            self.report(address, Wrong { field: "table", expected, found: found_digest }, entry);
            self.sums = found;
        }
    }

    /// Spoils one thing that the checks must notice.
    fn poke(&mut self, what: Poke) {
        let index = self.pages / 2;
        let (page, _) = self.page(index);
        match what {
            Poke::Content => page[300] ^= 1 << 20,
            Poke::Generation => page[0] = page[0].wrapping_sub(1),
            Poke::Number => page[1] ^= 1,
            Poke::Fault => {
                // SAFETY: nothing is mapped there, so nothing is read: the vCPU takes a page fault and stops.
                unsafe { (UNMAPPED as *const u8).read_volatile() };
            }
            Poke::Table => {
                let entry = self.entry(index);
                self.set_entry(index, Entry { generation: entry.generation.wrapping_sub(1), ..entry });
            }
        }
    }

    /// Checks every page once more, waits for the others, and ends the guest.
    fn finish(&mut self) -> ! {
        for index in 0..self.pages {
            let entry = self.entry(index);
            let (page, number) = self.page(index);
            if let Err(wrong) = self.writing.check(page, number, entry) {
                self.report(number * PAGE_BYTES, wrong, entry);
            }
        }
        crate::end(self.cpu, self.plan)
    }

    fn report(&mut self, page: u64, wrong: Wrong, entry: Entry) {
        self.reports += 1;
        if self.reports > MOST_REPORTS {
            return;
        }
        let mut line = Line::new("CORRUPT")
            .number("cpu", u64::from(self.cpu))
            .hex("page", page)
            .text("field", wrong.field)
            .hex("expected", wrong.expected)
            .hex("found", wrong.found)
            .number("generation", u64::from(entry.generation))
            .number("seq", self.seq)
            .number("total", self.total);
        serial::print(line.finish(), &mut self.watch);
    }

    /// A page of this vCPU, and its number.
    fn page(&self, index: u64) -> (&'static mut Page, u64) {
        let Some(address) = self.plan.span.address(self.first + index) else { cpu::stop() };
        // SAFETY: RAM of the working set, mapped, used by this vCPU only, one page at a time.
        (unsafe { &mut *(address as *mut Page) }, address / PAGE_BYTES)
    }

    fn entry_at(&self, index: u64) -> *mut Entry {
        self.plan.table.wrapping_add((self.first + index) as usize)
    }

    fn entry(&self, index: u64) -> Entry {
        // SAFETY: within this vCPU's part of the table.
        unsafe { self.entry_at(index).read_volatile() }
    }

    fn set_entry(&self, index: u64, entry: Entry) {
        // SAFETY: as in `entry`.
        unsafe { self.entry_at(index).write_volatile(entry) };
    }
}
