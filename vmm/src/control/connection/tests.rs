//! A connection over a socket pair: negotiation, order, broken input, limits.

use std::io::{BufRead, Read};

use proptest::prelude::*;

use super::*;
use crate::control::testing::FakeMachine;

struct Fixture {
    connection: Connection,
    client: io::BufReader<UnixStream>,
    vm: FakeMachine,
}

impl Fixture {
    fn new() -> Self {
        let (client, server) = UnixStream::pair().unwrap();
        client.set_nonblocking(true).unwrap();
        let connection = Connection::new(server).unwrap();
        Self { connection, client: io::BufReader::new(client), vm: FakeMachine::default() }
    }

    /// Sends bytes and returns what comes back.
    fn send(&mut self, bytes: &[u8]) -> Vec<Value> {
        for piece in bytes.chunks(READ_BYTES) {
            self.client.get_mut().write_all(piece).unwrap();
            self.connection.serve(EventSet::IN, &mut self.vm).unwrap();
        }
        self.receive()
    }

    fn receive(&mut self) -> Vec<Value> {
        let mut answers = Vec::new();
        let mut line = String::new();
        while self.client.read_line(&mut line).is_ok_and(|count| count > 0) {
            answers.push(serde_json::from_str(&line).unwrap());
            line.clear();
        }
        answers
    }
}

