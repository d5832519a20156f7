//! Peers that aren't tern, and machines that don't fit: refused with words that name both sides' values, and
//! nothing is lost on either.

use std::io::{Read, Write};
use std::net::TcpListener;
use std::os::unix::net::UnixStream;

use serde_json::{Value, json};
use tern_tests::{Incoming, PulseLog, Tern, TernBuilder, kvm_or_skip, migrate};

const WORDS: &str = "ws=1M rate=1000 interval=50";

/// The migration to `uri` fails, and the guest goes on; returns `error`.
fn fails(source: &Tern, uri: &str) -> Value {
    let mut here = source.qmp();
    here.execute("migrate", json!({ "uri": uri }));
    let answer = here.wait_migrate(&["failed"]);
    here.wait_state(&["running"]);
    let error = answer["report"]["error"].clone();
    assert!(answer["error-desc"].as_str().is_some_and(|text| !text.is_empty()), "{answer:#}");
    error
}

fn text(error: &Value) -> String {
    error["chain"].as_array().unwrap().iter().filter_map(Value::as_str).collect::<Vec<_>>().join(": ")
}

#[test]
fn a_peer_that_is_not_tern() {
    if !kvm_or_skip() {
        return;
    }
    let (source, destination) = Tern::pulse(WORDS).start_pair(Incoming::Unix);
    source.wait_beats(1, 2);
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let uri = format!("tcp:{}", listener.local_addr().unwrap());
    let stranger = std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        stream.write_all(b"SSH-2.0-OpenSSH_10.0\r\n").unwrap();
        // Whatever the source still says is read, so that it is the words that end it, not a reset.
        let _ = stream.read_to_end(&mut Vec::new());
    });
    let error = fails(&source, &uri);
    stranger.join().unwrap();
    assert_eq!(error["code"], "not-tern");
    assert!(text(&error).contains("SSH-2.0-") && text(&error).contains("TERN-MIG"), "{error:#}");
    // Nobody listens there any more.
    let error = fails(&source, &uri);
    assert_eq!(error["code"], "connect");
    assert!(text(&error).contains(&uri) && text(&error).contains("--incoming"), "{error:#}");
    migrate(&source, &destination);
    destination.wait_beats(1, 2);
    PulseLog::read(&(source.serial().text() + &destination.serial().text()));
}

/// The hello of a source, as a tern would answer it that speaks versions 90 to 99 only. Bytes: PROTOCOL.md.
fn hello_of_another_age(stream: &mut impl Read) -> Vec<u8> {
    const MAGIC_BYTES: usize = 8;
    const HEADER_BYTES: usize = 24;
    let mut bytes = vec![0; MAGIC_BYTES + HEADER_BYTES];
    stream.read_exact(&mut bytes).unwrap();
    let length = u32::from_le_bytes(bytes[MAGIC_BYTES + 12..][..4].try_into().unwrap());
    let mut body = vec![0; length as usize];
    stream.read_exact(&mut body).unwrap();
    // Fields 1 and 2 are the oldest and the newest version, one byte each behind their tags.
    assert_eq!((body[0], body[2]), (1 << 3, 2 << 3));
    (body[1], body[3]) = (90, 99);
    let mut crc = crc32fast::Hasher::new();
    crc.update(&bytes[MAGIC_BYTES..][..20]);
    crc.update(&body);
    bytes[MAGIC_BYTES + 20..].copy_from_slice(&crc.finalize().to_le_bytes());
    bytes.extend(body);
    bytes
}

#[test]
fn a_tern_of_another_age() {
    if !kvm_or_skip() {
        return;
    }
    let (source, destination) = Tern::pulse(WORDS).start_pair(Incoming::Unix);
    source.wait_beats(1, 2);
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let uri = format!("tcp:{}", listener.local_addr().unwrap());
    let stranger = std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        let answer = hello_of_another_age(&mut stream);
        stream.write_all(&answer).unwrap();
        let _ = stream.read_to_end(&mut Vec::new());
    });
    let error = fails(&source, &uri);
    stranger.join().unwrap();
    assert_eq!(error["code"], "protocol-version");
    assert!(text(&error).contains("90 to 99") && text(&error).contains("speaks 1 to 1"), "{error:#}");
    migrate(&source, &destination);
    destination.wait_beats(1, 2);
    PulseLog::read(&(source.serial().text() + &destination.serial().text()));
}

