//! Limits of bandwidth, downtime and time; strangers at the other end; cancels of a stuck peer.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use serde_json::json;
use tern_migration::channel::{Acceptor, Connection, Listener, connect};
use tern_migration::destination::{receive, receive_from};
use tern_migration::fake::{Call, FakeVm, Hook, LogMode, Options};
use tern_migration::source::{Outcome, migrate, migrate_to};
use tern_migration::{
    Blame, Control, DirtyLogMode, LiveParameters, Observer, Parameters, Side, Status, config, query_migrate,
};

use crate::harness::{assert_moved, assert_second_succeeds, control, run};

fn live(changes: serde_json::Value) -> LiveParameters {
    let changes = changes.as_object().unwrap();
    LiveParameters::new(Parameters::default().merged(changes).unwrap())
}

fn run_live(options: &Options, live: &LiveParameters) -> crate::harness::Ends {
    let controls = [control(Side::Source), control(Side::Destination)];
    let source = FakeVm::booted(options.clone()).unwrap();
    let destination = FakeVm::new(options.clone()).unwrap();
    run(source, destination, Connection::pair().unwrap(), live, controls)
}

#[test]
fn a_limit_of_bandwidth_holds_and_can_be_lifted_on_the_way() {
    let options = Options { region_pages: vec![1500], writes_per_call: 0, ..Options::default() };
    let started = Instant::now();
    // 500 touched pages: 2 MB.
    let ends = run_live(&options, &live(json!({"max-bandwidth": 4_000_000})));
    let took = started.elapsed();
    assert_moved(&ends, true);
    assert!(took > Duration::from_millis(440), "{took:?}");
    // The link is known to be faster than the limit.
    assert!(
        ends.source_report.link_bytes_per_s > Some(20_000_000),
        "{:?}",
        ends.source_report.link_bytes_per_s
    );
    let live = live(json!({"max-bandwidth": 300_000}));
    let lifted = std::thread::scope(|scope| {
        let running = scope.spawn(|| run_live(&Options::default(), &live));
        std::thread::sleep(Duration::from_millis(300));
        let started = Instant::now();
        live.merge(json!({"max-bandwidth": 0}).as_object().unwrap()).unwrap();
        assert_moved(&running.join().unwrap(), true);
        started.elapsed()
    });
    assert!(lifted < Duration::from_millis(600), "{lifted:?}");
}

#[test]
fn disk_errors_of_the_guest_are_counted_from_the_start_and_the_first_is_a_warning() {
    let failures = Arc::new(AtomicU64::new(5));
    let failing = Arc::clone(&failures);
    let hook = move |call| {
        if call == Call::Save {
            failing.fetch_add(2, Ordering::SeqCst);
        }
        Ok(())
    };
    let source = Options { hook: Some(Hook(Arc::new(hook))), disk_failures: failures, ..Options::default() };
    let destination = Options { fleet: Arc::clone(&source.fleet), ..Options::default() };
    let controls = [control(Side::Source), control(Side::Destination)];
    let vms = [FakeVm::booted(source).unwrap(), FakeVm::new(destination).unwrap()];
    let [source, destination] = vms;
    let ends = run(source, destination, Connection::pair().unwrap(), &LiveParameters::default(), controls);
    assert_moved(&ends, true);
    assert_eq!((ends.source_report.disk_errors, ends.destination_report.disk_errors), (Some(2), None));
    let [warning] = &ends.source_report.warnings[..] else { panic!("{:?}", ends.source_report.warnings) };
    assert!(warning.contains("request 7") && warning.contains("I/O error"), "{warning}");
}

#[test]
fn many_small_rounds_keep_the_limit_too() {
    const LIMIT: u64 = 262_144;
    let options = Options { region_pages: vec![70], writes_per_call: 0, ..Options::default() };
    // It never ends by itself: no stop is short enough.
    let limits = live(json!({"max-bandwidth": LIMIT, "downtime-limit": 0}));
    let controls = [control(Side::Source), control(Side::Destination)];
    let here = Arc::clone(&controls[0]);
    let mut source = FakeVm::booted(options.clone()).unwrap();
    let (guest, empty) = (source.guest(), FakeVm::new(options).unwrap());
    // Each round has one page, of which nothing is sent but that it is zero.
    let hook = move |call| {
        if call == Call::DirtyLogFetch {
            guest.zero_page(0, 5);
        }
        Ok(())
    };
    source.set_hook(Some(Hook(Arc::new(hook))));
    std::thread::scope(|scope| {
        let running = scope.spawn(|| run(source, empty, Connection::pair().unwrap(), &limits, controls));
        let wait_messages = |bytes: u64| {
            while here.report().bytes.messages < bytes {
                assert!(!running.is_finished());
                std::thread::sleep(Duration::from_millis(1));
            }
            (Instant::now(), here.report().bytes.messages)
        };
        let (began, from) = wait_messages(LIMIT / 16);
        let (ended, to) = wait_messages(from + LIMIT / 2);
        here.cancel();
        running.join().unwrap();
        let (took, least_ms) = (ended - began, (to - from) * 800 / LIMIT);
        assert!(took > Duration::from_millis(least_ms), "{took:?} for what takes {least_ms} ms at least");
    });
}

