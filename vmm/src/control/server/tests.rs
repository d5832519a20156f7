//! The server over a real socket, in a real event loop, with the fake machine.

use std::io::{BufRead, BufReader, Write};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use event_manager::{EventManager, SubscriberOps};
use serde_json::json;

use super::*;
use crate::control::client::{Client, ClientError};
use crate::control::testing::FakeMachine;
use crate::control::{ErrorCode, Event, EventSink, event_queue};

struct Running {
    path: PathBuf,
    sink: EventSink,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
    _folder: tempfile::TempDir,
}

fn start() -> Running {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("control");
    let (sink, queue) = event_queue().unwrap();
    let socket = ListeningSocket::bind(&path, "--control").unwrap();
    let vm = FakeMachine { events: Some(sink.clone()), ..FakeMachine::default() };
    let stop = Arc::new(AtomicBool::new(false));
    let stopped = stop.clone();
    let thread = std::thread::spawn(move || {
        let mut manager = EventManager::new().unwrap();
        manager.add_subscriber(ControlServer::new(socket, vm, queue));
        while !stopped.load(Ordering::Relaxed) {
            manager.run_with_timeout(20).unwrap();
        }
    });
    Running { path, sink, stop, thread: Some(thread), _folder: folder }
}

impl Running {
    fn client(&self) -> Client {
        Client::connect(&self.path).unwrap()
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            thread.join().unwrap();
        }
        assert!(!self.path.exists(), "the socket's file is left behind");
    }
}

#[test]
fn several_clients_see_commands_and_events() {
    let server = start();
    let (mut one, mut two) = (server.client(), server.client());
    assert_eq!(one.execute("query-status", json!({})).unwrap()["status"], "running");
    one.execute("stop", json!({})).unwrap();
    assert_eq!(two.execute("query-status", json!({})).unwrap()["status"], "paused");
    for client in [&mut one, &mut two] {
        let event = client.wait_event(Duration::from_secs(5)).unwrap().unwrap();
        assert_eq!(event["event"], "STOP");
    }
    server.sink.post(Event::MigrationPass { pass: 3 });
    let event = two.wait_event(Duration::from_secs(5)).unwrap().unwrap();
    assert_eq!((&event["event"], &event["data"]["pass"]), (&json!("MIGRATION_PASS"), &json!(3)));
}

#[test]
fn errors_reach_the_client_with_their_code() {
    let server = start();
    let error = server.client().execute("migrate-resolve", json!({"resolution": "run"})).unwrap_err();
    let ClientError::Command(error) = error else { panic!("{error}") };
    assert_eq!(error.code, ErrorCode::IllegalState);
}

#[test]
fn one_client_more_than_the_limit_is_turned_away_and_room_is_found_again() {
    let server = start();
    let mut clients: Vec<Client> = (0..CLIENT_LIMIT).map(|_| server.client()).collect();
    assert!(Client::connect(&server.path).is_err());
    clients.pop();
    let start = Instant::now();
    while Client::connect(&server.path).is_err() {
        assert!(start.elapsed() < Duration::from_secs(5), "no room is found again");
    }
    assert!(clients[0].execute("query-name", json!({})).is_ok());
}

#[test]
fn a_client_that_never_reads_blocks_nobody() {
    let server = start();
    let mut deaf = UnixStream::connect(&server.path).unwrap();
    deaf.write_all(br#"{"execute":"qmp_capabilities"}"#).unwrap();
    deaf.set_write_timeout(Some(Duration::from_millis(200))).unwrap();
    // The server stops reading from it when its answers pile up; then this write has no room.
    let flood = br#"{"execute":"query-commands"}"#.repeat(200);
    while deaf.write_all(&flood).is_ok() {}
    let mut other = server.client();
    for pass in 0..20_000 {
        server.sink.post(Event::MigrationPass { pass });
        if pass % 100 == 0 {
            other.execute("query-name", json!({})).unwrap();
            while other.wait_event(Duration::ZERO).unwrap().is_some() {}
        }
    }
    // What was sent before it was dropped can be read, and then there is an end.
    deaf.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
    let lines = BufReader::new(deaf).lines().map_while(Result::ok).count();
    assert!(lines < 20_000, "{lines}");
    assert!(other.execute("query-name", json!({})).is_ok());
}
