//! A check before a migration: what it finds, that it costs neither machine anything, and what a bad one costs.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Mutex};

use tern_migration::channel::{Acceptor, Listener};
use tern_migration::destination::receive_from;
use tern_migration::fake::{FakeVm, Options, SOURCE_CALLS};
use tern_migration::source::{CheckReport, Outcome, SectionChoice, check, migrate_to};
use tern_migration::{
    Aspect, Control, LiveParameters, MigrationError, Observer, Parameters, Side, SourceVm, Status,
};

use crate::harness::control;

#[derive(Default)]
struct Asked(Arc<Mutex<Vec<usize>>>);

impl Observer for Asked {
    fn status(&self, _: Status) {}
    fn pass(&self, _: u32) {}
    fn asked(&self, differing: &[Aspect]) {
        self.0.lock().unwrap().push(differing.len());
    }
}

fn ask(vm: &FakeVm, listener: &Listener) -> Result<CheckReport, MigrationError> {
    check(SourceVm::facts(vm), listener.uri(), &Parameters::default(), &control(Side::Source))
}

/// Runs `asking` against a destination that waits for a guest; then the guest comes, as if nothing had been.
fn while_waiting(asking: impl FnOnce(&Listener, &FakeVm)) -> (Vec<usize>, u64) {
    let listener = Arc::new(Listener::bind(&"tcp:127.0.0.1:0".parse().unwrap()).unwrap());
    let acceptor: Arc<dyn Acceptor> = listener.clone();
    let observer = Asked::default();
    let asked = Arc::clone(&observer.0);
    let there = Control::new(Side::Destination, Box::new(observer)).unwrap();
    let options = Options::default();
    let (source, empty) = (FakeVm::booted(options.clone()).unwrap(), FakeVm::new(options.clone()).unwrap());
    std::thread::scope(|scope| {
        let receiving = scope.spawn(|| receive_from(empty, &acceptor, &there));
        asking(&listener, &source);
        assert!(!receiving.is_finished());
        assert_eq!(there.report().status, Status::None);
        assert!(source.is_running() && SOURCE_CALLS.iter().all(|call| source.calls(*call) == 0));
        let end = migrate_to(source, listener.uri(), &LiveParameters::default(), &control(Side::Source));
        assert!(matches!(end.outcome, Outcome::Completed), "{:?}", end.outcome);
        assert_eq!(end.vm.first_difference(&receiving.join().unwrap().unwrap().vm), None);
    });
    assert_eq!(options.fleet.most(), 1);
    let asked = asked.lock().unwrap().clone();
    (asked, there.report().strangers)
}

#[test]
fn a_check_measures_and_leaves_both_machines_as_they_are() {
    let asked = while_waiting(|listener, source| {
        for _ in 0..3 {
            let report = ask(source, listener).unwrap();
            assert!(report.fits && report.proof, "{report:?}");
            assert_eq!(report.encodings, ["zero", "raw"]);
            let fake = SectionChoice { name: "fake".into(), instance: 0, version: 1 };
            assert_eq!((report.sections, report.protocol_version), (vec![fake], 1));
            assert!(report.round_trip_us > 0 && report.link_bytes_per_s > 1_000_000);
            assert!(report.total_us > report.round_trip_us);
            let names: Vec<_> = report.aspects.iter().map(|aspect| aspect.name.as_str()).collect();
            assert!(["vCPUs", "memory", "fake"].iter().all(|name| names.contains(name)), "{names:?}");
        }
    });
    assert_eq!(asked, (vec![0, 0, 0], 0));
}

#[test]
fn a_guest_that_does_not_fit_is_an_answer_and_not_an_error() {
    let asked = while_waiting(|listener, _| {
        let other = Options { region_pages: vec![70, 210], ..Options::default() };
        let report = ask(&FakeVm::new(other).unwrap(), listener).unwrap();
        let json = serde_json::to_value(&report).unwrap();
        assert_eq!(json["fits"], false);
        let aspects = json["aspects"].as_array().unwrap();
        let differing: Vec<_> = aspects.iter().filter(|aspect| aspect["ok"] == false).collect();
        assert_eq!((differing.len(), &differing[0]["code"]), (1, &"memory-layout".into()));
        assert!(differing[0]["source"].as_str().unwrap().starts_with("1120 KiB in 2 regions"));
        assert!(differing[0]["remedy"].as_str().unwrap().contains("--memory"));
        assert!(aspects.iter().any(|aspect| aspect["ok"] == true && aspect["remedy"].is_null()));
    });
    assert_eq!(asked, (vec![1], 0));
}

/// The bytes of one side of a check, as far as the offer: what follows is the test's.
fn recorded() -> Vec<u8> {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let uri = format!("tcp:{}", listener.local_addr().unwrap()).parse().unwrap();
    let vm = FakeVm::new(Options::default()).unwrap();
    std::thread::scope(|scope| {
        let asking = scope.spawn(|| {
            check(SourceVm::facts(&vm), &uri, &Parameters::default(), &control(Side::Source)).unwrap_err()
        });
        let (mut stream, _) = listener.accept().unwrap();
        let mut hello = vec![0; 8 + 24];
        stream.read_exact(&mut hello).unwrap();
        let length = u32::from_le_bytes(*hello[20..].first_chunk().unwrap()) as usize;
        hello.resize(32 + length, 0);
        stream.read_exact(&mut hello[32..]).unwrap();
        drop(stream);
        asking.join().unwrap();
        hello
    })
}

#[test]
fn one_who_asks_badly_is_turned_away() {
    let hello = recorded();
    let asked = while_waiting(|listener, _| {
        let address = listener.uri().to_string().replace("tcp:", "");
        for rest in [&b""[..], b"no frame, but more bytes than a header has", &hello[8..]] {
            let mut stream = TcpStream::connect(&address).unwrap();
            stream.write_all(&hello).unwrap();
            stream.write_all(rest).unwrap();
            stream.shutdown(std::net::Shutdown::Write).unwrap();
            stream.read_to_end(&mut Vec::new()).unwrap();
        }
    });
    assert_eq!(asked, (vec![], 3));
}

#[test]
fn a_check_can_be_cancelled() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let uri = format!("tcp:{}", listener.local_addr().unwrap()).parse().unwrap();
    let control = control(Side::Source);
    let vm = FakeVm::new(Options::default()).unwrap();
    std::thread::scope(|scope| {
        let asking = scope.spawn(|| check(SourceVm::facts(&vm), &uri, &Parameters::default(), &control));
        let (mut silent, _) = listener.accept().unwrap();
        silent.read_exact(&mut [0; 8]).unwrap();
        assert!(control.cancel());
        drop(silent);
        assert!(matches!(asking.join().unwrap(), Err(MigrationError::Cancelled)));
    });
}