#[test]
fn the_first_round_is_seen_while_it_runs_and_kept_when_it_is_cancelled() {
    let options = Options { region_pages: vec![3000], writes_per_call: 0, ..Options::default() };
    let limits = live(json!({"max-bandwidth": 2_000_000, "downtime-limit": 77}));
    let controls = [control(Side::Source), control(Side::Destination)];
    let kept = controls.clone();
    let (source, empty) = (FakeVm::booted(options.clone()).unwrap(), FakeVm::new(options).unwrap());
    std::thread::scope(|scope| {
        let running = scope.spawn(|| run(source, empty, Connection::pair().unwrap(), &limits, controls));
        let seen = |control: &Control| loop {
            let report = control.report();
            if report.rounds.first().is_some_and(|round| round.pages_raw > 0) {
                return report;
            }
            assert!(!running.is_finished());
            std::thread::sleep(Duration::from_millis(5));
        };
        let [here, there] = [seen(&kept[0]), seen(&kept[1])];
        assert!((1..here.memory_bytes).contains(&here.remaining_bytes.unwrap()), "{here:?}");
        assert_eq!(query_migrate(&there)["ram"].get("remaining"), None);
        assert!([&here, &there].iter().all(|r| r.live_us > 0 && r.rounds.len() == 1), "{here:?} {there:?}");
        for report in [&here, &there] {
            assert_eq!(report.downtime_limit_ms, Some(77));
            assert_eq!(
                (report.max_bandwidth_bytes_per_s, report.max_total_time_ms),
                (Some(2_000_000), Some(0))
            );
        }
        let answer = query_migrate(&here);
        assert_eq!((&answer["ram"]["dirty-sync-count"], here.rounds[0].finished), (&json!(1), false));
        kept[0].cancel();
        let ends = running.join().unwrap();
        for report in [ends.source_report, ends.destination_report] {
            let [round] = report.rounds[..] else { panic!("{:?}", report.rounds) };
            assert!(!round.finished && report.live_us > 0 && round.duration_us > 0, "{report:?}");
            assert_eq!(round.pages_raw, report.pages.raw);
        }
    });
}

#[test]
fn chunks_that_are_written_most_come_last_in_many_rounds_and_all_arrive() {
    // Five chunks; which one is hottest changes from round to round.
    let options = Options {
        region_pages: vec![100, 8500],
        working_set_pages: 8600,
        writes_per_call: 120,
        touched_every: 50,
        ..Options::default()
    };
    let ends =
        run_live(&options, &live(json!({"downtime-limit": 0, "max-total-time": 300, "on-timeout": "stop"})));
    assert_moved(&ends, true);
    assert!(ends.source_report.rounds.len() > 4, "{:?}", ends.source_report.rounds);
}

#[test]
fn a_migration_chooses_how_writes_are_found_and_a_machine_that_can_not_says_so() {
    let manual = Options::default();
    let ring = Options { log: LogMode::Ring, ..Options::default() };
    for (options, wanted, found) in [
        (&manual, "auto", DirtyLogMode::ManualClear),
        (&manual, "bitmap", DirtyLogMode::Bitmap),
        (&ring, "auto", DirtyLogMode::Ring),
    ] {
        let ends = run_live(options, &live(json!({"dirty-log": wanted})));
        assert_moved(&ends, true);
        assert_eq!(ends.source_report.dirty_log, Some(found));
        let counted = ends.source_report.dirty_by_vcpu.iter().any(|vcpu| vcpu.pages > 0);
        assert_eq!(counted, found == DirtyLogMode::Ring);
    }
    for (options, wanted) in [(&manual, "ring"), (&ring, "bitmap")] {
        let ends = run_live(options, &live(json!({"dirty-log": wanted})));
        assert!(ends.source.vm.is_running(), "the guest goes on");
        let error = ends.source_report.error.unwrap().text();
        assert!(error.contains("has no dirty log of the kind"), "{error}");
        assert_eq!((ends.source_report.status, ends.source_report.dirty_log), (Status::Failed, None));
    }
}