#[test]
fn garbage_into_a_destination() {
    if !kvm_or_skip() {
        return;
    }
    let (source, destination) = Tern::pulse(WORDS).start_pair(Incoming::Unix);
    let path = destination.uri().strip_prefix("unix:").unwrap().to_owned();
    let mut noise = 0x2545_f491_4f6c_dd1du64;
    let noise: Vec<u8> = std::iter::repeat_with(|| {
        noise ^= noise << 13;
        noise ^= noise >> 7;
        noise ^= noise << 17;
        noise as u8
    })
    .take(1 << 20)
    .collect();
    let header = |kind: u8, length: u32| {
        let mut header = [0u8; 24];
        header[0] = kind;
        header[12..16].copy_from_slice(&length.to_le_bytes());
        [&b"TERN-MIG"[..], &header].concat()
    };
    let streams = [
        Vec::new(),
        b"TERN".to_vec(),
        b"TERN-MIG".to_vec(),
        b"GET / HTTP/1.1\r\nHost: tern\r\n\r\n".to_vec(),
        noise.clone(),
        [b"TERN-MIG", &noise[..]].concat(),
        header(0, 0),
        header(255, 0),
        header(1, u32::MAX),
        header(1, 16),
        header(5, 64),
        header(7, 64 << 20),
        header(9, 0),
    ];
    for (number, stream) in streams.iter().enumerate() {
        let mut peer = UnixStream::connect(&path).unwrap();
        // The destination may have hung up already.
        let _ = peer.write_all(stream);
        let _ = peer.shutdown(std::net::Shutdown::Write);
        let _ = peer.read_to_end(&mut Vec::new());
        // It has hung up; the machine was not touched, and nothing has failed.
        let mut there = destination.qmp();
        assert_eq!((there.migrate_status(), there.state()), (String::new(), "inmigrate".into()), "{number}");
    }
    source.wait_beats(1, 2);
    let moved = migrate(&source, &destination);
    let report = &moved.destination["report"];
    assert_eq!(report["strangers"], streams.len() as u64, "{report:#}");
    assert!(!report["warnings"].as_array().unwrap().is_empty(), "{report:#}");
    destination.wait_beats(1, 2);
    PulseLog::read(&(source.serial().text() + &destination.serial().text()));
}

#[test]
fn a_machine_that_does_not_fit() {
    if !kvm_or_skip() {
        return;
    }
    let machine = || Tern::pulse(WORDS);
    let folder = tempfile::tempdir().unwrap();
    let disk = folder.path().join("disk");
    std::fs::File::create(&disk).unwrap().set_len(1 << 20).unwrap();
    let source = machine().start();
    source.wait_beats(1, 2);
    let cases: [(TernBuilder, &[&str]); 3] = [
        (machine().memory("128M"), &["memory", "64 MiB", "128 MiB"]),
        (machine().cpus(2), &["1", "2"]),
        (machine().disk(&disk), &["disk"]),
    ];
    for (other, expected) in cases {
        let destination = other.incoming(Incoming::Unix).start();
        let error = fails(&source, &destination.uri());
        assert_eq!(error["blame"], "incompatible", "{error:#}");
        for word in expected {
            assert!(text(&error).contains(word), "{word} is not in: {}", text(&error));
        }
        destination.qmp().wait_state(&["inmigrate"]);
    }
    let fits = machine().incoming(Incoming::Unix).start();
    migrate(&source, &fits);
    fits.wait_beats(1, 2);
    PulseLog::read(&(source.serial().text() + &fits.serial().text()));
}
