//! Migrations that succeed: over every transport, in every log mode, running and paused.

use std::fs;
use std::sync::{Arc, Mutex};

use tern_migration::channel::{Listener, Uri, connect};
use tern_migration::fake::{Call, FakeGuest, FakeVm, LogMode, Options};
use tern_migration::stats::Round;
use tern_migration::{Control, LiveParameters, Observer, Side, SourceVm, Status, query_migrate};
use vm_memory::GuestMemoryBackend;

use crate::harness::{LOG_MODES, assert_moved, control, plain_run, run};

fn big(log: LogMode) -> Options {
    // More than one chunk, and ends that are no multiple of 64.
    Options { region_pages: vec![100, 4150], working_set_pages: 300, log, ..Options::default() }
}

#[test]
fn no_write_is_lost_in_any_log_mode() {
    for log in LOG_MODES {
        for writes_per_call in [0, 1, 5, 200] {
            let options = Options { writes_per_call, ..big(log) };
            let source = FakeVm::booted(options.clone()).unwrap();
            let ends = plain_run(source, FakeVm::new(options.clone()).unwrap());
            assert_moved(&ends, true);
            assert_eq!((options.fleet.most(), options.fleet.running()), (1, 1));
        }
    }
}

#[test]
fn no_write_of_a_thread_is_lost() {
    for log in LOG_MODES {
        let options = big(log);
        let mut source = FakeVm::booted(options.clone()).unwrap();
        source.start_writer();
        let ends = plain_run(source, FakeVm::new(options).unwrap());
        assert_moved(&ends, true);
    }
}

#[test]
fn a_guest_goes_back_and_forth() {
    let options = Options::default();
    let mut vm = FakeVm::booted(options.clone()).unwrap();
    for _ in 0..10 {
        let ends = plain_run(vm, FakeVm::new(options.clone()).unwrap());
        assert_moved(&ends, true);
        let writes = ends.source.vm.writes();
        vm = ends.destination.unwrap().vm;
        assert_eq!(vm.writes(), writes);
    }
    assert_eq!(options.fleet.most(), 1);
}

#[test]
fn a_paused_guest_arrives_paused_after_one_live_round() {
    let options = Options::default();
    let mut source = FakeVm::booted(options.clone()).unwrap();
    source.set_running(false);
    let ends = plain_run(source, FakeVm::new(options.clone()).unwrap());
    assert_moved(&ends, false);
    assert_eq!(ends.source_report.rounds.len(), 2);
    assert_eq!(options.fleet.running(), 0);
}

/// Has the guest make a page zero when all has been sent once.
struct ZeroAtTheEnd(FakeGuest);

impl Observer for ZeroAtTheEnd {
    fn status(&self, status: Status) {
        if status == Status::Device {
            assert!(self.0.zero_page(1, 3));
        }
    }
    fn pass(&self, _: u32) {}
}

#[test]
fn a_page_that_becomes_zero_is_zero_there() {
    for log in LOG_MODES {
        let options = Options { writes_per_call: 0, log, ..Options::default() };
        let source = FakeVm::booted(options.clone()).unwrap();
        assert!(source.page(1, 3).iter().any(|byte| *byte != 0));
        let observer = ZeroAtTheEnd(source.guest());
        let controls = [Control::new(Side::Source, Box::new(observer)).unwrap(), control(Side::Destination)];
        let pair = tern_migration::channel::Connection::pair().unwrap();
        let ends = run(source, FakeVm::new(options).unwrap(), pair, &LiveParameters::default(), controls);
        assert_moved(&ends, true);
        assert_eq!(ends.source_report.pages.zero, 1);
        assert!(ends.destination.unwrap().vm.page(1, 3).iter().all(|byte| *byte == 0));
    }
}

/// Is this page of the machine's memory backed by anything?
fn present(vm: &FakeVm, region: usize, page: u64) -> bool {
    use std::os::unix::fs::FileExt;
    let host = SourceVm::ram(vm).iter().nth(region).unwrap().as_ptr().addr() as u64 / 4096 + page;
    let mut entry = [0; 8];
    fs::File::open("/proc/self/pagemap").unwrap().read_exact_at(&mut entry, host * 8).unwrap();
    u64::from_le_bytes(entry) >> 63 == 1
}