#[test]
fn a_guest_that_never_converges_is_stopped_in_time_where_that_is_wanted() {
    let options = Options { writes_per_call: 50, ..Options::default() };
    let limits = live(json!({"downtime-limit": 0, "max-total-time": 200, "on-timeout": "stop"}));
    let ends = run_live(&options, &limits);
    assert_moved(&ends, true);
    assert!(ends.source_report.live_us >= 150_000, "{:?}", ends.source_report);
    // The time ends in the middle of a round that would take long: the rest of it is sent at once.
    let slow = json!({"max-bandwidth": 262_144, "max-total-time": 200, "on-timeout": "stop"});
    let started = Instant::now();
    let options = Options { region_pages: vec![3000], fleet: Arc::default(), ..options };
    let ends = run_live(&options, &live(slow));
    assert_moved(&ends, true);
    assert!(started.elapsed() < Duration::from_secs(8), "1000 pages take 16 s under the limit");
}

#[test]
fn a_guest_that_is_stopped_first_moves_in_one_round_and_goes_on() {
    let options = Options { writes_per_call: 50, ..Options::default() };
    let changes = json!({"capabilities": [{"capability": "stop-first", "state": true}]});
    let ends = run_live(&options, &live(changes));
    assert_moved(&ends, true);
    let report = &ends.source_report;
    // Saving writes a page or two.
    assert!(report.rounds.len() == 2 && report.rounds[1].pages_raw <= 2, "{:?}", report.rounds);
    let downtime_us = report.downtime.unwrap().total_us.unwrap();
    assert!(downtime_us >= report.rounds[0].duration_us, "the guest was stopped before its memory moved");
}

#[test]
fn a_guest_can_arrive_paused() {
    let changes = json!({"capabilities": [{"capability": "arrive-paused", "state": true}]});
    let ends = run_live(&Options::default(), &live(changes));
    assert_moved(&ends, false);
}

#[test]
fn a_guest_that_never_converges_fails_in_time_and_runs_on() {
    let options = Options { writes_per_call: 50, ..Options::default() };
    let limits = live(json!({"downtime-limit": 0, "max-total-time": 200}));
    let ends = run_live(&options, &limits);
    let Outcome::Failed(error) = &ends.source.outcome else { panic!("{:?}", ends.source.outcome) };
    assert_eq!((error.blame(), error.code()), (Blame::Limit, "not-converging"));
    assert!(error.text().contains("downtime-limit 0 ms"), "{}", error.text());
    assert!(ends.source_report.rounds.len() > 2 && ends.source.vm.is_running());
    let there = ends.destination.as_ref().err().unwrap().error.text();
    assert!(there.starts_with("the source gave up: max-total-time 200 ms"), "{there}");
    assert_second_succeeds(ends.source.vm, &options, "second");
}

#[test]
fn the_time_limit_ends_the_first_round_too() {
    let options = Options { region_pages: vec![3000], ..Options::default() };
    let limits = live(json!({"max-bandwidth": 300_000, "max-total-time": 150}));
    let started = Instant::now();
    let ends = run_live(&options, &limits);
    assert!(started.elapsed() < Duration::from_secs(3));
    let Outcome::Failed(error) = &ends.source.outcome else { panic!("{:?}", ends.source.outcome) };
    assert_eq!(error.code(), "not-converging");
    assert_second_succeeds(ends.source.vm, &options, "second");
}

#[test]
fn raising_the_downtime_limit_lets_a_guest_go() {
    let options = Options { writes_per_call: 50, ..Options::default() };
    let live = live(json!({"downtime-limit": 0}));
    std::thread::scope(|scope| {
        let running = scope.spawn(|| run_live(&options, &live));
        std::thread::sleep(Duration::from_millis(100));
        assert!(!running.is_finished());
        live.merge(json!({"downtime-limit": 1000}).as_object().unwrap()).unwrap();
        assert_moved(&running.join().unwrap(), true);
    });
}