fn negotiated() -> Fixture {
    let mut fixture = Fixture::new();
    let answers = fixture.send(br#"{"execute": "qmp_capabilities"}"#);
    assert_eq!(answers.len(), 2);
    assert_eq!(answers[1], json!({"return": {}}));
    fixture
}

#[test]
fn the_greeting_has_qmps_shape() {
    let greeting = Fixture::new().send(b"").pop();
    assert!(greeting.is_none(), "nothing is sent before the first turn");
    let mut fixture = Fixture::new();
    let answers = fixture.send(b" ");
    assert_eq!(answers[0]["QMP"]["version"]["package"], concat!("tern-", env!("CARGO_PKG_VERSION")));
    assert!(answers[0]["QMP"]["version"]["qemu"]["micro"].is_u64());
    assert_eq!(answers[0]["QMP"]["capabilities"], json!([]));
}

#[test]
fn commands_wait_for_the_negotiation() {
    let mut fixture = Fixture::new();
    let answers = fixture.send(br#"{"execute": "stop", "id": 1}"#);
    assert_eq!(answers[1]["error"]["class"], "CommandNotFound");
    assert_eq!(answers[1]["id"], 1);
    let answers = fixture.send(br#"{"execute": "qmp_capabilities", "arguments": {"enable": ["oob"]}}"#);
    assert_eq!(answers[0]["error"]["code"], "invalid-argument");
    let answers = fixture.send(br#"{"execute": "qmp_capabilities", "arguments": {"enable": []}}"#);
    assert_eq!(answers, [json!({"return": {}})]);
    let answers = fixture.send(br#"{"execute": "qmp_capabilities"}"#);
    assert_eq!(answers[0]["error"]["class"], "CommandNotFound");
}

#[test]
fn ids_come_back_and_commands_follow_each_other() {
    let mut fixture = negotiated();
    let answers = fixture.send(br#"{"execute":"stop","id":{"n":[1]}}{"execute":"query-status","id":"x"}"#);
    assert_eq!(answers[0], json!({"return": {}, "id": {"n": [1]}}));
    assert_eq!(answers[1]["return"]["status"], "paused");
    assert_eq!(answers[1]["id"], "x");
}

#[test]
fn broken_input_gets_an_error_and_the_connection_goes_on() {
    let mut fixture = negotiated();
    for broken in [
        "nonsense",
        "[1]",
        "{}",
        r#"{"execute": 1}"#,
        r#"{"execute": "stop", "x": 1}"#,
        r#"{"execute": "stop", "arguments": 1}"#,
        r#"{"a" 1}"#,
        "{\"\u{0}\": tru}",
        r#"{"exec-oob": "quit"}"#,
        r#"{"execute": "stop" "id": 1}"#,
    ] {
        let answers = fixture.send(format!("{broken}\n").as_bytes());
        assert_eq!(answers.len(), 1, "{broken}");
        assert_eq!(answers[0]["error"]["code"], "malformed-input", "{broken}: {}", answers[0]);
    }
    assert_eq!(fixture.send(br#"{"execute":"query-name"}"#), [json!({"return": {"name": "fake"}})]);
    assert!(fixture.vm.calls.is_empty());
}

#[test]
fn oversized_input_gets_an_error_and_the_connection_goes_on() {
    let mut fixture = negotiated();
    let long = format!("{{\"execute\": \"{}\"}}\n", "x".repeat(1 << 20));
    let answers = fixture.send(long.as_bytes());
    assert_eq!(answers.len(), 1);
    assert_eq!(answers[0]["error"]["code"], "too-large");
    assert_eq!(fixture.send(br#"{"execute":"query-name"}"#).len(), 1);
}

#[test]
fn a_client_that_does_not_read_is_first_paused_and_then_dropped() {
    let mut fixture = negotiated();
    let event = json!({"event": "STOP", "data": "x".repeat(1000)});
    let mut told = 0;
    let gone = loop {
        if let Err(gone) = fixture.connection.tell(&event) {
            break gone;
        }
        told += 1;
        assert!(told < 10_000, "never dropped");
        if fixture.connection.output.len() > 2 * OUTPUT_PAUSE_BYTES {
            let interest = fixture.connection.new_interest();
            assert!(interest.is_none_or(|interest| interest == EventSet::OUT));
        }
    };
    assert_eq!(gone, Gone::TooSlow);
    assert!(told > OUTPUT_LIMIT_BYTES / 1100);
}

#[test]
fn a_closed_connection_is_noticed() {
    let mut fixture = negotiated();
    fixture.client.get_mut().shutdown(std::net::Shutdown::Both).unwrap();
    assert_eq!(fixture.connection.serve(EventSet::IN, &mut fixture.vm), Err(Gone::Closed));
}

fn mangled() -> impl Strategy<Value = Vec<u8>> {
    let command =
        r#"{"execute":"migrate","arguments":{"uri":"unix:x","parameters":{"downtime-limit":1}},"id":1}"#;
    proptest::collection::vec((0..command.len(), any::<u8>()), 0..6).prop_map(move |changes| {
        let mut bytes = command.as_bytes().to_vec();
        for (at, byte) in changes {
            bytes[at] = byte;
        }
        bytes
    })
}

proptest! {
    #[test]
    fn no_input_breaks_the_server(
        pieces in proptest::collection::vec(prop_oneof![mangled(), proptest::collection::vec(any::<u8>(), 0..200)], 1..8),
    ) {
        let mut fixture = negotiated();
        for piece in pieces {
            fixture.send(&piece);
        }
        // The reset byte, and the connection is as good as new.
        let answers = fixture.send(b"\xff{\"execute\":\"query-name\"}");
        prop_assert_eq!(answers, [json!({"return": {"name": "fake"}})]);
    }
}

#[test]
fn a_descriptor_is_kept_under_the_name_that_comes_with_it() {
    let mut fixture = negotiated();
    let (ours, passed) = UnixStream::pair().unwrap();
    let command = br#"{"execute": "getfd", "arguments": {"fdname": "passed-in-a-test"}}"#;
    fixture.client.get_ref().send_with_fd(&command[..], passed.as_raw_fd()).unwrap();
    drop(passed);
    fixture.connection.serve(EventSet::IN, &mut fixture.vm).unwrap();
    assert_eq!(fixture.receive(), [json!({"return": {}})]);
    // It is open until it is closed by its name.
    ours.set_nonblocking(true).unwrap();
    let open = (&ours).read(&mut [0; 1]).unwrap_err();
    assert_eq!(open.kind(), io::ErrorKind::WouldBlock);
    let close = br#"{"execute": "closefd", "arguments": {"fdname": "passed-in-a-test"}}"#;
    assert_eq!(fixture.send(close), [json!({"return": {}})]);
    assert_eq!((&ours).read(&mut [0; 1]).unwrap(), 0);
    let again = fixture.send(close);
    assert!(again[0]["error"]["desc"].as_str().unwrap().contains("passed with `getfd`"), "{again:?}");
    let alone = fixture.send(command);
    assert!(alone[0]["error"]["desc"].as_str().unwrap().contains("as SCM_RIGHTS"), "{alone:?}");
}