#[test]
fn untouched_memory_is_neither_sent_nor_touched() {
    let options = Options { writes_per_call: 0, ..big(LogMode::Plain) };
    let source = FakeVm::booted(options.clone()).unwrap();
    let ends = plain_run(source, FakeVm::new(options.clone()).unwrap());
    let destination = &ends.destination.as_ref().unwrap().vm;
    let (mut touched, mut untouched) = (0, 0);
    for (region, pages) in options.region_pages.iter().enumerate() {
        for page in 0..*pages {
            let sent = ends.source.vm.touched(region, page);
            assert_eq!(present(destination, region, page), sent, "region {region} page {page}");
            touched += u64::from(sent);
            untouched += u64::from(!sent);
        }
    }
    // The page that saving writes is sent again, or for the first time.
    assert_eq!(ends.source_report.pages.untouched, Some(untouched + 1));
    assert_eq!(ends.destination_report.pages, ends.source_report.pages);
    assert_eq!(ends.source_report.pages.sent(), touched);
    assert_moved(&ends, true);
}

#[test]
fn both_transports_carry_a_guest() {
    let folder = tempfile::tempdir().unwrap();
    let unix = Uri::Unix { path: folder.path().join("socket") };
    for uri in ["tcp:127.0.0.1:0".parse().unwrap(), unix] {
        let options = big(LogMode::Manual { initially_set: true });
        let listener = Listener::bind(&uri).unwrap();
        let controls = [control(Side::Source), control(Side::Destination)];
        let near = connect(listener.uri(), &controls[0]).unwrap();
        let far = listener.accept(&controls[1]).unwrap();
        let (source, destination) = (FakeVm::booted(options.clone()).unwrap(), FakeVm::new(options).unwrap());
        let ends = run(source, destination, (near, far), &LiveParameters::default(), controls);
        assert_moved(&ends, true);
        for report in [&ends.source_report, &ends.destination_report] {
            assert!(uri.to_string().starts_with(report.transport));
            assert_eq!(report.uri, Some(listener.uri().to_string()));
            assert_eq!(report.peer_address.is_some(), report.transport == "tcp");
        }
    }
}

#[derive(Default)]
struct Notes(Arc<Mutex<Vec<String>>>);

impl Observer for Notes {
    fn status(&self, status: Status) {
        self.0.lock().unwrap().push(status.name().to_owned());
    }
    fn pass(&self, pass: u32) {
        self.0.lock().unwrap().push(format!("pass {pass}"));
    }
}