#[test]
fn a_peer_that_is_not_tern_is_named_by_its_first_bytes() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let uri = format!("tcp:{}", listener.local_addr().unwrap()).parse().unwrap();
    let stranger = std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        stream.write_all(b"SSH-2.0-OpenSSH_9.9\r\n").unwrap();
        stream.read_to_end(&mut Vec::new()).unwrap();
    });
    let control = control(Side::Source);
    let options = Options::default();
    let connection = connect(&uri, &control).unwrap();
    let vm = FakeVm::booted(options.clone()).unwrap();
    let end = migrate(vm, connection, &LiveParameters::default(), &control);
    let Outcome::Failed(error) = &end.outcome else { panic!("{:?}", end.outcome) };
    let text = "the peer is not tern: it began with \"SSH-2.0-\", expected \"TERN-MIG\"";
    assert_eq!((error.blame(), error.text().as_str()), (Blame::Protocol, text));
    stranger.join().unwrap();
    assert_second_succeeds(end.vm, &options, "second");
}

#[test]
fn a_destination_refuses_a_stranger() {
    let (mut stranger, far) = UnixStream::pair().unwrap();
    stranger.write_all(b"GET / HTTP/1.1\r\n\r\n").unwrap();
    let control = control(Side::Destination);
    let vm = FakeVm::new(Options::default()).unwrap();
    let error = receive(vm, Connection::from_stream(far), &control).unwrap_err().error;
    assert!(error.text().contains("it began with \"GET / HT\""), "{}", error.text());
}

#[derive(Default)]
struct TurnedAway(Arc<AtomicU32>);

impl Observer for TurnedAway {
    fn status(&self, status: Status) {
        assert_ne!(status, Status::Failed);
    }
    fn pass(&self, _: u32) {}
    fn turned_away(&self, text: &str) {
        assert!(text.starts_with("a peer was turned away: "), "{text}");
        self.0.fetch_add(1, Ordering::SeqCst);
    }
}

#[test]
fn strangers_cost_a_waiting_destination_nothing() {
    let listener = Arc::new(Listener::bind(&"tcp:127.0.0.1:0".parse().unwrap()).unwrap());
    let acceptor: Arc<dyn Acceptor> = listener.clone();
    let address = listener.uri().to_string().replace("tcp:", "");
    let stranger = |words: &[u8]| {
        let mut stream = TcpStream::connect(&address).unwrap();
        stream.write_all(words).unwrap();
        stream
    };
    let header =
        |kind: u8| [b"TERN-MIG", &[kind, 0, 0, 0][..], &[0; 8], &16u32.to_le_bytes(), &[0; 8]].concat();
    // Some are silent in front of a hello or in its middle, and stay.
    let _silent: Vec<TcpStream> = [&b""[..], b"", b"TERN", b"TERN-MIG\x01"].map(stranger).into();
    let rude: Vec<TcpStream> =
        [b"GET / HTTP/1.1\r\n", &header(1)[..], &header(7)[..], &header(99)[..]].map(stranger).into();
    rude.iter().for_each(|stream| stream.shutdown(std::net::Shutdown::Write).unwrap());
    let away = TurnedAway::default();
    let count = Arc::clone(&away.0);
    let there = Control::new(Side::Destination, Box::new(away)).unwrap();
    let options = Options::default();
    let (source, empty) = (FakeVm::booted(options.clone()).unwrap(), FakeVm::new(options).unwrap());
    std::thread::scope(|scope| {
        let receiving = scope.spawn(|| receive_from(empty, &acceptor, &there));
        while count.load(Ordering::SeqCst) < 4 {
            std::thread::yield_now();
        }
        assert_eq!(there.report().status, Status::None);
        let (here, started) = (control(Side::Source), Instant::now());
        let end = migrate_to(source, listener.uri(), &LiveParameters::default(), &here);
        let took = started.elapsed();
        assert!(matches!(end.outcome, Outcome::Completed), "{:?}", end.outcome);
        assert!(took < Duration::from_millis(1500), "{took:?}");
        assert_eq!(end.vm.first_difference(&receiving.join().unwrap().unwrap().vm), None);
    });
    let report = there.report();
    assert_eq!((report.status, report.strangers, report.warnings.len()), (Status::Completed, 4, 4));
    assert!(report.warnings[0].contains("it began with \"GET / HT\""), "{:?}", report.warnings);
}

