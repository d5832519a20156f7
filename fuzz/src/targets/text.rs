//! What people and programs write: commands, addresses, parameters.

use serde_json::Value;
use tern_migration::Parameters;
use tern_migration::channel::Uri;
use tern_vmm::control::fuzzing::talk;
use tern_vmm::vcpu::Profile;

use super::{Target, Verdict};
use crate::corpus;

/// The most that a socket takes at once without anybody reading.
const TALK_MAX_BYTES: usize = 64 << 10;

pub(super) fn targets() -> Vec<Target> {
    vec![
        Target::new("qmp", "all that a client of the control socket sends", (4 << 20, 128), qmp, || {
            lines(QMP)
        }),
        Target::new("uri", "the address of a peer or a file", (4096, 8), uri, || {
            lines(&[
                "tcp:host:4444",
                "tcp:[fe80::1]:65535",
                "unix:/run/tern.sock",
                "file:/run/guest",
                "vsock:2:4444",
                "vsock::1",
                "fd:7",
                "fd:name",
                "exec:ssh b socat - UNIX:/b",
            ])
        }),
        Target::new(
            "parameters",
            "a JSON object of migration parameters and capabilities",
            (64 << 10, 128),
            parameters,
            || lines(PARAMETERS),
        ),
        Target::new("cpu-profile", "a CPU profile's file", (256 << 10, 64), cpu_profile, || {
            ["x86-64-v1", "x86-64-v3"].iter().filter_map(|name| corpus::cpu_profile(name).ok()).collect()
        }),
    ]
}

const QMP: &[&str] = &[
    "{\"execute\": \"qmp_capabilities\"}\n{\"execute\": \"query-status\", \"id\": 7}\n{\"execute\": \"stop\"}",
    "{\"execute\":\"qmp_capabilities\"}{\"execute\":\"migrate\",\"arguments\":{\"uri\":\"tcp:h:1\",\"parameters\":\
     {\"downtime-limit\":5}}}{\"execute\":\"query-migrate\"}{\"execute\":\"migrate-set-parameters\",\"arguments\":\
     {\"max-bandwidth\":1048576}}",
    "{\"execute\":\"qmp_capabilities\"}nonsense\n{\"execute\":\"query-commands\"}",
];
const PARAMETERS: &[&str] = &[
    r#"{"max-bandwidth": 1048576, "downtime-limit": 300, "max-total-time": 0}"#,
    r#"{"capabilities": [{"capability": "events", "state": false}]}"#,
    r#"{"known": "/a,/b", "compress": "auto", "tls": "require", "postcopy": "manual"}"#,
];

fn lines(texts: &[&str]) -> Vec<Vec<u8>> {
    texts.iter().map(|text| text.as_bytes().to_vec()).collect()
}

/// Every answer is one line of JSON, and they are as many as the commands and faults can be.
fn qmp(bytes: &[u8]) -> Verdict {
    let Ok(heard) = talk(bytes.get(..TALK_MAX_BYTES).unwrap_or(bytes)) else { return Verdict::Refused };
    let answers: Vec<Value> = heard
        .lines()
        .map(|line| serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line}")))
        .collect();
    assert!(answers.len() <= bytes.len() + 1, "{} answers", answers.len());
    let with = |member: &str| answers.iter().filter(|answer| answer.get(member).is_some()).count();
    let (taken, refused, greetings) = (with("return"), with("error"), with("QMP"));
    assert_eq!(taken + refused + greetings, answers.len(), "an answer is neither: {heard}");
    assert!(greetings <= 1, "{heard}");
    Verdict::accepted(taken > 1)
}

/// A text that is an address is written as one that means the same.
fn uri(bytes: &[u8]) -> Verdict {
    let Ok(text) = str::from_utf8(bytes) else { return Verdict::Refused };
    match text.parse::<Uri>() {
        Ok(uri) => {
            assert_eq!(uri.to_string().parse::<Uri>().as_ref(), Ok(&uri));
            Verdict::Accepted
        }
        Err(error) => {
            assert!(error.to_string().contains("legal forms"));
            Verdict::Refused
        }
    }
}

/// All of a change is taken, or nothing.
fn parameters(bytes: &[u8]) -> Verdict {
    let Ok(Value::Object(changes)) = serde_json::from_slice(bytes) else { return Verdict::Refused };
    let defaults = Parameters::default();
    if let Err(error) = defaults.merged_at_destination(&changes) {
        assert!(!error.to_string().is_empty());
    }
    match defaults.merged(&changes) {
        Ok(merged) => {
            assert_eq!(merged.merged(&changes), Ok(merged));
            Verdict::Accepted
        }
        Err(_) => Verdict::Refused,
    }
}

/// What is taken is written, and read again as the same.
fn cpu_profile(bytes: &[u8]) -> Verdict {
    match Profile::parse(bytes) {
        Ok(profile) => {
            let again = Profile::parse(profile.to_json().as_bytes());
            assert!(
                again.is_ok_and(|again| again == profile),
                "a profile has changed: {}",
                profile.to_json()
            );
            Verdict::Accepted
        }
        Err(fault) => {
            assert!(!fault.to_string().is_empty());
            Verdict::Refused
        }
    }
}