#[test]
fn both_reports_say_the_same_and_the_observer_hears_each_status() {
    let notes = Notes::default();
    let heard = Arc::clone(&notes.0);
    let controls = [Control::new(Side::Source, Box::new(notes)).unwrap(), control(Side::Destination)];
    let options = Options { writes_per_call: 0, ..Options::default() };
    let pair = tern_migration::channel::Connection::pair().unwrap();
    let source = FakeVm::booted(options.clone()).unwrap();
    let kept = controls.clone();
    let ends = run(source, FakeVm::new(options).unwrap(), pair, &LiveParameters::default(), controls);
    assert_moved(&ends, true);
    assert!(kept.iter().all(|control| !control.cancel()), "it is too late to cancel");
    assert_eq!(*heard.lock().unwrap(), ["setup", "active", "pass 1", "device", "completed"]);
    let (near, far) = (&ends.source_report, &ends.destination_report);
    assert_eq!((&near.session, near.pages.sent()), (&far.session, far.pages.sent()));
    assert_eq!((near.bytes, near.memory_bytes), (far.bytes, far.memory_bytes));
    assert_eq!(near.session.len(), 32);
    assert_eq!((near.pages, near.live_us), (far.pages, far.live_us));
    assert_eq!((near.remaining_bytes, far.remaining_bytes), (Some(0), Some(0)));
    assert!(near.dirty_pages_per_s.is_some() && near.dirty_pages_per_s == far.dirty_pages_per_s);
    assert_eq!((near.downtime_limit_ms, far.downtime_limit_ms), (Some(300), Some(300)));
    assert_eq!(near.rounds.len(), far.rounds.len());
    for (here, there) in near.rounds.iter().zip(&far.rounds) {
        assert_eq!(Round { duration_us: here.duration_us, ..*there }, *here);
    }
    let (near, far) = (near.downtime.unwrap(), far.downtime.unwrap());
    assert_eq!((near.state_send_us, near.total_us), (far.state_send_us, far.total_us));
    assert_eq!(near.commit_us, far.commit_us);
    assert_eq!((near.load_us, near.resume_us), (far.load_us, far.resume_us));
    assert_eq!((near.stop_us, near.final_ram_us), (far.stop_us, far.final_ram_us));
    let parts = near.stop_us + near.state_save_us + near.final_ram_us + near.state_send_us.unwrap();
    let (parts, total_us) = (parts + near.commit_us.unwrap(), near.total_us.unwrap());
    assert!(total_us >= parts && total_us < parts + 20_000, "{near:?}");
    let answer = query_migrate(&ends.source_report);
    assert_eq!(answer["status"], "completed");
    assert_eq!(answer["ram"]["dirty-sync-count"], 2);
    assert_eq!(answer["ram"]["transferred"], ends.source_report.bytes.total());
}

#[test]
fn a_failed_connect_is_told_with_its_context() {
    let folder = tempfile::tempdir().unwrap();
    let uri = Uri::Unix { path: folder.path().join("nobody") };
    let control = control(Side::Source);
    let vm = FakeVm::booted(Options::default()).unwrap();
    let live = LiveParameters::default();
    live.merge(serde_json::json!({"max-total-time": 99}).as_object().unwrap()).unwrap();
    let end = tern_migration::source::migrate_to(vm, &uri, &live, &control);
    assert!(matches!(end.outcome, tern_migration::source::Outcome::Failed(_)));
    let report = control.report();
    assert_eq!((report.transport, report.uri), ("unix", Some(uri.to_string())));
    assert_eq!((report.max_total_time_ms, report.error.unwrap().code.as_str()), (Some(99), "connect"));
    assert!(report.capabilities.unwrap().events);
}

#[test]
fn an_accepted_cancel_is_told_once_and_before_its_end() {
    let notes = Notes::default();
    let heard = Arc::clone(&notes.0);
    let controls = [Control::new(Side::Source, Box::new(notes)).unwrap(), control(Side::Destination)];
    let options = Options { region_pages: vec![3000], ..Options::default() };
    let live = LiveParameters::default();
    live.merge(serde_json::json!({"max-bandwidth": 300_000}).as_object().unwrap()).unwrap();
    let pair = tern_migration::channel::Connection::pair().unwrap();
    let (source, destination) = (FakeVm::booted(options.clone()).unwrap(), FakeVm::new(options).unwrap());
    std::thread::scope(|scope| {
        let kept = Arc::clone(&controls[0]);
        let running = scope.spawn(|| run(source, destination, pair, &live, controls));
        while kept.report().status != Status::Active {
            std::thread::yield_now();
        }
        assert!(kept.cancel() && kept.cancel());
        assert_eq!(running.join().unwrap().source_report.status, Status::Cancelled);
    });
    let heard = heard.lock().unwrap();
    assert_eq!(heard.iter().filter(|word| *word == "cancelling").count(), 1, "{heard:?}");
    assert_eq!(heard[heard.len() - 2..], ["cancelling", "cancelled"]);
}

#[test]
fn the_dirty_log_is_stopped_after_success() {
    let options = Options::default();
    let source = FakeVm::booted(options.clone()).unwrap();
    let ends = plain_run(source, FakeVm::new(options).unwrap());
    assert_eq!(ends.source.vm.calls(Call::DirtyLogStop), 1);
    assert_eq!(ends.source.vm.calls(Call::Resume), 0);
}