#[test]
fn a_silent_peer_is_turned_away_in_time_and_its_wait_is_nobodys_time() {
    let listener = Arc::new(Listener::bind(&"tcp:127.0.0.1:0".parse().unwrap()).unwrap());
    let acceptor: Arc<dyn Acceptor> = listener.clone();
    let mut silent = TcpStream::connect(listener.uri().to_string().replace("tcp:", "")).unwrap();
    let (here, there) = (control(Side::Source), control(Side::Destination));
    let options = Options::default();
    let (source, empty) = (FakeVm::booted(options.clone()).unwrap(), FakeVm::new(options).unwrap());
    std::thread::scope(|scope| {
        let receiving = scope.spawn(|| receive_from(empty, &acceptor, &there));
        let started = Instant::now();
        assert_eq!(silent.read(&mut [0; 1]).unwrap(), 0);
        assert!((2900..6000).contains(&started.elapsed().as_millis()), "{:?}", started.elapsed());
        let end = migrate_to(source, listener.uri(), &LiveParameters::default(), &here);
        assert!(matches!(end.outcome, Outcome::Completed), "{:?}", end.outcome);
        assert!(receiving.join().unwrap().unwrap().running);
    });
    let report = there.report();
    assert_eq!(report.strangers, 1);
    assert!(report.total_us < 2_000_000 && report.setup_us < 1_000_000, "{} us", report.total_us);
}

#[test]
fn a_cancel_ends_a_stuck_write_and_a_stuck_read_at_once() {
    // The peer reads nothing, so the source soon waits for room; or says nothing, so it waits for an answer.
    for pages in [9_000, 90] {
        let (near, mut far) = UnixStream::pair().unwrap();
        let control = control(Side::Source);
        let options = Options { region_pages: vec![pages], ..Options::default() };
        let vm = FakeVm::booted(options.clone()).unwrap();
        let live = LiveParameters::default();
        let (end, took) = std::thread::scope(|scope| {
            let running = scope.spawn(|| migrate(vm, Connection::from_stream(near), &live, &control));
            far.read_exact(&mut [0; 8]).unwrap();
            std::thread::sleep(Duration::from_millis(50));
            let started = Instant::now();
            assert!(control.cancel());
            // The source's farewell waits for a peer that still listens.
            drop(far);
            (running.join().unwrap(), started.elapsed())
        });
        assert!(matches!(end.outcome, Outcome::Cancelled), "{:?}", end.outcome);
        assert!(took < Duration::from_millis(400), "{took:?}");
        assert_second_succeeds(end.vm, &options, "second");
    }
}

#[test]
fn a_slow_peer_is_not_a_stalled_one_but_a_silent_one_is() {
    let (near, _far) = UnixStream::pair().unwrap();
    let control = control(Side::Source);
    let connection = Connection::from_stream(near).with_timeout(Duration::from_millis(100));
    let vm = FakeVm::booted(Options::default()).unwrap();
    let end = migrate(vm, connection, &LiveParameters::default(), &control);
    let Outcome::Failed(error) = &end.outcome else { panic!("{:?}", end.outcome) };
    assert_eq!((error.blame(), error.code()), (Blame::Link, "link-stalled"));
    assert!(error.text().contains("for 100 ms"), "{}", error.text());
}

#[test]
fn the_documented_tables_are_the_code() {
    let document = include_str!("../../PROTOCOL.md");
    assert!(document.contains(&config::tables_markdown()), "expected:\n{}", config::tables_markdown());
}

/// Carries bytes; the first ones late.
fn carry(mut from: UnixStream, mut to: UnixStream, late: Duration) {
    let mut bytes = [0; 4096];
    for number in 0.. {
        let Ok(count @ 1..) = from.read(&mut bytes) else { break };
        if number == 0 {
            std::thread::sleep(late);
        }
        if to.write_all(&bytes[..count]).is_err() {
            break;
        }
    }
    // The other side may have gone first.
    let _ = to.shutdown(std::net::Shutdown::Write);
}

#[test]
fn an_answer_that_was_late_once_keeps_no_guest() {
    // Seed 0x5d1273cfd4656813 of the simulator: nothing arrived for a while as the two sides introduced themselves, and
    // the guest then went round and round until somebody cancelled.
    let ((near, here), (there, far)) = (UnixStream::pair().unwrap(), UnixStream::pair().unwrap());
    let back = (there.try_clone().unwrap(), here.try_clone().unwrap());
    let options = Options::default();
    let limits = live(json!({"downtime-limit": 100, "max-total-time": 10_000}));
    let (source, empty) = (FakeVm::booted(options.clone()).unwrap(), FakeVm::new(options).unwrap());
    let controls = [control(Side::Source), control(Side::Destination)];
    let ends = std::thread::scope(|scope| {
        scope.spawn(|| carry(here, there, Duration::ZERO));
        scope.spawn(|| carry(back.0, back.1, Duration::from_millis(400)));
        let pair = (Connection::from_stream(near), Connection::from_stream(far));
        run(source, empty, pair, &limits, controls)
    });
    assert_moved(&ends, true);
}
